//! How much of the machine's memory is the hypervisor's.
//!
//! The tool makes the machine this much larger than the guest; the hypervisor lays itself out
//! within it.

/// Shadow frames in the pool if the user does not say.
pub const DEFAULT_SHADOW_FRAMES: u32 = 4096;

/// The fewest shadow frames that the shadow MMU works with.
pub const MIN_SHADOW_FRAMES: u32 = 48;

/// The least guest that boots anything, in MiB.
pub const MIN_GUEST_MIB: u32 = 16;

/// Guest RAM below 1 MiB ends here, as on a PC with an extended BIOS data area; the rest of it
/// starts at 1 MiB.
pub const CONVENTIONAL_END: u64 = 0x9fc00;

/// Bytes of the heap for what the shadow MMU keeps for each guest frame.
pub const HEAP_PER_GUEST_FRAME: u64 = 64;

/// Bytes of the heap for what the shadow MMU keeps for each shadow frame.
pub const HEAP_PER_SHADOW_FRAME: u64 = 8192;

/// Bytes of the heap for everything else.
pub const HEAP_BASE: u64 = 16 << 20;

/// Bytes of memory that stay unused before, between and, at least, behind the areas of the
/// hypervisor. A pattern in them shows whether anybody has written there.
pub const GUARD: u64 = 256 << 10;

/// Room for the hypervisor's image, the guest's firmware area, the guards and what the machine's
/// BIOS takes at the end of memory, in bytes. What is left over is guarded too.
const IMAGE_ROOM: u64 = 8 << 20;

const FRAME: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Where a PC's hole for devices starts, in MiB.
pub const HOLE_START_MIB: u64 = 3072;

/// Where it ends, in MiB, and memory goes on.
pub const HOLE_END_MIB: u64 = 4096;

/// Bytes of the heap for a guest whose highest frame ends at `guest_end`, with `shadow_frames` in
/// the pool. The frames of the hole count.
pub fn heap_bytes(guest_end: u64, shadow_frames: u64) -> u64 {
    HEAP_BASE
        + guest_end.div_ceil(FRAME) * HEAP_PER_GUEST_FRAME
        + shadow_frames * HEAP_PER_SHADOW_FRAME
}

/// The memory in MiB that a machine needs beside the guest's `memory_mib`, with `shadow_frames` in
/// the pool. The hypervisor lies below the hole, and what it takes from the guest there the guest
/// has above 4 GiB.
pub fn reserve_mib(memory_mib: u32, shadow_frames: Option<u32>) -> u64 {
    let shadow_frames = u64::from(shadow_frames.unwrap_or(DEFAULT_SHADOW_FRAMES));
    let with_end = |end_mib: u64| {
        (IMAGE_ROOM + shadow_frames * FRAME + heap_bytes(end_mib * MIB, shadow_frames))
            .div_ceil(MIB)
    };
    let memory = u64::from(memory_mib);
    let mut reserve = with_end(memory);
    if memory + reserve <= HOLE_START_MIB {
        return reserve;
    }
    // A frame costs a 64th of itself, so this comes to its end.
    loop {
        let end = memory + reserve + ALIGN_MIB + HOLE_END_MIB - HOLE_START_MIB;
        match with_end(end) {
            next if next <= reserve => return reserve + ALIGN_MIB,
            next => reserve = next,
        }
    }
}

/// The guest's memory below the hole is a multiple of this, so that large pages map it.
pub const ALIGN_MIB: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_grows_with_what_is_shadowed_and_never_overflows() {
        assert_eq!(reserve_mib(192, None), 8 + 16 + 3 + 16 + 32);
        assert_eq!(reserve_mib(192, Some(0)), 8 + 16 + 3);
        assert!(reserve_mib(u32::MAX, Some(u32::MAX)) > 1 << 25);
    }

    #[test]
    fn the_hole_costs_heap_once_it_is_within_the_guest() {
        let (below, above) = (reserve_mib(2900, None), reserve_mib(3072, None));
        assert!(above - below >= 1024 / 64, "{below} {above}");
        for memory in [3000, 5120, 65536, u32::MAX] {
            let reserve = reserve_mib(memory, None);
            let end = (u64::from(memory) + reserve + 1024) * MIB;
            assert!(reserve * MIB >= heap_bytes(end, 4096) + 4096 * FRAME + IMAGE_ROOM, "{memory}");
        }
    }
}

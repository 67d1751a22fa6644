//! How much of the machine's memory is the hypervisor's.
//!
//! The tool makes the machine this much larger than the guest; the hypervisor lays itself out within it.

/// Shadow frames in the pool if the user does not say.
pub const DEFAULT_SHADOW_FRAMES: u32 = 4096;

/// The fewest shadow frames that the shadow MMU works with.
pub const MIN_SHADOW_FRAMES: u32 = 48;

/// The least guest that boots anything, in MiB.
pub const MIN_GUEST_MIB: u32 = 16;

/// Guest RAM below 1 MiB ends here, as on a PC with an extended BIOS data area; the rest of it starts at 1 MiB.
pub const CONVENTIONAL_END: u64 = 0x9fc00;

/// Bytes of the heap for what the shadow MMU keeps for each guest frame.
pub const HEAP_PER_GUEST_FRAME: u64 = 64;

/// Bytes of the heap for what the shadow MMU keeps for each shadow frame.
pub const HEAP_PER_SHADOW_FRAME: u64 = 8192;

/// Bytes of the heap for everything else.
pub const HEAP_BASE: u64 = 16 << 20;

/// Bytes of memory that stay unused before, between and, at least, behind the areas of the hypervisor. A pattern in
/// them shows whether anybody has written there.
pub const GUARD: u64 = 256 << 10;

/// Room for the hypervisor's image, the guest's firmware area, the guards and what the machine's BIOS takes at the end
/// of memory, in bytes. What is left over is guarded too.
const IMAGE_ROOM: u64 = 8 << 20;

const FRAME: u64 = 4096;
const MIB: u64 = 1 << 20;

/// The memory in MiB that a machine needs beside the guest's `memory_mib`, with `shadow_frames` in the pool.
pub fn reserve_mib(memory_mib: u32, shadow_frames: Option<u32>) -> u64 {
    let guest_frames = u64::from(memory_mib) * MIB / FRAME;
    let shadow_frames = u64::from(shadow_frames.unwrap_or(DEFAULT_SHADOW_FRAMES));
    let heap = HEAP_BASE + guest_frames * HEAP_PER_GUEST_FRAME + shadow_frames * HEAP_PER_SHADOW_FRAME;
    (IMAGE_ROOM + shadow_frames * FRAME + heap).div_ceil(MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_grows_with_what_is_shadowed_and_never_overflows() {
        assert_eq!(reserve_mib(192, None), 8 + 16 + 3 + 16 + 32);
        assert_eq!(reserve_mib(192, Some(0)), 8 + 16 + 3);
        assert!(reserve_mib(u32::MAX, Some(u32::MAX)) > 1 << 25);
    }
}

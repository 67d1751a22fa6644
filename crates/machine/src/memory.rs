//! Who owns which physical memory: the guest from 0 up, the hypervisor above it.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use umbra_mmu::Backing;
use umbra_paging::{Gfn, Hfn};
use umbra_telemetry::memory::{
    ALIGN_MIB, CONVENTIONAL_END, DEFAULT_SHADOW_FRAMES, GUARD, MIN_GUEST_MIB, heap_bytes,
};

/// Bytes in a frame.
pub const FRAME: u64 = 4096;

const MIB: u64 = 1 << 20;

/// Guest RAM below 1 MiB, frames included that are only partly reported as RAM. It is backed out of
/// the hypervisor's reserve: the machine's own firmware keeps data there, and nobody knows how
/// much.
pub const CONVENTIONAL: Range<u64> = 0..0xa0000;

/// Where a PC has its video memory. It is plain RAM here, out of the hypervisor's reserve: a guest
/// that writes text there does so without an exit. A VGA's planes and latches do not exist.
pub const VIDEO: Range<u64> = 0xa0000..0xc0000;

/// The guest's memory below 1 MiB. None of it lies at host-physical = guest-physical.
const LOW: [Range<u64>; 3] = [CONVENTIONAL, VIDEO, FIRMWARE];

/// The part of [`VIDEO`] that holds text in mode 3.
pub const TEXT: Range<u64> = 0xb8000..0xc0000;

/// Where a PC has its BIOS: plain RAM here, out of the hypervisor's reserve, for the ACPI tables.
pub const FIRMWARE: Range<u64> = 0xe0000..0x100000;

/// What the guest's e820 map calls RAM below 1 MiB: without the extended BIOS data area, as on a
/// PC.
const REPORTED_CONVENTIONAL: Range<u64> = 0..CONVENTIONAL_END;

/// Why memory cannot be laid out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The machine has no RAM at 1 MiB.
    #[error("the machine reports no memory at 1 MiB; this hypervisor needs a PC memory map")]
    NoMemory,
    /// A guest too small.
    #[error("{0} MiB of guest memory are too few; give --memory {MIN_GUEST_MIB} or more")]
    GuestTooSmall(u32),
    /// No room for guest and hypervisor.
    #[error(
        "guest memory of {guest} MiB and {reserve} MiB for the hypervisor do not fit into the machine's \
         {below} MiB below 4 GiB and {above} MiB above; give a smaller --memory or --shadow-frames"
    )]
    TooLittle {
        /// Guest memory in MiB.
        guest: u64,
        /// What the hypervisor needs, in MiB.
        reserve: u64,
        /// What there is below 4 GiB, in MiB.
        below: u64,
        /// What there is above it, in MiB.
        above: u64,
    },
    /// The loader used memory that is to become the hypervisor's.
    #[error(
        "the boot loader put {0} into the top of memory, where the hypervisor goes; give a larger --memory"
    )]
    InTheWay(String),
}

/// Where memory goes on above the hole for devices.
const ABOVE: u64 = 4 << 30;

/// The physical memory map: `[0, guest_end)` for the guest (with the holes of a PC), the hypervisor
/// above it. What lies between the areas above, and behind them, is nobody's. A guest that does not
/// fit there has the rest of its memory from 4 GiB up.
///
/// Unsafe code rests on this type: its areas are RAM of the loader's map, in nobody's use, and do
/// not overlap. Its fields are private, and [`Layout::new`] alone makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    guest_end: u64,
    /// The guest's memory from 4 GiB up, often none.
    above: Range<u64>,
    upper: Range<u64>,
    image: Range<u64>,
    pool: Range<u64>,
    heap: Range<u64>,
    ram_end: u64,
}

impl Layout {
    /// Lays out a machine.
    ///
    /// `ram`: available memory as the loader reports it. `occupied`: what the loader has put into
    /// memory, with a name for each. `image`: bytes of the hypervisor, a multiple of [`FRAME`].
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn new(
        ram: &[Range<u64>],
        occupied: &[(&str, Range<u64>)],
        memory_mib: u32,
        image: u64,
        shadow_frames: Option<u32>,
    ) -> Result<Layout, LayoutError> {
        if memory_mib < MIN_GUEST_MIB {
            return Err(LayoutError::GuestTooSmall(memory_mib));
        }
        let below =
            ram.iter().find(|r| r.contains(&MIB)).ok_or(LayoutError::NoMemory)?.end.min(ABOVE);
        let ram_end = below / FRAME * FRAME;
        let room_above = ram.iter().find(|r| r.contains(&ABOVE)).map_or(0, |r| r.end - ABOVE);
        let guest = u64::from(memory_mib) * MIB;
        let pool = u64::from(shadow_frames.unwrap_or(DEFAULT_SHADOW_FRAMES)) * FRAME;
        let upper = LOW.iter().map(|range| range.end - range.start).sum::<u64>();
        let heap = |guest_end| heap_bytes(guest_end, pool / FRAME).next_multiple_of(FRAME);
        let reserve = |guest_end| upper + image + pool + heap(guest_end) + 5 * GUARD;
        let (mut guest_end, mut end) = (guest, guest);
        // What the hypervisor needs grows with the guest's end, and takes more of the guest's
        // memory up there. A frame costs a 64th of itself, so this comes to its end.
        while guest_end + reserve(end) > ram_end {
            guest_end =
                ram_end.saturating_sub(reserve(end)) / (ALIGN_MIB * MIB) * (ALIGN_MIB * MIB);
            end = ABOVE + (guest - guest_end);
            if end - ABOVE > room_above || guest_end < u64::from(MIN_GUEST_MIB) * MIB {
                let end = if room_above == 0 { guest } else { end };
                return Err(LayoutError::TooLittle {
                    guest: guest / MIB,
                    reserve: reserve(end).div_ceil(MIB),
                    below: ram_end / MIB,
                    above: room_above / MIB,
                });
            }
        }
        let heap = heap(end);
        if let Some((name, _)) = occupied.iter().find(|(_, range)| range.end > guest_end) {
            return Err(LayoutError::InTheWay(String::from(*name)));
        }
        let behind = |end, bytes| end + GUARD..end + GUARD + bytes;
        let upper = behind(guest_end, upper);
        let image = behind(upper.end, image);
        let pool = behind(image.end, pool);
        let heap = behind(pool.end, heap);
        let above = ABOVE..ABOVE + (guest - guest_end);
        Ok(Layout { guest_end, above, upper, image, pool, heap, ram_end })
    }

    /// The guest's memory from 4 GiB up.
    pub fn above(&self) -> Range<u64> {
        self.above.clone()
    }

    /// One past the guest's highest RAM below 4 GiB.
    pub fn guest_end(&self) -> u64 {
        self.guest_end
    }

    /// What backs the guest's memory below 1 MiB: [`CONVENTIONAL`], [`VIDEO`], then [`FIRMWARE`].
    pub fn upper(&self) -> Range<u64> {
        self.upper.clone()
    }

    /// Where the hypervisor image goes.
    pub fn image(&self) -> Range<u64> {
        self.image.clone()
    }

    /// The shadow frames.
    pub fn pool(&self) -> Range<u64> {
        self.pool.clone()
    }

    /// The heap, and the hypervisor's page tables at its start.
    pub fn heap(&self) -> Range<u64> {
        self.heap.clone()
    }

    /// What is nobody's: before, between and behind the areas of the hypervisor.
    pub fn spare(&self) -> [Range<u64>; 5] {
        let areas = [&self.upper, &self.image, &self.pool, &self.heap];
        let start =
            |gap: usize| gap.checked_sub(1).map_or(self.guest_end, |before| areas[before].end);
        core::array::from_fn(|gap| {
            start(gap)..areas.get(gap).map_or(self.ram_end, |behind| behind.start)
        })
    }

    /// The guest's view.
    pub fn guest_map(&self) -> GuestMap {
        let mut frames: Vec<u32> = (0..(self.guest_end / FRAME) as u32).collect();
        if !self.above.is_empty() {
            frames.resize((ABOVE / FRAME) as usize, GuestMap::NOTHING);
            frames.extend((self.above.start / FRAME) as u32..(self.above.end / FRAME) as u32);
        }
        let of = |range: Range<u64>| (range.start / FRAME) as usize..(range.end / FRAME) as usize;
        let mut backing = (self.upper.start / FRAME) as u32..;
        frames[of(VIDEO.end..FIRMWARE.start)].fill(GuestMap::NOTHING);
        for range in LOW {
            frames[of(range)].iter_mut().zip(&mut backing).for_each(|(frame, hfn)| *frame = hfn);
        }
        GuestMap { frames, guest_end: self.guest_end, above: self.above.clone() }
    }
}

/// The map from guest-physical to host-physical frames: identity, but for upper memory and for
/// frames that have changed places with a shadow page.
#[derive(Debug)]
pub struct GuestMap {
    /// By gfn: the host frame, or [`GuestMap::NOTHING`].
    frames: Vec<u32>,
    guest_end: u64,
    above: Range<u64>,
}

impl GuestMap {
    const NOTHING: u32 = u32::MAX;

    /// One past the highest frame that can be RAM.
    pub fn end(&self) -> Gfn {
        Gfn::new(self.frames.len() as u64)
    }

    /// What backs a frame.
    #[inline]
    pub fn backing(&self, gfn: Gfn) -> Backing {
        match self.frames.get(gfn.raw() as usize) {
            None | Some(&GuestMap::NOTHING) => Backing::None,
            Some(&hfn) => Backing::Ram { hfn: Hfn::new(hfn.into()), writable: true },
        }
    }

    /// From now on another host frame backs a frame of RAM: the one that backed it before.
    ///
    /// # Panics
    /// It is no RAM.
    pub fn replace(&mut self, gfn: Gfn, hfn: Hfn) -> Hfn {
        let frame = &mut self.frames[gfn.raw() as usize];
        assert!(*frame != GuestMap::NOTHING, "only RAM changes places");
        Hfn::new(core::mem::replace(frame, hfn.raw() as u32).into())
    }

    /// Whether a range is writable RAM at host-physical = guest-physical.
    pub fn is_plain(&self, range: &Range<u64>) -> bool {
        let Some(end) = range.end.checked_next_multiple_of(FRAME) else { return false };
        let (start, end) = (range.start / FRAME, end / FRAME);
        let own =
            |gfn: u64| self.frames.get(gfn as usize).is_some_and(|&hfn| u64::from(hfn) == gfn);
        start >= end || end <= self.frames.len() as u64 && (start..end).all(own)
    }

    /// What the guest's e820 map calls RAM below 4 GiB. Upper memory and the extended BIOS data
    /// area are not.
    pub fn reported_ram(&self) -> [Range<u64>; 2] {
        [REPORTED_CONVENTIONAL, MIB..self.guest_end]
    }

    /// RAM from 4 GiB up.
    pub fn above(&self) -> Range<u64> {
        self.above.clone()
    }

    /// The guest's memory map in ascending order: areas, and whether they are RAM for the guest to
    /// use.
    pub fn regions(&self) -> Vec<(Range<u64>, bool)> {
        memory_map(&self.reported_ram(), &self.above)
    }
}

/// The memory map around RAM below and above 1 MiB and from 4 GiB up: areas, and whether they are
/// RAM for the guest to use.
pub fn memory_map([low, high]: &[Range<u64>; 2], above: &Range<u64>) -> Vec<(Range<u64>, bool)> {
    let below = [
        (low.clone(), true),
        (low.end..CONVENTIONAL.end, false),
        (FIRMWARE, false),
        (high.clone(), true),
    ];
    let above = (!above.is_empty()).then(|| (above.clone(), true));
    below.into_iter().chain(above).collect()
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use umbra_paging::{Gpa, Hpa};

    use super::*;

    const IMAGE: u64 = 0x15_0000;

    fn writable(hfn: Hfn) -> Backing {
        Backing::Ram { hfn, writable: true }
    }

    fn ram(mib: u64) -> [Range<u64>; 2] {
        [0..0x9fc00, MIB..mib * MIB - 0x10000]
    }

    fn frame(gpa: u64) -> Gfn {
        Gpa::new(gpa).gfn()
    }

    #[test]
    fn nothing_overlaps_and_the_hypervisor_is_above_the_guest() {
        for (machine, guest, frames) in
            [(384, 256, None), (256, 64, Some(1000)), (3328, 2944, Some(20_000))]
        {
            let layout = Layout::new(&ram(machine), &[], guest, IMAGE, frames).unwrap();
            assert_eq!(layout.guest_end(), u64::from(guest) * MIB);
            assert_eq!(layout.image().end - layout.image().start, IMAGE);
            assert_eq!(
                layout.pool().end - layout.pool().start,
                u64::from(frames.unwrap_or(4096)) * FRAME
            );
            let spare = layout.spare();
            let areas = [layout.upper(), layout.image(), layout.pool(), layout.heap()];
            let mut parts: Vec<_> = areas.into_iter().chain(spare.clone()).collect();
            parts.sort_by_key(|part| part.start);
            let mut end = layout.guest_end();
            for part in parts {
                assert!(
                    part.start == end && part.end > part.start && part.start % FRAME == 0,
                    "{part:x?}"
                );
                end = part.end;
            }
            assert_eq!(end, machine * MIB - 0x10000);
            assert!(spare.iter().all(|gap| gap.end - gap.start >= GUARD), "{spare:x?}");
        }
    }

    /// A PC with a hole below 4 GiB.
    fn large(below: u64, above: u64) -> [Range<u64>; 3] {
        [0..0x9fc00, MIB..below * MIB - 0x10000, 4096 * MIB..(4096 + above) * MIB]
    }

    #[test]
    fn what_does_not_fit_below_the_hole_goes_above_it() {
        for (below, above, guest) in [(3072, 3072, 5120), (3072, 1024, 3072), (2048, 65536, 60_000)]
        {
            let layout = Layout::new(&large(below, above), &[], guest, IMAGE, None).unwrap();
            let (low, high) = (layout.guest_end(), layout.above());
            assert_eq!(low + (high.end - high.start), u64::from(guest) * MIB, "nothing is lost");
            assert!(low.is_multiple_of(2 * MIB) && high.start == 4096 * MIB && !high.is_empty());
            assert!(
                layout.heap().end + GUARD <= below * MIB - 0x10000,
                "the hypervisor lies below the hole"
            );
            assert!(layout.heap().end - layout.heap().start >= heap_bytes(high.end, 4096));
            let map = layout.guest_map();
            assert_eq!(map.end().base().raw(), high.end);
            let last = high.end - FRAME;
            assert_eq!(map.backing(frame(last)), writable(Hpa::new(last).hfn()));
            for hole in
                [low, layout.image().start, layout.heap().start, 4096 * MIB - FRAME, high.end]
            {
                assert_eq!(map.backing(frame(hole)), Backing::None, "{hole:#x}");
            }
            assert_eq!(map.regions().last(), Some(&(high, true)));
        }
    }

    #[test]
    fn what_the_machine_has_not_is_refused_by_what_it_has() {
        let refuse = |guest| {
            Layout::new(&large(3072, 2048), &[], guest, IMAGE, None).unwrap_err().to_string()
        };
        let sentence = refuse(1 << 20);
        assert!(
            sentence.contains("1048576 MiB") && sentence.contains("2048 MiB above"),
            "{sentence}"
        );
        assert!(Layout::new(&large(3072, 2048), &[], 5200, IMAGE, None).is_err());
        assert!(Layout::new(&large(3072, 2048), &[], 4900, IMAGE, None).is_ok());
    }

    #[test]
    fn every_backing_frame_is_the_guests_own() {
        let layout = Layout::new(&ram(128), &[], 32, IMAGE, Some(16)).unwrap();
        let map = layout.guest_map();
        let mut seen = std::collections::BTreeSet::new();
        for gfn in 0..=0x10_0000 {
            if let Backing::Ram { hfn, writable } = map.backing(Gfn::new(gfn)) {
                assert!(writable && seen.insert(hfn), "{hfn:?} twice");
                let hpa = hfn.base().raw();
                let own = (MIB..layout.guest_end()).contains(&hpa);
                assert!(own || layout.upper().contains(&hpa), "{hpa:#x}");
            }
        }
        assert_eq!(seen.len() as u64, 32 * MIB / FRAME - 0x20);
        let upper = |offset| writable(Hpa::new(layout.upper().start + offset).hfn());
        for gpa in [0, 0x1000, 0x9f000, 0xa0000, 0xb8000] {
            assert_eq!(map.backing(frame(gpa)), upper(gpa));
        }
        assert_eq!(map.backing(frame(0xe0000)), upper(0xc0000));
        for gpa in [0xc0000, 0xdf000] {
            assert_eq!(map.backing(frame(gpa)), Backing::None, "no option ROM");
        }
        assert_eq!(map.backing(Gfn::new(u64::MAX)), Backing::None);
    }

    #[test]
    fn upper_memory_is_no_ram_for_the_guest_to_use() {
        let map = Layout::new(&ram(128), &[], 32, IMAGE, Some(16)).unwrap().guest_map();
        for (range, usable) in map.regions() {
            assert!(
                !usable || range.end <= VIDEO.start || range.start >= FIRMWARE.end,
                "{range:x?}"
            );
        }
    }

    #[test]
    fn frames_change_places() {
        let mut map = Layout::new(&ram(128), &[], 32, IMAGE, Some(16)).unwrap().guest_map();
        let (gfn, elsewhere) = (Gfn::new(0x800), Hfn::new(0x7000));
        assert_eq!(map.replace(gfn, elsewhere), Hfn::new(0x800));
        assert_eq!(map.backing(gfn), writable(elsewhere));
        assert!(!map.is_plain(&(8 * MIB..8 * MIB + 1)));
        assert_eq!(map.replace(gfn, Hfn::new(0x800)), elsewhere);
        assert!(map.is_plain(&(8 * MIB..8 * MIB + 1)));
    }

    #[test]
    fn plain_ranges() {
        let map = Layout::new(&ram(128), &[], 32, IMAGE, Some(16)).unwrap().guest_map();
        for (range, plain) in [
            (MIB..32 * MIB, true),
            (MIB..32 * MIB + 1, false),
            (0xff000..0x101000, false),
            (0x9f000..0xa0000, false),
            (0..0, true),
            (MIB..u64::MAX, false),
        ] {
            assert_eq!(map.is_plain(&range), plain, "{range:x?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refuse = |machine, guest, occupied: &[(&str, Range<u64>)]| {
            Layout::new(&ram(machine), occupied, guest, IMAGE, None).unwrap_err()
        };
        assert_eq!(refuse(128, 8, &[]), LayoutError::GuestTooSmall(8));
        let too_little = LayoutError::TooLittle { guest: 256, reserve: 72, below: 255, above: 0 };
        assert_eq!(refuse(256, 256, &[]), too_little);
        assert!(matches!(refuse(256, u32::MAX, &[]), LayoutError::TooLittle { .. }));
        let high = ("initrd", 60 * MIB..65 * MIB);
        assert_eq!(refuse(256, 64, &[high]), LayoutError::InTheWay("initrd".into()));
        assert_eq!(Layout::new(&[], &[], 64, IMAGE, None), Err(LayoutError::NoMemory));
        assert_eq!(Layout::new(&ram(256)[..1], &[], 64, IMAGE, None), Err(LayoutError::NoMemory));
    }
}

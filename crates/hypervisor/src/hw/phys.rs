//! Physical memory: through the direct map, in portions that have one owner each.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use umbra_machine::canary::Area;
use umbra_machine::memory::{FRAME, GuestMap, Layout};
use umbra_mmu::{Backing, ShadowFrame};
use umbra_paging::{Gfn, Gpa, Hpa};

use super::image;

/// Where physical address 0 is mapped.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;

/// What the boot tables map.
pub const BOOT_MAP_END: u64 = 4 << 30;

/// One past the highest physical address that is mapped.
static DIRECT_MAP_END: AtomicU64 = AtomicU64::new(BOOT_MAP_END);

/// From now on the direct map reaches to `end`.
///
/// # Safety
/// It does.
pub unsafe fn set_direct_map_end(end: u64) {
    DIRECT_MAP_END.store(end, Ordering::Relaxed);
}

/// Physical memory that is mapped and nobody's: whoever has it may use it.
pub struct Unused(Range<u64>);

impl Unused {
    /// # Safety
    /// The range is RAM in no use, and is given to nobody else.
    pub unsafe fn new(range: Range<u64>) -> Unused {
        Unused(range)
    }

    /// Where it lies.
    pub fn into_range(self) -> Range<u64> {
        self.0
    }
}

/// The right to all physical memory: there is one, and [`DirectMap::hand_out`] ends it.
pub struct DirectMap(());

impl DirectMap {
    /// # Safety
    /// The first 4 GiB of physical memory are mapped at [`DIRECT_MAP`]; called once.
    pub unsafe fn assume() -> DirectMap {
        DirectMap(())
    }

    /// Where a physical address is mapped.
    ///
    /// # Panics
    /// It is not mapped.
    pub fn pointer(&self, hpa: u64) -> *mut u8 {
        pointer(hpa)
    }

    /// Reads a word.
    ///
    /// # Safety
    /// The word is aligned and RAM.
    pub unsafe fn read(&self, hpa: u64) -> u64 {
        // SAFETY: the caller's.
        unsafe { self.pointer(hpa).cast::<u64>().read_volatile() }
    }

    /// Writes a word.
    ///
    /// # Safety
    /// The word is aligned, RAM, and in no use.
    pub unsafe fn write(&self, hpa: u64, value: u64) {
        // SAFETY: the caller's.
        unsafe { self.pointer(hpa).cast::<u64>().write_volatile(value) }
    }

    /// Fills with zeros.
    ///
    /// # Safety
    /// The range is RAM in no use.
    pub unsafe fn zero(&self, range: Range<u64>) {
        // SAFETY: the caller's.
        unsafe {
            ptr::write_bytes(self.pointer(range.start), 0, (range.end - range.start) as usize)
        }
    }

    /// Copies memory into the heap.
    ///
    /// # Safety
    /// The range is RAM that nothing writes meanwhile.
    pub unsafe fn copy(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = alloc::vec![0; (range.end - range.start) as usize];
        // SAFETY: the caller's; the destination is new.
        unsafe {
            ptr::copy_nonoverlapping(self.pointer(range.start), bytes.as_mut_ptr(), bytes.len())
        };
        bytes
    }

    /// Gives each of the guest and the shadow MMU its memory, and the canary what is nobody's.
    pub fn hand_out(self, layout: &Layout) -> (GuestRam, FramePool, Vec<SpareArea>) {
        let pool = layout.pool();
        // So that no access looks at it again.
        for end in layout.spare().map(|range| range.end).into_iter().chain([layout.above().end]) {
            assert!(end <= DIRECT_MAP_END.load(Ordering::Relaxed), "{UNMAPPED}");
        }
        // SAFETY: the layout gives the pool to nobody else.
        unsafe { self.zero(pool.clone()) };
        // SAFETY: as above, for what backs the guest's upper memory.
        unsafe { self.zero(layout.upper()) };
        let count = (pool.end - pool.start) / FRAME;
        let hpas = (0..count).map(|n| pool.start + n * FRAME).collect();
        let pool = FramePool { start: pool.start, hpas };
        let spare = layout.spare().map(|range| SpareArea { range }).into();
        (GuestRam { map: layout.guest_map() }, pool, spare)
    }
}

const UNMAPPED: &str = "the direct map reaches to all memory in use";

fn pointer(hpa: u64) -> *mut u8 {
    assert!(hpa < DIRECT_MAP_END.load(Ordering::Relaxed), "{UNMAPPED}");
    handed_out(hpa)
}

/// [`pointer`] to memory that was handed out: [`DirectMap::hand_out`] has checked that it is
/// mapped.
fn handed_out(hpa: u64) -> *mut u8 {
    ptr::with_exposed_provenance_mut((DIRECT_MAP + hpa) as usize)
}

/// Where the entries of a paging structure of the hypervisor are mapped.
pub(super) fn host_table(hpa: u64) -> *mut u64 {
    pointer(hpa & !(FRAME - 1)).cast()
}

/// The guest's memory. Reads and writes never leave what the map backs, and never make references
/// to it: its bytes are the guest's, and may be anything at any time.
pub struct GuestRam {
    map: GuestMap,
}

impl GuestRam {
    /// The map from guest-physical frames to what backs them.
    pub fn map(&self) -> &GuestMap {
        &self.map
    }

    /// Where `length` bytes at `gpa`, which do not leave its page, are mapped.
    #[inline]
    fn pointer(&self, gpa: Gpa, length: usize, write: bool) -> Option<*mut u8> {
        assert!(gpa.page_offset() + length as u64 <= FRAME, "an access stays within one page");
        match self.map.backing(gpa.gfn()) {
            Backing::Ram { hfn, writable } if writable || !write => {
                Some(handed_out(hfn.base().raw() + gpa.page_offset()))
            }
            _ => None,
        }
    }

    #[inline]
    fn entry(&self, gpa: Gpa) -> Option<&AtomicU64> {
        assert!(gpa.raw().is_multiple_of(8), "an entry is aligned");
        let pointer = self.pointer(gpa, 8, false)?;
        // SAFETY: aligned, mapped for ever, and the guest's RAM, to which no other reference
        // exists. On the one CPU no other access of `GuestRam`, atomic or not, happens at the same
        // time.
        Some(unsafe { AtomicU64::from_ptr(pointer.cast()) })
    }

    /// Reads a word at an 8-byte boundary in one piece. No memory reads as all ones, as on a bus.
    #[inline]
    pub fn read_entry(&self, gpa: Gpa) -> u64 {
        self.entry(gpa).map_or(u64::MAX, |entry| entry.load(Ordering::SeqCst))
    }

    /// Reads 8 entries of the table in a frame, each in one piece. No memory reads as all ones.
    pub fn read_entries(&self, gfn: Gfn, first: usize) -> [u64; 8] {
        assert!(first + 8 <= 512, "a table has 512 entries");
        let Some(table) = self.pointer(gfn.base(), FRAME as usize, false) else {
            return [u64::MAX; 8];
        };
        let at = table.cast::<u64>().wrapping_add(first);
        core::array::from_fn(|n| {
            // SAFETY: as in `entry`: aligned, and within one frame of the guest's RAM.
            unsafe { AtomicU64::from_ptr(at.wrapping_add(n)) }.load(Ordering::Relaxed)
        })
    }

    /// Which groups of 8 entries of the table in a frame are not as in `known`, a bit for each.
    /// Each entry is read in one piece. No memory reads as all ones.
    pub fn compare_table(&self, gfn: Gfn, known: &[[u64; 8]; 64]) -> u64 {
        let Some(table) = self.pointer(gfn.base(), FRAME as usize, false) else {
            return known
                .iter()
                .rev()
                .fold(0, |all, known| all << 1 | u64::from(*known != [u64::MAX; 8]));
        };
        let table = table.cast::<u64>();
        let mut differs = 0;
        for (group, known) in known.iter().enumerate().rev() {
            let at = table.wrapping_add(8 * group);
            let mut bits = 0;
            for (n, known) in known.iter().enumerate() {
                // SAFETY: as in `entry`: aligned, and within one frame of the guest's RAM.
                bits |= unsafe { AtomicU64::from_ptr(at.wrapping_add(n)) }.load(Ordering::Relaxed)
                    ^ known;
            }
            differs = differs << 1 | u64::from(bits != 0);
        }
        differs
    }

    /// Replaces `old` by `new` in one piece at an 8-byte boundary: for accessed and dirty bits,
    /// which the CPU sets in read-only memory too. Where there is no memory, the write is lost.
    ///
    /// # Errors
    /// What was there instead of `old`.
    pub fn compare_exchange_entry(&mut self, gpa: Gpa, old: u64, new: u64) -> Result<(), u64> {
        match self.entry(gpa) {
            Some(entry) => {
                entry.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).map(|_| ())
            }
            None => Ok(()),
        }
    }

    /// Writes within one page; an aligned word of 1, 2, 4 or 8 bytes in one piece. A write to no
    /// memory, or to read-only memory, is lost.
    pub fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        let Some(to) = self.pointer(gpa, bytes.len(), true) else { return };
        // SAFETY: `pointer` checked the bounds; the casts are to words at which the address is
        // aligned.
        unsafe {
            match *bytes {
                [a] => to.write_volatile(a),
                [a, b] if gpa.raw().is_multiple_of(2) => {
                    to.cast::<u16>().write_volatile(u16::from_le_bytes([a, b]))
                }
                [a, b, c, d] if gpa.raw().is_multiple_of(4) => {
                    to.cast::<u32>().write_volatile(u32::from_le_bytes([a, b, c, d]));
                }
                [a, b, c, d, e, f, g, h] if gpa.raw().is_multiple_of(8) => {
                    to.cast::<u64>().write_volatile(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
                }
                _ => ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()),
            }
        }
    }

    /// Reads within one page. No memory reads as all ones.
    pub fn read(&self, gpa: Gpa, bytes: &mut [u8]) {
        match self.pointer(gpa, bytes.len(), false) {
            // SAFETY: `pointer` checked the bounds, and guest memory is never `bytes`.
            Some(from) => unsafe {
                ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len())
            },
            None => bytes.fill(0xff),
        }
    }

    /// The 16 bytes of code at `hpa`, if they lie within one page, at its own place in the guest's
    /// memory.
    #[inline]
    pub fn code(&self, hpa: Hpa) -> Option<u128> {
        const LENGTH: u64 = size_of::<u128>() as u64;
        let own = Backing::Ram { hfn: hpa.hfn(), writable: true };
        if hpa.raw() % FRAME > FRAME - LENGTH || self.map.backing(Gfn::new(hpa.hfn().raw())) != own
        {
            return None;
        }
        // SAFETY: mapped for ever, and the guest's memory, as just checked; any bytes are a valid
        // value.
        Some(unsafe { handed_out(hpa.raw()).cast::<u128>().read_unaligned() })
    }

    /// Writes at boot, across pages.
    pub fn load(&mut self, gpa: Gpa, bytes: &[u8]) {
        let mut at = gpa.raw();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min((FRAME - at % FRAME) as usize));
            self.write(Gpa::new(at), now);
            at += now.len() as u64;
            rest = later;
        }
    }

    /// Moves bytes within the guest's memory at boot; the ranges may overlap.
    ///
    /// # Panics
    /// If one of the ranges is not identity-mapped RAM.
    pub fn shift(&mut self, from: Gpa, to: Gpa, length: u64) {
        for start in [from, to] {
            assert!(
                self.map.is_plain(&(start.raw()..start.raw() + length)),
                "a module moves within guest RAM"
            );
        }
        // SAFETY: both ranges are guest RAM at host-physical = guest-physical, as just checked.
        unsafe { ptr::copy(handed_out(from.raw()), handed_out(to.raw()), length as usize) }
    }
}

/// The shadow MMU's frames.
pub struct FramePool {
    start: u64,
    /// Where each lies: behind each other from `start` on, but for those that have changed places
    /// with a guest frame.
    hpas: Vec<u64>,
}

impl FramePool {
    /// How many frames there are.
    pub fn count(&self) -> u32 {
        self.hpas.len() as u32
    }

    /// Where a frame lies.
    ///
    /// # Panics
    /// There is no such frame.
    pub fn hpa(&self, frame: ShadowFrame) -> Hpa {
        Hpa::new(self.hpas[frame.index()])
    }

    /// The frame at a place that [`FramePool::hpa`] gave when nothing had changed places yet.
    ///
    /// # Panics
    /// There is none.
    pub fn frame(&self, hpa: Hpa) -> ShadowFrame {
        let number = hpa.raw().checked_sub(self.start).map(|offset| offset / FRAME);
        number
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| *n < self.count())
            .map(ShadowFrame::new)
            .expect("a shadow frame of this pool")
    }

    fn entry(&self, frame: ShadowFrame, index: usize) -> &AtomicU64 {
        assert!(index < 512, "a table has 512 entries");
        let pointer = handed_out(self.hpa(frame).raw()).cast::<u64>().wrapping_add(index);
        // SAFETY: aligned, mapped for ever, the pool's own; the CPU that walks the tables reads
        // words too.
        unsafe { AtomicU64::from_ptr(pointer) }
    }

    /// Exchanges the places, and the contents, of a shadow frame and of a guest frame. False if
    /// that one is no RAM.
    pub fn swap_frames(&mut self, frame: ShadowFrame, ram: &mut GuestRam, gfn: Gfn) -> bool {
        let Backing::Ram { hfn: guest, .. } = ram.map.backing(gfn) else { return false };
        let shadow = self.hpa(frame);
        let (a, b) =
            (handed_out(shadow.raw()).cast::<u64>(), handed_out(guest.base().raw()).cast::<u64>());
        for word in 0..FRAME as usize / 8 {
            // SAFETY: aligned, mapped for ever, and two different frames: the pool's own and the
            // guest's. Both are borrowed exclusively, and the one CPU is not in the guest.
            unsafe {
                let (x, y) = (a.wrapping_add(word), b.wrapping_add(word));
                let (of_a, of_b) = (x.read_volatile(), y.read_volatile());
                x.write_volatile(of_b);
                y.write_volatile(of_a);
            }
        }
        self.hpas[frame.index()] = guest.base().raw();
        ram.map.replace(gfn, shadow.hfn());
        true
    }

    /// Reads an entry.
    pub fn read(&self, frame: ShadowFrame, index: usize) -> u64 {
        self.entry(frame, index).load(Ordering::Relaxed)
    }

    /// Reads 8 entries.
    pub fn read_entries(&self, frame: ShadowFrame, first: usize) -> [u64; 8] {
        assert!(first + 8 <= 512, "a table has 512 entries");
        let at = handed_out(self.hpa(frame).raw()).cast::<u64>().wrapping_add(first);
        core::array::from_fn(|n| {
            // SAFETY: as in `entry`, and within the frame.
            unsafe { AtomicU64::from_ptr(at.wrapping_add(n)) }.load(Ordering::Relaxed)
        })
    }

    /// Writes all entries of a frame.
    pub fn fill(&mut self, frame: ShadowFrame, value: u64) {
        let table = handed_out(self.hpa(frame).raw()).cast::<u64>();
        for index in 0..512 {
            // SAFETY: as in `entry`, and within the frame.
            unsafe { AtomicU64::from_ptr(table.wrapping_add(index)) }
                .store(value, Ordering::Relaxed);
        }
    }

    /// Writes an entry.
    pub fn write(&mut self, frame: ShadowFrame, index: usize, value: u64) {
        self.entry(frame, index).store(value, Ordering::Relaxed);
    }
}

/// Memory that the layout gives to nobody.
pub struct SpareArea {
    range: Range<u64>,
}

impl SpareArea {
    fn pointer(&self, word: u64) -> *mut u64 {
        assert!(word < self.words(), "a word of this area");
        handed_out(self.range.start + word * 8).cast()
    }
}

impl Area for SpareArea {
    fn start(&self) -> Hpa {
        Hpa::new(self.range.start)
    }

    fn words(&self) -> u64 {
        (self.range.end - self.range.start) / 8
    }

    fn read(&self, word: u64) -> u64 {
        // SAFETY: aligned, mapped for ever, RAM, and in no other use.
        unsafe { self.pointer(word).read_volatile() }
    }

    fn write(&mut self, word: u64, value: u64) {
        // SAFETY: as above.
        unsafe { self.pointer(word).write_volatile(value) }
    }
}

/// Where an object of the hypervisor lies in physical memory, where it is in one piece.
pub fn hpa_of<T>(object: &T) -> Hpa {
    let va = (&raw const *object) as u64;
    let image = image::virtual_range();
    Hpa::new(if image.contains(&va) {
        va - image.start + image::physical_start()
    } else {
        va - DIRECT_MAP
    })
}

/// A page of the hypervisor that the CPU gets to know by its physical address, such as a VMCS.
#[repr(C, align(4096))]
pub struct HostPage([u8; FRAME as usize]);

impl fmt::Debug for HostPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostPage").field(&self.hpa()).finish()
    }
}

impl HostPage {
    /// A page of zeros. Dropping it frees it: keep it as long as the CPU uses it.
    pub fn new() -> Box<HostPage> {
        // SAFETY: zeros are a valid value, and the page never lies on the stack.
        unsafe { Box::<HostPage>::new_zeroed().assume_init() }
    }

    /// Its physical address.
    pub fn hpa(&self) -> Hpa {
        hpa_of(self)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; FRAME as usize] {
        &self.0
    }

    /// Its bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8; FRAME as usize] {
        &mut self.0
    }
}

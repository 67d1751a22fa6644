//! Memory for tests: frames beyond the image.

use core::sync::atomic::{AtomicU64, Ordering};

use umbra_paging::{ENTRIES, Gfn, PAGE_SIZE};

/// Where the kit's own mapping of memory ends.
const IDENTITY_END: u64 = 1 << 32;
const ALIGN: u64 = 2 << 20;

/// A frame of test memory, as 512 words.
///
/// A copy is the same frame. All accesses are volatile, and no reference to its memory is ever
/// made, so it may be a table, code, a stack and data at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame(u64);

impl Frame {
    /// The physical address.
    pub const fn address(self) -> u64 {
        self.0
    }

    /// The frame number.
    pub const fn gfn(self) -> Gfn {
        Gfn::new(self.0 / PAGE_SIZE)
    }

    /// Word `index`.
    ///
    /// # Panics
    /// If it is not below 512.
    pub fn read(self, index: usize) -> u64 {
        assert!(index < ENTRIES, "a frame has 512 words");
        // SAFETY: `Pool` made this frame, of mapped memory that is nobody's.
        unsafe { ((self.0 as usize + 8 * index) as *const u64).read_volatile() }
    }

    /// Sets word `index`.
    ///
    /// # Panics
    /// If it is not below 512.
    pub fn write(self, index: usize, value: u64) {
        assert!(index < ENTRIES, "a frame has 512 words");
        // SAFETY: as in `read`.
        unsafe { ((self.0 as usize + 8 * index) as *mut u64).write_volatile(value) };
    }

    /// Writes word `index` if it differs.
    pub fn update(self, index: usize, value: u64) {
        if self.read(index) != value {
            self.write(index, value);
        }
    }

    /// Byte `offset`.
    ///
    /// # Panics
    /// If it is not below 4096.
    pub fn read_byte(self, offset: usize) -> u8 {
        self.read(offset / 8).to_le_bytes()[offset % 8]
    }

    /// Writes bytes.
    ///
    /// # Panics
    /// If they do not lie in the frame.
    pub fn write_bytes(self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= PAGE_SIZE as usize, "the bytes lie beyond the frame");
        for (index, &byte) in bytes.iter().enumerate() {
            // SAFETY: as in `read`.
            unsafe { ((self.0 as usize + offset + index) as *mut u8).write_volatile(byte) };
        }
    }

    /// Sets all words.
    pub fn fill(self, value: u64) {
        for index in 0..ENTRIES {
            self.write(index, value);
        }
    }

    /// The frame `count` frames further, of a run that [`Pool::frames`] gave.
    pub fn after(self, count: u64) -> Frame {
        Frame(self.0 + count * PAGE_SIZE)
    }
}

/// A frame for handlers, which take nothing along.
#[derive(Debug)]
pub struct Shared(AtomicU64);

impl Shared {
    /// None yet.
    pub const fn none() -> Shared {
        Shared(AtomicU64::new(u64::MAX))
    }

    /// This one from now on.
    pub fn set(&self, frame: Frame) {
        self.0.store(frame.0, Ordering::Relaxed);
    }

    /// The frame.
    ///
    /// # Panics
    /// If none was set.
    pub fn get(&self) -> Frame {
        let address = self.0.load(Ordering::Relaxed);
        assert!(address != u64::MAX, "no frame was set");
        Frame(address)
    }
}

/// Frames that nobody has yet.
#[derive(Debug)]
pub struct Pool {
    start: u64,
    next: u64,
    end: u64,
}

impl Pool {
    /// # Safety
    /// Memory from `used` to `end` must exist and be nobody's.
    pub(super) unsafe fn new(used: u64, end: u64) -> Pool {
        let start = used.next_multiple_of(ALIGN);
        Pool { start, next: start, end: end.min(IDENTITY_END) & !(PAGE_SIZE - 1) }
    }

    /// A frame of zeros.
    ///
    /// # Panics
    /// If there is no more.
    pub fn frame(&mut self) -> Frame {
        self.frames(1, PAGE_SIZE)
    }

    /// The first of `count` frames of zeros in a row; its address is a multiple of `align`.
    ///
    /// # Panics
    /// If there are no more.
    pub fn frames(&mut self, count: u64, align: u64) -> Frame {
        let first = self.reserve(count, align);
        for index in 0..count {
            first.after(index).fill(0);
        }
        first
    }

    /// As [`Pool::frames`], with whatever they hold.
    ///
    /// # Panics
    /// If there are no more.
    pub fn reserve(&mut self, count: u64, align: u64) -> Frame {
        let first = self.next.next_multiple_of(align);
        self.next = first + count * PAGE_SIZE;
        assert!(self.next <= self.end, "out of memory: give the guest more");
        Frame(first)
    }

    /// The frame that lies at `address`, if it was given out.
    pub fn at(&self, address: u64) -> Option<Frame> {
        (self.start..self.next).contains(&address).then_some(Frame(address & !(PAGE_SIZE - 1)))
    }

    /// Where the next frame will be: to [`Pool::release`] all from there on.
    pub fn mark(&self) -> u64 {
        self.next
    }

    /// Takes back everything given out since `mark`. Nothing of it may be in use.
    pub fn release(&mut self, mark: u64) {
        assert!((self.start..=self.next).contains(&mark), "not a mark of this pool");
        self.next = mark;
    }

    /// Frames left.
    pub fn left(&self) -> u64 {
        (self.end - self.next) / PAGE_SIZE
    }
}

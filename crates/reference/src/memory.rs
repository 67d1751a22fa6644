//! Physical memory, guest or host: whatever a paging unit is put in front of.

use std::fmt;

/// A physical address of the machine that a paging unit belongs to: guest-physical when the guest runs bare,
/// host-physical when it runs on shadow tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// Wraps a raw value.
    pub const fn new(raw: u64) -> PhysAddr {
        PhysAddr(raw)
    }

    /// The raw value.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The address of the aligned 8 bytes around it.
    pub const fn word(self) -> PhysAddr {
        PhysAddr(self.0 & !7)
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a paging unit needs of memory.
pub trait PhysicalMemory {
    /// The 8 bytes at `at`, which is a multiple of 8. All ones where no memory is.
    fn read(&self, at: PhysAddr) -> u64;

    /// Sets bits in the 8 bytes at `at`, as a locked update of accessed and dirty bits does.
    fn set_bits(&mut self, at: PhysAddr, bits: u64);
}

/// RAM from address 0 up, with a journal of the words that were written.
#[derive(Clone, Debug)]
pub struct Ram {
    words: Vec<u64>,
    /// By frame: whether it was ever written.
    written: Vec<bool>,
    /// A frame among them that is no memory.
    hole: Option<u64>,
    /// Where was written, and what stood there before.
    journal: Vec<(PhysAddr, u64)>,
}

impl Ram {
    /// `frames` frames of 4 KiB, all zero.
    pub fn new(frames: usize) -> Ram {
        Ram { words: vec![0; frames * 512], written: vec![false; frames], hole: None, journal: Vec::new() }
    }

    /// The same, but for one frame that is no memory.
    pub fn with_hole(self, frame: u64) -> Ram {
        Ram { hole: Some(frame), ..self }
    }

    fn index(&self, at: PhysAddr) -> Option<usize> {
        let index = (at.raw() / 8) as usize;
        (index < self.words.len() && Some(at.raw() / 4096) != self.hole).then_some(index)
    }

    /// Whether there is memory at `at`.
    pub fn contains(&self, at: PhysAddr) -> bool {
        self.index(at).is_some()
    }

    /// Writes the 8 bytes at `at`, a multiple of 8; nothing happens where no memory is.
    pub fn write(&mut self, at: PhysAddr, value: u64) {
        if let Some(index) = self.index(at) {
            let old = std::mem::replace(&mut self.words[index], value);
            self.written[index / 512] = true;
            self.journal.push((at, old));
        }
    }

    /// Writes 8 bytes and leaves the journal alone: for whoever needs no witness.
    pub fn write_silently(&mut self, at: PhysAddr, value: u64) {
        if let Some(index) = self.index(at) {
            self.words[index] = value;
            self.written[index / 512] = true;
        }
    }

    /// The frames that were ever written. All others are zero.
    pub fn written(&self) -> impl Iterator<Item = u64> + '_ {
        (0..).zip(&self.written).filter_map(|(frame, &written)| written.then_some(frame))
    }

    /// Writes bytes anywhere.
    pub fn write_bytes(&mut self, at: PhysAddr, bytes: &[u8]) {
        for (word, mask, value) in overlay(at, bytes) {
            self.write(word, self.read(word) & !mask | value);
        }
    }

    /// The words written since the last call, with what stood there before the first write.
    pub fn take_journal(&mut self) -> Vec<(PhysAddr, u64)> {
        let mut journal = std::mem::take(&mut self.journal);
        // A stable sort: the oldest of the writes to a word stays in front.
        journal.sort_by_key(|&(at, _)| at);
        journal.dedup_by_key(|&mut (at, _)| at);
        journal
    }
}

impl PhysicalMemory for Ram {
    fn read(&self, at: PhysAddr) -> u64 {
        self.index(at).map_or(u64::MAX, |index| self.words[index])
    }

    fn set_bits(&mut self, at: PhysAddr, bits: u64) {
        self.write(at, self.read(at) | bits);
    }
}

/// The aligned words that `bytes` at `at` touch: address, mask of the bits written, and these bits.
pub(crate) fn overlay(at: PhysAddr, bytes: &[u8]) -> impl Iterator<Item = (PhysAddr, u64, u64)> + '_ {
    let first = at.word().raw();
    let last = PhysAddr(at.raw() + bytes.len() as u64 - 1).word().raw();
    (first..=last).step_by(8).map(move |word| {
        let (mut mask, mut value) = (0, 0);
        for (address, &byte) in (at.raw()..).zip(bytes) {
            if address & !7 == word {
                mask |= 0xff << (8 * (address & 7));
                value |= u64::from(byte) << (8 * (address & 7));
            }
        }
        (PhysAddr(word), mask, value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misaligned_write_touches_two_words() {
        let mut ram = Ram::new(1);
        ram.write_bytes(PhysAddr(6), &[0x11, 0x22, 0x33]);
        assert_eq!((ram.read(PhysAddr(0)), ram.read(PhysAddr(8))), (0x2211 << 48, 0x33));
        assert_eq!(ram.take_journal(), [(PhysAddr(0), 0), (PhysAddr(8), 0)]);
        assert_eq!(ram.read(PhysAddr(4096)), u64::MAX);
    }
}

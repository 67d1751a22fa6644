//! Physical memory, guest or host: whatever a paging unit is put in front of.

use std::fmt;
use std::ops::Range;

/// A physical address of the machine that a paging unit belongs to: guest-physical when the guest
/// runs bare, host-physical when it runs on shadow tables.
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

/// RAM in pieces, with a journal of the words that were written.
#[derive(Clone, Debug)]
pub struct Ram {
    pieces: Vec<Stretch>,
    /// A frame among them that is no memory.
    hole: Option<u64>,
    /// Where was written, and what stood there before.
    journal: Vec<(PhysAddr, u64)>,
}

/// Frames that follow each other.
#[derive(Clone, Debug)]
struct Stretch {
    first: u64,
    /// The contents; nothing of a frame that was never written, which is all zero.
    frames: Vec<Option<Box<[u64; 512]>>>,
}

impl Stretch {
    fn new(frames: Range<u64>) -> Stretch {
        let count = (frames.end - frames.start) as usize;
        Stretch { first: frames.start, frames: vec![None; count] }
    }

    fn frames(&self) -> Range<u64> {
        self.first..self.first + self.frames.len() as u64
    }
}

impl Ram {
    /// `frames` frames of 4 KiB from address 0 up, all zero.
    pub fn new(frames: usize) -> Ram {
        Ram { pieces: vec![Stretch::new(0..frames as u64)], hole: None, journal: Vec::new() }
    }

    /// The same, but for one frame that is no memory.
    pub fn with_hole(self, frame: u64) -> Ram {
        Ram { hole: Some(frame), ..self }
    }

    /// The same, and these frames, which lie above the others.
    pub fn with_frames(mut self, frames: Range<u64>) -> Ram {
        self.pieces.push(Stretch::new(frames));
        self
    }

    /// The frames of each piece, the hole among them.
    pub fn pieces(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.pieces.iter().map(Stretch::frames)
    }

    /// The piece, and the frame in it.
    fn place(&self, at: PhysAddr) -> Option<(usize, usize)> {
        let frame = at.raw() / 4096;
        let piece = self.pieces.iter().position(|piece| piece.frames().contains(&frame))?;
        (Some(frame) != self.hole).then(|| (piece, (frame - self.pieces[piece].first) as usize))
    }

    /// Whether there is memory at `at`.
    pub fn contains(&self, at: PhysAddr) -> bool {
        self.place(at).is_some()
    }

    fn replace(&mut self, at: PhysAddr, value: u64) -> Option<u64> {
        let (piece, frame) = self.place(at)?;
        let words = self.pieces[piece].frames[frame].get_or_insert_with(|| Box::new([0; 512]));
        Some(std::mem::replace(&mut words[(at.raw() % 4096 / 8) as usize], value))
    }

    /// Writes the 8 bytes at `at`, a multiple of 8; nothing happens where no memory is.
    pub fn write(&mut self, at: PhysAddr, value: u64) {
        if let Some(old) = self.replace(at, value) {
            self.journal.push((at, old));
        }
    }

    /// Writes 8 bytes and leaves the journal alone: for whoever needs no witness.
    pub fn write_silently(&mut self, at: PhysAddr, value: u64) {
        self.replace(at, value);
    }

    /// The frames that were ever written. All others are zero.
    pub fn written(&self) -> impl Iterator<Item = u64> + '_ {
        let of = |piece: &'_ Stretch| {
            let written = piece.frames.iter().map(Option::is_some).collect::<Vec<_>>();
            piece.frames().zip(written)
        };
        self.pieces.iter().flat_map(of).filter_map(|(frame, written)| written.then_some(frame))
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
        let Some((piece, frame)) = self.place(at) else { return u64::MAX };
        let words = self.pieces[piece].frames[frame].as_ref();
        words.map_or(0, |words| words[(at.raw() % 4096 / 8) as usize])
    }

    fn set_bits(&mut self, at: PhysAddr, bits: u64) {
        self.write(at, self.read(at) | bits);
    }
}

/// The aligned words that `bytes` at `at` touch: address, mask of the bits written, and these bits.
pub(crate) fn overlay(
    at: PhysAddr,
    bytes: &[u8],
) -> impl Iterator<Item = (PhysAddr, u64, u64)> + '_ {
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

    #[test]
    fn memory_in_pieces_has_nothing_between_them() {
        let mut ram = Ram::new(2).with_hole(1).with_frames(1 << 20..(1 << 20) + 1);
        for (at, there) in [
            (0, true),
            (4096, false),
            (1 << 32, true),
            ((1 << 32) - 8, false),
            ((1 << 32) + 4096, false),
        ] {
            ram.write(PhysAddr(at), at | 1);
            assert_eq!(ram.read(PhysAddr(at)), if there { at | 1 } else { u64::MAX });
        }
        assert_eq!(ram.written().collect::<Vec<_>>(), [0, 1 << 20]);
    }
}

//! Operand and address widths.

use crate::Mode;

/// Width of an operand or an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Byte = 1,
    Word = 2,
    Dword = 4,
    Qword = 8,
}

impl Width {
    pub(crate) fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Width::Byte),
            2 => Some(Width::Word),
            4 => Some(Width::Dword),
            8 => Some(Width::Qword),
            _ => None,
        }
    }

    pub(crate) fn bytes(self) -> usize {
        self as usize
    }

    pub(crate) fn bits(self) -> u32 {
        self as u32 * 8
    }

    /// All bits of the width set.
    pub(crate) fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The topmost bit alone.
    pub(crate) fn sign_bit(self) -> u64 {
        1 << (self.bits() - 1)
    }

    pub(crate) fn truncate(self, value: u64) -> u64 {
        value & self.mask()
    }

    /// The value with the sign bit of this width copied to all bits above.
    pub(crate) fn sign_extend(self, value: u64) -> u64 {
        let shift = 64 - self.bits();
        (((value << shift) as i64) >> shift) as u64
    }
}

impl From<Mode> for Width {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Bits16 => Width::Word,
            Mode::Bits32 => Width::Dword,
            Mode::Bits64 => Width::Qword,
        }
    }
}

//! Operands of MOV to CR3.

use crate::{Gfn, bits};

/// An operand of MOV to CR3 under 4-level paging (SDM, "MOV—Move to/from Control Registers").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cr3Value {
    /// The frame of the root.
    pub root: Gfn,
    /// Bits 11:0: the PCID, or PCD and PWT if CR4.PCIDE is clear.
    pub pcid: u16,
    /// Bit 63: what is cached under the PCID stays.
    pub no_flush: bool,
}

impl Cr3Value {
    /// Bit 63.
    pub const NO_FLUSH: u64 = 1 << 63;
    /// Bits 11:0.
    pub const PCID: u64 = 0xfff;

    /// Reads an operand whose reserved bits are clear.
    pub const fn new(raw: u64) -> Cr3Value {
        Cr3Value {
            root: Gfn::new((raw & bits::ADDRESS) >> 12),
            pcid: (raw & Cr3Value::PCID) as u16,
            no_flush: raw & Cr3Value::NO_FLUSH != 0,
        }
    }

    /// The operand.
    pub const fn raw(self) -> u64 {
        let no_flush = if self.no_flush { Cr3Value::NO_FLUSH } else { 0 };
        self.root.base().raw() | self.pcid as u64 & Cr3Value::PCID | no_flush
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_and_back() {
        let value = Cr3Value { root: Gfn::new(0x12345), pcid: 0x678, no_flush: true };
        assert_eq!(value.raw(), 1 << 63 | 0x1234_5678);
        for raw in [0, 0x1000, 0xfff, 1 << 63, 0x800f_ffff_ffff_ffff] {
            assert_eq!(Cr3Value::new(raw).raw(), raw);
        }
    }
}

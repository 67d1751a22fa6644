//! Selectors and descriptors as memory holds them.

use crate::width::Width;
use crate::{Rights, SegmentRegister};

/// A segment selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Selector(pub(crate) u16);

impl Selector {
    pub(crate) const NULL: Selector = Selector(0);

    pub(crate) fn is_null(self) -> bool {
        self.0 & !3 == 0
    }

    pub(crate) fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }

    pub(crate) fn is_local(self) -> bool {
        self.0 & 4 != 0
    }

    /// Where its descriptor starts in the table.
    pub(crate) fn offset(self) -> u64 {
        u64::from(self.0 & !7)
    }

    /// The error code that names it (SDM volume 3, "Error Code").
    pub(crate) fn error_code(self) -> u16 {
        self.0 & !3
    }

    pub(crate) fn with_rpl(self, rpl: u8) -> Selector {
        Selector(self.0 & !3 | u16::from(rpl))
    }
}

/// What a descriptor describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Code,
    Data,
    Ldt,
    Tss { width: Width, busy: bool },
    CallGate(Width),
    TaskGate,
    InterruptGate(Width),
    TrapGate(Width),
    Invalid,
}

/// A descriptor, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// The first eight bytes.
    pub(crate) low: u64,
    /// The other half of a 16-byte descriptor.
    pub(crate) high: u64,
    /// The linear address.
    pub(crate) gva: u64,
}

impl Descriptor {
    /// The bit of [`Self::TYPE_BYTE`] that says a code or data segment was accessed.
    pub(crate) const ACCESSED: u8 = 1;
    /// The bit that says a TSS is busy.
    pub(crate) const BUSY: u8 = 2;
    /// The byte that holds the type.
    pub(crate) const TYPE_BYTE: u64 = 5;

    pub(crate) fn rights(&self) -> Rights {
        Rights((self.low >> 40) as u32 & 0xf0ff)
    }

    /// `long`: IA-32e mode is active, which has no 16-bit system segments and no task gates.
    pub(crate) fn kind(&self, long: bool) -> Kind {
        let rights = self.rights();
        if rights.is_code_or_data() {
            return if rights.is_code() { Kind::Code } else { Kind::Data };
        }
        let wide = if long { Width::Qword } else { Width::Dword };
        match rights.kind() {
            2 => Kind::Ldt,
            9 => Kind::Tss { width: wide, busy: false },
            11 => Kind::Tss { width: wide, busy: true },
            12 => Kind::CallGate(wide),
            14 => Kind::InterruptGate(wide),
            15 => Kind::TrapGate(wide),
            1 if !long => Kind::Tss { width: Width::Word, busy: false },
            3 if !long => Kind::Tss { width: Width::Word, busy: true },
            4 if !long => Kind::CallGate(Width::Word),
            5 if !long => Kind::TaskGate,
            6 if !long => Kind::InterruptGate(Width::Word),
            7 if !long => Kind::TrapGate(Width::Word),
            _ => Kind::Invalid,
        }
    }

    pub(crate) fn base(&self) -> u64 {
        self.low >> 16 & 0xff_ffff | self.low >> 32 & 0xff00_0000 | self.high << 32
    }

    pub(crate) fn limit(&self) -> u32 {
        const GRANULARITY: u64 = 1 << 55;
        let limit = (self.low & 0xffff | self.low >> 32 & 0xf_0000) as u32;
        if self.low & GRANULARITY != 0 { limit << 12 | 0xfff } else { limit }
    }

    /// What a segment register holds after a load of this. Code and data are marked as accessed.
    pub(crate) fn register(&self, selector: Selector) -> SegmentRegister {
        let mut rights = self.rights();
        if rights.is_code_or_data() {
            rights.0 |= u32::from(Self::ACCESSED);
        }
        SegmentRegister { selector: selector.0, base: self.base(), limit: self.limit(), rights }
    }

    /// A gate's selector.
    pub(crate) fn gate_selector(&self) -> Selector {
        Selector((self.low >> 16) as u16)
    }

    /// A gate's entry point.
    pub(crate) fn gate_offset(&self, width: Width) -> u64 {
        width.truncate(self.low & 0xffff | self.low >> 32 & 0xffff_0000 | self.high << 32)
    }

    /// How many parameters a call gate copies.
    pub(crate) fn gate_parameters(&self) -> u64 {
        self.low >> 32 & 0x1f
    }

    /// The interrupt stack that a 64-bit gate names, or zero.
    pub(crate) fn gate_stack(&self) -> u8 {
        (self.low >> 32 & 7) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(low: u64, high: u64) -> Descriptor {
        Descriptor { low, high, gva: 0 }
    }

    #[test]
    fn the_fields_of_segment_descriptors() {
        let code = of(0x12cf_9a34_5678_ffff, 0);
        assert_eq!(
            (code.base(), code.limit(), code.rights().0),
            (0x1234_5678, 0xffff_ffff, 0xc09a)
        );
        assert_eq!(code.kind(true), Kind::Code);
        assert_eq!(code.register(Selector(0x1b)).rights.0, 0xc09b, "accessed");
        let small = of(0x0042_f200_0000_1234, 0);
        assert_eq!((small.limit(), small.kind(false)), (0x2_1234, Kind::Data), "counted in bytes");
        let tss = of(0xff00_8b00_0000_0067, 0xffff_8000);
        assert_eq!((tss.base(), tss.limit()), (0xffff_8000_ff00_0000, 0x67));
        assert_eq!(tss.kind(true), Kind::Tss { width: Width::Qword, busy: true });
        assert_eq!(tss.register(Selector(8)).rights.0, 0x8b);
    }

    #[test]
    fn the_fields_of_gates() {
        let gate = of(0x8899_ee05_0010_aabb, 0xffff_8000);
        assert_eq!(gate.gate_offset(Width::Qword), 0xffff_8000_8899_aabb);
        assert_eq!(gate.gate_offset(Width::Dword), 0x8899_aabb);
        assert_eq!(gate.gate_offset(Width::Word), 0xaabb);
        assert_eq!(
            (gate.gate_selector(), gate.gate_stack(), gate.gate_parameters()),
            (Selector(16), 5, 5)
        );
        assert_eq!(gate.kind(true), Kind::InterruptGate(Width::Qword));
    }

    #[test]
    fn ia_32e_mode_has_no_16_bit_system_segments() {
        let kinds =
            |long| (0..16).map(|kind| of(kind << 40, 0).kind(long)).collect::<alloc::vec::Vec<_>>();
        let valid = |long: bool| {
            let known =
                kinds(long).into_iter().enumerate().filter(|(_, kind)| *kind != Kind::Invalid);
            known.map(|(number, _)| number).collect::<alloc::vec::Vec<_>>()
        };
        assert_eq!(valid(true), [2, 9, 11, 12, 14, 15]);
        assert_eq!(valid(false), [1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 14, 15]);
    }

    #[test]
    fn selectors() {
        let selector = Selector(0x2f);
        assert_eq!((selector.rpl(), selector.offset(), selector.error_code()), (3, 0x28, 0x2c));
        assert!(selector.is_local() && !selector.is_null() && Selector(3).is_null());
        assert_eq!(selector.with_rpl(1), Selector(0x2d));
    }
}

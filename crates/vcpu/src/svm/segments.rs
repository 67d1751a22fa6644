//! Segment registers as the VMCB holds them (APM, "Segment State in the VMCB").

use umbra_emulator::{Rights, SegmentRegister};

use super::vmcb::Register;

/// The attributes' P.
const PRESENT: u16 = 1 << 7;
/// L of a code segment.
pub const LONG: u16 = 1 << 9;
/// D of a code segment, B of a stack.
pub const DEFAULT_32: u16 = 1 << 10;
/// The lower byte: type, S, DPL, P. It is the same in [`Rights`], where AVL, L, D and G lie 4 bits
/// higher.
const LOW: u16 = 0xff;
const DPL: u16 = 3 << 5;

impl Register {
    /// The register with its hidden part. A segment that is not present is one that holds a null
    /// selector: nothing else can be loaded so.
    pub fn get(&self) -> SegmentRegister {
        let attributes = u32::from(self.attributes);
        let low = u32::from(LOW);
        let rights = if self.attributes & PRESENT == 0 {
            Rights::UNUSABLE.0 | attributes & u32::from(DPL)
        } else {
            attributes & low | (attributes & !low) << 4
        };
        SegmentRegister {
            selector: self.selector,
            base: self.base,
            limit: self.limit,
            rights: Rights(rights),
        }
    }

    /// The register that holds `value`.
    pub fn of(value: SegmentRegister) -> Register {
        let rights = value.rights.0 as u16;
        let attributes = if value.rights.is_unusable() {
            rights & DPL
        } else {
            rights & LOW | (rights & 0xf000) >> 4
        };
        Register { selector: value.selector, attributes, limit: value.limit, base: value.base }
    }

    /// The privilege level of the descriptor.
    pub fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_go_both_ways() {
        for rights in [0xa09b, 0xc09b, 0xc093, 0xc0f7, 0x8b, 0xf3, 0x1_0000, 0x1_0060] {
            let value = SegmentRegister {
                selector: 0x10,
                base: 0x1234_5678_9000,
                limit: 0xffff_ffff,
                rights: Rights(rights),
            };
            assert_eq!(Register::of(value).get(), value, "{rights:#x}");
        }
        let code = SegmentRegister { selector: 8, base: 0, limit: 0, rights: Rights(0xa09b) };
        let attributes = Register::of(code).attributes;
        assert_eq!((attributes, attributes & LONG, attributes & DEFAULT_32), (0xa9b, LONG, 0));
    }

    #[test]
    fn a_segment_that_is_not_present_is_unusable_and_keeps_its_level() {
        let null = Register { attributes: 0xc73, ..Register::default() };
        assert_eq!(null.get().rights, Rights(0x1_0060));
        assert_eq!((null.dpl(), Register::default().get().rights), (3, Rights::UNUSABLE));
    }
}

//! Segment registers with the part that the processor hides.

/// A segment register by its number in instruction encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Segment {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

impl Segment {
    /// All segment registers, each at its number.
    pub const ALL: [Segment; 6] =
        [Segment::Es, Segment::Cs, Segment::Ss, Segment::Ds, Segment::Fs, Segment::Gs];
}

/// What a segment register holds: the selector, and what was cached of the descriptor when it was
/// loaded (SDM volume 3, "Segment Registers").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRegister {
    /// The selector.
    pub selector: u16,
    /// Linear address of the first byte.
    pub base: u64,
    /// The highest offset in bytes; for an expand-down segment the highest that is outside.
    pub limit: u32,
    /// Type and rights.
    pub rights: Rights,
}

/// The registers of segments that hold no code or data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemSegment {
    /// The local descriptor table's.
    Ldtr,
    /// The task register.
    Tr,
}

/// The registers of tables that no descriptor describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorTable {
    /// The global descriptor table.
    Gdt,
    /// The interrupt descriptor table.
    Idt,
}

/// What GDTR or IDTR holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear address of the first byte.
    pub base: u64,
    /// The highest offset.
    pub limit: u16,
}

/// Type and rights of a segment, at the places of SDM volume 3, "Guest Register State" (access
/// rights).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(pub u32);

impl Rights {
    /// A null selector was loaded, or nothing.
    pub const UNUSABLE: Rights = Rights(1 << 16);

    /// The descriptor's type field; of code and data segments also accessed, and so on.
    pub const fn kind(self) -> u8 {
        (self.0 & 0xf) as u8
    }

    /// A code or data segment, not a system one.
    pub const fn is_code_or_data(self) -> bool {
        self.0 & 1 << 4 != 0
    }

    /// A code segment.
    pub const fn is_code(self) -> bool {
        self.is_code_or_data() && self.0 & 1 << 3 != 0
    }

    /// A data segment that grows down: offsets above the limit are inside.
    pub const fn is_expand_down(self) -> bool {
        self.is_code_or_data() && self.0 & 0b1100 == 0b0100
    }

    /// A code segment that runs at the privilege level of its caller.
    pub const fn is_conforming(self) -> bool {
        self.is_code() && self.0 & 1 << 2 != 0
    }

    /// A data segment, or a code segment that can be read.
    pub const fn is_readable(self) -> bool {
        self.is_code_or_data() && (!self.is_code() || self.0 & 1 << 1 != 0)
    }

    /// A data segment that can be written.
    pub const fn is_writable(self) -> bool {
        self.is_code_or_data() && !self.is_code() && self.0 & 1 << 1 != 0
    }

    /// The descriptor's privilege level.
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }

    /// P.
    pub const fn is_present(self) -> bool {
        self.0 & 1 << 7 != 0
    }

    /// L: 64-bit code.
    pub const fn is_long(self) -> bool {
        self.0 & 1 << 13 != 0
    }

    /// D/B: 32-bit code, a 32-bit stack pointer, 4 GiB as the upper bound of an expand-down
    /// segment.
    pub const fn is_32(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// A null selector was loaded, or nothing.
    pub const fn is_unusable(self) -> bool {
        self.0 & Rights::UNUSABLE.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_usual_descriptors() {
        let [code_64, code_32, data, stack, tss, read_only, down] =
            [0xa09b, 0xc09b, 0xc093, 0xc0f7, 0x8b, 0xc091, 0x97].map(Rights);
        assert!(
            code_64.is_code() && code_64.is_readable() && code_64.is_long() && !code_64.is_32()
        );
        assert!(
            code_32.is_code() && !code_32.is_long() && code_32.is_32() && !code_32.is_writable()
        );
        assert!(
            data.is_writable() && data.is_readable() && !data.is_code() && !data.is_expand_down()
        );
        assert!(stack.is_expand_down() && stack.dpl() == 3 && stack.is_present());
        assert!(
            !tss.is_code_or_data() && !tss.is_readable() && !tss.is_writable() && tss.kind() == 11
        );
        assert!(read_only.is_readable() && !read_only.is_writable());
        assert!(down.is_expand_down() && !down.is_32() && !down.is_conforming());
        assert!(Rights(0x9e).is_conforming() && !Rights(0x99).is_readable());
        assert!(Rights::UNUSABLE.is_unusable() && !data.is_unusable());
    }
}

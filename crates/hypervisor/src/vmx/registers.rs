//! The registers that instructions name, as the VMCS and the way into the guest keep them.

use umbra_emulator::{
    DescriptorTable, Rights, Segment, SegmentRegister, SystemSegment, TableRegister,
};
use umbra_vcpu::backend::{CodeMode, Registers};
use x86::vmx::vmcs::guest;

use super::{Vmx, rights};

impl Registers for Vmx {
    fn gpr(&self, number: u8) -> u64 {
        if number == 4 {
            self.vmcs.read(guest::RSP)
        } else {
            self.registers.gpr[usize::from(number & 15)]
        }
    }

    fn set_gpr(&mut self, number: u8, value: u64) {
        if number == 4 {
            self.vmcs.write(guest::RSP, value);
        } else {
            self.registers.gpr[usize::from(number & 15)] = value;
        }
    }

    fn rip(&self) -> u64 {
        self.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
        self.vmcs.write(guest::RIP, rip);
    }

    fn rflags(&self) -> u64 {
        self.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        if rflags != self.rflags {
            self.rflags = rflags;
            self.vmcs.write(guest::RFLAGS, rflags);
        }
    }

    fn cpl(&self) -> u8 {
        // SS.DPL is the CPL (SDM, "Guest Register State").
        (self.vmcs.read(guest::SS_ACCESS_RIGHTS) >> 5 & 3) as u8
    }

    fn code_mode(&self) -> CodeMode {
        let access = self.vmcs.read(guest::CS_ACCESS_RIGHTS);
        CodeMode::of(access & rights::LONG != 0 && self.long_mode, access & rights::DEFAULT_32 != 0)
    }

    fn stack_mode(&self) -> CodeMode {
        let long = self.code_mode() == CodeMode::Bits64;
        CodeMode::of(long, self.vmcs.read(guest::SS_ACCESS_RIGHTS) & rights::DEFAULT_32 != 0)
    }

    fn segment(&self, segment: Segment) -> SegmentRegister {
        self.read_segment(segment as u32)
    }

    fn set_segment(&mut self, segment: Segment, value: SegmentRegister) {
        self.write_segment(segment as u32, value);
    }

    fn segment_base(&self, segment: Segment) -> u64 {
        // In 64-bit mode the other segments start at 0, whatever their descriptors say.
        if !matches!(segment, Segment::Fs | Segment::Gs) && self.code_mode() == CodeMode::Bits64 {
            return 0;
        }
        self.vmcs.read(guest::ES_BASE + 2 * segment as u32)
    }

    fn system_segment(&self, segment: SystemSegment) -> SegmentRegister {
        self.read_segment(system_segment_number(segment))
    }

    fn set_system_segment(&mut self, segment: SystemSegment, value: SegmentRegister) {
        self.write_segment(system_segment_number(segment), value);
    }

    fn descriptor_table(&self, table: DescriptorTable) -> TableRegister {
        let (base, limit) = table_fields(table);
        TableRegister { base: self.vmcs.read(base), limit: self.vmcs.read(limit) as u16 }
    }

    fn set_descriptor_table(&mut self, table: DescriptorTable, value: TableRegister) {
        let (base, limit) = table_fields(table);
        self.vmcs.write(base, value.base);
        self.vmcs.write(limit, value.limit.into());
    }

    fn has_16_bit_tss(&self) -> bool {
        const BUSY_16: u64 = 3;
        self.vmcs.read(guest::TR_ACCESS_RIGHTS) & 0xf == BUSY_16
    }
}

impl Vmx {
    /// A segment register by its number in the VMCS; the fields of each lie 2 apart.
    fn read_segment(&self, number: u32) -> SegmentRegister {
        let field = |first: u32| self.vmcs.read(first + 2 * number);
        SegmentRegister {
            selector: field(guest::ES_SELECTOR) as u16,
            base: field(guest::ES_BASE),
            limit: field(guest::ES_LIMIT) as u32,
            rights: Rights(field(guest::ES_ACCESS_RIGHTS) as u32),
        }
    }

    fn write_segment(&mut self, number: u32, value: SegmentRegister) {
        self.vmcs.write(guest::ES_SELECTOR + 2 * number, value.selector.into());
        self.vmcs.write(guest::ES_BASE + 2 * number, value.base);
        self.vmcs.write(guest::ES_LIMIT + 2 * number, value.limit.into());
        self.vmcs.write(guest::ES_ACCESS_RIGHTS + 2 * number, value.rights.0.into());
    }
}

/// LDTR and TR follow the segment registers in the VMCS.
fn system_segment_number(segment: SystemSegment) -> u32 {
    match segment {
        SystemSegment::Ldtr => 6,
        SystemSegment::Tr => 7,
    }
}

/// The fields that hold base and limit of a descriptor table.
fn table_fields(table: DescriptorTable) -> (u32, u32) {
    match table {
        DescriptorTable::Gdt => (guest::GDTR_BASE, guest::GDTR_LIMIT),
        DescriptorTable::Idt => (guest::IDTR_BASE, guest::IDTR_LIMIT),
    }
}

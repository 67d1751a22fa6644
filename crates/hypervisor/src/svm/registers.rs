//! General-purpose and segment registers, flags and descriptor tables.

use umbra_emulator::{DescriptorTable, Segment, SegmentRegister, SystemSegment, TableRegister};
use umbra_paging::efer;
use umbra_vcpu::backend::{CodeMode, Registers};
use umbra_vcpu::svm::segments::{DEFAULT_32, LONG};
use umbra_vcpu::svm::vmcb::{Register, part};

use super::backend::Svm;

impl Registers for Svm {
    fn gpr(&self, number: u8) -> u64 {
        match number & 15 {
            0 => self.vmcb.save.rax,
            4 => self.vmcb.save.rsp,
            other => self.registers.gpr[usize::from(other)],
        }
    }

    fn set_gpr(&mut self, number: u8, value: u64) {
        match number & 15 {
            0 => self.vmcb.save.rax = value,
            4 => self.vmcb.save.rsp = value,
            other => self.registers.gpr[usize::from(other)] = value,
        }
    }

    fn rip(&self) -> u64 {
        self.vmcb.save.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.vmcb.save.rip = rip;
    }

    fn rflags(&self) -> u64 {
        self.vmcb.save.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.vmcb.save.rflags = rflags;
    }

    fn cpl(&self) -> u8 {
        self.vmcb.save.cpl
    }

    fn code_mode(&self) -> CodeMode {
        let attributes = self.vmcb.save.cs.attributes;
        CodeMode::of(attributes & LONG != 0 && self.is_long_mode(), attributes & DEFAULT_32 != 0)
    }

    fn stack_mode(&self) -> CodeMode {
        let long = self.code_mode() == CodeMode::Bits64;
        CodeMode::of(long, self.vmcb.save.ss.attributes & DEFAULT_32 != 0)
    }

    fn segment(&self, segment: Segment) -> SegmentRegister {
        let save = &self.vmcb.save;
        match segment {
            Segment::Es => save.es.get(),
            Segment::Cs => save.cs.get(),
            // Its DPL is the CPL; the field is what counts, and stays where SS is null.
            Segment::Ss => {
                let attributes = save.ss.attributes & !(3 << 5) | u16::from(save.cpl) << 5;
                Register { attributes, ..save.ss }.get()
            }
            Segment::Ds => save.ds.get(),
            Segment::Fs => save.fs.get(),
            Segment::Gs => save.gs.get(),
        }
    }

    fn set_segment(&mut self, segment: Segment, value: SegmentRegister) {
        let value = Register::of(value);
        *self.register(segment) = value;
        if segment == Segment::Ss {
            self.vmcb.save.cpl = value.dpl();
        }
        self.changed |= part::SEGMENTS;
    }

    fn segment_base(&self, segment: Segment) -> u64 {
        // In 64-bit mode the other segments start at 0, whatever their descriptors say.
        if !matches!(segment, Segment::Fs | Segment::Gs) && self.code_mode() == CodeMode::Bits64 {
            return 0;
        }
        self.segment(segment).base
    }

    fn system_segment(&self, segment: SystemSegment) -> SegmentRegister {
        match segment {
            SystemSegment::Ldtr => self.vmcb.save.ldtr.get(),
            SystemSegment::Tr => self.vmcb.save.tr.get(),
        }
    }

    fn set_system_segment(&mut self, segment: SystemSegment, value: SegmentRegister) {
        let value = Register::of(value);
        match segment {
            SystemSegment::Ldtr => self.vmcb.save.ldtr = value,
            SystemSegment::Tr => self.vmcb.save.tr = value,
        }
    }

    fn descriptor_table(&self, table: DescriptorTable) -> TableRegister {
        let register = match table {
            DescriptorTable::Gdt => &self.vmcb.save.gdtr,
            DescriptorTable::Idt => &self.vmcb.save.idtr,
        };
        TableRegister { base: register.base, limit: register.limit as u16 }
    }

    fn set_descriptor_table(&mut self, table: DescriptorTable, value: TableRegister) {
        let register = match table {
            DescriptorTable::Gdt => &mut self.vmcb.save.gdtr,
            DescriptorTable::Idt => &mut self.vmcb.save.idtr,
        };
        *register = Register { limit: value.limit.into(), base: value.base, ..Register::default() };
        self.changed |= part::TABLES;
    }

    fn has_16_bit_tss(&self) -> bool {
        const BUSY_16: u16 = 3;
        self.vmcb.save.tr.attributes & 0xf == BUSY_16
    }
}

impl Svm {
    /// A segment register in the VMCB.
    fn register(&mut self, segment: Segment) -> &mut Register {
        let save = &mut self.vmcb.save;
        match segment {
            Segment::Es => &mut save.es,
            Segment::Cs => &mut save.cs,
            Segment::Ss => &mut save.ss,
            Segment::Ds => &mut save.ds,
            Segment::Fs => &mut save.fs,
            Segment::Gs => &mut save.gs,
        }
    }

    /// IA-32e mode is active.
    fn is_long_mode(&self) -> bool {
        self.vmcb.save.efer & efer::LMA != 0
    }
}

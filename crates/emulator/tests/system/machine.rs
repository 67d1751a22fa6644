//! A machine with system registers and 256 KiB of flat memory. Its tables are filled with
//! descriptors that say what they describe.

use std::collections::BTreeSet;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use umbra_emulator::{
    Cpu, DescriptorTable, Error, Exception, Feature, Gpr, Mode, Outcome, Privilege, Rights,
    Segment, SegmentRegister, SystemCpu, SystemSegment, TableRegister, emulate,
};

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const LDT: u64 = 0x4000;
pub const TSS: u64 = 0x5000;
/// The TSS of another task.
pub const OTHER_TSS: u64 = 0x6000;
/// Tops of stacks.
pub const STACK_0: u64 = 0x9000;
pub const STACK_3: u64 = 0xb000;
pub const STACK_IST: u64 = 0xd000;
/// Where the program runs.
pub const CODE: u64 = 0x1_0000;
/// Where far transfers and handlers go.
pub const TARGET: u64 = 0x2_0000;
/// Operands.
pub const DATA: u64 = 0x3_0000;

pub const CODE_0: u16 = 0x08;
pub const DATA_0: u16 = 0x10;
pub const CODE_3: u16 = 0x1b;
pub const DATA_3: u16 = 0x23;
pub const TSS_SELECTOR: u16 = 0x28;
pub const LDT_SELECTOR: u16 = 0x38;
/// Entries that tests fill.
pub const FREE: u16 = 0x50;
pub const FREE_2: u16 = 0x60;
pub const OTHER: u16 = 0x70;
pub const GATE: u16 = 0x80;
/// The first selector beyond the table.
pub const BEYOND: u16 = 0x100;

pub const IF: u64 = 1 << 9;
pub const TF: u64 = 1 << 8;
pub const NT: u64 = 1 << 14;
pub const RF: u64 = 1 << 16;
pub const VM: u64 = 1 << 17;
pub const IOPL_3: u64 = 3 << 12;

/// A descriptor: the type and rights, base and limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    kind: u64,
    dpl: u8,
    present: bool,
    base: u64,
    limit: u64,
    /// G, D/B, L, at their places in the upper half.
    attributes: u64,
    gate: Option<(u16, u64, u64)>,
}

fn segment(kind: u64, dpl: u8) -> Entry {
    Entry { kind, dpl, present: true, base: 0, limit: 0xf_ffff, attributes: 0xc0_0000, gate: None }
}

/// Readable code of 32 bits.
pub fn code(dpl: u8) -> Entry {
    segment(0x1a, dpl)
}

/// Code of 64 bits.
pub fn code_64(dpl: u8) -> Entry {
    Entry { attributes: 0xa0_0000, ..code(dpl) }
}

/// Writable data.
pub fn data(dpl: u8) -> Entry {
    segment(0x12, dpl)
}

/// A system segment of a type.
pub fn system(kind: u64, base: u64, limit: u64) -> Entry {
    Entry { kind, base, limit, attributes: 0, ..segment(0, 0) }
}

pub fn available_tss(base: u64) -> Entry {
    system(9, base, 0x67)
}

/// A gate of a type.
pub fn gate(kind: u64, selector: u16, offset: u64) -> Entry {
    Entry { kind, gate: Some((selector, offset, 0)), ..segment(0, 0) }
}

impl Entry {
    pub fn absent(self) -> Entry {
        Entry { present: false, ..self }
    }

    pub fn dpl(self, dpl: u8) -> Entry {
        Entry { dpl, ..self }
    }

    pub fn conforming(self) -> Entry {
        Entry { kind: self.kind | 4, ..self }
    }

    /// Data that cannot be written, code that cannot be read.
    pub fn closed(self) -> Entry {
        Entry { kind: self.kind & !2, ..self }
    }

    pub fn accessed(self) -> Entry {
        Entry { kind: self.kind | 1, ..self }
    }

    pub fn limit(self, limit: u64) -> Entry {
        Entry { limit, attributes: self.attributes & !0x80_0000, ..self }
    }

    pub fn bits_16(self) -> Entry {
        Entry { attributes: self.attributes & !0x40_0000, ..self }
    }

    /// L and D both set.
    pub fn reserved(self) -> Entry {
        Entry { attributes: self.attributes | 0x60_0000, ..self }
    }

    /// Parameters of a call gate, or the interrupt stack of a 64-bit gate.
    pub fn with(self, count: u64) -> Entry {
        let (selector, offset, _) = self.gate.unwrap();
        Entry { gate: Some((selector, offset, count)), ..self }
    }

    pub fn bytes(self) -> [u8; 16] {
        let rights = (self.kind | u64::from(self.dpl) << 5 | u64::from(self.present) << 7) << 40;
        let (low, high) = match self.gate {
            Some((selector, offset, count)) => (
                offset & 0xffff
                    | u64::from(selector) << 16
                    | count << 32
                    | (offset & 0xffff_0000) << 32,
                offset >> 32,
            ),
            None => (
                self.limit & 0xffff
                    | (self.limit & 0xf_0000) << 32
                    | (self.base & 0xff_ffff) << 16
                    | (self.base & 0xff00_0000) << 32
                    | self.attributes << 32,
                self.base >> 32,
            ),
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(low | rights).to_le_bytes());
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        bytes
    }

    fn register(self, selector: u16) -> SegmentRegister {
        let low = u64::from_le_bytes(self.bytes()[..8].try_into().unwrap());
        let granular = self.attributes & 0x80_0000 != 0;
        SegmentRegister {
            selector,
            base: self.base,
            limit: if granular { (self.limit << 12 | 0xfff) as u32 } else { self.limit as u32 },
            rights: Rights((low >> 40) as u32 & 0xf0ff),
        }
    }
}

/// A page that refuses an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    pub gva: u64,
    pub write: bool,
    pub privilege: Privilege,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    pub gprs: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub segments: [SegmentRegister; 6],
    pub ldtr: SegmentRegister,
    pub tr: SegmentRegister,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub memory: Vec<u8>,
    /// Pages that no access reaches, and pages that can only be read.
    pub absent: BTreeSet<u64>,
    pub read_only: BTreeSet<u64>,
    pub local_breakpoints: bool,
    pub task_trap: bool,
    pub nmis_blocked: bool,
    pub interrupts_blocked: bool,
    pub invalidated: Option<u64>,
    /// What was written with which rights, in order.
    pub writes: Vec<(u64, Privilege)>,
}

pub type Verdict = Result<Outcome, Error<PageFault>>;

pub fn exception(exception: Exception) -> Error<PageFault> {
    Error::Exception(exception)
}

pub fn gp(error_code: u16) -> Error<PageFault> {
    exception(Exception::GENERAL_PROTECTION.with(error_code))
}

pub fn np(error_code: u16) -> Error<PageFault> {
    exception(Exception::NOT_PRESENT.with(error_code))
}

pub fn stack_fault(error_code: u16) -> Error<PageFault> {
    exception(Exception::STACK_FAULT.with(error_code))
}

pub fn ts(error_code: u16) -> Error<PageFault> {
    exception(Exception::INVALID_TSS.with(error_code))
}

pub const UNUSABLE: SegmentRegister =
    SegmentRegister { selector: 0, base: 0, limit: 0, rights: Rights::UNUSABLE };

impl Machine {
    fn new(efer: u64) -> Machine {
        let mut machine = Machine {
            gprs: std::array::from_fn(|number| 0x1111 * number as u64),
            rip: CODE,
            rflags: 2 | IF,
            segments: [UNUSABLE; 6],
            ldtr: system(2, LDT, 0xff).register(LDT_SELECTOR),
            tr: system(11, TSS, 0x67).register(TSS_SELECTOR),
            gdtr: TableRegister { base: GDT, limit: BEYOND - 1 },
            idtr: TableRegister { base: IDT, limit: 0xfff },
            cr0: 1,
            cr3: 0,
            cr4: 0,
            efer,
            memory: vec![0; 1 << 18],
            absent: BTreeSet::new(),
            read_only: BTreeSet::new(),
            local_breakpoints: true,
            task_trap: false,
            nmis_blocked: true,
            interrupts_blocked: false,
            invalidated: None,
            writes: Vec::new(),
        };
        machine.gdt(DATA_0, data(0).accessed());
        machine.gdt(DATA_3, data(3).accessed());
        machine.gdt(TSS_SELECTOR, system(11, TSS, 0x67));
        machine.gdt(LDT_SELECTOR, system(2, LDT, 0xff));
        machine.gdt(OTHER, available_tss(OTHER_TSS));
        machine
    }

    /// 32-bit code in ring `cpl`, paging off.
    pub fn protected(cpl: u8) -> Machine {
        let mut machine = Machine::new(0);
        machine.gdt(CODE_0, code(0).accessed());
        machine.gdt(CODE_3, code(3).accessed());
        machine.poke(TSS + 4, &(STACK_0 as u32).to_le_bytes());
        machine.poke(TSS + 8, &DATA_0.to_le_bytes());
        machine.run_in(cpl, code(cpl), data(cpl));
        machine
    }

    /// 64-bit code in ring `cpl`.
    pub fn long(cpl: u8) -> Machine {
        let mut machine = Machine::new(1 << 8 | 1 << 10);
        machine.cr0 = 0x8000_0001;
        machine.gdt(CODE_0, code_64(0).accessed());
        machine.gdt(CODE_3, code_64(3).accessed());
        machine.poke(TSS + 4, &STACK_0.to_le_bytes());
        machine.poke(TSS + 36, &STACK_IST.to_le_bytes());
        machine.run_in(cpl, code_64(cpl), data(cpl));
        machine
    }

    /// 32-bit code in ring `cpl` of IA-32e mode.
    pub fn compatible(cpl: u8) -> Machine {
        let mut machine = Machine::long(cpl);
        machine.run_in(cpl, code(cpl), data(cpl));
        machine
    }

    /// A program in virtual-8086 mode.
    pub fn virtual_8086() -> Machine {
        let mut machine = Machine::protected(3);
        machine.rflags |= VM;
        for (segment, selector) in
            [0x100, 0x1000, 0x200, 0x300, 0x400, 0x500].into_iter().enumerate()
        {
            machine.segments[segment] = v86(selector);
        }
        machine.rip = 0x10;
        machine.gprs[4] = 0x800;
        machine
    }

    fn run_in(&mut self, cpl: u8, code: Entry, stack: Entry) {
        let (cs, ss, rsp) =
            if cpl == 0 { (CODE_0, DATA_0, STACK_0) } else { (CODE_3, DATA_3, STACK_3) };
        self.segments = [stack.accessed().register(ss); 6];
        self.segments[Segment::Cs as usize] = code.accessed().register(cs);
        self.gprs[4] = rsp;
    }

    pub fn gdt(&mut self, selector: u16, entry: Entry) {
        self.fill(GDT, selector, entry);
    }

    pub fn ldt(&mut self, selector: u16, entry: Entry) {
        self.fill(LDT, selector, entry);
    }

    fn fill(&mut self, table: u64, selector: u16, entry: Entry) {
        let bytes = entry.bytes();
        let long_system = entry.kind & 0x10 == 0 && self.efer != 0;
        self.poke(table + u64::from(selector & !7), &bytes[..if long_system { 16 } else { 8 }]);
    }

    pub fn idt(&mut self, vector: u8, entry: Entry) {
        let size = if self.efer != 0 { 16 } else { 8 };
        self.poke(IDT + u64::from(vector) * size, &entry.bytes()[..size as usize]);
    }

    pub fn poke(&mut self, gva: u64, bytes: &[u8]) {
        self.memory[gva as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub fn poke_all(&mut self, gva: u64, width: usize, values: &[u64]) {
        for (at, value) in (gva..).step_by(width).zip(values) {
            self.poke(at, &value.to_le_bytes()[..width]);
        }
    }

    pub fn peek(&self, gva: u64, width: usize) -> u64 {
        let bytes = &self.memory[gva as usize..][..width];
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Values from the stack pointer up.
    pub fn stack(&self, width: usize, count: usize) -> Vec<u64> {
        let base = if self.mode() == Mode::Bits64 { 0 } else { self.segment(Segment::Ss).base };
        (0..count)
            .map(|number| self.peek(base + self.gprs[4] + (number * width) as u64, width))
            .collect()
    }

    pub fn rights_in_gdt(&self, selector: u16) -> u64 {
        self.peek(GDT + u64::from(selector & !7) + 5, 1)
    }

    pub fn selector(&self, segment: Segment) -> u16 {
        self.segment(segment).selector
    }

    /// Emulates what `program` assembles.
    pub fn step(
        &mut self,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Verdict {
        let bitness = match self.mode() {
            Mode::Bits16 => 16,
            Mode::Bits32 => 32,
            Mode::Bits64 => 64,
        };
        let mut assembler = CodeAssembler::new(bitness).unwrap();
        program(&mut assembler).unwrap();
        let bytes = assembler.assemble(self.rip).unwrap();
        emulate(self, &bytes)
    }

    /// Emulates these bytes.
    pub fn execute(&mut self, bytes: &[u8]) -> Verdict {
        emulate(self, bytes)
    }

    fn access(
        &self,
        privilege: Privilege,
        gva: u64,
        length: usize,
        write: bool,
    ) -> Result<(), PageFault> {
        assert!((1..=16).contains(&length));
        // What lies beyond the memory is not present.
        let size = self.memory.len() as u64;
        for gva in [gva, gva.saturating_add(length as u64 - 1)] {
            let page = gva >> 12;
            if gva >= size || self.absent.contains(&page) || write && self.read_only.contains(&page)
            {
                return Err(PageFault { gva, write, privilege });
            }
        }
        Ok(())
    }

    fn explicit(&self) -> Privilege {
        Privilege::Explicit(self.cpl())
    }
}

/// A segment register of virtual-8086 mode.
pub fn v86(selector: u16) -> SegmentRegister {
    SegmentRegister {
        selector,
        base: u64::from(selector) << 4,
        limit: 0xffff,
        rights: Rights(0xf3),
    }
}

impl Cpu for Machine {
    type Fault = PageFault;

    fn mode(&self) -> Mode {
        let rights = self.segment(Segment::Cs).rights;
        match (self.efer & 1 << 10 != 0 && rights.is_long(), rights.is_32()) {
            (true, _) => Mode::Bits64,
            (false, true) => Mode::Bits32,
            (false, false) => Mode::Bits16,
        }
    }

    fn stack_mode(&self) -> Mode {
        match (self.mode(), self.segment(Segment::Ss).rights.is_32()) {
            (Mode::Bits64, _) => Mode::Bits64,
            (_, true) => Mode::Bits32,
            (_, false) => Mode::Bits16,
        }
    }

    fn gpr(&self, gpr: Gpr) -> u64 {
        self.gprs[gpr as usize]
    }

    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.gprs[gpr as usize] = value;
    }

    fn rip(&self) -> u64 {
        self.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }

    fn rflags(&self) -> u64 {
        self.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.rflags = rflags;
    }

    fn segment(&self, segment: Segment) -> SegmentRegister {
        self.segments[segment as usize]
    }

    fn cpl(&self) -> u8 {
        self.segment(Segment::Ss).rights.dpl()
    }

    fn cr0(&self) -> u64 {
        self.cr0
    }

    fn cr4(&self) -> u64 {
        self.cr4
    }

    fn has(&self, _feature: Feature) -> bool {
        true
    }

    fn check(&mut self, gva: u64, length: usize, write: bool) -> Result<(), PageFault> {
        self.access(self.explicit(), gva, length, write)
    }

    fn port_read(&mut self, port: u16, _size: u8) -> u32 {
        port.into()
    }

    fn port_write(&mut self, _port: u16, _size: u8, _value: u32) {}

    fn read(&mut self, gva: u64, buf: &mut [u8]) -> Result<(), PageFault> {
        self.read_as(self.explicit(), gva, buf)
    }

    fn read_modify(&mut self, gva: u64, buf: &mut [u8]) -> Result<(), PageFault> {
        self.access(self.explicit(), gva, buf.len(), true)?;
        self.read_as(self.explicit(), gva, buf)
    }

    fn write(&mut self, gva: u64, buf: &[u8]) -> Result<(), PageFault> {
        self.write_as(self.explicit(), gva, buf)
    }
}

impl SystemCpu for Machine {
    fn set_segment(&mut self, segment: Segment, value: SegmentRegister) {
        self.segments[segment as usize] = value;
    }

    fn system_segment(&self, segment: SystemSegment) -> SegmentRegister {
        match segment {
            SystemSegment::Ldtr => self.ldtr,
            SystemSegment::Tr => self.tr,
        }
    }

    fn set_system_segment(&mut self, segment: SystemSegment, value: SegmentRegister) {
        match segment {
            SystemSegment::Ldtr => self.ldtr = value,
            SystemSegment::Tr => self.tr = value,
        }
    }

    fn descriptor_table(&self, table: DescriptorTable) -> TableRegister {
        match table {
            DescriptorTable::Gdt => self.gdtr,
            DescriptorTable::Idt => self.idtr,
        }
    }

    fn set_descriptor_table(&mut self, table: DescriptorTable, value: TableRegister) {
        match table {
            DescriptorTable::Gdt => self.gdtr = value,
            DescriptorTable::Idt => self.idtr = value,
        }
    }

    fn cr3(&self) -> u64 {
        self.cr3
    }

    fn efer(&self) -> u64 {
        self.efer
    }

    fn load_machine_status_word(&mut self, value: u16) -> Result<(), Exception> {
        self.cr0 = self.cr0 & !0xe | u64::from(value & 0xf);
        Ok(())
    }

    fn set_task_switched(&mut self, set: bool) {
        self.cr0 = self.cr0 & !8 | if set { 8 } else { 0 };
    }

    fn load_task_cr3(&mut self, cr3: u32) -> Result<(), Exception> {
        self.cr3 = cr3.into();
        Ok(())
    }

    fn clear_local_breakpoints(&mut self) {
        self.local_breakpoints = false;
    }

    fn trap_task_switch(&mut self) {
        self.task_trap = true;
    }

    fn invalidate_page(&mut self, gva: u64) {
        self.invalidated = Some(gva);
    }

    fn invalidate_pcid(&mut self, kind: u64, descriptor: [u8; 16]) -> Result<(), Exception> {
        self.invalidated = Some(u64::from(descriptor[8]));
        if kind > 3 { Err(Exception::GENERAL_PROTECTION) } else { Ok(()) }
    }

    fn unblock_nmis(&mut self) {
        self.nmis_blocked = false;
    }

    fn block_interrupts(&mut self) {
        self.interrupts_blocked = true;
    }

    fn read_as(&mut self, privilege: Privilege, gva: u64, buf: &mut [u8]) -> Result<(), PageFault> {
        self.access(privilege, gva, buf.len(), false)?;
        buf.copy_from_slice(&self.memory[gva as usize..][..buf.len()]);
        Ok(())
    }

    fn probe_write(
        &mut self,
        privilege: Privilege,
        gva: u64,
        length: usize,
    ) -> Result<(), PageFault> {
        self.access(privilege, gva, length, true)
    }

    fn write_as(&mut self, privilege: Privilege, gva: u64, bytes: &[u8]) -> Result<(), PageFault> {
        self.access(privilege, gva, bytes.len(), true)?;
        self.writes.push((gva, privilege));
        self.poke(gva, bytes);
        Ok(())
    }
}

/// Checks that `action` fails like this on the machine and changes nothing.
#[track_caller]
pub fn refuses<T: std::fmt::Debug + PartialEq>(
    machine: &Machine,
    error: Error<PageFault>,
    action: impl FnOnce(&mut Machine) -> Result<T, Error<PageFault>>,
) {
    let mut after = machine.clone();
    assert_eq!(action(&mut after), Err(error));
    assert!(after == *machine, "something was changed");
}

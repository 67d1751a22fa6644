//! Where cases run.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_kernels::entries::{PAGE, TABLE};
use guest_kernels::kit::access;
use guest_kernels::kit::apic::{self, bit, register};
use guest_kernels::kit::context::Context;
use guest_kernels::kit::cpu::{self, rflags};
use guest_kernels::kit::descriptors::{self, STOP, selector};
use guest_kernels::kit::frames::{Frame, Pool};
use guest_kernels::kit::observe::Observer;
use guest_kernels::kit::space::{self, Space};
use guest_kernels::kit::traps::{self, vector};
use umbra_paging::{Gva, Level, bits};

use super::source::{Operand, SOURCES, Source, Value};

/// What stands before the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// Nothing.
    None,
    /// MOV SS from memory.
    MovSs,
    /// STI, while an interrupt is pending.
    Sti,
    /// STI and MOV SS, while an interrupt is pending.
    StiMovSs,
}

impl Prefix {
    /// All of them.
    pub const ALL: [Prefix; 4] = [Prefix::None, Prefix::MovSs, Prefix::Sti, Prefix::StiMovSs];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Prefix::None => "alone",
            Prefix::MovSs => "behind MOV SS",
            Prefix::Sti => "behind STI",
            Prefix::StiMovSs => "behind STI and MOV SS",
        }
    }

    fn code(self) -> &'static [u8] {
        match self {
            Prefix::None => &[],
            Prefix::MovSs => &[0x8e, 0x17],
            Prefix::Sti => &[0xfb],
            Prefix::StiMovSs => &[0xfb, 0x8e, 0x17],
        }
    }

    fn is_interrupted(self) -> bool {
        matches!(self, Prefix::Sti | Prefix::StiMovSs)
    }
}

/// What the debug registers wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakpoint {
    /// Nothing.
    None,
    /// The instruction.
    Instruction,
    /// The word at RDI, which MOV SS reads.
    First,
    /// The word at RSI.
    Operand,
    /// Accesses to the debug registers (DR7.GD).
    Registers,
}

impl Breakpoint {
    /// All of them.
    pub const ALL: [Breakpoint; 5] = [
        Breakpoint::None,
        Breakpoint::Instruction,
        Breakpoint::First,
        Breakpoint::Operand,
        Breakpoint::Registers,
    ];
}

/// Where the frame of an event goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// To memory.
    Plain,
    /// To a page table in use.
    Table,
    /// Nowhere: the delivery fails.
    Absent,
}

impl Stack {
    /// All of them.
    pub const ALL: [Stack; 3] = [Stack::Plain, Stack::Table, Stack::Absent];
}

/// One case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub source: usize,
    pub prefix: Prefix,
    pub user: bool,
    pub step: bool,
    pub breakpoint: Breakpoint,
    pub stack: Stack,
}

const CODE: Gva = space::slot(20);
const DATA: Gva = space::slot(21);
const TABLE_PAGE: Gva = space::slot(22);
const APIC: Gva = space::slot(23);
const READ_ONLY: Gva = space::slot(24);
/// What the table translates.
const TRANSLATED: Gva = space::slot(25);
const NOWHERE: Gva = space::slot(100);
const NOT_CANONICAL: u64 = 1 << 47;

/// The last entry of the table is in use: no stack goes there.
const STACK_TOP: u64 = 4096 - 64;
const VECTOR: u8 = 0x51;
/// So many events end single steps and breakpoints: an instruction that raises one for ever must
/// come to an end.
const PATIENCE: u64 = 12;

static COUNT: AtomicU64 = AtomicU64::new(0);
static WORDS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

/// Notes what a handler saw.
fn note(vector: u8, context: &Context) {
    let place = context.rip.wrapping_sub(CODE.raw());
    // The kit's own instructions can be interrupted, too, and lie elsewhere in every build.
    let place = if place < 4096 { place } else { u64::MAX };
    let dr6 = if vector == vector::DB { cpu::dr6() } else { 0 };
    // Between two iterations RF is pushed set (SDM, "RF (resume) flag"). Bochs leaves it clear for
    // ports.
    let flags = context.rflags & (rflags::TF | rflags::IF);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    for (at, value) in [(0, u64::from(vector) | place << 16), (1, dr6 | flags << 32)] {
        if let Some(word) = WORDS.get(count as usize * 2 + at) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

fn on_debug(context: &mut Context) {
    note(vector::DB, context);
    if cpu::dr6() & 1 != 0 {
        context.rflags |= rflags::RF;
    }
    cpu::clear_dr6();
    if COUNT.load(Ordering::Relaxed) >= PATIENCE {
        cpu::clear_breakpoints();
        context.rflags &= !rflags::TF;
    }
}

fn on_interrupt(context: &mut Context) {
    note(VECTOR, context);
    apic::end_of_interrupt();
}

fn on_nmi(context: &mut Context) {
    note(vector::NMI, context);
}

/// Memory for the cases.
pub struct Stage {
    code: Frame,
    data: Frame,
    table: Frame,
    read_only: Frame,
    cr0: u64,
}

impl Stage {
    /// Maps it, and installs the handlers.
    pub fn new(pool: &mut Pool) -> Stage {
        let space = Space::new(pool);
        let [code, data, table, read_only] = core::array::from_fn(|_| pool.frame());
        for (gva, frame) in [(CODE, code), (DATA, data), (TABLE_PAGE, table)] {
            space.map(pool, gva, Level::L1, frame.address() | PAGE);
        }
        space.map(pool, READ_ONLY, Level::L1, read_only.address() | PAGE & !bits::W);
        space.map(pool, APIC, Level::L1, apic::BASE | PAGE | bits::PCD | bits::PWT);
        space.map(pool, TRANSLATED, Level::L2, table.address() | TABLE);
        table.write(511, data.address() | PAGE);
        space.activate();
        traps::handle(vector::DB, on_debug);
        traps::handle(vector::NMI, on_nmi);
        traps::handle(VECTOR, on_interrupt);
        apic::write(register::ICR_HIGH, apic::read(register::ID));
        Stage { code, data, table, read_only, cr0: cpu::cr0() }
    }

    /// Takes the handlers away.
    pub fn leave(&self) {
        for vector in [vector::DB, vector::NMI, VECTOR] {
            traps::unhandle(vector);
        }
        space::leave();
    }

    /// Runs a case.
    pub fn run(&mut self, case: &Case, observer: &mut Observer) {
        let source = &SOURCES[case.source];
        self.set_memory(case, source);
        let context = self.context(case, source);
        if case.prefix.is_interrupted() {
            apic::send_self(VECTOR);
        }
        set_stack(case, true);
        COUNT.store(0, Ordering::Relaxed);
        cpu::clear_dr6();
        set_breakpoint(case, source);
        let trap = traps::run(&context);
        let dr6 = cpu::dr6();
        cpu::clear_breakpoints();
        cpu::clear_dr6();
        set_stack(case, false);
        let count = COUNT.load(Ordering::Relaxed);
        for word in WORDS.iter().take(2 * count as usize) {
            observer.see("event", 0, word.load(Ordering::Relaxed));
        }
        // An interrupt that has not come is still pending.
        cpu::interruptible(0, || false);
        observer.see("events", 0, count);
        observer.see("events behind", 0, COUNT.load(Ordering::Relaxed) - count);
        let end = &trap.context;
        observer.see("vector", 0, trap.vector.into());
        observer.see("error", 0, trap.error_code);
        observer.see("cr2", 0, trap.cr2);
        observer.see("rip", 0, end.rip.wrapping_sub(CODE.raw()));
        observer.see("rsp", 0, end.rsp.wrapping_sub(context.rsp));
        observer.see("ss", 0, end.ss);
        observer.see("flags", 0, end.rflags);
        observer.see("dr6", 0, dr6);
        for (index, register) in
            [end.rax, end.rcx, end.rdx, end.rbx, end.rsi, end.rdi].into_iter().enumerate()
        {
            // What CPUID says is not what is compared here.
            if source.name != "cpuid" {
                observer.see("register", index, register);
            }
        }
        self.restore();
    }

    fn set_memory(&self, case: &Case, source: &Source) {
        let mut code = [0x90; 32];
        let mut at = 0;
        for part in [case.prefix.code(), source.code, &[0x90, 0x90, 0xcd, STOP]] {
            code[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.code.write_bytes(0, &code);
        let selector = if case.user { selector::USER_DATA } else { selector::DATA };
        self.data.write(16, selector);
        self.table.write(64, 0);
        // A walk through the table, so that it is known to be one.
        let _ = access::read(Gva::new(TRANSLATED.raw() + 511 * 4096));
    }

    fn context(&self, case: &Case, source: &Source) -> Context {
        let mut context = if case.user {
            Context::user(CODE.raw()).with_flags(rflags::IOPL_3)
        } else {
            Context::kernel(CODE.raw())
        };
        match case.stack {
            _ if case.user => context.rsp = space::USER_STACK,
            Stack::Plain => (),
            Stack::Table => context.rsp = TABLE_PAGE.raw() + STACK_TOP,
            Stack::Absent => context.rsp = NOWHERE.raw() + 2048,
        }
        if case.step {
            context = context.with_flags(rflags::TF);
        }
        // Without STI, what is sent comes at once.
        if !case.prefix.is_interrupted() && source.operand == Operand::Command {
            context = context.with_flags(rflags::IF);
        }
        context.rdi = DATA.raw() + 128;
        context.rsi = operand(source);
        context.rax = match source.value {
            Value::Is(value) => value,
            Value::Cr0 => self.cr0,
            Value::Interrupt => (bit::SELF | bit::ASSERT | u32::from(VECTOR)).into(),
            Value::Nmi => (bit::ASSERT | bit::NMI).into(),
        };
        (context.rcx, context.rdx) = (source.count, source.port.into());
        context
    }

    fn restore(&self) {
        apic::write(register::TPR, 0);
        for index in 0..511 {
            self.table.update(index, 0);
        }
        self.data.fill(0);
        self.read_only.update(64, 0);
    }
}

/// RSI.
fn operand(source: &Source) -> u64 {
    match source.operand {
        Operand::Plain => DATA.raw() + 512,
        Operand::Table => TABLE_PAGE.raw() + 512,
        Operand::Device => APIC.raw() + register::TPR,
        Operand::Command => APIC.raw() + register::ICR,
        Operand::Absent => NOWHERE.raw() + 512,
        Operand::ReadOnly => READ_ONLY.raw() + 512,
        Operand::NotCanonical => NOT_CANONICAL,
    }
}

/// Sets the stack that events of ring 3 use, or the kit's own.
fn set_stack(case: &Case, on: bool) {
    descriptors::set_ring0_stack(match case.stack {
        _ if !on => None,
        Stack::Plain => None,
        Stack::Table => Some(TABLE_PAGE.raw() + STACK_TOP),
        Stack::Absent => Some(NOWHERE.raw() + 2048),
    });
}

fn set_breakpoint(case: &Case, source: &Source) {
    let instruction = CODE.raw() + case.prefix.code().len() as u64;
    match case.breakpoint {
        Breakpoint::None => (),
        Breakpoint::Instruction => cpu::set_breakpoint(0, cpu::Breakpoint::Execute, instruction, 1),
        Breakpoint::First => cpu::set_breakpoint(1, cpu::Breakpoint::Access, DATA.raw() + 128, 2),
        Breakpoint::Operand if source.operand == Operand::NotCanonical => (),
        Breakpoint::Operand => cpu::set_breakpoint(1, cpu::Breakpoint::Access, operand(source), 4),
        Breakpoint::Registers => cpu::detect_debug_registers(),
    }
}

//! Instructions that raise events, or that events come behind.

/// Where RSI points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Memory.
    Plain,
    /// A page table in use.
    Table,
    /// A register of the local APIC.
    Device,
    /// Its interrupt command register.
    Command,
    /// Nothing.
    Absent,
    /// Memory that cannot be written.
    ReadOnly,
    /// No canonical address.
    NotCanonical,
}

/// What RAX holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// This.
    Is(u64),
    /// CR0.
    Cr0,
    /// The command that sends this CPU an interrupt.
    Interrupt,
    /// The command that sends this CPU an NMI.
    Nmi,
}

/// An instruction.
pub struct Source {
    /// How it is called.
    pub name: &'static str,
    /// Its bytes.
    pub code: &'static [u8],
    /// RSI.
    pub operand: Operand,
    /// RAX.
    pub value: Value,
    /// RCX.
    pub count: u64,
    /// DX.
    pub port: u16,
}

const fn plain(name: &'static str, code: &'static [u8]) -> Source {
    on(name, code, Operand::Plain)
}

const fn on(name: &'static str, code: &'static [u8], operand: Operand) -> Source {
    Source { name, code, operand, value: Value::Is(0), count: 0, port: DIAGNOSTIC }
}

const LOAD: &[u8] = &[0x8b, 0x06];
const STORE: &[u8] = &[0x89, 0x06];
/// A port that may be written.
const DIAGNOSTIC: u16 = 0x80;
/// The first PIC's mask, which may be read.
const MASK: u16 = 0x21;
/// IA32_APIC_BASE.
const MSR: u64 = 0x1b;

/// All of them.
pub const SOURCES: &[Source] = &[
    plain("nop", &[0x90]),
    plain("int3", &[0xcc]),
    plain("int 3", &[0xcd, 3]),
    plain("int 0x41", &[0xcd, 0x41]),
    plain("int1", &[0xf1]),
    plain("ud2", &[0x0f, 0x0b]),
    plain("div ecx", &[0xf7, 0xf1]),
    plain("load", LOAD),
    on("load from nothing", LOAD, Operand::Absent),
    on("load from a device", LOAD, Operand::Device),
    on("load not canonical", LOAD, Operand::NotCanonical),
    plain("store", STORE),
    on("store to a table", STORE, Operand::Table),
    on("store to a device", STORE, Operand::Device),
    on("store to a read-only page", STORE, Operand::ReadOnly),
    on("xchg with a table", &[0x87, 0x06], Operand::Table),
    on("push a table's entry", &[0xff, 0x36], Operand::Table),
    Source { value: Value::Interrupt, ..on("send an interrupt", STORE, Operand::Command) },
    Source { value: Value::Nmi, ..on("send an NMI", STORE, Operand::Command) },
    plain("cpuid", &[0x0f, 0xa2]),
    Source { port: MASK, ..plain("in", &[0xec]) },
    plain("out", &[0xee]),
    Source { count: MSR, ..plain("rdmsr", &[0x0f, 0x32]) },
    Source { count: 0xffff, ..plain("rdmsr of none", &[0x0f, 0x32]) },
    Source { count: 2, ..plain("rep stosb", &[0xf3, 0xaa]) },
    Source { count: 2, ..plain("rep movsb", &[0xf3, 0xa4]) },
    Source { count: 2, ..plain("rep outsb", &[0xf3, 0x6e]) },
    plain("mov ds, 0x1000", &[0x66, 0xb8, 0, 0x10, 0x8e, 0xd8]),
    plain("mov ss, 0x1000", &[0x66, 0xb8, 0, 0x10, 0x8e, 0xd0]),
    plain("pushfq, popfq", &[0x9c, 0x9d]),
    // Sets RFLAGS.TF.
    plain("pushfq, or, popfq", &[0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d]),
    plain("sti", &[0xfb]),
    plain("cli", &[0xfa]),
    Source { value: Value::Cr0, ..plain("mov cr0, rax", &[0x0f, 0x22, 0xc0]) },
    plain("mov rax, dr7", &[0x0f, 0x21, 0xf8]),
    plain("clts", &[0x0f, 0x06]),
    plain("invlpg", &[0x0f, 0x01, 0x3e]),
    plain("wbinvd", &[0x0f, 0x09]),
    plain("vmcall", &[0x0f, 0x01, 0xc1]),
    plain("syscall", &[0x0f, 0x05]),
];

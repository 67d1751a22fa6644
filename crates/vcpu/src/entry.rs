//! The state of the virtual CPU at the guest's first instruction.

use umbra_paging::Gpa;

/// Flat segments, interrupts off, no IDT; registers that are not named here are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What CR0, CR3, CR4, EFER and CS say.
    pub mode: Mode,
    /// The first instruction.
    pub rip: u64,
    /// A small stack.
    pub rsp: u64,
    /// What the boot protocol puts there.
    pub rax: u64,
    /// What the boot protocol puts there.
    pub rbx: u64,
    /// What the boot protocol puts there.
    pub rsi: u64,
    /// The descriptor table.
    pub gdt: Gdt,
}

/// The mode that a boot protocol starts a kernel in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit, with page tables at `cr3`.
    Long {
        /// CR3.
        cr3: u64,
    },
    /// 32-bit protected, paging off.
    Protected,
}

/// A descriptor table in guest memory, and the selectors into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gdt {
    /// Where it is.
    pub base: Gpa,
    /// Its last byte's offset.
    pub limit: u16,
    /// The code segment's selector.
    pub code: u16,
    /// The selector of all data segments.
    pub data: u16,
}

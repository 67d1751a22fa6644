//! Single accesses that may fault.

use core::fmt;

use umbra_paging::{Access, AccessKind, Gva};

use super::context::Context;
use super::cpu::rflags;
use super::snippets;
use super::traps::{self, Trap, vector};

/// A fault, as the CPU reported it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The vector.
    pub vector: u8,
    /// The error code.
    pub error_code: u64,
    /// CR2, for page faults; else zero.
    pub cr2: u64,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vector {
            vector::PF => write!(f, "#PF({:#x}) at {:#x}", self.error_code, self.cr2),
            other => write!(f, "vector {other}, error code {:#x}", self.error_code),
        }
    }
}

impl Fault {
    /// A page fault.
    pub const fn page(error_code: u64, cr2: u64) -> Fault {
        Fault { vector: vector::PF, error_code, cr2 }
    }

    /// #GP.
    pub const fn general_protection(error_code: u64) -> Fault {
        Fault { vector: vector::GP, error_code, cr2: 0 }
    }
}

/// Runs a context to its `INT 0x80`.
///
/// # Errors
/// The fault that ended it before.
pub fn run(context: &Context) -> Result<Context, Fault> {
    outcome(traps::run(context))
}

/// The registers at the end, or the fault that ended a context.
///
/// # Errors
/// As said.
pub fn outcome(trap: Trap) -> Result<Context, Fault> {
    match trap.is_stop() {
        true => Ok(trap.context),
        false => Err(Fault { vector: trap.vector, error_code: trap.error_code, cr2: trap.cr2 }),
    }
}

/// Carries out one access: of 8 bytes, `value` for a write; a fetch goes to code that ends with
/// `INT 0x80`. `smap_override` sets RFLAGS.AC.
///
/// Returns what RAX then has: what was read, or what the fetched code left there.
///
/// # Errors
/// The fault.
pub fn access(access: Access, gva: Gva, value: u64) -> Result<u64, Fault> {
    let mut context = match access.kind {
        AccessKind::Read => snippets::read().in_ring(access.user),
        AccessKind::Write => snippets::write().in_ring(access.user),
        AccessKind::Fetch if access.user => Context::user(gva.raw()),
        AccessKind::Fetch => Context::kernel(gva.raw()),
    };
    (context.rdi, context.rsi) = (gva.raw(), value);
    if access.smap_override {
        context = context.with_flags(rflags::AC);
    }
    Ok(run(&context)?.rax)
}

/// Reads in ring 0, with RFLAGS.AC set.
///
/// # Errors
/// The fault.
pub fn read(gva: Gva) -> Result<u64, Fault> {
    access(Access { smap_override: true, ..Access::supervisor_read() }, gva, 0)
}

/// Writes in ring 0, with RFLAGS.AC set.
///
/// # Errors
/// The fault.
pub fn write(gva: Gva, value: u64) -> Result<(), Fault> {
    let kind = AccessKind::Write;
    access(Access { smap_override: true, kind, user: false }, gva, value).map(|_| ())
}

/// Reads a model-specific register.
///
/// # Errors
/// The fault that it raises.
pub fn read_msr(msr: u32) -> Result<u64, Fault> {
    let mut context = snippets::read_msr().kernel();
    context.rcx = msr.into();
    run(&context).map(|end| end.rdx << 32 | end.rax & 0xffff_ffff)
}

/// Writes a model-specific register.
///
/// # Errors
/// The fault that it raises.
pub fn write_msr(msr: u32, value: u64) -> Result<(), Fault> {
    let mut context = snippets::write_msr().kernel();
    (context.rcx, context.rax, context.rdx) = (msr.into(), value & 0xffff_ffff, value >> 32);
    run(&context).map(|_| ())
}

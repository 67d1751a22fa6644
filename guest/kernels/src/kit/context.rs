//! What a piece of machine code starts with and ends with: all general registers, RIP, RSP, CS and
//! flags.

use super::cpu::rflags;
use super::descriptors::selector;

/// General registers and what IRET loads, in the order in which `traps.s` leaves them on the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs, reason = "the registers' own names")]
pub struct Context {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    /// Set by the stub of a vector.
    pub(super) vector: u64,
    /// Set by the CPU, or zero.
    pub(super) error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Context {
    /// 64-bit code of ring 0 at `rip`, with interrupts off and a small stack.
    pub fn kernel(rip: u64) -> Context {
        Context {
            rip,
            cs: selector::CODE,
            rflags: rflags::FIXED,
            rsp: super::traps::context_stack(),
            ss: selector::DATA,
            ..Context::default()
        }
    }

    /// 64-bit code of ring 3 at `rip`, with interrupts off and no stack.
    pub fn user(rip: u64) -> Context {
        Context {
            rip,
            cs: selector::USER_CODE,
            rflags: rflags::FIXED,
            ss: selector::USER_DATA,
            ..Context::default()
        }
    }

    /// 32-bit code of ring 3 at `rip`, with interrupts off and no stack.
    pub fn user_32(rip: u64) -> Context {
        Context { cs: selector::USER_CODE_32, ..Context::user(rip) }
    }

    /// With bits of RFLAGS set.
    pub fn with_flags(self, flags: u64) -> Context {
        Context { rflags: self.rflags | flags, ..self }
    }
}

//! Instructions that write to memory at RDI, each as a snippet.
//!
//! RSI, RAX, RBX, RCX and RDX are the caller's. Pushes go below RDI and the snippet is back
//! on its own stack when it ends.

use core::arch::global_asm;

use super::context::Context;
use super::cpu::{Cpu, rflags};
use super::space;

/// What the CPU must have for an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing beyond x86-64.
    Nothing,
    /// CMPXCHG16B.
    Cmpxchg16b,
    /// MOVBE.
    Movbe,
}

/// Flags that the architecture leaves undefined after an instruction.
mod undefined {
    pub const NONE: u64 = 0;
    /// After AND, OR, XOR.
    pub const LOGIC: u64 = 1 << 4;
    /// After shifts by more than one.
    pub const SHIFT: u64 = 1 << 4 | 1 << 11;
    /// After bit tests: OF, SF, AF, PF.
    pub const BIT: u64 = 1 << 11 | 1 << 7 | 1 << 4 | 1 << 2;
}

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub struct Store {
    /// How it is written.
    pub name: &'static str,
    address: u64,
    /// What RDI must be a multiple of.
    pub align: u64,
    /// Only ring 0 may.
    pub kernel_only: bool,
    /// Status flags that are undefined afterwards.
    pub undefined: u64,
    /// What it needs.
    pub needs: Needs,
}

impl Store {
    /// To be run in ring 3 or 0.
    pub fn context(&self, user: bool) -> Context {
        if user {
            Context::user(space::user_address(self.address))
        } else {
            Context::kernel(self.address)
        }
    }

    /// Whether this CPU has it.
    pub fn exists(&self, cpu: &Cpu) -> bool {
        match self.needs {
            Needs::Nothing => true,
            Needs::Cmpxchg16b => cpu.cmpxchg16b,
            Needs::Movbe => cpu.movbe,
        }
    }

    /// The flags that must be as on bare hardware.
    pub fn defined_flags(&self) -> u64 {
        rflags::STATUS & !self.undefined
    }
}

macro_rules! stores {
    ($($code:literal $(; align $align:literal)? $(; only $kernel:ident)? $(; undefined $undefined:ident)? $(; needs $needs:ident)?,)*) => {
        global_asm!(
            concat!(
                ".section .rodata.stores, \"a\"\n.balign 8\n.global store_addresses\nstore_addresses:\n",
                ".section .snippets, \"ax\"\n",
                $(
                    ".balign 16\n9:\n", $code, "\nint $0x80\n",
                    ".pushsection .rodata.stores, \"a\"\n.quad 9b\n.popsection\n",
                )*
                ".text\n"
            ),
            options(att_syntax)
        );

        const CODES: &[&str] = &[$($code),*];

        const fn properties() -> [(u64, bool, u64, Needs); CODES.len()] {
            [$({
                #[allow(unused_mut, unused_assignments, reason = "most have no property")]
                {
                    let mut properties = (1, false, undefined::NONE, Needs::Nothing);
                    $(properties.0 = $align;)?
                    $(properties.1 = stores!(@kernel $kernel);)?
                    $(properties.2 = undefined::$undefined;)?
                    $(properties.3 = Needs::$needs;)?
                    properties
                }
            }),*]
        }
    };
    (@kernel kernel) => { true };
}

stores! {
    "movb %sil, (%rdi)",
    "movw %si, (%rdi)",
    "movl %esi, (%rdi)",
    "movq %rsi, (%rdi)",
    "movb $0x67, (%rdi)",
    "movw $0x67, (%rdi)",
    "movl $0x67, (%rdi)",
    "movq $-0x99, (%rdi)",
    "movnti %rsi, (%rdi)",
    "movnti %esi, (%rdi)",
    "movw %ds, (%rdi)",
    "movbe %rsi, (%rdi)"; needs Movbe,
    "movbe %si, (%rdi)"; needs Movbe,
    "xchgb %sil, (%rdi)",
    "xchgw %si, (%rdi)",
    "xchgl %esi, (%rdi)",
    "xchgq %rsi, (%rdi)",
    "lock xchgq %rsi, (%rdi)",
    "cmpxchgq %rsi, (%rdi)",
    "lock cmpxchgq %rsi, (%rdi)",
    "lock cmpxchgl %esi, (%rdi)",
    "lock cmpxchgb %sil, (%rdi)",
    "movq (%rdi), %rax; lock cmpxchgq %rsi, (%rdi)",
    "movl (%rdi), %eax; cmpxchgl %esi, (%rdi)",
    "cmpxchg8b (%rdi)",
    "movl (%rdi), %eax; movl 4(%rdi), %edx; lock cmpxchg8b (%rdi)",
    "movq (%rdi), %rax; movq 8(%rdi), %rdx; lock cmpxchg16b (%rdi)"; align 16; needs Cmpxchg16b,
    "cmpxchg16b (%rdi)"; align 16; needs Cmpxchg16b,
    "xaddq %rsi, (%rdi)",
    "lock xaddq %rsi, (%rdi)",
    "lock xaddb %sil, (%rdi)",
    "addq %rsi, (%rdi)",
    "lock addq %rsi, (%rdi)",
    "lock addl $0x1000, (%rdi)",
    "adcq %rsi, (%rdi)",
    "stc; lock adcq %rsi, (%rdi)",
    "subq %rsi, (%rdi)",
    "lock subw %si, (%rdi)",
    "stc; sbbq %rsi, (%rdi)",
    "lock andq $-2, (%rdi)"; undefined LOGIC,
    "andq $-0x61, (%rdi)"; undefined LOGIC,
    "andb %sil, (%rdi)"; undefined LOGIC,
    "orq %rsi, (%rdi)"; undefined LOGIC,
    "lock orb $0x60, (%rdi)"; undefined LOGIC,
    "lock xorq %rsi, (%rdi)"; undefined LOGIC,
    "incq (%rdi)",
    "lock incl (%rdi)",
    "decq (%rdi)",
    "lock decb (%rdi)",
    "negq (%rdi)",
    "lock negl (%rdi)",
    "notq (%rdi)",
    "lock notw (%rdi)",
    "btsq $5, (%rdi)"; undefined BIT,
    "btrq $0, (%rdi)"; undefined BIT,
    "btcq $63, (%rdi)"; undefined BIT,
    "lock btsq $1, (%rdi)"; undefined BIT,
    "lock btrq $6, (%rdi)"; undefined BIT,
    "movl $100, %ebx; btsq %rbx, (%rdi)"; undefined BIT,
    "movq $-3, %rbx; btrq %rbx, (%rdi)"; undefined BIT,
    "movl $70, %ebx; lock btcq %rbx, (%rdi)"; undefined BIT,
    "shlq $3, (%rdi)"; undefined SHIFT,
    "shrq $1, (%rdi)"; undefined LOGIC,
    "sarq $12, (%rdi)"; undefined SHIFT,
    "rolq $7, (%rdi)"; undefined SHIFT,
    "rorl $1, (%rdi)",
    "stc; rclq $1, (%rdi)",
    "clc; rcrq $1, (%rdi)",
    "shldq $4, %rsi, (%rdi)"; undefined SHIFT,
    "shrdq $4, %rsi, (%rdi)"; undefined SHIFT,
    "setc (%rdi)",
    "setne (%rdi)",
    "xchgq %rdi, %rsp; pushq %rsi; xchgq %rdi, %rsp",
    "xchgq %rdi, %rsp; pushq $0x67; xchgq %rdi, %rsp",
    "xchgq %rdi, %rsp; pushw %si; xchgq %rdi, %rsp",
    "movq %rsi, %r8; xchgq %rdi, %rsp; pushq %r8; pushq %rsi; popq %rbx; xchgq %rdi, %rsp",
    "xchgq %rdi, %rsp; stc; pushfq; xchgq %rdi, %rsp",
    "xchgq %rdi, %rsp; call 1f; 1: xchgq %rdi, %rsp",
    "leaq 1f(%rip), %rbx; xchgq %rdi, %rsp; call *%rbx; 1: xchgq %rdi, %rsp",
    "xchgq %rdi, %rsp; movq %rsp, %rbx; pushq (%rbx); xchgq %rdi, %rsp",
    "movq %rsp, %r8; leaq 8(%rdi), %rsp; pushq %rsi; popq (%rsp); movq %rsp, %rbx; movq %r8, %rsp",
    "movq %rsp, %r8; movq %rdi, %rsp; enter $16, $0; movq %rbp, %rbx; xorl %ebp, %ebp; movq %r8, %rsp",
    "movq %rsp, %r8; movq %rdi, %rsp; pushq $2; popfq; movq %r8, %rsp",
    "movq %rsp, %r8; movq %rdi, %rsp; pushq %fs; pushq %gs; movq %r8, %rsp",
    "stosb",
    "stosw",
    "stosl",
    "stosq",
    "movl $9, %ecx; rep stosb",
    "movl $3, %ecx; rep stosl",
    "movl $5, %ecx; rep stosq",
    "std; movl $3, %ecx; rep stosq; cld",
    "std; movl $5, %ecx; rep stosb; cld",
    "xorl %ecx, %ecx; rep stosq",
    "leaq 1f(%rip), %rsi; movsb; jmp 2f; 1: .quad 0x1122334455667788; 2:",
    "leaq 1f(%rip), %rsi; movl $2, %ecx; rep movsq; jmp 2f; 1: .quad 0x1122334455667788, 0x67; 2:",
    "movq %rdi, %rsi; addq $64, %rsi; movl $4, %ecx; rep movsq",
    "movq %rdi, %rsi; subq $16, %rsi; movl $3, %ecx; rep movsq",
    "movq %rdi, %rsi; movsq; movsl; movsw; movsb",
    "movq %rsi, %xmm0; movups %xmm0, (%rdi)",
    "movq %rsi, %xmm0; movupd %xmm0, (%rdi)",
    "movq %rsi, %xmm0; movdqu %xmm0, (%rdi)",
    "movq %rsi, %xmm0; movaps %xmm0, (%rdi)"; align 16,
    "movq %rsi, %xmm0; movdqa %xmm0, (%rdi)"; align 16,
    "movq %rsi, %xmm0; movntps %xmm0, (%rdi)"; align 16,
    "movq %rsi, %xmm0; movntdq %xmm0, (%rdi)"; align 16,
    "movq %rsi, %xmm0; movss %xmm0, (%rdi)",
    "movq %rsi, %xmm0; movsd %xmm0, (%rdi)",
    "movq %rsi, %xmm0; movlps %xmm0, (%rdi)",
    "movq %rsi, %xmm0; movhps %xmm0, (%rdi)",
    "movq %rsi, %xmm0; movd %xmm0, (%rdi)",
    "movq %rsi, %xmm0; movq %xmm0, (%rdi)",
    "movq %rsi, %xmm0; pcmpeqd %xmm1, %xmm1; maskmovdqu %xmm1, %xmm0",
    "movq %rsi, %mm0; movq %mm0, (%rdi); emms",
    "movq %rsi, %mm0; movntq %mm0, (%rdi); emms",
    "stmxcsr (%rdi)",
    "fninit; fxsave64 (%rdi)"; align 16,
    "fninit; fxsave (%rdi)"; align 16,
    "fninit; fnsave (%rdi); fninit",
    "fninit; fnstenv (%rdi)",
    "fninit; fnstcw (%rdi)",
    "fninit; fnstsw (%rdi)",
    "fninit; fld1; fstps (%rdi)",
    "fninit; fldpi; fstpl (%rdi)",
    "fninit; fldpi; fstpt (%rdi)",
    "fninit; fld1; fistpll (%rdi)",
    "fninit; fld1; fbstp (%rdi)",
    "sgdt (%rdi)",
    "sidt (%rdi)",
    "sldt (%rdi)",
    "str (%rdi)",
    "smsw (%rdi)",
    ".byte 0x66, 0x66, 0x66, 0x2e, 0x3e, 0x36, 0x48, 0x89, 0x37",
    ".byte 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x2e, 0x48, 0x89, 0x37",
    "movw $0xe9, %dx; movl $2, %ecx; rep insb"; only kernel,
    "movw $0x80, %dx; insl"; only kernel,
    "clflush (%rdi)",
}

const PROPERTIES: [(u64, bool, u64, Needs); CODES.len()] = properties();

/// How many there are.
pub const COUNT: usize = CODES.len();

/// Store number `index`.
///
/// # Panics
/// If there are not so many.
pub fn get(index: usize) -> Store {
    unsafe extern "C" {
        static store_addresses: [u64; COUNT];
    }
    let (align, kernel_only, undefined, needs) = PROPERTIES[index];
    // SAFETY: the assembler made one word for each code, in their order.
    let address = unsafe { store_addresses[index] };
    let name = CODES[index];
    Store { name, address, align, kernel_only, undefined, needs }
}

/// All.
pub fn all() -> impl Iterator<Item = Store> {
    (0..COUNT).map(get)
}

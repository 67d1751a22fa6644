//! Pieces of machine code that run as a context, in ring 0 and in ring 3. Each ends with `INT
//! 0x80`.

use core::arch::global_asm;

use super::context::Context;
use super::space;

/// A snippet's address for ring 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snippet(u64);

impl Snippet {
    /// Where ring 0 has it.
    pub fn address(self) -> u64 {
        self.0
    }

    /// To be run in ring 0.
    pub fn kernel(self) -> Context {
        Context::kernel(self.0)
    }

    /// To be run in ring 3.
    pub fn user(self) -> Context {
        Context::user(space::user_address(self.0))
    }

    /// To be run in 32-bit code of ring 3, in a space that was opened for it ([`Space::open_low`]).
    ///
    /// [`Space::open_low`]: space::Space::open_low
    pub fn user_32(self) -> Context {
        Context::user_32(space::low_address(self.0))
    }

    /// To be run in ring 3 or 0.
    pub fn in_ring(self, user: bool) -> Context {
        if user { self.user() } else { self.kernel() }
    }
}

macro_rules! snippets {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal: $($code:literal)*;)*) => {
        global_asm!(
            concat!(
                ".section .snippets, \"ax\"\n",
                $(".balign 16\n.global ", $symbol, "\n", $symbol, ":\n", $($code, "\n",)* "int $0x80\n",)*
                ".text\n"
            ),
            options(att_syntax)
        );
        $(
            $(#[$doc])*
            pub fn $name() -> Snippet {
                unsafe extern "C" {
                    #[link_name = $symbol]
                    static code: u8;
                }
                Snippet((&raw const code) as u64)
            }
        )*
    };
}

snippets! {
    /// RAX = the word at RDI.
    read = "snippet_read": "movq (%rdi), %rax";
    /// The word at RDI = RSI.
    write = "snippet_write": "movq %rsi, (%rdi)";
    /// EAX = the 4 bytes at RDI, as devices want to be read.
    read_4 = "snippet_read_4": "movl (%rdi), %eax";
    /// The 4 bytes at RDI = ESI.
    write_4 = "snippet_write_4": "movl %esi, (%rdi)";
    /// The word at RDI = RSI, then RAX = the word at RDX.
    write_then_read = "snippet_write_then_read": "movq %rsi, (%rdi)" "movq (%rdx), %rax";
    /// Nothing.
    nothing = "snippet_nothing": "";
    /// Three instructions to step over: a store to RDI, a load, an addition.
    steps = "snippet_steps": "movq %rsi, (%rdi)" "movq (%rdi), %rax" "addq $1, %rax" "nop";
    /// A store of 32 bits to RDI, then two instructions.
    steps_device = "snippet_steps_device": "movl %esi, (%rdi)" "movl (%rdi), %eax" "nop" "nop";
    /// Store, load, store by string instructions, to step over.
    steps_string = "snippet_steps_string": "rep stosq" "nop" "nop";
    /// IN, to step over.
    steps_in = "snippet_steps_in": "inb %dx, %al" "nop" "nop";
    /// OUT, to step over.
    steps_out = "snippet_steps_out": "outb %al, %dx" "nop" "nop";
    /// INS of 1 byte from DX to RDI, to step over.
    steps_ins = "snippet_steps_ins": "insb" "nop" "nop";
    /// The same, repeated.
    steps_rep_ins = "snippet_steps_rep_ins": "rep insb" "nop" "nop";
    /// OUTS of 1 byte at RSI to DX, to step over.
    steps_outs = "snippet_steps_outs": "outsb" "nop" "nop";
    /// The same, repeated.
    steps_rep_outs = "snippet_steps_rep_outs": "rep outsb" "nop" "nop";
    /// HLT, to step over.
    steps_halt = "snippet_steps_halt": "hlt" "nop" "nop";
    /// POPF clears TF: its own step is the last.
    steps_popf = "snippet_steps_popf": "pushq $2" "popfq" "nop" "nop";
    /// MOV SS holds back the trap of the next instruction.
    steps_mov_ss = "snippet_steps_mov_ss": "movl %esi, %ss" "movq %rax, (%rdi)" "nop" "nop";
    /// MOV SS from RDI holds back its own trap, until HLT has begun.
    steps_mov_ss_halt = "snippet_steps_mov_ss_halt": "movw (%rdi), %ss" "hlt" "nop" "nop";
    /// INT3.
    breakpoint = "snippet_breakpoint": "int3";
    /// Divides by zero.
    divide = "snippet_divide": "xorl %ecx, %ecx" "xorl %edx, %edx" "movl $1, %eax" "divl %ecx";
    /// UD2.
    undefined = "snippet_undefined": "ud2";
    /// Loads DS with the selector in ESI.
    load_segment = "snippet_load_segment": "movl %esi, %ds" "movl $0x23, %eax" "movl %eax, %ds";
    /// Loads SS with the selector in ESI.
    load_stack_segment = "snippet_load_stack_segment": "movl %esi, %ss";
    /// Reads through RBP, whose segment is the stack's.
    read_by_rbp = "snippet_read_by_rbp": "movq (%rbp), %rax";
    /// INVLPG of RDI.
    invlpg = "snippet_invlpg": "invlpg (%rdi)";
    /// WBINVD.
    write_back = "snippet_wbinvd": "wbinvd";
    /// Reads CR3 into RAX.
    read_cr3 = "snippet_read_cr3": "movq %cr3, %rax";
    /// Reads DR7 into RAX.
    read_dr7 = "snippet_read_dr7": "movq %dr7, %rax";
    /// HLT.
    halt = "snippet_halt": "hlt";
    /// Reads CR4 into RAX.
    read_cr4 = "snippet_read_cr4": "movq %cr4, %rax";
    /// CR4 = RSI.
    write_cr4 = "snippet_write_cr4": "movq %rsi, %cr4";
    /// CR0 = RSI.
    write_cr0 = "snippet_write_cr0": "movq %rsi, %cr0";
    /// CR3 = RSI.
    write_cr3 = "snippet_write_cr3": "movq %rsi, %cr3";
    /// RDMSR of ECX.
    read_msr = "snippet_read_msr": "rdmsr";
    /// WRMSR of ECX.
    write_msr = "snippet_write_msr": "wrmsr";
    /// INVPCID of type RSI with the descriptor at RDI.
    invpcid = "snippet_invpcid": "invpcid (%rdi), %rsi";
    /// In 32-bit code: INVPCID of type ESI with the descriptor at EDI.
    invpcid_32 = "snippet_invpcid_32":
        "leaq 1f(%rip), %rax" "pushq $0x18" "pushq %rax" "lretq"
        ".code32" "1: invpcid (%edi), %esi" "ljmp $0x8, $2f"
        ".code64" "2:";
    /// INT 0x41.
    software_interrupt = "snippet_software_interrupt": "int $0x41";
    /// PUSH RSI on the stack at RDI, which the snippet ends on, too.
    push_there = "snippet_push_there": "movq %rdi, %rsp" "pushq %rsi";
    /// Lets interrupts in for one instruction.
    open = "snippet_open": "sti" "nop" "nop" "cli";
    /// STI, then a store to RDI in the shadow of STI.
    sti_store = "snippet_sti_store": "sti" "movl %esi, (%rdi)" "nop" "cli";
    /// To 32-bit code and back: RAX is then what compatibility mode makes of 0xffffffff + 2.
    far_compatibility = "snippet_far_compatibility":
        "leaq 1f(%rip), %rax" "pushq $0x18" "pushq %rax" "lretq"
        ".code32" "1: movl $0xffffffff, %eax" "incl %eax" "incl %eax" "movl (%edi), %ecx" "movl %esi, (%edi)" "ljmp $0x8, $2f"
        ".code64" "2:";
    /// In 32-bit code: INTO with OF set.
    overflow = "snippet_overflow":
        "leaq 1f(%rip), %rax" "pushq $0x18" "pushq %rax" "lretq"
        ".code32" "1: movb $0x7f, %al" "addb $1, %al" "into" "ljmp $0x8, $2f"
        ".code64" "2:";
    /// In 32-bit code: EAX = the 4 bytes at EDI.
    read_32 = "snippet_read_32": ".code32" "movl (%edi), %eax" "int $0x80" ".code64";
    /// In 32-bit code: the 4 bytes at EDI = ESI.
    write_32 = "snippet_write_32": ".code32" "movl %esi, (%edi)" "int $0x80" ".code64";
    /// In 32-bit code: EAX = the 4 bytes at EDI + 16.
    read_beyond_32 = "snippet_read_beyond_32": ".code32" "movl 16(%edi), %eax" "int $0x80" ".code64";
    /// In 32-bit code: to the address in EDI.
    jump_32 = "snippet_jump_32": ".code32" "jmp *%edi" "int $0x80" ".code64";
    /// In 32-bit code: PUSH ESI on the stack at EDI; EAX is then ESP.
    push_32 = "snippet_push_32": ".code32" "movl %edi, %esp" "pushl %esi" "movl %esp, %eax" "int $0x80" ".code64";
    /// In 32-bit code: REP STOSL.
    stosl_32 = "snippet_stosl_32": ".code32" "rep stosl" "int $0x80" ".code64";
    /// RFLAGS after the addition, subtraction, logic and shift of RSI and RDI: in RAX, RBX, RCX,
    /// RDX.
    flags = "snippet_flags":
        "movq %rsi, %r8" "addq %rdi, %r8" "pushfq" "popq %rax"
        "movq %rsi, %r9" "subq %rdi, %r9" "pushfq" "popq %rbx"
        "movq %rsi, %r10" "andq %rdi, %r10" "pushfq" "popq %rcx"
        "movq %rsi, %r11" "shrq $1, %r11" "pushfq" "popq %rdx";
    /// The same on memory at RBP, whose words are RSI each time: in RAX, RBX, RCX, RDX.
    flags_in_memory = "snippet_flags_in_memory":
        "movq %rsi, (%rbp)" "addq %rdi, (%rbp)" "pushfq" "popq %rax" "movq (%rbp), %r8"
        "movq %rsi, (%rbp)" "subq %rdi, (%rbp)" "pushfq" "popq %rbx" "movq (%rbp), %r9"
        "movq %rsi, (%rbp)" "andq %rdi, (%rbp)" "pushfq" "popq %rcx" "movq (%rbp), %r10"
        "movq %rsi, (%rbp)" "shrq $1, (%rbp)" "pushfq" "popq %rdx" "movq (%rbp), %r11";
    /// IN of 1, 2 or 4 bytes from DX.
    in_1 = "snippet_in_1": "inb %dx, %al";
    /// IN of 2 bytes.
    in_2 = "snippet_in_2": "inw %dx, %ax";
    /// IN of 4 bytes.
    in_4 = "snippet_in_4": "inl %dx, %eax";
    /// OUT of 1 byte.
    out_1 = "snippet_out_1": "outb %al, %dx";
    /// OUT of 2 bytes.
    out_2 = "snippet_out_2": "outw %ax, %dx";
    /// OUT of 4 bytes.
    out_4 = "snippet_out_4": "outl %eax, %dx";
    /// REP INS of bytes from DX to RDI.
    ins = "snippet_ins": "rep insb";
    /// INS of 4 bytes from DX to RDI.
    ins_4 = "snippet_ins_4": "insl";
    /// REP OUTS of bytes at RSI to DX.
    outs = "snippet_outs": "rep outsb";
    /// FWAIT: #NM while CR0.TS and CR0.MP are set.
    wait = "snippet_wait": "fwait";
    /// CLTS.
    clear_task_switched = "snippet_clts": "clts";
    /// LMSW of ESI.
    lmsw = "snippet_lmsw": "lmsw %si";
    /// SWAPGS twice.
    swapgs = "snippet_swapgs": "swapgs" "swapgs";
    /// SYSCALL.
    syscall = "snippet_syscall": "syscall";
    /// Stores eight words at RDI; each is a table write.
    burst = "snippet_burst":
        "movq %rsi, (%rdi)" "movq %rsi, 8(%rdi)" "movq %rsi, 16(%rdi)" "movq %rsi, 24(%rdi)"
        "movq %rsi, 32(%rdi)" "movq %rsi, 40(%rdi)" "movq %rsi, 48(%rdi)" "movq %rsi, 56(%rdi)";
    /// REP STOSQ.
    stosq = "snippet_stosq": "rep stosq";
    /// 16 bytes from RDI to RSI, by way of XMM3.
    copy_by_sse = "snippet_copy_by_sse": "movups (%rdi), %xmm3" "movups %xmm3, (%rsi)";
    /// 4 bytes from RDI to RSI, by way of MM1.
    copy_by_mmx = "snippet_copy_by_mmx": "movd (%rdi), %mm1" "movd %mm1, (%rsi)" "emms";
    /// 4 bytes from RDI to RSI, by way of the x87 stack.
    copy_by_x87 = "snippet_copy_by_x87": "fninit" "fildl (%rdi)" "fistpl (%rsi)";
    /// The x87 instruction pointer after FILD from RDI is stored at RSI + 8 by FNSTENV.
    store_environment = "snippet_store_environment": "fninit" "fildl (%rdi)" "fnstenv (%rsi)";
    /// x87: 1 / 0 with the exception unmasked by the control word at RDI, then FWAIT, which meets
    /// the error.
    divide_by_zero = "snippet_divide_by_zero":
        "fninit" "fldcw (%rdi)" "fld1" "fldz" "fdivrp %st, %st(1)" "fwait" "nop" "fninit";
    /// MOVAPS from RDI.
    load_aligned = "snippet_load_aligned": "movaps (%rdi), %xmm3";
    /// Load and store of 16 bytes, to step over.
    steps_sse = "snippet_steps_sse": "movups (%rdi), %xmm3" "movups %xmm3, (%rdi)" "nop";
    /// CLFLUSH of RDI.
    flush_line = "snippet_flush_line": "clflush (%rdi)";
    /// INT1.
    int1 = "snippet_int1": ".byte 0xf1";
    /// REP MOVSQ.
    movsq = "snippet_movsq": "rep movsq";
}

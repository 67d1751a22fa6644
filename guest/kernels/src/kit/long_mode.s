# Out of long mode and back, for functions that turn paging off.

# Saves what the ABI wants kept, and goes on in compatibility mode.
.macro leave_long_mode
    # Upper halves of registers do not survive 32-bit code (SDM vol. 1, "General-Purpose Registers
    # in 64-Bit Mode").
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rbp
    # SDM, "Exiting IA-32e Mode": first to compatibility mode.
    pushq $0x18
    leaq 1f(%rip), %rax
    pushq %rax
    lretq
.code32
1:
.endm

# Takes back what `leave_long_mode` saved, in 64-bit mode again.
.macro restore_registers
    movl %ebp, %esp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
.endm

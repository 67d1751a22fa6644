# Exceptions and interrupts, and the way into and out of a context (traps.rs).

.text
.balign 16
.global trap_stubs
trap_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    # The vectors whose exceptions push an error code (SDM, "Exception and Interrupt Reference").
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    .set vector, vector + 1
    .endr

trap_common:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    # SDM, "Interrupt Stack Frame": the CPU aligns the stack; it, the stub and this code pushed 22 words.
    call trap_handler
    jmp load_frame

# fn enter_context(frame: *const Frame): saves what the ABI wants kept, loads the frame.
.global enter_context
enter_context:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    pushq resume_stack(%rip)
    movq %rsp, resume_stack(%rip)
    movq %rdi, %rsp
load_frame:
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    iretq

# fn leave_context() -> !: returns from enter_context. By IRET, which also unblocks NMIs.
.global leave_context
leave_context:
    movq resume_stack(%rip), %rsp
    popq resume_stack(%rip)
    movq (%rsp), %rax                                 # flags
    movq %rsp, %rcx
    pushq $0x10
    pushq %rcx
    pushq %rax
    pushq $0x8
    leaq 1f(%rip), %rax
    pushq %rax
    iretq
1:  popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

.section .bss.resume, "aw", @nobits
.balign 8
resume_stack:
    .skip 8

.text

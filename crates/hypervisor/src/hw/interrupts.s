# One stub of 16 bytes per vector: makes all frames alike (an error code, the vector), then calls Rust.

.text
.balign 16
.global interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    # The vectors whose exceptions push an error code (SDM, "Exception and Interrupt Reference").
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    pushq $0
    .endif
    pushq $vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

interrupt_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    cld
    movq %rsp, %rdi
    # 5 words of the CPU, 2 of the stub, 9 here: the stack is aligned as the ABI wants it.
    call interrupt_handler
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

# fn unpaged_exchange(address: u32, value: u32) -> u32: turns paging off, exchanges a word, turns it on again.
.text
.global unpaged_exchange
unpaged_exchange:
    # Upper halves of registers do not survive 32-bit code (SDM vol. 1, "General-Purpose Registers in 64-Bit Mode").
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
1:  movl %cr0, %ecx
    movl %ecx, %edx
    andl $0x7fffffff, %edx                            # PG
    movl %edx, %cr0
    xchgl %esi, (%edi)
    movl %ecx, %cr0
    ljmp $0x8, $2f
.code64
2:  movl %esi, %eax
    movl %ebp, %esp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

# fn unpaged_read_under(address: u32, cr3: u32, cr4_off: u32) -> u32: turns paging off, loads CR3, clears bits of CR4, reads
# a word, and puts all back.
.global unpaged_read_under
unpaged_read_under:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rbp
    pushq $0x18
    leaq 1f(%rip), %rax
    pushq %rax
    lretq
.code32
1:  movl %cr0, %ecx
    movl %ecx, %ebx
    andl $0x7fffffff, %ebx                            # PG
    movl %ebx, %cr0
    movl %cr3, %ebx
    movl %esi, %cr3
    movl %cr4, %esi
    notl %edx
    andl %esi, %edx
    movl %edx, %cr4
    movl (%edi), %eax
    movl %esi, %cr4
    movl %ebx, %cr3
    movl %ecx, %cr0
    ljmp $0x8, $2f
.code64
2:  movl %eax, %eax
    movl %ebp, %esp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

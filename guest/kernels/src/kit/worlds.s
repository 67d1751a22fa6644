# Into a state of long mode, or of protected mode outside of it, and back with the next event
# (worlds.rs). `world` is the state; the offsets are those of `State`.

.set W_KIND, world + 0
.set W_CR3, world + 8
.set W_CR0, world + 16
.set W_CR4, world + 24
.set W_TOUCH, world + 32
.set W_REGISTERS, world + 40
.set W_RSP, W_REGISTERS + 32
.set W_RIP, world + 168
.set W_CS, world + 176
.set W_FLAGS, world + 184
.set W_SS, world + 192
.set W_DS, world + 200
.set W_ES, world + 208
.set W_FS, world + 216
.set W_GS, world + 224
.set W_BASES, world + 232
.set W_VECTOR, world + 248
.set W_ERROR, world + 256
.set W_GDT, world + 264
.set W_IDT, world + 280
.set W_LDT, world + 296
.set W_TR, world + 304

# Vectors whose exceptions push an error code: 8, 10 to 14, 17, 21.
.set WITH_ERROR, 0x227d00

.section .bss.worlds, "aw", @nobits
.balign 16
kept_rsp: .skip 8
kept_cr0: .skip 8
kept_cr3: .skip 8
kept_cr4: .skip 8
kept_gdt: .skip 16
kept_idt: .skip 16
far_stack: .skip 8

.text
.code64
# fn world_run(): enters the state, and returns with that of the next event.
.global world_run
world_run:
    pushfq
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, kept_rsp(%rip)
    sgdt kept_gdt(%rip)
    sidt kept_idt(%rip)
    movq %cr0, %rax
    movq %rax, kept_cr0(%rip)
    movq %cr3, %rax
    movq %rax, kept_cr3(%rip)
    movq %cr4, %rax
    movq %rax, kept_cr4(%rip)
    cmpl $0, W_KIND(%rip)
    jne world_legacy

    movq W_CR3(%rip), %rax
    movq %rax, %cr3
    movq W_CR4(%rip), %rax
    movq %rax, %cr4
    movq W_CR0(%rip), %rax
    movq %rax, %cr0
    lgdt W_GDT(%rip)
    lidt W_IDT(%rip)
    lldtw W_LDT(%rip)
    ltrw W_TR(%rip)
    # A program may have made the page global, which loads of CR3 leave in the TLB.
    movq W_TOUCH(%rip), %rax
    invlpg (%rax)
    movq (%rax), %rax
    movw W_DS(%rip), %ds
    movw W_ES(%rip), %es
    movw W_FS(%rip), %fs
    movw W_GS(%rip), %gs
    movl $0xc0000100, %ecx                            # IA32_FS_BASE
    movl W_BASES(%rip), %eax
    movl W_BASES+4(%rip), %edx
    wrmsr
    incl %ecx                                         # IA32_GS_BASE
    movl W_BASES+8(%rip), %eax
    movl W_BASES+12(%rip), %edx
    wrmsr
    pushq W_SS(%rip)
    pushq W_RSP(%rip)
    pushq W_FLAGS(%rip)
    pushq W_CS(%rip)
    pushq W_RIP(%rip)
    movq W_REGISTERS+0(%rip), %rax
    movq W_REGISTERS+8(%rip), %rcx
    movq W_REGISTERS+16(%rip), %rdx
    movq W_REGISTERS+24(%rip), %rbx
    movq W_REGISTERS+40(%rip), %rbp
    movq W_REGISTERS+48(%rip), %rsi
    movq W_REGISTERS+56(%rip), %rdi
    movq W_REGISTERS+64(%rip), %r8
    movq W_REGISTERS+72(%rip), %r9
    movq W_REGISTERS+80(%rip), %r10
    movq W_REGISTERS+88(%rip), %r11
    movq W_REGISTERS+96(%rip), %r12
    movq W_REGISTERS+104(%rip), %r13
    movq W_REGISTERS+112(%rip), %r14
    movq W_REGISTERS+120(%rip), %r15
    iretq

# Gates of long mode. The vector goes to memory: the stack may be none.
.balign 16
.global world_long_stubs
world_long_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    movl $vector, W_VECTOR(%rip)
    jmp long_event
    .set vector, vector + 1
    .endr

# Where the call gate of long mode leads.
.global world_long_gate
world_long_gate:
    int $0x80

# What SYSCALL and SYSENTER lead to.
.global world_long_call
world_long_call:
    int $0x80

long_event:
    movq %rax, W_REGISTERS+0(%rip)
    movq %rcx, W_REGISTERS+8(%rip)
    movq %rdx, W_REGISTERS+16(%rip)
    movq %rbx, W_REGISTERS+24(%rip)
    movq %rbp, W_REGISTERS+40(%rip)
    movq %rsi, W_REGISTERS+48(%rip)
    movq %rdi, W_REGISTERS+56(%rip)
    movq %r8, W_REGISTERS+64(%rip)
    movq %r9, W_REGISTERS+72(%rip)
    movq %r10, W_REGISTERS+80(%rip)
    movq %r11, W_REGISTERS+88(%rip)
    movq %r12, W_REGISTERS+96(%rip)
    movq %r13, W_REGISTERS+104(%rip)
    movq %r14, W_REGISTERS+112(%rip)
    movq %r15, W_REGISTERS+120(%rip)
    movq %rsp, %rcx
    movl W_VECTOR(%rip), %edx
    xorl %esi, %esi
    movl $WITH_ERROR, %eax
    cmpl $31, %edx
    ja 1f
    btl %edx, %eax
    jnc 1f
    movq (%rcx), %rsi
    addq $8, %rcx
1:  movq %rsi, W_ERROR(%rip)
    movq (%rcx), %rax
    movq %rax, W_RIP(%rip)
    movq 8(%rcx), %rax
    movq %rax, W_CS(%rip)
    movq 16(%rcx), %rax
    movq %rax, W_FLAGS(%rip)
    movq 24(%rcx), %rax
    movq %rax, W_RSP(%rip)
    movq 32(%rcx), %rax
    movq %rax, W_SS(%rip)
    movw %ds, W_DS(%rip)
    movw %es, W_ES(%rip)
    movw %fs, W_FS(%rip)
    movw %gs, W_GS(%rip)
    movl $0xc0000100, %ecx
    rdmsr
    movl %eax, W_BASES(%rip)
    movl %edx, W_BASES+4(%rip)
    incl %ecx
    rdmsr
    movl %eax, W_BASES+8(%rip)
    movl %edx, W_BASES+12(%rip)
    movq %cr0, %rax
    movq %rax, W_CR0(%rip)
    movq %cr4, %rax
    movq %rax, W_CR4(%rip)
    movq kept_cr0(%rip), %rax
    movq %rax, %cr0
    movq kept_cr3(%rip), %rax
    movq %rax, %cr3
    movq kept_cr4(%rip), %rax
    movq %rax, %cr4
    lgdt kept_gdt(%rip)
world_home:
    lidt kept_idt(%rip)
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    lldt %ax
    # The manual does not say which base a null selector leaves (a task switch loads such ones).
    movl %eax, %fs
    movl %eax, %gs
    xorl %edx, %edx
    movl $0xc0000100, %ecx                            # IA32_FS_BASE
    wrmsr
    incl %ecx                                         # IA32_GS_BASE
    wrmsr
    movq kept_rsp(%rip), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    popfq
    ret

# SDM, "Exiting IA-32e Mode".
world_legacy:
    pushq $0x18
    leaq 1f(%rip), %rax
    pushq %rax
    lretq
.code32
1:  movl %cr0, %eax
    andl $0x7fffffff, %eax                            # PG
    movl %eax, %cr0
    movl $0xc0000080, %ecx                            # EFER
    rdmsr
    andl $0xfffffeff, %eax                            # LME
    wrmsr
    movl W_CR3, %eax
    movl %eax, %cr3
    movl W_CR4, %eax
    movl %eax, %cr4
    movl W_CR0, %eax
    movl %eax, %cr0
    lgdt W_GDT
    lidt W_IDT
    ljmp $0x18, $1f
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %ss
    lldtw W_LDT
    ltrw W_TR
    movl W_TOUCH, %eax
    invlpg (%eax)
    movl (%eax), %eax
    testl $0x20000, W_FLAGS                           # VM
    jz 2f
    pushl W_GS
    pushl W_FS
    pushl W_DS
    pushl W_ES
    pushl W_SS
    pushl W_RSP
    jmp 4f
2:  movw W_FS, %fs
    movw W_GS, %gs
    movw W_ES, %es
    testl $3, W_CS
    jz 3f
    pushl W_SS
    pushl W_RSP
    jmp 4f
    # IRET to the same ring leaves the stack alone.
3:  movl W_RSP, %eax
    movl %eax, far_stack
    movl W_SS, %eax
    movl %eax, far_stack+4
    lss far_stack, %esp
4:  pushl W_FLAGS
    pushl W_CS
    pushl W_RIP
    movl W_REGISTERS+0, %eax
    movl W_REGISTERS+8, %ecx
    movl W_REGISTERS+16, %edx
    movl W_REGISTERS+24, %ebx
    movl W_REGISTERS+40, %ebp
    movl W_REGISTERS+48, %esi
    movl W_REGISTERS+56, %edi
    # IRET takes DS of virtual-8086 mode off the stack; here its value names a descriptor.
    testl $0x20000, W_FLAGS
    jnz 5f
    movw W_DS, %ds
5:  iretl

.balign 32
.global world_legacy_stubs
world_legacy_stubs:
    .set vector, 0
    .rept 256
    .balign 32
    pushl %eax
    pushl %ds
    movl $0x10, %eax
    movl %eax, %ds
    movl $vector, W_VECTOR
    jmp legacy_event
    .set vector, vector + 1
    .endr

.global world_legacy_gate
world_legacy_gate:
    int $0x80

# The task that a double fault leads to. The program's state is in its TSS.
.global world_legacy_task
world_legacy_task:
    movl $0x108, W_VECTOR
    jmp legacy_home

legacy_event:
    popl W_DS
    popl W_REGISTERS+0
    movl %ecx, W_REGISTERS+8
    movl %edx, W_REGISTERS+16
    movl %ebx, W_REGISTERS+24
    movl %ebp, W_REGISTERS+40
    movl %esi, W_REGISTERS+48
    movl %edi, W_REGISTERS+56
    movl W_VECTOR, %edx
    movl $0, W_ERROR
    movl $WITH_ERROR, %eax
    cmpl $31, %edx
    ja 1f
    btl %edx, %eax
    jnc 1f
    popl W_ERROR
1:  popl W_RIP
    popl W_CS
    popl W_FLAGS
    testl $0x20000, W_FLAGS
    jz 2f
    popl W_RSP
    popl W_SS
    popl W_ES
    popl W_DS
    popl W_FS
    popl W_GS
    jmp legacy_home
2:  movw %es, W_ES
    movw %fs, W_FS
    movw %gs, W_GS
    testl $3, W_CS
    jz 3f
    popl W_RSP
    popl W_SS
    jmp legacy_home
3:  movl %esp, W_RSP
    movw %ss, W_SS
legacy_home:
    movl $0x10, %eax
    movl %eax, %ss
    movl kept_rsp, %esp
    movl %cr0, %eax
    movl %eax, W_CR0
    movl %cr4, %edx
    movl %edx, W_CR4
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl kept_cr4, %eax
    movl %eax, %cr4
    movl kept_cr3, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl kept_cr0, %eax
    movl %eax, %cr0
    lgdt kept_gdt
    ljmp $0x8, $1f
.code64
1:  jmp world_home

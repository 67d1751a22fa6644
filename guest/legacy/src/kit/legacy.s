# The 32-bit kernel: from the multiboot loader to Rust, and programs that end in an exception or in
# INT 0x80, wherever and in whatever mode they run.

.section .boot.header, "a"
.balign 4
    .long 0x1badb002                                  # magic
    .long 3                                           # modules on page boundaries, memory information
    .long 0x100000000 - (0x1badb002 + 3)

.section .boot.text, "ax"
.global boot_entry
boot_entry:
    cli
    cld
    movl $boot_stack_top, %esp
    xorl %ebp, %ebp
    lgdt legacy_gdtr
    ljmp $0x08, $1f
1:  movl $0x10, %ecx
    movl %ecx, %ds
    movl %ecx, %es
    movl %ecx, %ss
    xorl %ecx, %ecx
    movl %ecx, %fs
    movl %ecx, %gs
    pushl %eax                                        # the loader's magic
    pushl %ebx                                        # boot information
    call legacy_start
    ud2

.data
.balign 16
.global legacy_gdt
legacy_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff                          # 0x08: code
    .quad 0x00cf93000000ffff                          # 0x10: data
    .quad 0x00cffb000000ffff                          # 0x18: code of ring 3
    .quad 0x00cff3000000ffff                          # 0x20: data of ring 3
    .quad 0                                           # 0x28: TSS
    .quad 0                                           # 0x30: LDT
    .fill 9, 8, 0                                     # 0x38: what tests want
legacy_gdt_end:
legacy_gdtr: .word legacy_gdt_end - legacy_gdt - 1
    .long legacy_gdt
.balign 16
.global legacy_tss
legacy_tss:
    .long 0, 0, 0x10
    .fill 22, 4, 0
    .word 0, 0x68                                     # no I/O map within the limit

# Where legacy_run came from: the exception handlers return there.
run_esp: .long 0
run_context: .long 0

.section .bss.stack, "aw", @nobits
.balign 16
    .skip 0x10000
boot_stack_top:

.text
# void legacy_run(context *): runs from the registers in the context until an exception or INT n
# leaves them there.
#  0 eax  4 ecx  8 edx  12 ebx  16 esi  20 edi  24 ebp
# 28 eip 32 cs 36 eflags 40 esp 44 ss 48 es 52 ds 56 fs 60 gs
# 64 vector 68 error code 72 CR2
.global legacy_run
legacy_run:
    pushl %ebp
    pushl %ebx
    pushl %esi
    pushl %edi
    pushfl
    movl 24(%esp), %ebx
    movl %ebx, run_context
    movl %esp, run_esp
    movl %esp, legacy_tss + 4                         # esp0
    movl $0x175, %ecx                                 # IA32_SYSENTER_ESP
    movl %esp, %eax
    xorl %edx, %edx
    wrmsr
    testl $0x20000, 36(%ebx)                          # VM
    jz 1f
    pushl 60(%ebx)
    pushl 56(%ebx)
    pushl 52(%ebx)
    pushl 48(%ebx)
    jmp 2f
1:  testl $3, 32(%ebx)
    jz 3f
2:  pushl 44(%ebx)
    pushl 40(%ebx)
3:  pushl 36(%ebx)
    pushl 32(%ebx)
    pushl 28(%ebx)
    testl $0x20000, 36(%ebx)
    jnz 4f
    movw 52(%ebx), %ds
    movw %cs:48(%ebx), %es
    movw %cs:56(%ebx), %fs
    movw %cs:60(%ebx), %gs
4:  movl %cs:0(%ebx), %eax
    movl %cs:4(%ebx), %ecx
    movl %cs:8(%ebx), %edx
    movl %cs:16(%ebx), %esi
    movl %cs:20(%ebx), %edi
    movl %cs:24(%ebx), %ebp
    movl %cs:12(%ebx), %ebx
    iretl

# Stubs of 16 bytes: vectors with an error code have it on the stack.
.balign 16
.global legacy_stubs
legacy_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if vector == 8 || vector == 10 || vector == 11 || vector == 12 || vector == 13 || vector == 14 || vector == 17
    nop
    nop
    .else
    pushl $0
    .endif
    pushl $vector
    jmp legacy_trap
    .set vector, vector + 1
    .endr

.global legacy_interrupt
legacy_interrupt:
    pushl $0
    pushl $0x80
legacy_trap:
    pushal
    pushl %ds
    movl $0x10, %eax
    movl %eax, %ds
    movl run_context, %ebx
    popl 52(%ebx)
    movw %es, 48(%ebx)
    movw %fs, 56(%ebx)
    movw %gs, 60(%ebx)
    popl 20(%ebx)
    popl 16(%ebx)
    popl 24(%ebx)
    popl %eax
    popl 12(%ebx)
    popl 8(%ebx)
    popl 4(%ebx)
    popl 0(%ebx)
    popl 64(%ebx)
    popl 68(%ebx)
    popl 28(%ebx)
    popl 32(%ebx)
    popl 36(%ebx)
    movl %cr2, %eax
    movl %eax, 72(%ebx)
    testl $0x20000, 36(%ebx)
    jnz 1f
    testl $3, 32(%ebx)
    jz 2f
    popl 40(%ebx)
    popl 44(%ebx)
    jmp 2f
1:  popl 40(%ebx)
    popl 44(%ebx)
    popl 48(%ebx)
    popl 52(%ebx)
    popl 56(%ebx)
    popl 60(%ebx)
legacy_back:
2:  movl $0x10, %eax
    movl %eax, %es
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl run_esp, %esp
    testl %esp, %esp
    jz legacy_lost
    popfl
    popl %edi
    popl %esi
    popl %ebx
    popl %ebp
    ret

legacy_lost:
    movl $boot_stack_top, %esp
    pushl %ebx
    call legacy_unexpected
    ud2

# SYSENTER's target: as vector 0x100, with what the CPU has not saved left as it is in the context.
.global legacy_sysenter
legacy_sysenter:
    movl %ebx, %ss:run_context_ebx
    movl $0x10, %ebx
    movl %ebx, %ds
    movl run_context, %ebx
    movl %eax, 0(%ebx)
    movl %ecx, 4(%ebx)
    movl %edx, 8(%ebx)
    movl %ebp, 24(%ebx)
    movl %esp, 40(%ebx)
    movw %cs, 32(%ebx)
    movw %ss, 44(%ebx)
    pushfl
    popl 36(%ebx)
    movl $0x100, 64(%ebx)
    movl $0, 68(%ebx)
    jmp legacy_back
.data
run_context_ebx: .long 0
.text

# What tests run, in pages that every ring may execute. Offsets in 16-bit segments are from the start.
.section .snippets, "ax"
.balign 4096
.global snippets
snippets:
# EAX: what to do; ECX: the address; EDX: the value.
.global snippet_read
snippet_read:
    movl (%ecx), %eax
    int $0x80
.global snippet_write
snippet_write:
    movl %edx, (%ecx)
    int $0x80
.global snippet_write8
snippet_write8:
    movb %dl, (%ecx)
    int $0x80
.global snippet_write16
snippet_write16:
    movw %dx, (%ecx)
    int $0x80
# EBX is the new low half, ESI the high. The first CMPXCHG8B is a write as well, and tells what is there.
.global snippet_write64
snippet_write64:
    movl %ecx, %edi
    movl %esi, %ecx
    xorl %eax, %eax
    xorl %edx, %edx
    lock cmpxchg8b (%edi)
    lock cmpxchg8b (%edi)
    int $0x80
.global snippet_jump
snippet_jump:
    jmp *%ecx
.global snippet_sysenter
snippet_sysenter:
    sysenter
.global snippet_stack
snippet_stack:
    pushl %edx
    popl %eax
    int $0x80
.global snippet_cs
snippet_cs:
    movl %cs:(%ecx), %eax
    int $0x80
.global snippet_fs
snippet_fs:
    movl %fs:(%ecx), %eax
    int $0x80
# Control registers, from ECX.
.global snippet_load_cr3
snippet_load_cr3:
    movl %ecx, %cr3
    int $0x80
.global snippet_load_cr4
snippet_load_cr4:
    movl %ecx, %cr4
    int $0x80
.global snippet_load_cr0
snippet_load_cr0:
    movl %ecx, %cr0
    int $0x80
.global snippet_sysexit
snippet_sysexit:
    sysexit
# Instructions that 64-bit code does not have; ECX is an address.
.global snippet_arithmetic
snippet_arithmetic:
    movb $0x79, %al
    addb $0x35, %al
    daa
    movl %eax, %edi
    pushal
    movl $0, %ebx
    popal
    movl %edi, (%ecx)
    addl $0x7fffffff, (%ecx)
    into
    int $0x80
.global snippet_write_fs
snippet_write_fs:
    movl %edx, %fs:(%ecx)
    int $0x80
# A far call to a 16-bit segment: the pointer is at ECX.
.global snippet_far_call
snippet_far_call:
    lcall *(%ecx)
    int $0x80
.code16
# Returns to 32-bit code. ADD wraps at 16 bits; the push moves SP or ESP by two.
.global snippet_16
snippet_16:
    movw $0xfff0, %ax
    addw $0x20, %ax
    pushw %ax
    popw %bx
    lretl
# In virtual-8086 mode: DS:SI is read; then INT 0x20, which IOPL or the interrupt table decides.
.global snippet_v86
snippet_v86:
    movw (%si), %ax
    pushf
    popw %bx
    int $0x20
.global snippet_v86_privileged
snippet_v86_privileged:
    movl %cr0, %eax
.code32
.global snippets_end
snippets_end:

# What the compiler calls.
.text
.global memcpy
.global memmove
memcpy:
memmove:
    pushl %edi
    pushl %esi
    movl 12(%esp), %edi
    movl 16(%esp), %esi
    movl 20(%esp), %ecx
    movl %edi, %eax
    cmpl %esi, %edi
    jbe 1f
    leal -1(%edi, %ecx), %edi
    leal -1(%esi, %ecx), %esi
    std
1:  rep movsb
    cld
    popl %esi
    popl %edi
    ret
.global memset
memset:
    pushl %edi
    movl 8(%esp), %edi
    movb 12(%esp), %al
    movl 16(%esp), %ecx
    rep stosb
    movl 8(%esp), %eax
    popl %edi
    ret
.global memcmp
.global bcmp
memcmp:
bcmp:
    pushl %edi
    pushl %esi
    movl 12(%esp), %esi
    movl 16(%esp), %edi
    movl 20(%esp), %ecx
    xorl %eax, %eax
    cmpl %eax, %eax
    repe cmpsb
    je 1f
    movzbl -1(%esi), %eax
    movzbl -1(%edi), %ecx
    subl %ecx, %eax
1:  popl %esi
    popl %edi
    ret

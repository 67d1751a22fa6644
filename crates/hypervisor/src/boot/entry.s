# The way from GRUB (32-bit protected mode, paging off; Multiboot2 specification, "Machine state") to Rust.

.section .boot.header, "a"
.balign 8
multiboot2_header:
    .long 0xe85250d6                                  # magic
    .long 0                                           # i386, protected mode
    .long multiboot2_header_end - multiboot2_header
    .long 0x100000000 - (0xe85250d6 + (multiboot2_header_end - multiboot2_header))
    .short 6, 0                                       # modules start on page boundaries
    .long 8
    .short 0, 0                                       # end
    .long 8
multiboot2_header_end:

.section .boot.text, "ax"
.code32
.global boot_entry
boot_entry:
    cli
    cld
    movl %ebx, %edi                                   # boot information: first argument
    movl %eax, %esi                                   # loader's magic: second argument

    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb no_long_mode
    movl $0x80000001, %eax
    cpuid
    btl $29, %edx
    jnc no_long_mode

    # SDM, "Initializing IA-32e Mode".
    movl $0x20, %eax                                  # PAE, and nothing that firmware has left, such as LA57
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx                            # EFER
    rdmsr
    orl $0x100, %eax                                  # LME
    wrmsr
    movl %cr0, %eax
    orl $0x80010000, %eax                             # PG, WP
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $0x8, $boot_entry64

no_long_mode:
    movl $no_long_mode_text, %esi
    movl $(no_long_mode_end - no_long_mode_text), %ecx
    movw $0xe9, %dx
    rep outsb
    movl $shutdown_text, %esi
    movl $8, %ecx
    movw $0x8900, %dx
    rep outsb
1:  hlt
    jmp 1b

no_long_mode_text:
    .ascii "umbra: this CPU has no 64-bit mode; choose a 64-bit machine model with VMX\n"
no_long_mode_end:
shutdown_text:
    .ascii "Shutdown"

.code64
boot_entry64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movabsq $boot_stack_top, %rsp
    movabsq $boot_main, %rax
    xorl %ebp, %ebp
    callq *%rax
    ud2

.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                          # 64-bit code
    .quad 0x00cf93000000ffff                          # data
boot_gdt_pointer:
    .short boot_gdt_pointer - boot_gdt - 1
    .quad boot_gdt

# The first 4 GiB, three times: identity (the stub), at the direct map, and their first GiB at the image.
.section .boot.tables, "aw"
.balign 0x1000
boot_pml4:
    .quad boot_pdpt_low + 3
    .fill 255, 8, 0
    .quad boot_pdpt_low + 3
    .fill 254, 8, 0
    .quad boot_pdpt_high + 3
boot_pdpt_low:
    .quad boot_pd + 0x0003, boot_pd + 0x1003, boot_pd + 0x2003, boot_pd + 0x3003
    .fill 508, 8, 0
boot_pdpt_high:
    .fill 510, 8, 0
    .quad boot_pd + 0x0003
    .quad 0
boot_pd:
    .set page, 0x83                                   # P, W, PS
    .rept 2048
    .quad page
    .set page, page + 0x200000
    .endr

.section .stack, "aw", @nobits
.balign 16
    .skip 0x40000
.global boot_stack_top
boot_stack_top:

# Assembly of other files may follow.
.text

# The way from the multiboot loader (32-bit protected mode, paging off; Multiboot specification, "Machine
# state") to Rust.

.section .boot.header, "a"
.balign 4
    .long 0x1badb002                                  # magic
    .long 3                                           # modules on page boundaries, memory information
    .long 0x100000000 - (0x1badb002 + 3)

.section .boot.text, "ax"
.code32
.global boot_entry
boot_entry:
    cli
    cld
    movl %eax, %esi                                   # loader's magic: second argument
    movl %ebx, %edi                                   # boot information: first argument
    # SDM, "Initializing IA-32e Mode".
    movl %cr4, %eax
    orl $0x20, %eax                                   # PAE
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx                            # EFER
    rdmsr
    orl $0x100, %eax                                  # LME
    wrmsr
    movl %cr0, %eax
    orl $0x80010000, %eax                             # PG, WP
    andl $0x9ffffff3, %eax                            # not CD, NW, TS, EM
    orl $0x22, %eax                                   # NE, MP
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $0x8, $boot_entry64

.code64
boot_entry64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    leaq boot_stack_top(%rip), %rsp
    xorl %ebp, %ebp
    call kit_start
    ud2

.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                          # 64-bit code
    .quad 0x00cf93000000ffff                          # data
boot_gdt_pointer:
    .short boot_gdt_pointer - boot_gdt - 1
    .long boot_gdt

# The first 4 GiB, identity: P, W, A everywhere, so that the CPU writes to these tables never. For ring 0 only.
.section .boot.tables, "aw"
.balign 0x1000
.global boot_pml4
boot_pml4:
    .quad boot_pdpt + 0x23
    .fill 511, 8, 0
.global boot_pdpt
boot_pdpt:
    .quad boot_pd + 0x0023, boot_pd + 0x1023, boot_pd + 0x2023, boot_pd + 0x3023
    .fill 508, 8, 0
boot_pd:
    .set page, 0xe3                                   # P, W, A, D, PS
    .rept 2048
    .quad page
    .set page, page + 0x200000
    .endr

.section .bss.stack, "aw", @nobits
.balign 16
    .skip 0x10000
boot_stack_top:

.text

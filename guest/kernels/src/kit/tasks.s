# fn hardware_tasks(): leaves long mode, switches between hardware tasks, comes back. What it found
# is in tasks_found.
#
# SDM vol. 3, "Task Management". The main task jumps to task 1, which jumps back; calls task 2
# twice, which returns by IRET; and raises #GP, whose task gate leads to task 3. At last it jumps to
# task 4 by a far pointer in a device. Task 4 has no code segment: #TS leads to task 3 once more.
.data
.balign 16
tasks_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                          # 0x08: 64-bit code
    .quad 0x00cf93000000ffff                          # 0x10: data
    .quad 0x00cf9b000000ffff                          # 0x18: 32-bit code
    .fill 5, 8, 0                                     # 0x20: the main task; from 0x28: tasks 1 to 4
tasks_gdt_end:
tasks_idt:
    .fill 10, 8, 0
    .quad 0x0000850000380000                          # 10: a task gate to task 3
    .fill 2, 8, 0
    .quad 0x0000850000380000                          # 13: the same
tasks_idt_end:
tasks_gdtr: .word tasks_gdt_end - tasks_gdt - 1
    .long tasks_gdt
tasks_idtr: .word tasks_idt_end - tasks_idt - 1
    .long tasks_idt

.macro tss entry, stack, flags, cs=0x18
    .long 0, 0, 0, 0, 0, 0, 0, 0, \entry, \flags
    .long 0xa0, 0xa1, 0xa2, 0xa3, \stack, 0xa5, 0xa6, 0xa7
    .long 0x10, \cs, 0x10, 0x10, 0, 0, 0, 0x680000
.endm
.balign 128
tss_main: tss 0, 0, 2
.balign 128
tss_1: tss task_1, tasks_stack_1, 2
.balign 128
tss_2: tss task_2, tasks_stack_2, 2
.balign 128
tss_3: tss task_3, tasks_stack_3, 2
.balign 128
tss_4: tss task_1, tasks_stack_1, 2, 0x10
.balign 16
    .fill 256
tasks_stack_1:
    .fill 256
tasks_stack_2:
    .fill 256
tasks_stack_3:
.global tasks_found
tasks_found: .fill 19, 4, 0
tasks_cr0: .long 0

.text
.global hardware_tasks
hardware_tasks:
    pushfq
    cli
    leave_long_mode
    movl %cr0, %ecx
    movl %ecx, tasks_cr0
    andl $0x7fffffff, %ecx                            # PG
    movl %ecx, %cr0
    lgdt tasks_gdtr
    lidt tasks_idtr
    # A switch back loads what the segment registers hold now.
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs

    # Descriptors of available 32-bit TSSs.
    movl $tss_main, %eax
    movl $tasks_gdt + 0x20, %edi
    movl $5, %ecx
2:  movl %eax, %edx
    shll $16, %edx
    orl $0x67, %edx
    movl %edx, (%edi)
    movl %eax, %edx
    shrl $16, %edx
    movzbl %dl, %ebx
    andl $0xff00, %edx
    shll $16, %edx
    orl %ebx, %edx
    orl $0x8900, %edx
    movl %edx, 4(%edi)
    addl $128, %eax
    addl $8, %edi
    loop 2b
    movl $0x20, %eax
    ltr %ax

    # JMP, there and back.
    movl $0x1234, %esi
    ljmp $0x28, $0
    movl %esi, tasks_found + 12                       # the register came back
    str %ax
    movzwl %ax, %eax
    movl %eax, tasks_found + 16
    movl %cr0, %eax
    shrl $3, %eax
    andl $1, %eax
    movl %eax, tasks_found + 20                       # TS
    clts
    # CALL, twice: the second goes on behind the IRET of the first.
    lcall $0x30, $0
    lcall $0x30, $0
    pushfl
    popl %eax
    andl $0x4000, %eax
    movl %eax, tasks_found + 36                       # NT of the main task
    # #GP by a selector beyond the table.
    movl $0x1230, %eax
tasks_fault:
    movl %eax, %fs
tasks_behind:
    movl tasks_gdt + 0x24, %eax
    movl %eax, tasks_found + 52                       # the main task is busy, the others are not
    movl tasks_gdt + 0x2c, %eax
    movl %eax, tasks_found + 56
    movl tasks_gdt + 0x3c, %eax
    movl %eax, tasks_found + 60

    # The initial count of the local APIC's timer holds a selector and a 16-bit offset.
    movl $0x400000, 0xfee00380
    ljmpw *0xfee00380
    movl $0, 0xfee00380
    movl tasks_gdt + 0x44, %eax
    movl %eax, tasks_found + 72                       # task 4 is busy: the switch was made

    movl tasks_cr0, %eax
    movl %eax, %cr0
    ljmp $0x8, $3f

task_1:
    movl %eax, tasks_found
    str %ax
    movzwl %ax, %eax
    movl %eax, tasks_found + 4
    pushfl
    popl tasks_found + 8                              # NT is clear after JMP
    ljmp $0x20, $0

task_2:
    pushfl
    popl tasks_found + 24                             # NT is set after CALL
    movzwl tss_2, %eax
    movl %eax, tasks_found + 28                       # the link
    incl tasks_found + 32
    iretl
    jmp task_2

task_3:
    popl tasks_found + 40                             # the error code
    movl tss_main + 32, %eax
    subl $tasks_fault, %eax
    movl %eax, tasks_found + 44                       # EIP is at the fault
    movzwl tss_3, %eax
    movl %eax, tasks_found + 48
    movl $tasks_behind, tss_main + 32
    iretl
    # The second time it goes on here.
    popl tasks_found + 64                             # the error code
    movzwl tss_3, %eax
    movl %eax, tasks_found + 68                       # the link
    ljmp $0x20, $0

.code64
3:  restore_registers
    popfq
    ret

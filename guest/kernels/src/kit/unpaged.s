# fn unpaged_exchange(address: u32, value: u32) -> u32: turns paging off, exchanges a word, turns it on again.
.text
.global unpaged_exchange
unpaged_exchange:
    leave_long_mode
    movl %cr0, %ecx
    movl %ecx, %edx
    andl $0x7fffffff, %edx                            # PG
    movl %edx, %cr0
    xchgl %esi, (%edi)
    movl %ecx, %cr0
    ljmp $0x8, $2f
.code64
2:  movl %esi, %eax
    restore_registers
    ret

# fn unpaged_read_under(address: u32, cr3: u32, cr4_off: u32) -> u32: turns paging off, loads CR3,
# clears bits of CR4, reads a word, and puts all back.
.global unpaged_read_under
unpaged_read_under:
    leave_long_mode
    movl %cr0, %ecx
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
    restore_registers
    ret

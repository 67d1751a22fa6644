//! GDT, TSS and IDT.

use core::arch::asm;
use core::cell::UnsafeCell;

/// Selectors.
pub mod selector {
    /// 64-bit code of ring 0.
    pub const CODE: u64 = 0x08;
    /// Data of ring 0.
    pub const DATA: u64 = 0x10;
    /// 32-bit code of ring 0.
    pub const CODE_32: u64 = 0x18;
    /// Data of ring 3.
    pub const USER_DATA: u64 = 0x20 | 3;
    /// 64-bit code of ring 3.
    pub const USER_CODE: u64 = 0x28 | 3;
    /// 32-bit code of ring 3.
    pub const USER_CODE_32: u64 = 0x30 | 3;
    /// The TSS.
    pub const TSS: u64 = 0x38;
    /// 16-bit code of ring 0, at the base of [`set_base_16`](super::set_base_16).
    pub const CODE_16: u64 = 0x48;
    /// Data of ring 0 there, as a 16-bit stack.
    pub const DATA_16: u64 = 0x50;
    /// Data of ring 3 there, as a 16-bit stack.
    pub const USER_DATA_16: u64 = 0x58 | 3;
    /// 16-bit code of ring 3 there.
    pub const USER_CODE_16: u64 = 0x60 | 3;
}

/// The vector that ends a context on purpose; ring 3 may use it.
pub const STOP: u8 = 0x80;
/// Breakpoint and overflow: ring 3 may use them, too.
const USER_VECTORS: [u8; 3] = [3, 4, STOP];

/// Interrupt stack tables that the kit fills; vectors use them only after [`use_ist`].
pub const IST_COUNT: u8 = 7;
const IST_NMI: u8 = 1;
const IST_DOUBLE_FAULT: u8 = 2;

const STACK_SIZE: usize = 16 << 10;
const NMI: u8 = 2;
const DOUBLE_FAULT: u8 = 8;

#[repr(C, align(16))]
struct Stack([u8; STACK_SIZE]);

/// SDM, "64-bit TSS": 32-bit words.
const TSS_WORDS: usize = 26;

/// What the CPU reads and partly writes (the TSS descriptor's busy bit, the stacks).
#[repr(C, align(4096))]
struct Tables {
    idt: [[u64; 2]; 256],
    gdt: [u64; GDT_WORDS],
    tss: [u32; TSS_WORDS],
    /// For [`IST_COUNT`] interrupt stacks, and behind them the stack of ring 0.
    stacks: [Stack; IST_COUNT as usize + 1],
}

struct Shared(UnsafeCell<Tables>);

// SAFETY: there is one CPU; only the functions below touch it, by raw pointers, and the CPU itself.
unsafe impl Sync for Shared {}

static TABLES: Shared = Shared(UnsafeCell::new(Tables {
    idt: [[0; 2]; 256],
    gdt: [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0,
        0,
        SEGMENTS_16[0],
        SEGMENTS_16[1],
        SEGMENTS_16[2],
        SEGMENTS_16[3],
    ],
    tss: [0; TSS_WORDS],
    stacks: [const { Stack([0; STACK_SIZE]) }; IST_COUNT as usize + 1],
}));

unsafe extern "C" {
    /// The first of 256 stubs of 16 bytes (traps.s).
    static trap_stubs: u8;
}

/// Pseudo-descriptor of LGDT and LIDT.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// An interrupt gate: present, type 14 (SDM, "64-Bit Mode IDT").
fn gate(handler: u64, dpl: u64, ist: u8) -> [u64; 2] {
    let low = (handler & 0xffff)
        | selector::CODE << 16
        | u64::from(ist) << 32
        | (0x8e | dpl << 5) << 40
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

fn set_tss_address(word: usize, address: u64) {
    let tables = TABLES.0.get();
    // SAFETY: one CPU, and no reference to the tables exists.
    unsafe {
        (&raw mut (*tables).tss[word]).write_volatile(address as u32);
        (&raw mut (*tables).tss[word + 1]).write_volatile((address >> 32) as u32);
    }
}

/// The top of one of the kit's stacks.
fn stack_top(index: usize) -> u64 {
    let tables = TABLES.0.get();
    // SAFETY: only computes an address; the index is checked.
    let stack = unsafe { &raw const (*tables).stacks[index] };
    stack as u64 + STACK_SIZE as u64
}

/// Builds and loads the tables.
pub fn load() {
    let tables = TABLES.0.get();
    for vector in 0..=255u8 {
        use_ist(vector, 0);
    }
    use_ist(NMI, IST_NMI);
    use_ist(DOUBLE_FAULT, IST_DOUBLE_FAULT);
    for index in 1..=IST_COUNT {
        set_ist(index, None);
    }
    set_ring0_stack(None);
    // SAFETY: the tables are static and well-formed; nothing else refers to them.
    unsafe {
        // No I/O permission bitmap.
        (&raw mut (*tables).tss[25]).write((size_of::<[u32; TSS_WORDS]>() as u32) << 16);
    }
    load_gdt(None);
    load_data_segments();
    load_idt(None);
}

/// Loads DS, ES and SS out of the kit's GDT, which must be loaded.
pub fn load_data_segments() {
    // SAFETY: both selectors name data segments of the GDT just loaded.
    unsafe {
        asm!(
            "mov ds, {user:e}", "mov es, {user:e}", "mov ss, {kernel:e}",
            user = in(reg) selector::USER_DATA,
            kernel = in(reg) selector::DATA,
        );
    }
}

/// Where the kit's IDT lies.
pub fn idt_base() -> u64 {
    // SAFETY: only computes an address.
    unsafe { &raw const (*TABLES.0.get()).idt as u64 }
}

/// Where the kit's GDT lies.
pub fn gdt_base() -> u64 {
    // SAFETY: only computes an address.
    unsafe { &raw const (*TABLES.0.get()).gdt as u64 }
}

/// A copy of the kit's IDT, for tables elsewhere.
pub fn idt_words() -> [u64; 512] {
    // SAFETY: one CPU; a volatile read of initialised words.
    let idt = unsafe { (&raw const (*TABLES.0.get()).idt).read_volatile() };
    let mut words = [0; 512];
    for (index, word) in words.iter_mut().enumerate() {
        *word = idt[index / 2][index % 2];
    }
    words
}

/// Loads IDTR: with the kit's IDT, or another address that holds such a table.
///
/// A broken IDT hurts whoever asked for it: the machine ends with a triple fault.
pub fn load_idt(base: Option<u64>) {
    let pointer = Pointer {
        limit: size_of::<[[u64; 2]; 256]>() as u16 - 1,
        base: base.unwrap_or(idt_base()),
    };
    // SAFETY: the operand is a pseudo-descriptor, and as said above.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags))
    };
}

/// How many words the GDT has.
pub const GDT_WORDS: usize = 13;

/// Segments of 64 KiB at address 0: code and data of ring 0, data and code of ring 3.
const SEGMENTS_16: [u64; 4] =
    [0x0000_9b00_0000_ffff, 0x0000_9300_0000_ffff, 0x0000_f300_0000_ffff, 0x0000_fb00_0000_ffff];

/// Sets the base of the 16-bit segments. Those that are loaded keep theirs.
pub fn set_base_16(base: u32) {
    let base = u64::from(base);
    let tables = TABLES.0.get();
    for (index, segment) in SEGMENTS_16.iter().enumerate() {
        let word = segment | (base & 0xff_ffff) << 16 | (base >> 24) << 56;
        // SAFETY: one CPU, and no reference to the tables exists.
        unsafe {
            (&raw mut (*tables).gdt[selector::CODE_16 as usize / 8 + index]).write_volatile(word)
        };
    }
}

/// Bit 40 of a code or data segment's descriptor: the CPU has loaded it.
pub const ACCESSED: u64 = 1 << 40;

/// A copy of the kit's GDT, for tables elsewhere. The TSS's descriptor is not busy in it.
pub fn gdt_words() -> [u64; GDT_WORDS] {
    const BUSY: u64 = 1 << 41;
    // SAFETY: one CPU; a volatile read of initialised words.
    let mut words = unsafe { (&raw const (*TABLES.0.get()).gdt).read_volatile() };
    words[selector::TSS as usize / 8] &= !BUSY;
    words
}

/// A copy of the kit's TSS as words of 64 bits.
pub fn tss_words() -> [u64; TSS_WORDS / 2] {
    // SAFETY: as in `gdt_words`.
    let tss = unsafe { (&raw const (*TABLES.0.get()).tss).read_volatile() };
    core::array::from_fn(|index| u64::from(tss[2 * index]) | u64::from(tss[2 * index + 1]) << 32)
}

/// The two words of a descriptor of an available 64-bit TSS at `base` (SDM, "TSS Descriptor in
/// 64-bit mode").
pub fn tss_descriptor(base: u64) -> [u64; 2] {
    let limit = size_of::<[u32; TSS_WORDS]>() as u64 - 1;
    let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

/// Loads GDTR: with the kit's GDT, or another address that holds such a table; and the task
/// register with the descriptor of a TSS that stands there.
///
/// A broken GDT or TSS hurts whoever asked for it: the machine ends with a triple fault.
pub fn load_gdt(base: Option<u64>) {
    let tables = TABLES.0.get();
    if base.is_none() {
        // SAFETY: one CPU, and no reference to the tables exists. LTR wants a TSS that is not busy.
        unsafe {
            let words = tss_descriptor(&raw const (*tables).tss as u64);
            (&raw mut (*tables).gdt[7]).write_volatile(words[0]);
            (&raw mut (*tables).gdt[8]).write_volatile(words[1]);
        }
    }
    let limit = size_of::<[u64; GDT_WORDS]>() as u16 - 1;
    let gdt = Pointer { limit, base: base.unwrap_or(gdt_base()) };
    // SAFETY: the operands are a pseudo-descriptor and a selector, and as said above.
    unsafe {
        asm!("lgdt [{}]", "ltr {:x}", in(reg) &raw const gdt, in(reg) selector::TSS, options(nostack));
    }
}

/// Lets a vector use interrupt stack `ist`; 0 is none.
pub fn use_ist(vector: u8, ist: u8) {
    assert!(ist <= IST_COUNT, "there are 7 interrupt stacks");
    let stubs = (&raw const trap_stubs) as u64;
    let dpl = if USER_VECTORS.contains(&vector) { 3 } else { 0 };
    let words = gate(stubs + u64::from(vector) * 16, dpl, ist);
    let tables = TABLES.0.get();
    // SAFETY: one CPU with interrupts off, and no reference to the tables exists.
    unsafe { (&raw mut (*tables).idt[usize::from(vector)]).write_volatile(words) };
}

/// Sets where interrupt stack `ist` (1 to 7) begins: there, or at the kit's own memory for it.
pub fn set_ist(ist: u8, top: Option<u64>) {
    assert!((1..=IST_COUNT).contains(&ist), "there are 7 interrupt stacks");
    let index = usize::from(ist) - 1;
    set_tss_address(9 + 2 * index, top.unwrap_or(stack_top(index)));
}

/// Sets the stack that interrupts of ring 3 use: there, or the kit's own.
pub fn set_ring0_stack(top: Option<u64>) {
    set_tss_address(1, top.unwrap_or(stack_top(usize::from(IST_COUNT))));
}

/// The memory of interrupt stack `ist`, as addresses.
pub fn ist_range(ist: u8) -> core::ops::Range<u64> {
    assert!((1..=IST_COUNT).contains(&ist), "there are 7 interrupt stacks");
    let top = stack_top(usize::from(ist) - 1);
    top - STACK_SIZE as u64..top
}

/// The memory of the stack of ring 0 that interrupts of ring 3 use.
pub fn ring0_range() -> core::ops::Range<u64> {
    let top = stack_top(usize::from(IST_COUNT));
    top - STACK_SIZE as u64..top
}

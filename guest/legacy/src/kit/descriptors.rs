//! The GDT's test entries, the IDT, and where SYSENTER goes.

use core::arch::asm;
use core::cell::UnsafeCell;

use super::cpu;

/// Selectors of the GDT (`legacy.s`).
pub mod selector {
    pub const CODE: u32 = 0x08;
    pub const DATA: u32 = 0x10;
    pub const USER_CODE: u32 = 0x1b;
    pub const USER_DATA: u32 = 0x23;
    pub const TSS: u32 = 0x28;
    pub const LDT: u32 = 0x30;
    pub const TEST: [u32; 9] = [0x38, 0x40, 0x48, 0x50, 0x58, 0x60, 0x68, 0x70, 0x78];
}

/// Types of descriptors, with S and P (SDM, "Segment Descriptors").
pub mod kind {
    pub const DATA: u32 = 0x93;
    pub const DATA_DOWN: u32 = 0x97;
    pub const CODE: u32 = 0x9b;
    pub const LDT: u32 = 0x82;
    pub const TSS: u32 = 0x89;
    pub const RING_3: u32 = 0x60;
}

const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_EIP: u32 = 0x176;

unsafe extern "C" {
    static mut legacy_gdt: [u64; 16];
    static legacy_tss: [u32; 26];
    static legacy_stubs: u8;
    static legacy_interrupt: u8;
    static legacy_sysenter: u8;
}

/// The bytes between two stubs.
const STUB: u32 = 16;

#[repr(align(16))]
struct Idt(UnsafeCell<[u64; 129]>);

// SAFETY: it is written once, before any exception; there is one CPU.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([0; 129]));

/// A descriptor. `wide` is D/B; a limit in pages if `pages`.
pub fn descriptor(base: u32, limit: u32, kind: u32, wide: bool, pages: bool) -> u64 {
    let low = base << 16 | limit & 0xffff;
    let flags = u32::from(wide) << 22 | u32::from(pages) << 23;
    let high = base & 0xff00_0000 | flags | limit & 0xf_0000 | kind << 8 | base >> 16 & 0xff;
    u64::from(high) << 32 | u64::from(low)
}

/// Sets an entry of the GDT that is for tests, or the LDT's.
pub fn set(selector: u32, descriptor: u64) {
    let index = (selector >> 3) as usize;
    assert!((5..16).contains(&index), "{selector:#x} is not for tests");
    // SAFETY: the kernel's own segments are others.
    unsafe { (&raw mut legacy_gdt).cast::<u64>().add(index).write_volatile(descriptor) };
}

/// Loads LDTR.
pub fn load_ldt(selector: u32) {
    // SAFETY: the kernel's own segments are in the GDT.
    unsafe { asm!("lldt {0:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

/// Fills the IDT, loads TSS and SYSENTER's registers.
pub fn load() {
    let gate = |address: u32, kind: u32| {
        u64::from(address & 0xffff_0000 | kind << 8) << 32
            | u64::from(selector::CODE << 16 | address & 0xffff)
    };
    const GATE: u32 = 0x8e;
    const GATE_3: u32 = 0xee;
    let stubs = &raw const legacy_stubs as u32;
    let interrupt = &raw const legacy_interrupt as u32;
    let idt = IDT.0.get();
    for vector in 0..32 {
        let kind = if matches!(vector, 3..=5) { GATE_3 } else { GATE };
        // SAFETY: nothing reads it yet.
        unsafe { (*idt)[vector as usize] = gate(stubs + STUB * vector, kind) };
    }
    // SAFETY: as above.
    unsafe {
        (*idt)[0x20] = gate(interrupt, GATE_3);
        (*idt)[0x80] = gate(interrupt, GATE_3);
    }
    let pointer: [u16; 3] =
        [(size_of::<[u64; 129]>() - 1) as u16, idt as u16, (idt as u32 >> 16) as u16];
    // SAFETY: the table stays where it is.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags, readonly))
    };
    set(selector::TSS, descriptor(&raw const legacy_tss as u32, 0x67, kind::TSS, false, false));
    // SAFETY: the descriptor is that of a TSS of the image.
    unsafe { asm!("ltr {0:x}", in(reg) selector::TSS, options(nostack, preserves_flags)) };
    cpu::set_msr(IA32_SYSENTER_CS, selector::CODE.into());
    cpu::set_msr(IA32_SYSENTER_EIP, u64::from(&raw const legacy_sysenter as u32));
}

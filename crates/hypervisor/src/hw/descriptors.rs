//! GDT, TSS and IDT of the host.

use alloc::boxed::Box;

use x86::Ring;
use x86::bits64::task::TaskStateSegment;
use x86::dtables::{DescriptorTablePointer, lgdt, lidt};
use x86::segmentation::{SegmentSelector, load_cs, load_ds, load_es, load_fs, load_gs, load_ss};
use x86::task::load_tr;

/// Selector of 64-bit code.
pub const CODE: SegmentSelector = SegmentSelector::new(1, Ring::Ring0);
/// Selector of data.
pub const DATA: SegmentSelector = SegmentSelector::new(2, Ring::Ring0);
/// Selector of the TSS.
pub const TSS: SegmentSelector = SegmentSelector::new(3, Ring::Ring0);

const IST_STACK: usize = 16 << 10;

/// Vectors with a stack of their own: NMI can come at any instruction, the others when the stack is
/// broken.
const IST_VECTORS: [usize; 3] = [2, 8, 18];

/// Code, data, and a TSS of two entries (SDM, "TSS Descriptor in 64-bit mode").
#[repr(C, align(16))]
struct Gdt([u64; 5]);

/// 256 gates of two words.
#[repr(C, align(16))]
struct Idt([[u64; 2]; 256]);

unsafe extern "C" {
    /// The first of 256 stubs of 16 bytes (interrupts.s).
    static interrupt_stubs: u8;
}

/// An interrupt gate: present, DPL 0, type 14 (SDM, "64-Bit Mode IDT").
fn gate(handler: u64, ist: u64) -> [u64; 2] {
    let low = (handler & 0xffff)
        | u64::from(CODE.bits()) << 16
        | ist << 32
        | 0x8e << 40
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

/// Builds and loads the tables. They live for ever.
pub fn load() -> Tables {
    let mut tss = TaskStateSegment::new();
    tss.iomap_base = size_of::<TaskStateSegment>() as u16;
    let stubs = (&raw const interrupt_stubs) as u64;
    let mut idt = Box::new(Idt(core::array::from_fn(|vector| gate(stubs + vector as u64 * 16, 0))));
    for (ist, vector) in IST_VECTORS.into_iter().enumerate() {
        let stack = Box::leak(alloc::vec![0u128; IST_STACK / 16].into_boxed_slice());
        tss.set_ist(ist, stack.as_ptr_range().end as u64);
        idt.0[vector] = gate(stubs + vector as u64 * 16, ist as u64 + 1);
    }
    let tss: &'static TaskStateSegment = Box::leak(Box::new(tss));
    let idt: &'static Idt = Box::leak(idt);
    let tss_base = (&raw const *tss) as u64;
    let limit = size_of::<TaskStateSegment>() as u64 - 1;
    // Present, type 9: available 64-bit TSS.
    let tss_low = limit | (tss_base & 0xff_ffff) << 16 | 0x89 << 40 | (tss_base >> 24 & 0xff) << 56;
    let gdt: &'static mut Gdt = Box::leak(Box::new(Gdt([
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        tss_low,
        tss_base >> 32,
    ])));
    let tables =
        Tables { gdt: (&raw const *gdt) as u64, idt: (&raw const *idt) as u64, tss: tss_base };
    // SAFETY: the tables are leaked and well-formed; LTR writes the busy bit into the GDT, which
    // nothing else refers to.
    unsafe {
        lgdt(&DescriptorTablePointer::new(gdt));
        load_cs(CODE);
        load_ss(DATA);
        load_ds(DATA);
        load_es(DATA);
        load_fs(SegmentSelector::from_raw(0));
        load_gs(SegmentSelector::from_raw(0));
        load_tr(TSS);
        lidt(&DescriptorTablePointer::new(idt));
    }
    tables
}

/// Where the tables lie: linear addresses, for VM exits to load.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// GDTR base.
    pub gdt: u64,
    /// IDTR base.
    pub idt: u64,
    /// TR base.
    pub tss: u64,
}

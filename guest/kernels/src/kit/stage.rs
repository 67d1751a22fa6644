//! Runs a context with all that is not in it: data segments, vector registers, control bits.

use core::arch::asm;

use super::context::Context;
use super::traps::{self, Trap};
use super::vectors::{Format, Vectors};
use super::{cpu, descriptors};

/// How a context on a stage ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// General registers, and what ended it.
    pub trap: Trap,
    /// DS, ES, FS, GS.
    pub segments: [u16; 4],
    /// CR0.
    pub cr0: u64,
}

/// The interrupt stack of every vector, so that no stack of a context takes a frame.
const IST: u8 = 3;

/// Lets all vectors but those with a stack of their own use one that no context has.
pub fn prepare() {
    const OWN: [u8; 2] = [traps::vector::NMI, traps::vector::DF];
    for vector in (0..=255).filter(|vector| !OWN.contains(vector)) {
        descriptors::use_ist(vector, IST);
    }
}

/// Runs `context` with `data` in DS, ES, FS and GS, and `vectors` in the vector registers. These
/// are stored to `after`. CR0 is then as before.
///
/// As with [`traps::run`], the code must leave the kit's memory alone.
pub fn run(
    context: &Context,
    data: u16,
    format: Format,
    vectors: &Vectors,
    after: &mut Vectors,
) -> Ended {
    let cr0 = cpu::cr0();
    format.load(vectors);
    // SAFETY: `data` is a data segment of the GDT that every ring may load, or else #GP ends the
    // kernel with a message; 64-bit code ignores it.
    unsafe {
        asm!("mov ds, {0:x}", "mov es, {0:x}", "mov fs, {0:x}", "mov gs, {0:x}", in(reg) data, options(nostack));
    }
    let trap = traps::run(context);
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reading changes nothing.
    unsafe {
        asm!(
            "mov {:x}, ds", "mov {:x}, es", "mov {:x}, fs", "mov {:x}, gs",
            out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
            options(nomem, nostack, preserves_flags)
        );
    }
    let ended = Ended { trap, segments: [ds, es, fs, gs], cr0: cpu::cr0() };
    if ended.cr0 != cr0 {
        // SAFETY: the value that was there.
        unsafe { cpu::write_cr0(cr0) };
    }
    format.store(after);
    ended
}

//! States of long mode and of protected mode outside of it, with tables of their own.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use super::{descriptors, traps};

global_asm!(include_str!("worlds.s"), options(att_syntax));

/// What LGDT and LIDT load: limit and base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pointer([u16; 8]);

impl Pointer {
    /// A table.
    pub fn new(base: u64, limit: u16) -> Pointer {
        let mut words = [0; 8];
        words[0] = limit;
        for (index, word) in words[1..5].iter_mut().enumerate() {
            *word = (base >> (16 * index)) as u16;
        }
        Pointer(words)
    }
}

/// All that a program starts with and ends with. `worlds.s` knows the offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct State {
    /// Whether it is outside of long mode.
    pub legacy: u64,
    /// CR3.
    pub cr3: u64,
    /// CR0.
    pub cr0: u64,
    /// CR4.
    pub cr4: u64,
    /// An address that is read first.
    pub touch: u64,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub registers: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// CS.
    pub cs: u64,
    /// RFLAGS.
    pub flags: u64,
    /// SS.
    pub ss: u64,
    /// DS.
    pub ds: u64,
    /// ES.
    pub es: u64,
    /// FS.
    pub fs: u64,
    /// GS.
    pub gs: u64,
    /// The bases of FS and GS, in long mode.
    pub bases: [u64; 2],
    /// The event's vector; [`TASK`] behind a task switch.
    pub vector: u64,
    /// Its error code, or zero.
    pub error: u64,
    /// GDTR.
    pub gdt: Pointer,
    /// IDTR.
    pub idt: Pointer,
    /// The selector of the LDT.
    pub ldt: u64,
    /// The selector of the TSS.
    pub tr: u64,
}

/// The vector of an event that came by a task gate.
pub const TASK: u64 = 0x108;

struct Shared(UnsafeCell<State>);

// SAFETY: one CPU; only `run` and `worlds.s` touch it, by raw pointers.
unsafe impl Sync for Shared {}

#[unsafe(export_name = "world")]
static WORLD: Shared = Shared(UnsafeCell::new(State {
    legacy: 0,
    cr3: 0,
    cr0: 0,
    cr4: 0,
    touch: 0,
    registers: [0; 16],
    rip: 0,
    cs: 0,
    flags: 0,
    ss: 0,
    ds: 0,
    es: 0,
    fs: 0,
    gs: 0,
    bases: [0; 2],
    vector: 0,
    error: 0,
    gdt: Pointer([0; 8]),
    idt: Pointer([0; 8]),
    ldt: 0,
    tr: 0,
}));

unsafe extern "C" {
    fn world_run();
    static world_long_stubs: u8;
    static world_long_gate: u8;
    static world_long_call: u8;
    static world_legacy_stubs: u8;
    static world_legacy_gate: u8;
    static world_legacy_task: u8;
}

/// Addresses of code that events and calls lead to.
#[derive(Clone, Copy, Debug)]
pub struct Entries {
    /// Of vector 0 in long mode; the next ones are 16 bytes further each.
    pub long: u64,
    /// Of a call gate in long mode.
    pub long_gate: u64,
    /// Of SYSCALL and SYSENTER.
    pub call: u64,
    /// Of vector 0 outside of long mode; the next ones are 32 bytes further each.
    pub legacy: u64,
    /// Of a call gate outside of long mode.
    pub legacy_gate: u64,
    /// Of the task of a task gate.
    pub task: u64,
}

/// Where they are.
pub fn entries() -> Entries {
    Entries {
        long: (&raw const world_long_stubs) as u64,
        long_gate: (&raw const world_long_gate) as u64,
        call: (&raw const world_long_call) as u64,
        legacy: (&raw const world_legacy_stubs) as u64,
        legacy_gate: (&raw const world_legacy_gate) as u64,
        task: (&raw const world_legacy_task) as u64,
    }
}

/// Enters the state; returns that of the next event.
///
/// Its tables must map the kit at its physical addresses, its descriptor tables must have the kit's
/// selectors and lead to [`entries`], and its code must leave the kit's memory alone. Else the test
/// is broken, and so is what it says.
pub fn run(state: &State) -> State {
    // SAFETY: as said above; everything comes back to `world_run` by the entries, with the kit's
    // control registers, segments and stack.
    let ended = unsafe {
        WORLD.0.get().write_volatile(*state);
        world_run();
        WORLD.0.get().read_volatile()
    };
    descriptors::load_gdt(None);
    descriptors::load_data_segments();
    ended
}

/// Lets DR7.GD end with the first access of the kit itself to a debug register.
pub fn forgive_debug() {
    traps::handle(traps::vector::DB, |_| ());
}

//! Where everything lies in the guest, in physical and in linear addresses.

use umbra_paging::Gva;
pub use umbra_reference::universe::END;

/// The most virtual CPUs that a guest has.
pub const CPUS: usize = 2;

/// Bytes of a page.
pub const PAGE: u64 = 0x1000;

/// Bytes of a region: what a memory slot holds, and what a large page of level 2 maps.
pub const REGION: u64 = 0x20_0000;

/// Regions of the *arena*, the memory that programs work on. It begins at address 0.
pub const REGIONS: u64 = 3;

/// Bytes of the arena.
pub const ARENA: u64 = REGION * REGIONS;

/// The frames that entries name, and that are written as tables: eight in the first region, two in
/// each other one.
pub const HOT: [u64; 12] =
    [0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x210, 0x211, 0x410, 0x411];

/// The frames that large pages begin at. Entries name them as tables, too: a large page and a table
/// in its first frame have one frame number.
pub const LARGE: [u64; 3] = [0, 0x200, 0x400];

/// How many of [`HOT`] may be loaded into CR3: those that have the stub's entry.
pub const ROOTS: usize = 8;

/// A frame where no memory is, aligned for pages of every size.
pub const HOLE: u64 = 0x8_0000;

/// Where the frames of a region begin that an entry of a program can lead to, relative to the
/// region: eight each, as an entry may be mixed of the bytes of two.
const REACHED: [u64; 2] = [0, 0x10];

/// The words of a frame that programs read and write.
pub const WORDS: [u64; 5] = [0, 1, 2, 3, 511];

/// The slots among [`WORDS`] that translate an address of a program.
pub const SLOTS: [u64; 3] = [0, 1, 511];

/// The word of each frame that programs execute: see [`crate::image::code_word`].
pub const CODE_WORD: u64 = 5;

/// The slot of each root that leads to the stub and to the direct map.
pub const STUB_SLOT: u64 = 0x1f0;

/// Where the direct map begins: guest-physical address 0 stands there.
pub const DIRECT: u64 = 0xffff_f800_0000_0000;

/// The tables of the direct map: they lie in the arena, so they suffer what it suffers.
pub const DIRECT_PDPT: u64 = 0x18 * PAGE;
/// See [`DIRECT_PDPT`].
pub const DIRECT_PD: u64 = 0x19 * PAGE;

/// The stub's own memory, which stays as it is: code, descriptor tables, commands, results.
pub const STUB: u64 = 0x80_0000;
/// Bytes of the stub's memory: one large page.
pub const STUB_SIZE: u64 = REGION;
/// The stub's page for user mode, in a large page of its own.
pub const USER: u64 = STUB + STUB_SIZE;
/// Bytes behind [`USER`].
pub const USER_SIZE: u64 = REGION;

/// Code of ring 0.
pub const CODE: u64 = STUB;
/// The global descriptor table.
pub const GDT: u64 = STUB + 0x4000;
/// The task-state segment, by virtual CPU.
pub const TSS: [u64; CPUS] = [STUB + 0x4100, STUB + 0x4200];
/// The interrupt descriptor table.
pub const IDT: u64 = STUB + 0x5000;
/// The end of the stack of events, by virtual CPU.
pub const EVENT_STACK: [u64; CPUS] = [STUB + 0x8000, STUB + 0x7000];
/// The end of the stack in between, by virtual CPU.
pub const STACK: [u64; CPUS] = [STUB + 0x9000, STUB + 0x8800];
/// Where the stub keeps its place: see [`State`].
pub const STATE: u64 = STUB + 0x9000;
/// Linear addresses of the watched words.
pub const WATCH_LIST: u64 = STUB + 0xa000;
/// What stood there after the last step.
pub const WATCH_COPY: u64 = STUB + 0xc000;
/// The commands.
pub const COMMANDS: u64 = STUB + 0x1_0000;
/// What was seen.
pub const RESULTS: u64 = STUB + 0x8_0000;
/// Bytes of [`RESULTS`].
pub const RESULTS_SIZE: u64 = STUB + STUB_SIZE - RESULTS;
/// How many commands there is room for.
pub const MAX_STEPS: usize = 4000;

/// Offsets in the stub's state.
#[derive(Debug)]
pub struct State;

impl State {
    /// Where the next result goes.
    pub const RESULT: u64 = 0;
    /// The command that is due. Its virtual CPU takes it; the other one spins until its own is due.
    pub const COMMAND: u64 = 8;
    /// The number of the step.
    pub const STEP: u64 = 16;
    /// Not 0: no hypervisor waits for the stub's call, and it goes on there at its end.
    pub const LEAVE: u64 = 24;
}

/// Where the direct map shows a guest-physical address.
pub const fn direct(gpa: u64) -> Gva {
    Gva::new(DIRECT + gpa)
}

/// The frames that a program can reach in the arena.
pub fn reached_frames() -> impl Iterator<Item = u64> {
    (0..REGIONS)
        .flat_map(|region| REACHED.map(|frame| region * (REGION / PAGE) + frame))
        .flat_map(|frame| frame..frame + 8)
}

/// The words that the stub looks at after each step, by address.
pub fn watched() -> impl Iterator<Item = u64> {
    reached_frames().flat_map(|frame| WORDS.map(|word| frame * PAGE + word * 8))
}

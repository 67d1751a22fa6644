//! What the guest finds at its start: the arena with its tables, and the stub.

use std::fmt;

use fastrand::Rng;
use umbra_paging::{Gfn, Gva};
use umbra_reference::memory::{PhysAddr, PhysicalMemory, Ram};
use umbra_reference::registers::{Cpu, Privileged, Registers};

use crate::layout::{
    ARENA, CODE_WORD, COMMANDS, CPUS, DIRECT_PD, DIRECT_PDPT, END, HOT, LARGE, PAGE, REGION,
    REGIONS, ROOTS, STATE, STUB, STUB_SLOT, State, USER, WATCH_COPY, WATCH_LIST, WORDS, direct,
    reached_frames, watched,
};
use crate::program::{Program, Step};
use crate::stub::{Command, Stub};

pub(crate) const P: u64 = 1 << 0;
pub(crate) const W: u64 = 1 << 1;
pub(crate) const U: u64 = 1 << 2;
pub(crate) const A: u64 = 1 << 5;
pub(crate) const D: u64 = 1 << 6;
pub(crate) const PS: u64 = 1 << 7;

/// CR0: protected mode, coprocessor's extension type, numeric errors, paging.
const CR0: u64 = 1 << 31 | 1 << 5 | 1 << 4 | 1;
const CR0_WP: u64 = 1 << 16;
/// CR4: PAE, and SSE's two bits, as any 64-bit kernel has them.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
pub(crate) const CR4_PGE: u64 = 1 << 7;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
/// EFER: long mode, enabled and active.
const EFER: u64 = 1 << 8 | 1 << 10;
const EFER_NXE: u64 = 1 << 11;

/// The guest's control registers as a hypervisor sets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlRegisters {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

impl From<&Registers> for ControlRegisters {
    fn from(registers: &Registers) -> ControlRegisters {
        let when = |on: bool, bits: u64| if on { bits } else { 0 };
        ControlRegisters {
            cr0: CR0 | when(registers.wp, CR0_WP),
            cr3: registers.root.base().raw(),
            cr4: CR4
                | when(registers.pge, CR4_PGE)
                | when(registers.smep, CR4_SMEP)
                | when(registers.smap, CR4_SMAP),
            efer: EFER | when(registers.nxe, EFER_NXE),
        }
    }
}

/// The registers that each virtual CPU of a program starts with.
pub fn registers(program: &Program) -> Registers {
    let protected = !program.old;
    let all = Registers::long_mode(Gfn::new(Program::ROOT));
    Registers { smep: protected, smap: protected, ..all }
}

/// The CPU that a program's guest sees.
pub fn cpu(program: &Program) -> Cpu {
    Cpu { maxphyaddr: program.maxphyaddr, gib_pages: !program.old }
}

/// Everything that has to be in the guest's memory before it runs.
pub struct Image {
    /// Words of the arena, which is zero elsewhere.
    pub arena: Vec<(u64, u64)>,
    /// Bytes of the stub's memory, by guest-physical address; it is zero elsewhere.
    pub stub: Vec<(u64, Vec<u8>)>,
    /// The control registers, of all virtual CPUs.
    pub registers: ControlRegisters,
    /// The first instruction, by virtual CPU.
    pub entries: [u64; CPUS],
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("registers", &self.registers)
            .field("entries", &format_args!("{:#x?}", self.entries))
            .finish_non_exhaustive()
    }
}

/// The code that stands in word [`CODE_WORD`] of each frame: `mov eax, frame; int3`. Its lowest bit
/// is clear, so it is no present entry.
pub fn code_word(frame: u64) -> u64 {
    0x90 << 56 | 0x90 << 48 | 0xcc << 40 | (frame & 0xffff_ffff) << 8 | 0xb8
}

/// What the code of a word leaves in EAX, if it is one of [`code_word`].
pub fn code_value(word: u64) -> u64 {
    word >> 8 & 0xffff_ffff
}

/// The bytes of an access of `size` bytes at `at`, out of the word that they lie in.
pub fn part(word: u64, at: u64, size: u8) -> u64 {
    word >> (8 * (at & 7)) & (u64::MAX >> (64 - 8 * u32::from(size)))
}

/// What a word holds before anything is written: different everywhere, and no present entry.
fn fill(gpa: u64) -> u64 {
    // The multiplier of splitmix64: every byte of the word depends on the address.
    let mixed = (gpa / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29) & !1
}

/// The arena's words at the start of a program.
pub fn arena(program: &Program) -> Ram {
    let mut ram = Ram::new(END as usize);
    for frame in reached_frames() {
        for word in WORDS {
            let gpa = frame * PAGE + word * 8;
            ram.write(PhysAddr::new(gpa), fill(gpa));
        }
        ram.write(PhysAddr::new(frame * PAGE + CODE_WORD * 8), code_word(frame));
    }
    tables(program, &mut ram);
    direct_map(&mut ram);
    ram.take_journal();
    ram
}

/// The direct map, below each frame that can be a root. Its accessed and dirty bits are set, so it
/// does not change.
fn direct_map(ram: &mut Ram) {
    let all = P | W | A | D;
    for root in &HOT[..ROOTS] {
        ram.write(PhysAddr::new(root * PAGE + STUB_SLOT * 8), DIRECT_PDPT | all | U);
    }
    ram.write(PhysAddr::new(DIRECT_PDPT), DIRECT_PD | all | U);
    for region in (0..REGIONS).chain([STUB / REGION]) {
        ram.write(PhysAddr::new(DIRECT_PD + region * 8), (region * REGION) | all | PS);
    }
    ram.write(PhysAddr::new(DIRECT_PD + USER / REGION * 8), USER | all | U | PS);
}

/// Two roots above two tables of each level, linked at random, and tables where large pages begin.
fn tables(program: &Program, ram: &mut Ram) {
    let mut random = Rng::with_seed(program.tables);
    let mut put = |frame: u64, index: u64, entry: u64| {
        ram.write(PhysAddr::new(frame * PAGE + index * 8), entry);
    };
    let [root_a, root_b, pdpt_a, pdpt_b, pd_a, pd_b, pt_a, pt_b] =
        [0, 1, 2, 3, 4, 5, 6, 7].map(|n| HOT[n]);
    let mut entry = |frames: &[u64]| {
        let frame = frames[random.usize(..frames.len())];
        let dirty = if random.bool() { D } else { 0 };
        let user = if random.u8(..8) == 0 { 0 } else { U };
        (frame * PAGE) | P | W | A | user | dirty
    };
    for root in [root_a, root_b] {
        put(root, 0, entry(&[pdpt_a, pdpt_a, pdpt_b]));
        put(root, 511, entry(&[pdpt_a, pdpt_b]));
    }
    for pdpt in [pdpt_a, pdpt_b] {
        put(pdpt, 0, entry(&[pd_a, pd_b]));
        put(pdpt, 1, entry(&[pd_a, pd_b]));
    }
    for pd in [pd_a, pd_b] {
        put(pd, 0, entry(&[pt_a, pt_b]));
        put(pd, 1, entry(&LARGE) | PS);
    }
    for pt in [pt_a, pt_b] {
        put(pt, 0, entry(&HOT));
        put(pt, 1, entry(&HOT[ROOTS..]));
    }
    for large in LARGE {
        put(large, 0, entry(&HOT[ROOTS..]));
        put(large, 1, entry(&HOT[ROOTS..]));
    }
}

/// The tables of a program at its start, a line for each entry that programs use.
pub fn describe_tables(program: &Program) -> String {
    let ram = arena(program);
    let mut text = String::new();
    for &frame in HOT[..ROOTS].iter().chain(&LARGE) {
        for slot in crate::layout::SLOTS {
            let entry = ram.read(PhysAddr::new(frame * PAGE + slot * 8));
            if entry & P != 0 {
                let words = crate::program::describe_entry(entry);
                text += &format!("{:<24}[{slot:3}] = {words}\n", crate::program::frame_name(frame));
            }
        }
    }
    text
}

/// The instruction of the reference machine that a step is, if it is one.
pub fn privileged(step: &Step) -> Option<Privileged> {
    Some(match *step {
        Step::Invlpg { gva } => Privileged::Invlpg(Gva::new(gva)),
        Step::Cr3 { frame } => {
            Privileged::LoadCr3 { root: Gfn::new(frame), pcid: 0, no_flush: false }
        }
        Step::Flush => Privileged::FlushAll,
        Step::Wp(on) => Privileged::Wp(on),
        Step::Smep(on) => Privileged::Smep(on),
        Step::Smap(on) => Privileged::Smap(on),
        Step::Pge(on) => Privileged::Pge(on),
        Step::Nxe(on) => Privileged::Nxe(on),
        Step::Read { .. } | Step::Write { .. } | Step::Fetch { .. } | Step::Host(_) => return None,
    })
}

/// The stub's command for each step, and those that end: that of the first CPU comes last.
fn commands(program: &Program, stub: &Stub) -> Vec<Command> {
    let mut all = [registers(program); CPUS];
    let mut commands: Vec<Command> = Vec::with_capacity(program.steps.len() + 1);
    for (at, step) in program.steps.iter().enumerate() {
        let cpu = program.cpu(at);
        let registers = &mut all[cpu];
        if let Some(instruction) = privileged(step) {
            registers.execute(instruction);
        }
        let now = ControlRegisters::from(&*registers);
        let command = match *step {
            Step::Read { gva, size, user, ac } => stub.read(gva, size, user, ac),
            Step::Write { gva, size, user, ac, value } => stub.write(gva, size, user, ac, value),
            Step::Fetch { gva, user } => stub.fetch(gva, user),
            Step::Invlpg { gva } => Command::invlpg(gva),
            Step::Cr3 { .. } => Command::cr3(now.cr3),
            Step::Flush => Command::cr4(now.cr4 ^ CR4_PGE, now.cr4),
            Step::Smep(_) | Step::Smap(_) | Step::Pge(_) => Command::cr4(now.cr4, now.cr4),
            Step::Wp(_) => Command::cr0(now.cr0),
            Step::Nxe(_) => Command::efer(now.efer),
            Step::Host(_) => Command::HOST,
        };
        commands.push(command.on(cpu));
    }
    commands.extend((0..program.cpus()).rev().map(|cpu| Command::END.on(cpu)));
    commands
}

impl Image {
    /// The image of a program. `leave`: the stub goes on there at its end, as no hypervisor waits
    /// for its call.
    pub fn new(program: &Program, leave: Option<Gva>) -> Image {
        let stub = Stub::assemble();
        let ram = arena(program);
        let mut arena = Vec::new();
        for frame in ram.written() {
            let words = (0..PAGE / 8).map(|word| frame * PAGE + word * 8);
            let read = |gpa| ram.read(PhysAddr::new(gpa));
            arena.extend(words.map(|gpa| (gpa, read(gpa))).filter(|&(_, value)| value != 0));
        }
        let value = |gpa: u64| ram.read(PhysAddr::new(gpa));
        let bytes =
            |words: Vec<u64>| words.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
        let mut state = [0; 4];
        state[(State::RESULT / 8) as usize] = direct(crate::layout::RESULTS).raw();
        state[(State::COMMAND / 8) as usize] = direct(COMMANDS).raw();
        state[(State::LEAVE / 8) as usize] = leave.map_or(0, Gva::raw);
        let mut pieces = stub.pieces.clone();
        pieces.push((STATE, bytes(state.to_vec())));
        pieces.push((WATCH_LIST, bytes(watched().map(|gpa| direct(gpa).raw()).collect())));
        pieces.push((WATCH_COPY, bytes(watched().map(value).collect())));
        let commands = commands(program, &stub);
        pieces.push((COMMANDS, bytes(commands.iter().flat_map(|command| command.0).collect())));
        Image {
            arena,
            stub: pieces,
            registers: (&registers(program)).into(),
            entries: stub.entries,
        }
    }

    /// Whether an address lies in the arena and is not among the watched words.
    pub fn is_quiet(gpa: u64) -> bool {
        gpa < ARENA && !watched().any(|at| at == gpa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_tables_is_present() {
        let program = crate::generate::program(1, 0);
        let ram = arena(&program);
        for gpa in watched() {
            let word = ram.read(PhysAddr::new(gpa));
            let frame = gpa / PAGE;
            let table = HOT[..ROOTS].contains(&frame) || LARGE.contains(&frame);
            assert!(word & P == 0 || table, "{gpa:#x} holds {word:#x}");
        }
    }

    #[test]
    fn each_frame_has_code_of_its_own() {
        let values: std::collections::BTreeSet<u64> =
            reached_frames().map(|frame| code_value(code_word(frame))).collect();
        assert_eq!(values.len(), reached_frames().count());
        assert!(reached_frames().all(|frame| code_word(frame) & P == 0));
    }
}

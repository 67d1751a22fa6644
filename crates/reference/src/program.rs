//! Random guest programs: what they are made of, and how they come out of bytes.

use std::fmt;

use arrayvec::ArrayVec;
use umbra_paging::{Access, AccessKind, Format, Gfn, Gpa, Gva, Level};

use crate::memory::{PhysAddr, Ram};
use crate::registers::{Privileged, Registers};
use crate::universe::{
    END, HIGH, HIGH_FRAMES, HOLE, HOT, NARROW_SLOTS, SLOTS, WINDOW_SLOT, adjacent_page, hot,
    tree_page, window,
};

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// One step of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A read or a fetch of `length` bytes.
    Load {
        /// Which virtual CPU does it.
        cpu: usize,
        /// Where it begins.
        gva: Gva,
        /// How it goes about it.
        access: Access,
        /// Bytes: 1 to 8.
        length: usize,
    },
    /// A write.
    Store {
        /// Which virtual CPU does it.
        cpu: usize,
        /// Where it begins.
        gva: Gva,
        /// User mode.
        user: bool,
        /// RFLAGS.AC.
        ac: bool,
        /// What is written.
        bytes: ArrayVec<u8, 8>,
    },
    /// A loop that stores entries one after the other, as supervisor with RFLAGS.AC set; each names
    /// the frame behind that of the one before.
    Stores {
        /// Which virtual CPU does it.
        cpu: usize,
        /// Where the first goes: a multiple of 8.
        gva: Gva,
        /// The first entry.
        entry: u64,
        /// How many.
        count: usize,
    },
    /// A loop that accesses a byte of each of some pages side by side.
    Sweep {
        /// Which virtual CPU does it.
        cpu: usize,
        /// The first byte.
        gva: Gva,
        /// How it goes about it.
        access: Access,
        /// How many pages.
        count: usize,
    },
    /// A privileged instruction.
    Execute {
        /// Which virtual CPU does it.
        cpu: usize,
        /// Which.
        instruction: Privileged,
    },
    /// A device or the hypervisor writes guest memory.
    DeviceWrite {
        /// Where: not across a page.
        gpa: Gpa,
        /// What.
        bytes: ArrayVec<u8, 8>,
    },
    /// A device sets the window and the start of the tree up again, below the current root of this
    /// virtual CPU.
    Repair {
        /// Which virtual CPU.
        cpu: usize,
    },
    /// Something the host does.
    Host(HostEvent),
}

/// What the host does behind the guest's back, which must not notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostEvent {
    /// Moves the guest frame to another host frame.
    Remap(Gfn),
    /// Makes the frame read-only until the guest writes it.
    WriteProtect(Gfn),
    /// Takes the frame away until the guest accesses it.
    SwapOut(Gfn),
    /// Moves the hot frames from the first up to the second, in one go; the others there may be
    /// written again.
    RemapRange(Gfn, Gfn),
    /// Makes all frames from the first up to the second read-only, in one go.
    WriteProtectRange(Gfn, Gfn),
    /// Takes the hot frames from the first up to the second away, in one go.
    SwapOutRange(Gfn, Gfn),
    /// Throws all shadow tables away.
    ZapAll,
    /// Gives up following the frame for a while, as for a table write that cannot be emulated.
    Release(Gfn),
    /// Lets every CPU load its current root by itself from now on, where that can be.
    Offer,
    /// No CPU may load the root in this frame by itself any more.
    Withdraw(Gfn),
}

/// A program, complete: where it starts, what it does, and what the hardware's mood is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Shapes the tables that the program finds at its start: see [`Program::memory`].
    pub setup: u64,
    /// Seeds the hardware's random choices.
    pub seed: u64,
    /// The steps.
    pub ops: Vec<Op>,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "setup {:#x}, seed {:#x}", self.setup, self.seed)?;
        self.ops.iter().enumerate().try_for_each(|(step, op)| writeln!(f, "{step:4}  {op:x?}"))
    }
}

/// Takes random choices out of a word, lowest bits first. Exhausted, it makes more of the same
/// word.
struct Bits {
    now: u64,
    left: u32,
    /// For what comes after.
    more: u64,
}

impl Bits {
    fn new(word: u64) -> Bits {
        Bits { now: word, left: 64, more: word }
    }

    fn take(&mut self, bits: u32) -> u64 {
        if self.left < bits {
            // SplitMix64.
            self.more = self.more.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mix = (self.more ^ self.more >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mix = (mix ^ mix >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            (self.now, self.left) = (mix ^ mix >> 31, 64);
        }
        let value = self.now & ((1 << bits) - 1);
        self.now >>= bits;
        self.left -= bits;
        value
    }

    fn flag(&mut self) -> bool {
        self.take(1) != 0
    }

    /// True in all but one of 2^bits cases.
    fn mostly(&mut self, bits: u32) -> bool {
        self.take(bits) != (1 << bits) - 1
    }
}

impl Program {
    /// A program of these words: see [`Op::from_word`].
    pub fn new(setup: u64, seed: u64, words: &[u64]) -> Program {
        Program::of_words(setup, seed, words.iter().copied())
    }

    fn of_words(setup: u64, seed: u64, words: impl Iterator<Item = u64>) -> Program {
        let words: Vec<u64> = words.collect();
        let mut ops = Vec::with_capacity(words.len());
        while let Some(&word) = words.get(ops.len()) {
            let n = ops.len();
            match first_step(n, word, setup) {
                Some(op) => ops.push(op),
                None if is_edit(word, setup) => ops.extend(edit(&words[n..])),
                None => ops.push(Op::from_word(word, setup)),
            }
        }
        Program { setup, seed, ops }
    }

    /// A program of any bytes: 8 for the setup, 8 for the seed, then 8 for each step. What is
    /// missing is zero, an incomplete step is left out.
    pub fn from_bytes(bytes: &[u8]) -> Program {
        let mut words = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
        let setup = words.next().unwrap_or(0);
        let seed = words.next().unwrap_or(0);
        Program::of_words(setup, seed, words)
    }

    /// A program of `steps` steps.
    pub fn random(seed: u64, steps: usize) -> Program {
        Program::random_with(seed, steps, |setup| setup)
    }

    /// A program of `steps` steps that needs as many shadow pages as possible: many roots, and
    /// tables that lead to each other.
    pub fn random_crowded(seed: u64, steps: usize) -> Program {
        Program::random_with(seed, steps, |setup| {
            setup & !(7 << THEME_SHIFT) | CROWDED << THEME_SHIFT | 1
        })
    }

    fn random_with(seed: u64, steps: usize, choose: impl Fn(u64) -> u64) -> Program {
        let mut random = fastrand::Rng::with_seed(seed);
        let (setup, hardware) = (choose(random.u64(..)), random.u64(..));
        let words: Vec<u64> = (0..steps).map(|_| random.u64(..)).collect();
        Program::new(setup, hardware, &words)
    }

    /// The frame of the PML4 table that programs start on.
    pub fn root() -> Gfn {
        hot(0)
    }

    /// Guest memory as the program finds it: two roots that share tables, and the window.
    pub fn memory(&self) -> Ram {
        let mut bits = Bits::new(self.setup);
        let entangled = bits.flag();
        let mut ram = Ram::new(END as usize).with_hole(HOLE);
        if self.has_high_memory() {
            ram = ram.with_frames(HIGH_FRAMES);
        }
        let mut put = |table: usize, index: usize, entry: u64| {
            ram.write(PhysAddr::new(hot(table).entry(index).raw()), entry);
        };
        let marked = if bits.flag() { A | D } else { 0 };
        let all = P | W | U | A;
        for root in [0, 8] {
            put(root, WINDOW_SLOT, to(1, P | W | A | if bits.flag() { U } else { 0 }));
        }
        put(1, 0, to(2, all));
        let pages =
            P | W | marked | if bits.flag() { U } else { 0 } | if bits.flag() { G } else { 0 };
        for region in 0..3 {
            put(2, region, (region as u64) << 21 | PS | pages);
        }
        if bits.flag() {
            put(2, 0, to(3, all));
            for gfn in HOT.iter().filter(|&&gfn| gfn < 512) {
                put(3, *gfn as usize, gfn << 12 | pages);
            }
        }
        put(0, 0, to(4, P | W | U | marked));
        put(0, 511, to(if bits.flag() { 4 } else { 9 }, all));
        put(8, 0, to(if bits.flag() { 4 } else { 9 }, all));
        put(8, 511, to(if bits.flag() { 8 } else { 9 }, all));
        put(4, 0, to(5, all));
        put(4, 1, to(if bits.flag() { 5 } else { 10 }, all));
        put(9, 0, to(5, P | U | A));
        put(9, 1, if bits.flag() { PS | all } else { to(10, all) });
        put(5, 0, to(6, P | W | U | marked));
        put(5, 1, 1 << 22 | PS | P | W | U | marked);
        put(10, 0, to(6, all));
        put(10, 1, if bits.flag() { PS | all | D | G } else { to(7, all) });
        put(6, 0, to(12, P | W | U | marked));
        put(6, 1, to(14, P | U | A));
        put(7, 0, to(13, all | D | G));
        if self.has_high_memory() {
            // The window goes on at 4 GiB. Its page directory lies there, too.
            let high = Gfn::new(HIGH[0]);
            ram.write(PhysAddr::new(hot(1).entry(4).raw()), high.base().raw() | P | W | A);
            ram.write(PhysAddr::new(high.entry(0).raw()), high.base().raw() | PS | P | W | A | D);
        }
        if entangled {
            self.entangle(&mut ram);
        }
        if Formats::of(self.setup) != Formats::Long4 {
            self.add_narrow(&mut ram, pages);
        }
        ram.take_journal();
        ram
    }

    /// Makes every frame but those of the window a table of every level, each leading to any
    /// others, and a root that has the window.
    fn entangle(&self, ram: &mut Ram) {
        let mut random = fastrand::Rng::with_seed(self.setup);
        for table in (0..HOT.len()).filter(|table| !(1..=3).contains(table)) {
            for index in [0, 1, 511] {
                let frame = hot(random.usize(4..HOT.len())).base().raw();
                let page = if random.u8(..16) == 0 { PS } else { 0 };
                let address = if page == 0 { frame } else { frame & !0x1f_ffff };
                let global = if random.bool() { G } else { 0 };
                let at = PhysAddr::new(hot(table).entry(index).raw());
                ram.write(at, address | page | global | P | W | U | A | D);
            }
            let window = hot(1).base().raw() | P | W | U | A;
            ram.write(PhysAddr::new(hot(table).entry(WINDOW_SLOT).raw()), window);
        }
    }

    /// Adds trees for 32-bit and PAE paging, which share tables with the others and with each
    /// other. `pages` are the flags of the window's pages.
    fn add_narrow(&self, ram: &mut Ram, pages: u64) {
        let mut bits = Bits::new(!self.setup);
        let mut put = |table: usize, index: usize, entry: u64| {
            ram.write(PhysAddr::new(hot(table).entry(index).raw()), entry);
        };
        let all = P | W | U | A;
        let pse = has_large_windows(self.setup);
        for root in ROOTS {
            let [low, high] = narrow_window(pse);
            put(root, NARROW_WINDOW_WORD, pair(low, high));
            // Above 4 GiB by PSE-36.
            put(root, NARROW_WINDOW_WORD + 1, PS | pages | 1 << 13);
            put(root, 128, to(6, all));
            put(root, 384, to(7, all));
        }
        for (table, word, entry) in narrow_window_tables() {
            put(table, word, entry | pair(pages, pages));
        }
        if Formats::of(self.setup) == Formats::Legacy32 {
            put(0, 0, pair(to(6, all), to(9, all)));
            put(8, 0, pair(to(6, P | U | A), to(7, all)));
            put(6, 0, pair(to(12, all), to(14, P | W | U)));
            put(6, 256, pair(to(13, all | D), to(15, P | U | A)));
            put(7, 0, pair(to(13, all | D | G), to(12, all)));
        }
        let directories = [5, 10, if bits.flag() { 2 } else { 5 }, 2];
        for (root, absent) in [(PAE_ROOTS[0], 4), (PAE_ROOTS[1], bits.take(2) as usize)] {
            for (index, &directory) in directories.iter().enumerate() {
                put(root, index, if index == absent { 0 } else { to(directory, P) });
            }
            put(root, WINDOW_SLOT, to(1, P | W | A));
        }
        for region in 0..3 {
            put(2, 128 + region, (region as u64) << 21 | PS | pages);
        }
        if self.has_high_memory() {
            put(2, 132, HIGH[0] << 12 | PS | pages);
        }
    }

    /// The writes that set the window and the start of the tree up again for a CPU in this state.
    pub fn repair(registers: &Registers) -> Vec<(Gpa, u64)> {
        let root = registers.root;
        let all = P | W | U | A;
        let of =
            |frame: usize| move |(index, entry): (usize, u64)| (hot(frame).entry(index), entry);
        let large = |region: usize| (region as u64) << 21 | PS | P | W | A | D;
        match registers.format() {
            None | Some(Format::Long4) => {
                let pages = (0..3).map(|region| (region, large(region)));
                let window = [(root.entry(WINDOW_SLOT), to(1, all)), (hot(1).entry(0), to(2, all))];
                let tree = [(root.entry(0), to(4, all)), (hot(4).entry(0), to(5, all))];
                let low = [(hot(5).entry(0), to(6, all))];
                window.into_iter().chain(pages.map(of(2))).chain(tree).chain(low).collect()
            }
            Some(Format::Legacy32 { pse }) => {
                let [low, high] = narrow_window(pse);
                let window = [(root.entry(NARROW_WINDOW_WORD), pair(low, high))];
                let flags = P | W | A | D;
                let tables = narrow_window_tables();
                let tables = tables.map(|(table, word, entry)| {
                    (hot(table).entry(word), entry | pair(flags, flags))
                });
                let tree = [(root.entry(0), pair(to(6, all), to(7, all)))];
                window.into_iter().chain(tables.filter(|_| !pse)).chain(tree).collect()
            }
            Some(Format::Pae) => {
                // The registers stay what they are until the guest loads them.
                let table = (0..4).map(|n| (root.entry(n), to([5, 10, 5, 2][n], P)));
                let own = Some(registers.pdptes[3]).filter(|pdpte| pdpte & P != 0);
                let directory = own.map_or(hot(2), |pdpte| Gfn::new(pdpte << 12 >> 24));
                let pages = (0..3).map(|region| (directory.entry(128 + region), large(region)));
                let tree = [(hot(5).entry(0), to(6, all)), (hot(10).entry(0), to(7, all))];
                table.chain(pages).chain(tree).collect()
            }
        }
    }
}

/// Which formats of tables a program uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Formats {
    Long4,
    Pae,
    Legacy32,
    /// All of them, one after the other and at the same time.
    Mixed,
}

/// Where the number of the formats stands in [`Program::setup`].
const FORMATS_SHIFT: u32 = 55;

impl Formats {
    fn of(setup: u64) -> Formats {
        match setup >> FORMATS_SHIFT & 7 {
            0..4 => Formats::Long4,
            4 => Formats::Pae,
            5 => Formats::Legacy32,
            _ => Formats::Mixed,
        }
    }

    /// One of them, but sometimes any.
    fn choose(self, bits: &mut Bits) -> Format {
        let any = [
            Format::Long4,
            Format::Pae,
            Format::Legacy32 { pse: true },
            Format::Legacy32 { pse: bits.flag() },
        ][bits.take(2) as usize];
        match self {
            Formats::Long4 => Format::Long4,
            Formats::Pae if bits.mostly(2) => Format::Pae,
            Formats::Legacy32 if bits.mostly(2) => Format::Legacy32 { pse: bits.mostly(2) },
            _ => any,
        }
    }
}

/// Frames with a root for 4-level and for 32-bit paging, then those for PAE paging, too.
const ROOTS: [usize; 4] = [0, 8, PAE_ROOTS[0], PAE_ROOTS[1]];
const PAE_ROOTS: [usize; 2] = [11, 15];

/// Where in a page directory of 32-bit paging the window begins, in words.
const NARROW_WINDOW_WORD: usize = 416;

/// The entry of a hot frame, with these flags.
fn to(frame: usize, flags: u64) -> u64 {
    hot(frame).base().raw() | flags
}

/// A word of two entries of 4 bytes.
fn pair(low: u64, high: u64) -> u64 {
    low & 0xffff_ffff | high << 32
}

/// Whether the first window of 32-bit paging is made of 4 MiB pages.
fn has_large_windows(setup: u64) -> bool {
    setup >> (FORMATS_SHIFT - 1) & 1 != 0
}

/// The two entries of a page directory of 32-bit paging that make the window.
fn narrow_window(pse: bool) -> [u64; 2] {
    match pse {
        true => [PS | P | W | A | D, 1 << 22 | PS | P | W | A | D],
        false => [to(3, P | W | A), to(2, P | W | A)],
    }
}

/// The words of the page tables behind that, without flags: table, index and word.
fn narrow_window_tables() -> impl Iterator<Item = (usize, usize, u64)> {
    HOT.iter().step_by(2).map(|&gfn| {
        let table = if gfn < 0x400 { 3 } else { 2 };
        (table, gfn as usize % 0x400 / 2, pair(gfn << 12, (gfn + 1) << 12))
    })
}

/// How a program whose formats are not those of 4-level paging alone begins: each CPU goes to one.
fn first_step(n: usize, word: u64, setup: u64) -> Option<Op> {
    let formats = Formats::of(setup);
    if formats == Formats::Long4 || n > 2 {
        return None;
    }
    let bits = &mut Bits::new(word);
    let format = match formats.choose(bits) {
        Format::Legacy32 { pse } => Format::Legacy32 { pse: pse || has_large_windows(setup) },
        format => format,
    };
    let root = usual_root(bits, format);
    Some(Op::Execute { cpu: n, instruction: Privileged::Enter { format, root } })
}

/// Whether an [`edit`] begins with this word.
fn is_edit(word: u64, setup: u64) -> bool {
    let Theme { edits, .. } = THEMES[(setup >> THEME_SHIFT) as usize];
    Formats::of(setup) == Formats::Long4 && (Bits::new(!word).take(6) as u8) < edits
}

/// A guest that changes one entry again and again. Each time it flushes a page and accesses it, or
/// accesses it twice: behind a fault nothing stale may serve. A word for each step.
fn edit(words: &[u64]) -> impl Iterator<Item = Op> {
    const ROUNDS: usize = 3;
    let bits = &mut Bits::new(!words[0] >> 6);
    let cpu = bits.take(2) as usize;
    let (table, level, below) = [
        (6, Level::L1, [12, 14]),
        (5, Level::L2, [6, 7]),
        (5, Level::L2, [6, 7]),
        (4, Level::L3, [5, 10]),
    ][bits.take(2) as usize];
    let [page, other] = [(); 2].map(|()| tree_page(bits.take(2)));
    let at = window(hot(table).entry(page.index(level)));
    words.iter().take(5 * ROUNDS).enumerate().map(move |(n, &word)| {
        let bits = &mut Bits::new(word);
        let load = |gva, bits| Op::Load { cpu, gva, access: access(bits), length: 1 };
        match n % 5 {
            // The hypervisor is made to lose sight of the table, if it does not by itself. The
            // next access links it again.
            0 if bits.flag() => Op::Host(HostEvent::Release(hot(table))),
            1 => load(other, bits),
            2 => {
                let usual = to(below[bits.take(1) as usize], P | W | U | A);
                let entry = if bits.mostly(2) { usual } else { entry(bits) };
                let bytes = entry.to_le_bytes().into_iter().collect();
                Op::Store { cpu, gva: at, user: false, ac: true, bytes }
            }
            3 if bits.flag() => Op::Execute { cpu, instruction: Privileged::Invlpg(page) },
            _ => load(page, bits),
        }
    })
}

fn usual_root(bits: &mut Bits, format: Format) -> Gfn {
    match format {
        Format::Pae => hot(PAE_ROOTS[bits.take(1) as usize]),
        _ => hot(ROOTS[bits.take(2) as usize]),
    }
}

/// An instruction that changes the format.
fn switch(bits: &mut Bits, formats: Formats) -> Privileged {
    let on = bits.mostly(1);
    match bits.take(3) {
        0 | 1 => Privileged::Pse(on),
        2 => Privileged::Pae(on),
        choice => {
            let format = formats.choose(bits);
            let root = if choice == 3 { used_frame(bits) } else { usual_root(bits, format) };
            Privileged::Enter { format, root }
        }
    }
}

/// A frame for an entry to name: mostly a hot one.
fn frame(bits: &mut Bits, large: bool) -> u64 {
    let choice = bits.take(5);
    match (choice, large) {
        (0..24, true) => [0, 0, 0x200, 0x400, 0x400, 0x600, 0x40000, HIGH[0]][choice as usize % 8],
        (0..24, false) => HOT[choice as usize % 16],
        (24 | 25, _) => HIGH[choice as usize % 2],
        (26, _) => HOLE,
        (27, _) => 0x700,
        // No memory, at any height.
        (28, _) => 1 << (20 + bits.take(5) % 20),
        (29, _) => [0x200, 0xf_ffff_fff8][bits.take(1) as usize],
        // Odd frames set the PAT bit of a large page, others its reserved bits.
        _ => HOT[choice as usize % 2],
    }
}

/// Choose a memory type, as does PAT (SDM, "Page-Table Entries and Memory Types").
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;

fn entry(bits: &mut Bits) -> u64 {
    let mut entry = 0;
    if bits.mostly(3) {
        entry |= P;
    }
    let large = bits.take(3) == 0;
    if large {
        entry |= PS;
    }
    entry |= frame(bits, large) << 12;
    for (flag, likely) in [(W, true), (U, true), (A, true), (D, true), (G, false), (NX, false)] {
        if bits.mostly(2) == likely {
            entry |= flag;
        }
    }
    match bits.take(6) {
        0 => entry |= 1 << (32 + bits.take(5) % 20),
        1 => entry |= 1 << 13,
        _ => (),
    }
    if bits.take(2) == 0 {
        // Bits 9 to 11 and 52 to 62 are ignored by the CPU in every entry.
        let software = bits.take(14);
        entry |= (software & 7) << 9 | software >> 3 << 52;
        entry |= [0, PWT, PCD, PWT | PCD][bits.take(2) as usize];
    }
    entry
}

/// An entry, or what stands in the place of one in other formats: two of 4 bytes, or one that PAE
/// paging reserves nothing of.
fn entry_in(bits: &mut Bits, formats: Formats) -> u64 {
    let first = entry(bits);
    let half = |entry: u64| {
        // PSE-36: bit 13 of a 4 MiB page is bit 32 of its address.
        let above = if entry & PS != 0 { entry >> 32 & 1 } else { 0 };
        (entry | above << 13) & 0xffff_ffff
    };
    match formats {
        Formats::Legacy32 if bits.mostly(3) => pair(half(first), half(entry(bits))),
        Formats::Mixed if bits.take(2) == 0 => pair(half(first), half(entry(bits))),
        Formats::Pae | Formats::Mixed if bits.mostly(2) => first & !(0x7ff << 52),
        _ => first,
    }
}

/// A linear address of the universe, at the start of a page.
fn page(bits: &mut Bits) -> Gva {
    let choice = bits.take(6);
    match choice {
        0..32 => tree_page(choice % 16),
        32..48 => adjacent_page(choice - 32),
        48..62 => window(hot(choice as usize - 48).base()),
        _ => window(Gfn::new(HIGH[choice as usize - 62]).base()),
    }
}

/// An offset in a page: mostly that of an entry in use, sometimes one close to the end.
fn offset(bits: &mut Bits, formats: Formats) -> u64 {
    let slots = if formats != Formats::Long4 && bits.flag() { &NARROW_SLOTS } else { &SLOTS };
    let slot = slots[bits.take(3) as usize];
    let offset = match bits.take(4) {
        0 => slot * 8 + 1 + bits.take(3),
        1 => 4096 - 1 - bits.take(3),
        2 => slot * 8 + 4,
        3 => 0x10 * 8 + bits.take(4) * 8,
        _ => slot * 8,
    };
    offset % 4096
}

/// A frame that programs use.
fn used_frame(bits: &mut Bits) -> Gfn {
    match bits.take(5) as usize {
        choice @ 0..30 => hot(choice),
        choice => Gfn::new(HIGH[choice - 30]),
    }
}

fn access(bits: &mut Bits) -> Access {
    let kind = if bits.take(2) == 0 { AccessKind::Fetch } else { AccessKind::Read };
    let (user, ac) = (bits.flag(), bits.flag());
    Access { kind, user, smap_override: ac && !user && kind != AccessKind::Fetch }
}

fn store(cpu: usize, bits: &mut Bits, formats: Formats) -> Op {
    // Through the window into a table, or anywhere.
    let into_table = bits.take(3) != 0;
    let (gva, user, ac) = if into_table {
        (window(Gpa::new(used_frame(bits).base().raw() + offset(bits, formats))), false, true)
    } else {
        let page = page(bits);
        (Gva::new(page.raw() + offset(bits, formats)), bits.flag(), bits.flag())
    };
    let length = [8, 8, 8, 8, 8, 4, 2, 1][bits.take(3) as usize];
    let value = entry_in(bits, formats);
    let bytes = value.to_le_bytes()[..length].iter().copied().collect();
    Op::Store { cpu, gva, user, ac, bytes }
}

/// Entries side by side, of the kinds that guests write in loops.
fn stores(cpu: usize, bits: &mut Bits) -> Op {
    let table = [6, 6, 6, 7, 5, 5, 10, 4][bits.take(3) as usize];
    let slot = [0, 0, 0, 1, 4, 6, 508, 0][bits.take(3) as usize];
    let first = HOT[bits.take(4) as usize] << 12;
    let entry = match bits.take(3) {
        // After fork: read-only, not accessed.
        0..3 => first | P | U | if bits.flag() { D } else { 0 },
        // Mapped just now.
        3 | 4 => first | P | W | U | if bits.flag() { A | D } else { 0 },
        // Unmapped.
        5 => 0,
        _ => entry(bits),
    };
    let count = 2 + bits.take(3) as usize;
    Op::Stores { cpu, gva: window(hot(table).entry(slot)), entry, count: count.min(512 - slot) }
}

fn sweep(cpu: usize, bits: &mut Bits) -> Op {
    let first = [0, 0, 0, 1, 2, 4, 7, 8][bits.take(3) as usize];
    let kind = match bits.take(3) {
        0..5 => AccessKind::Write,
        5 => AccessKind::Fetch,
        _ => AccessKind::Read,
    };
    let user = bits.take(2) != 0;
    let access = Access { kind, user, smap_override: !user && kind != AccessKind::Fetch };
    let gva = Gva::new(adjacent_page(first).raw() + 0x800);
    Op::Sweep { cpu, gva, access, count: 3 + bits.take(2) as usize }
}

fn instruction(bits: &mut Bits) -> Privileged {
    let on = bits.mostly(1);
    match bits.take(4) {
        0..2 => Privileged::Paging(bits.take(2) != 0),
        2..5 => Privileged::Wp(on),
        5..7 => Privileged::Pge(on),
        7..9 => Privileged::Pcide(on),
        9..11 => Privileged::Smep(on),
        11..13 => Privileged::Smap(on),
        13..15 => Privileged::Nxe(on),
        _ => Privileged::FlushAll,
    }
}

/// INVLPG, or INVPCID of any type.
fn invalidation(bits: &mut Bits) -> Privileged {
    let gva = page(bits);
    let pcid = bits.take(2) as u16 % 3;
    match bits.take(3) {
        0 => Privileged::InvpcidAddress { pcid, gva },
        1 => Privileged::InvpcidContext(pcid),
        2 => [Privileged::InvpcidAllButGlobals, Privileged::FlushAll][bits.take(1) as usize],
        _ => Privileged::Invlpg(gva),
    }
}

/// What the host does to one frame, or to all.
fn host_event(bits: &mut Bits) -> HostEvent {
    let gfn = used_frame(bits);
    match bits.take(2) {
        0 => HostEvent::Remap(gfn),
        1 => HostEvent::WriteProtect(gfn),
        2 => HostEvent::SwapOut(gfn),
        _ if bits.take(1) == 0 => HostEvent::ZapAll,
        _ => HostEvent::Release(gfn),
    }
}

/// What the host does to a range of frames: some that lie side by side, a region and more, or all
/// there are.
fn host_range(bits: &mut Bits) -> HostEvent {
    let first = used_frame(bits).raw();
    let first = first.saturating_sub([0, 1, 4, first % 512][bits.take(2) as usize]);
    let length = [2, 4, 8, 16, 0x200, 0x400, END, HIGH_FRAMES.end][bits.take(3) as usize];
    let (first, end) = (Gfn::new(first), Gfn::new(first + length));
    match bits.take(2) {
        0 | 1 => HostEvent::RemapRange(first, end),
        2 => HostEvent::WriteProtectRange(first, end),
        _ => HostEvent::SwapOutRange(first, end),
    }
}

/// How many kinds of steps there are.
const STEPS: usize = 13;

/// What a program is mostly made of: weights of the kinds of steps, of 64 in all, in the order of
/// the match in [`Op::from_word`].
struct Theme {
    name: &'static str,
    /// Of 64 words, so many begin an [`edit`].
    edits: u8,
    weights: [u8; STEPS],
}

/// Where the number of the theme stands in [`Program::setup`].
const THEME_SHIFT: u32 = 61;

/// The number of the theme of many roots.
const CROWDED: u64 = 2;

const THEMES: [Theme; 8] = [
    // A bit of everything.
    Theme { name: "mixed", edits: 1, weights: [14, 16, 5, 3, 5, 2, 2, 3, 4, 3, 4, 2, 1] },
    // A guest that hardly ever flushes: what is stale shows.
    Theme { name: "no flushes", edits: 0, weights: [27, 25, 2, 1, 0, 1, 2, 1, 1, 2, 1, 1, 0] },
    // Many roots and a few roles, hence many shadow pages, and nothing that throws them away.
    Theme { name: "many roots", edits: 0, weights: [36, 5, 1, 15, 2, 0, 2, 0, 1, 0, 1, 0, 1] },
    // A host that is never quiet.
    Theme { name: "busy host", edits: 1, weights: [18, 14, 3, 2, 2, 2, 2, 8, 2, 1, 2, 6, 2] },
    // Loops over tables and over what they map, as in fork and in what comes after it.
    Theme { name: "loops", edits: 0, weights: [5, 5, 4, 1, 0, 0, 4, 1, 2, 20, 20, 1, 1] },
    // Address spaces in turn, with roots that are offered and withdrawn at any time.
    Theme { name: "switches", edits: 0, weights: [16, 10, 6, 17, 2, 1, 2, 1, 2, 0, 1, 1, 5] },
    // Control bits that change all the time.
    Theme { name: "roles", edits: 0, weights: [20, 12, 3, 3, 16, 1, 3, 1, 2, 1, 2, 0, 0] },
    // Demand paging, and a host that takes pages by the range.
    Theme { name: "demand", edits: 4, weights: [20, 4, 4, 2, 1, 1, 2, 1, 17, 4, 4, 4, 0] },
];

impl Program {
    /// What the program is mostly made of, in a word or two.
    pub fn theme(&self) -> &'static str {
        THEMES[(self.setup >> THEME_SHIFT) as usize].name
    }

    /// The formats of tables that the program uses.
    pub fn formats(&self) -> &'static str {
        match Formats::of(self.setup) {
            Formats::Long4 => "4-level",
            Formats::Pae => "PAE",
            Formats::Legacy32 => "32-bit",
            Formats::Mixed => "all formats",
        }
    }

    /// The themes that there are.
    pub fn themes() -> impl Iterator<Item = &'static str> {
        THEMES.iter().map(|theme| theme.name)
    }

    /// Whether there is memory above 4 GiB.
    pub fn has_high_memory(&self) -> bool {
        self.setup >> (THEME_SHIFT - 3) & 7 == 7
    }
}

impl Op {
    /// The CPU that takes it, if one does, before it is taken modulo the number of CPUs.
    pub fn cpu(&self) -> Option<usize> {
        match self {
            Op::Load { cpu, .. }
            | Op::Store { cpu, .. }
            | Op::Stores { cpu, .. }
            | Op::Sweep { cpu, .. }
            | Op::Execute { cpu, .. } => Some(*cpu),
            Op::DeviceWrite { .. } | Op::Repair { .. } | Op::Host(_) => None,
        }
    }

    /// Whether a CPU may take it while another one is in the hypervisor: if it is one instruction
    /// that need not exit.
    pub fn may_interleave(&self) -> bool {
        match self {
            Op::Load { .. } | Op::Store { .. } => true,
            Op::Execute { instruction, .. } => matches!(
                instruction,
                Privileged::Invlpg(_)
                    | Privileged::LoadCr3 { .. }
                    | Privileged::FlushAll
                    | Privileged::InvpcidAddress { .. }
                    | Privileged::InvpcidContext(_)
                    | Privileged::InvpcidAllButGlobals
            ),
            _ => false,
        }
    }

    /// The step that a random word stands for in a program with this [`Program::setup`]. Every word
    /// stands for one.
    pub fn from_word(word: u64, setup: u64) -> Op {
        let formats = Formats::of(setup);
        let bits = &mut Bits::new(word);
        let mut choice = bits.take(6) as u8;
        // The session takes it modulo the number of CPUs.
        let cpu = bits.take(2) as usize;
        let Theme { weights, .. } = &THEMES[(setup >> THEME_SHIFT) as usize];
        let mut kind = 0;
        while choice >= weights[kind] {
            choice -= weights[kind];
            kind += 1;
        }
        match kind {
            0 => {
                let gva = Gva::new(page(bits).raw() + offset(bits, formats));
                let access = access(bits);
                Op::Load { cpu, gva, access, length: 1 << bits.take(2) }
            }
            1 => store(cpu, bits, formats),
            2 => Op::Execute { cpu, instruction: invalidation(bits) },
            3 => {
                let usual = bits.flag();
                let root = match (usual, formats) {
                    // Most frames hold no PDPTEs that can be loaded.
                    (false, Formats::Pae) => usual_root(bits, Format::Pae),
                    (false, _) => used_frame(bits),
                    (true, Formats::Long4) => hot(bits.take(1) as usize * 8),
                    (true, _) => {
                        let format = formats.choose(bits);
                        usual_root(bits, format)
                    }
                };
                let (pcid, no_flush) = (bits.take(2) as u16 % 3, bits.flag());
                Op::Execute { cpu, instruction: Privileged::LoadCr3 { root, pcid, no_flush } }
            }
            4 if formats != Formats::Long4 && bits.take(2) == 0 => {
                Op::Execute { cpu, instruction: switch(bits, formats) }
            }
            4 => Op::Execute { cpu, instruction: instruction(bits) },
            5 => {
                let at = used_frame(bits).base().raw() + offset(bits, formats);
                let value = entry_in(bits, formats).to_le_bytes();
                let room = (4096 - at % 4096).min(8) as usize;
                Op::DeviceWrite {
                    gpa: Gpa::new(at),
                    bytes: value[..room].iter().copied().collect(),
                }
            }
            6 => Op::Repair { cpu },
            7 => Op::Host(host_event(bits)),
            8 => demand(cpu, bits, formats),
            9 => stores(cpu, bits),
            10 => sweep(cpu, bits),
            11 => Op::Host(host_range(bits)),
            _ => Op::Host(match bits.flag() {
                true => HostEvent::Offer,
                false => HostEvent::Withdraw(
                    [hot(0), hot(8), used_frame(bits)][bits.take(2) as usize % 3],
                ),
            }),
        }
    }
}

/// A page-table entry written where the start of the tree reads it.
fn demand(cpu: usize, bits: &mut Bits, formats: Formats) -> Op {
    let table = [6, 7, 5, 10][bits.take(2) as usize];
    let mut slot = bits.take(1) as usize;
    if matches!(formats, Formats::Legacy32 | Formats::Mixed) {
        slot = [slot, 256][bits.take(1) as usize];
    }
    let gva = window(hot(table).entry(slot));
    let bytes = entry_in(bits, formats).to_le_bytes().into_iter().collect();
    Op::Store { cpu, gva, user: false, ac: true, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_of_every_theme_are_shares_of_64() {
        for Theme { name, weights, .. } in &THEMES {
            assert_eq!(weights.iter().sum::<u8>(), 64, "{name}");
        }
    }

    /// Five steps around a store of an entry, three times, and a word for each.
    #[test]
    fn an_edit_stores_one_entry_three_times() {
        let words: Vec<u64> = (1..100_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let all: Vec<Vec<Op>> = (0..words.len()).map(|n| edit(&words[n..]).collect()).collect();
        let mut releases = 0;
        for ops in all.iter().filter(|ops| ops.len() == 15) {
            let stores = |op: &Op| match op {
                Op::Store { gva, .. } => Some(*gva),
                _ => None,
            };
            let gvas: Vec<Gva> = ops.iter().filter_map(stores).collect();
            assert!(gvas.len() == 3 && gvas.iter().all(|gva| *gva == gvas[0]), "{ops:?}");
            releases += ops.iter().filter(|op| matches!(op, Op::Host(_))).count();
        }
        assert!(releases > 50, "{releases}");
        let setup =
            (0..8).find(|theme| THEMES[*theme as usize].name == "demand").unwrap() << THEME_SHIFT;
        let started = words.iter().filter(|&&word| is_edit(word, setup)).count();
        assert!((1..20).contains(&started), "{started}");
        assert_eq!(Program::new(setup, 0, &words).ops.len(), words.len());
    }

    #[test]
    fn entries_have_all_that_hardware_ignores_and_all_that_it_reserves() {
        let words = |n: u64| Bits::new(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut all = [0, u64::MAX];
        for n in 0..100_000 {
            let entry = entry(&mut words(n));
            all = [all[0] | entry, all[1] & entry];
        }
        assert_eq!(all, [u64::MAX, 0]);
    }
}

//! What a program starts with.

use umbra_cases::random::Random;
use umbra_forms::program::{
    ARENA, DESCRIPTORS, FIRST_SELECTOR, HIGH_ARENA, LOW_ARENA, PAGES, Page, Setting, Target, World,
    page, selector,
};

use super::mode::Mode;

/// Bytes of the arena.
pub const SIZE: u64 = PAGES as u64 * 4096;
/// The page where stacks are.
pub const STACK: u64 = 3;
/// The page of the local APIC, if it is there; the pages beside it are not present then.
pub const APIC: usize = 9;

/// CR0.AM, which the kernel leaves clear.
const ALIGNMENT_MASK: u64 = 1 << 18;

/// Bits of RFLAGS.
pub mod flag {
    pub const FIXED: u64 = 1 << 1;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const NT: u64 = 1 << 14;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const STATUS: u64 = 0x8d5;
}

/// A segment as a program starts with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub selector: u16,
    /// The linear address of its first byte.
    pub base: u64,
    /// Places in the arena where its limit is.
    pub limit: Option<u64>,
}

/// ES, CS, SS, DS, FS, GS, as instructions number them.
pub const ES: usize = 0;
pub const CS: usize = 1;
pub const SS: usize = 2;
pub const DS: usize = 3;
pub const FS: usize = 4;
pub const GS: usize = 5;

/// A setting, and what the generator knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub mode: Mode,
    pub setting: Setting,
    pub segments: [Segment; 6],
    /// The linear address of the arena.
    pub arena: u64,
    /// Nothing traps between instructions: neither RFLAGS.TF nor breakpoints are ever set.
    pub quiet: bool,
    /// The code ends where canonical addresses end.
    pub high: bool,
}

/// A descriptor of a segment.
fn descriptor(base: u64, limit: u64, kind: u64, big: u64) -> u64 {
    let (limit, granular) = if limit > 0xf_ffff { (limit >> 12, 1 << 55) } else { (limit, 0) };
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | kind << 40
        | (limit >> 16 & 0xf) << 48
        | big << 54
        | granular
        | (base >> 24 & 0xff) << 56
}

/// Present segments of code and data, by their type bits.
const PRESENT: u64 = 0x90;
const DATA: u64 = 0x2;
const CODE: u64 = 0xa;

impl Start {
    /// A random one.
    pub fn random(random: &mut Random) -> Start {
        let mode = super::mode::MODES[random.index(super::mode::MODES.len())];
        let high = mode.bits == 64 && random.one_in(6);
        let arena = match mode {
            _ if high => HIGH_ARENA,
            _ if mode.virtual_8086 => LOW_ARENA,
            _ => ARENA,
        };
        let mut descriptors = [0; DESCRIPTORS];
        descriptors[6..].fill_with(|| wild(random));
        let mut start = Start {
            mode,
            arena,
            quiet: random.one_in(2),
            high,
            segments: [Segment { selector: 0, base: 0, limit: None }; 6],
            setting: Setting {
                world: mode.world(),
                defined: !0,
                registers: std::array::from_fn(|_| random.number()),
                rip: 0,
                flags: flag::FIXED | random.number() & flag::STATUS,
                selectors: [0; 6],
                descriptors,
                pages: pages(random, mode.ring),
                // Not NE. Without it the CPU waits for an interrupt at an error of the FPU (SDM
                // vol. 1, "MS-DOS Compatibility Sub-mode"), which none comes to end here. Bochs
                // goes on.
                cr0: toggled(random, &[(16, 6), (18, 3), (3, 12), (2, 20), (1, 12)]),
                cr4: toggled(random, &[(20, 4), (21, 4), (0, 6), (1, 6), (2, 20), (3, 6)]),
                debug: [0, 0, 0, 0, 0x400],
                bases: [0; 2],
                stack: 0,
                interrupt: random.one_in(6),
                origin: 0x100,
                base: 0,
            },
        };
        if mode.bits == 64 {
            start.set_flat(random);
        } else if mode.virtual_8086 {
            start.set_paragraphs(random);
        } else {
            start.set_segments(random);
        }
        if random.one_in(4) {
            start.setting.origin = 0x1000 - random.below(0x60);
        }
        start.setting.selectors = start.segments.map(|segment| segment.selector);
        start.setting.base = (arena - start.segments[CS].base) & width(mode.bits.max(32));
        start.setting.rip = start.setting.base + start.setting.origin;
        start.setting.registers[4] = start.stack();
        start.set_flags(random);
        if random.one_in(8) {
            start.setting.stack = arena_address(random);
        }
        start
    }

    /// Whether a trap between two iterations of INS or OUTS would leave its frame in the arena. RF
    /// is set there (SDM vol. 3, "Instruction-Breakpoint Exception Condition"); Bochs leaves it
    /// clear.
    pub fn shows_resume_flag(&self) -> bool {
        !self.quiet && (self.mode.ring == 0 || self.setting.stack != 0)
    }

    /// Whether ring 3 gets #AC.
    pub fn checks_alignment(&self) -> bool {
        self.setting.cr0 & ALIGNMENT_MASK != 0 && self.setting.flags & flag::AC != 0
    }

    /// Whether DR7 enables a breakpoint.
    pub fn breaks(&self) -> bool {
        const ENABLED: u64 = 0xff;
        self.setting.debug[4] & ENABLED != 0
    }

    /// The stack pointer at the start.
    pub fn stack(&self) -> u64 {
        self.offset(SS, self.arena + STACK * 4096 + 0xc00)
    }

    /// The offset of a linear address in a segment.
    pub fn offset(&self, segment: usize, linear: u64) -> u64 {
        linear.wrapping_sub(self.segments[segment].base) & width(self.mode.bits)
    }

    fn set_flat(&mut self, random: &mut Random) {
        let (code, data) = if self.mode.ring == 0 {
            (selector::CODE, selector::DATA)
        } else {
            (selector::USER_CODE, selector::USER_DATA)
        };
        for (index, segment) in self.segments.iter_mut().enumerate() {
            let null = index > SS && random.one_in(3);
            segment.selector = match index {
                CS => code,
                SS => data,
                _ if null => 0,
                _ => selector::USER_DATA,
            };
        }
        for (index, base) in self.setting.bases.iter_mut().enumerate() {
            *base = if random.one_in(3) { random.below(1 << 30) } else { 0 };
            self.segments[FS + index].base = *base;
        }
    }

    /// Virtual-8086 mode.
    fn set_paragraphs(&mut self, random: &mut Random) {
        for (index, segment) in self.segments.iter_mut().enumerate() {
            let below = if index == CS || random.one_in(2) { 0 } else { random.below(0x10) << 4 };
            segment.base = self.arena - (below << 4);
            segment.selector = (segment.base >> 4) as u16;
            segment.limit = Some(segment.base + 0xffff);
        }
    }

    fn set_segments(&mut self, random: &mut Random) {
        let (bits, ring) = (self.mode.bits, u64::from(self.mode.ring));
        let (code, data) = if ring == 0 {
            (selector::CODE_32, selector::DATA)
        } else {
            (selector::USER_CODE_32, selector::USER_DATA)
        };
        for index in [ES, CS, SS, DS, FS, GS] {
            let own = bits == 16 || random.one_in(2);
            let null = matches!(index, ES | DS | FS | GS) && random.one_in(12);
            let segment = &mut self.segments[index];
            if !own || null {
                segment.selector = match index {
                    _ if null => 0,
                    CS => code,
                    _ => data,
                };
                continue;
            }
            let (big, dpl) = (u64::from(bits == 32), ring << 5);
            let (base, limit, kind) = match index {
                // 16-bit code above 64 KiB.
                CS if random.one_in(6) => (self.arena - 0x1_0000, 0x1_ffff, CODE),
                CS => (self.arena, 0xffff, CODE),
                SS if random.one_in(8) => limited(random, self.arena, bits, DATA),
                SS => (self.arena, 0xffff, DATA),
                _ if random.one_in(2) => (self.arena, 0xffff, DATA),
                _ => {
                    // Writable, read-only, expand-down, code.
                    let kinds = [DATA, DATA, DATA & !2, DATA | 4, DATA | 4, CODE];
                    let kind = kinds[random.index(kinds.len())];
                    limited(random, self.arena, bits, kind)
                }
            };
            let accessed = if random.one_in(8) { 0 } else { 1 };
            let big = if index != CS && random.one_in(8) { 1 - big } else { big };
            self.setting.descriptors[index] =
                descriptor(base, limit, PRESENT | dpl | kind | accessed, big);
            segment.selector = FIRST_SELECTOR + 8 * index as u16 + ring as u16;
            if index != CS && index != SS && random.one_in(6) {
                // The same in the LDT.
                segment.selector = 8 * index as u16 + 4 + ring as u16;
            }
            segment.base = base;
            segment.limit = Some(base + limit);
        }
    }

    fn set_flags(&mut self, random: &mut Random) {
        let mut flags = self.setting.flags;
        let mut sometimes = |bits: u64, n: u64| {
            if random.one_in(n) {
                flags |= bits;
            }
        };
        if !self.quiet {
            sometimes(flag::TF, 3);
        }
        sometimes(flag::AC, 5);
        sometimes(flag::NT, 30);
        sometimes(flag::IF, 4);
        sometimes(3 << 12, 2);
        if self.mode.virtual_8086 {
            flags |= flag::VM;
        }
        self.setting.flags = flags;
    }
}

/// Base, limit and type of a segment that ends in the arena.
fn limited(random: &mut Random, arena: u64, bits: u32, kind: u64) -> (u64, u64, u64) {
    let base = if bits == 16 || random.one_in(2) { arena } else { arena - random.below(0x1_0000) };
    let end = arena + (2 + random.below(PAGES as u64 - 2)) * 4096;
    let end = (end + random.below(9)).wrapping_sub(5);
    (base, end - base, kind)
}

/// A mask of the bits that addresses have.
pub fn width(bits: u32) -> u64 {
    if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// A linear address for events' frames.
fn arena_address(random: &mut Random) -> u64 {
    let page = 2 + random.below(PAGES as u64 - 2);
    let page = if (APIC as u64 - 1..=APIC as u64 + 1).contains(&page) { STACK } else { page };
    ARENA + page * 4096 + random.below(256) * 16
}

/// Each bit one time in so many.
fn toggled(random: &mut Random, bits: &[(u32, u64)]) -> u64 {
    bits.iter().filter(|&&(_, n)| random.one_in(n)).fold(0, |word, (bit, _)| word | 1 << bit)
}

/// A descriptor of any kind, mostly one that some instruction refuses. Call gates and TSSs would
/// lead anywhere, so they are not present; code has no byte that can run.
fn wild(random: &mut Random) -> u64 {
    let kind = random.below(32) | random.below(4) << 5;
    let system = kind & 0x10 == 0;
    let present = if system || random.one_in(5) { 0 } else { 0x80 };
    let base = ARENA + random.below(PAGES as u64) * 4096;
    let code = !system && kind & 8 != 0;
    let long = if present == 0 && random.one_in(2) { 1 << 53 } else { 0 };
    let limit = if code { 0 } else { random.below(0x10_0000) };
    descriptor(base, limit, kind | present, random.below(2)) | long
}

fn pages(random: &mut Random, ring: u8) -> [Page; PAGES] {
    const ALL: u8 = page::PRESENT | page::WRITABLE | page::ACCESSED | page::DIRTY;
    let own = if ring == 3 || random.one_in(3) { page::USER } else { 0 };
    let mut pages = [Page { target: Target::Ram, bits: ALL | own }; PAGES];
    for page in pages.iter_mut().skip(1) {
        match random.below(24) {
            0..=2 => page.bits &= !page::DIRTY,
            3 => page.bits &= !(page::DIRTY | page::ACCESSED),
            4 | 5 => page.bits &= !page::WRITABLE,
            6 => page.bits ^= page::USER,
            7 => page.bits &= !page::PRESENT,
            8 => page.bits |= page::NO_EXECUTE,
            9 => page.bits |= page::RESERVED,
            10 | 11 => page.target = Target::Hole,
            12..=14 => page.target = Target::Table,
            _ => (),
        }
    }
    let plain = Page { target: Target::Ram, bits: ALL | own };
    for index in [STACK as usize, PAGES - 2, PAGES - 1] {
        pages[index] = plain;
    }
    // Mostly code can go on where it crosses a border. No table is code: that would lead anywhere.
    if !random.one_in(4) || pages[1].target == Target::Table {
        pages[1] = plain;
    }
    if random.one_in(3) {
        pages[APIC].target = Target::Apic;
        pages[APIC].bits |= page::PRESENT;
        pages[APIC].bits &= !page::RESERVED;
        pages[APIC - 1].bits &= !page::PRESENT;
        pages[APIC + 1].bits &= !page::PRESENT;
    }
    pages
}

/// What a page is, for reports.
pub fn name(world: World, page: Page, ring: u8) -> &'static str {
    let has = |bit| page.bits & bit != 0;
    match page.target {
        _ if !has(page::PRESENT) => "none",
        _ if has(page::RESERVED) && world != World::Bits32 => "reserved bit",
        _ if ring == 3 && !has(page::USER) => "supervisor",
        Target::Hole => "hole",
        Target::Apic => "apic",
        Target::Table => "table",
        Target::Ram if !has(page::WRITABLE) => "read-only",
        Target::Ram if !has(page::ACCESSED) => "not accessed",
        Target::Ram if !has(page::DIRTY) => "clean",
        Target::Ram => "ram",
    }
}

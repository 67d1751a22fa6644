//! A program for the whole machine: what it starts with, and its code.
//!
//! It lives in an arena of [`PAGES`] pages, at [`ARENA`], and once more at [`LOW_ARENA`] for
//! virtual-8086 mode or, in long mode, at [`HIGH_ARENA`]. The host makes programs; the kernel
//! `machine` gets them as words, and runs each from the same state.

/// Pages of the arena.
pub const PAGES: usize = 16;
/// Where the arena begins.
pub const ARENA: u64 = 0x9000_0000;
/// Where it begins for virtual-8086 mode.
pub const LOW_ARENA: u64 = 0x2_0000;
/// Where it begins so that it ends with the canonical addresses of the lower half, in long mode.
pub const HIGH_ARENA: u64 = (1 << 47) - (PAGES as u64) * 4096;
/// Descriptors that a program brings; the first has selector [`FIRST_SELECTOR`].
pub const DESCRIPTORS: usize = 16;
/// The selector of a program's first descriptor in the GDT. In the LDT it has index 0.
pub const FIRST_SELECTOR: u16 = 0x80;
/// The most code that a program has, in bytes.
pub const CODE: usize = 512;
/// The most steps that a program has.
pub const STEPS: usize = 24;
/// The most words that a program takes.
pub const WORDS: usize = HEADER + STEPS + CODE / 8;

/// Words before the steps: how many follow, the setting, two lengths.
const HEADER: usize = 1 + 1 + 16 + 2 + 6 + DESCRIPTORS + PAGES + 2 + 5 + 2 + 4 + 2;

/// The selectors that every program finds in the GDT.
pub mod selector {
    /// 64-bit code of ring 0.
    pub const CODE: u16 = 0x08;
    /// Data of ring 0.
    pub const DATA: u16 = 0x10;
    /// 32-bit code of ring 0.
    pub const CODE_32: u16 = 0x18;
    /// Data of ring 3.
    pub const USER_DATA: u16 = 0x23;
    /// 64-bit code of ring 3.
    pub const USER_CODE: u16 = 0x2b;
    /// 32-bit code of ring 3.
    pub const USER_CODE_32: u16 = 0x33;
    /// The TSS; in long mode two descriptors long.
    pub const TSS: u16 = 0x38;
    /// The LDT; in long mode two descriptors long.
    pub const LDT: u16 = 0x48;
    /// Outside of long mode, the TSS of the task for double faults.
    pub const TASK: u16 = 0x58;
    /// A call gate to ring 0 for ring 3; in long mode two descriptors long.
    pub const GATE: u16 = 0x60;
}

/// Vectors with gates of their own.
pub mod vector {
    /// An interrupt gate for ring 3.
    pub const USER: u8 = 0x40;
    /// An interrupt gate for ring 0 alone.
    pub const KERNEL: u8 = 0x41;
    /// A trap gate for ring 3.
    pub const TRAP: u8 = 0x42;
    /// A gate that is not present.
    pub const ABSENT: u8 = 0x43;
    /// A gate with a null selector.
    pub const NULL: u8 = 0x44;
    /// A gate to a data segment.
    pub const DATA: u8 = 0x45;
    /// A gate beyond the GDT.
    pub const BEYOND: u8 = 0x46;
    /// In long mode with an interrupt stack, else a task gate.
    pub const TASK: u8 = 0x47;
    /// What the local APIC sends.
    pub const INTERRUPT: u8 = 0x51;
    /// The end of a program.
    pub const STOP: u8 = 0x80;
    /// The first vector beyond the table.
    pub const LIMIT: u8 = 0x90;
}

/// The paging that a program runs under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// Long mode, four levels.
    Long,
    /// Protected mode, PAE paging.
    Pae,
    /// Protected mode, 32-bit paging.
    Bits32,
}

/// What an arena's page leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Memory of its own.
    Ram,
    /// A page table in use.
    Table,
    /// No memory and no device.
    Hole,
    /// The local APIC.
    Apic,
}

/// A page of the arena: where it leads, and with which bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where it leads.
    pub target: Target,
    /// Bits of [`page`].
    pub bits: u8,
}

/// Bits of [`Page`].
pub mod page {
    /// Present.
    pub const PRESENT: u8 = 1;
    /// Writable.
    pub const WRITABLE: u8 = 2;
    /// For ring 3.
    pub const USER: u8 = 4;
    /// Accessed.
    pub const ACCESSED: u8 = 8;
    /// Dirty.
    pub const DIRTY: u8 = 16;
    /// No code, where the format has the bit.
    pub const NO_EXECUTE: u8 = 32;
    /// A reserved bit, where the format has one.
    pub const RESERVED: u8 = 64;
}

/// What a program starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The paging.
    pub world: World,
    /// Bits of RFLAGS that mean something after each step.
    pub defined: u32,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub registers: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub flags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub selectors: [u16; 6],
    /// Descriptors.
    pub descriptors: [u64; DESCRIPTORS],
    /// The arena.
    pub pages: [Page; PAGES],
    /// Bits of CR0 that are inverted.
    pub cr0: u64,
    /// Bits of CR4 that are inverted, where the CPU has them.
    pub cr4: u64,
    /// DR0 to DR3, and DR7.
    pub debug: [u64; 5],
    /// In long mode, the bases of FS and GS.
    pub bases: [u64; 2],
    /// The stack that events of ring 3 get in ring 0; 0 for one outside of the arena.
    pub stack: u64,
    /// Whether an interrupt is pending.
    pub interrupt: bool,
    /// Where the code begins in the arena.
    pub origin: u64,
    /// RIP minus the place in the arena.
    pub base: u64,
}

impl Setting {
    /// Whether the arena is used where virtual-8086 mode reaches it, or the last canonical address.
    pub fn is_elsewhere(&self) -> bool {
        const VM: u64 = 1 << 17;
        self.flags & VM != 0 || self.rip >= HIGH_ARENA
    }
}

/// A setting, and what runs in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// What it starts with.
    pub setting: Setting,
    /// Where each step begins in the code.
    starts: [u16; STEPS],
    steps: usize,
    code: [u8; CODE],
    length: usize,
}

impl Program {
    /// A program without code.
    pub fn new(setting: Setting) -> Program {
        Program { setting, starts: [0; STEPS], steps: 0, code: [0; CODE], length: 0 }
    }

    /// Adds a step; nothing if it does not fit.
    pub fn push(&mut self, code: &[u8]) -> Option<()> {
        if self.steps == STEPS || self.length + code.len() > CODE {
            return None;
        }
        self.starts[self.steps] = self.length as u16;
        self.steps += 1;
        self.code[self.length..self.length + code.len()].copy_from_slice(code);
        self.length += code.len();
        Some(())
    }

    /// The code.
    pub fn code(&self) -> &[u8] {
        &self.code[..self.length]
    }

    /// Where the steps begin in the code.
    pub fn starts(&self) -> &[u16] {
        &self.starts[..self.steps]
    }

    /// The step that an address belongs to.
    pub fn step(&self, rip: u64) -> Option<usize> {
        let at = rip.wrapping_sub(self.setting.base).wrapping_sub(self.setting.origin);
        let inside = at < self.length as u64;
        inside.then(|| self.starts().iter().rposition(|&start| u64::from(start) <= at)).flatten()
    }

    /// Where the step behind another begins.
    pub fn behind(&self, step: usize) -> Option<u64> {
        let start = self.starts().get(step + 1)?;
        Some(self.setting.base.wrapping_add(self.setting.origin).wrapping_add((*start).into()))
    }

    /// As the kernel reads it: how many words follow, and these.
    pub fn to_words(&self) -> ([u64; WORDS], usize) {
        let mut words = [0; WORDS];
        let mut count = 0;
        let mut put = |word: u64| {
            words[count] = word;
            count += 1;
        };
        let setting = &self.setting;
        put(0);
        put(setting.world as u64 | u64::from(setting.defined) << 32);
        setting.registers.iter().for_each(|&word| put(word));
        put(setting.rip);
        put(setting.flags);
        setting.selectors.iter().for_each(|&word| put(word.into()));
        setting.descriptors.iter().for_each(|&word| put(word));
        setting.pages.iter().for_each(|page| put(page.target as u64 | u64::from(page.bits) << 8));
        put(setting.cr0);
        put(setting.cr4);
        setting.debug.iter().for_each(|&word| put(word));
        setting.bases.iter().for_each(|&word| put(word));
        put(setting.stack);
        put(setting.interrupt.into());
        put(setting.origin);
        put(setting.base);
        put(self.steps as u64);
        put(self.length as u64);
        self.starts().iter().for_each(|&start| put(start.into()));
        for bytes in self.code().chunks(8) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            put(u64::from_le_bytes(word));
        }
        words[0] = count as u64 - 1;
        (words, count)
    }

    /// From what the kernel reads, the first word left out; nothing if it cannot be a program.
    pub fn from_words(words: &[u64]) -> Option<Program> {
        let mut words = words.iter().copied();
        let mut next = || words.next();
        let first = next()?;
        let world = *[World::Long, World::Pae, World::Bits32].get(first as u32 as usize)?;
        let registers = array(&mut next)?;
        let (rip, flags) = (next()?, next()?);
        let selectors: [u64; 6] = array(&mut next)?;
        let descriptors = array(&mut next)?;
        let raw: [u64; PAGES] = array(&mut next)?;
        let mut pages = [Page { target: Target::Ram, bits: 0 }; PAGES];
        for (page, word) in pages.iter_mut().zip(raw) {
            let targets = [Target::Ram, Target::Table, Target::Hole, Target::Apic];
            *page = Page { target: *targets.get(word as u8 as usize)?, bits: (word >> 8) as u8 };
        }
        let (cr0, cr4) = (next()?, next()?);
        let (debug, bases) = (array(&mut next)?, array(&mut next)?);
        let setting = Setting {
            world,
            defined: (first >> 32) as u32,
            registers,
            rip,
            flags,
            selectors: selectors.map(|word| word as u16),
            descriptors,
            pages,
            cr0,
            cr4,
            debug,
            bases,
            stack: next()?,
            interrupt: next()? != 0,
            origin: next()?,
            base: next()?,
        };
        let mut program = Program::new(setting);
        let (steps, length) = (next()? as usize, next()? as usize);
        if steps > STEPS || length > CODE {
            return None;
        }
        (program.steps, program.length) = (steps, length);
        for start in &mut program.starts[..steps] {
            *start = next()? as u16;
        }
        for bytes in program.code[..length].chunks_mut(8) {
            let word = next()?.to_le_bytes();
            bytes.copy_from_slice(&word[..bytes.len()]);
        }
        Some(program)
    }
}

/// The next words.
fn array<const N: usize>(next: &mut impl FnMut() -> Option<u64>) -> Option<[u64; N]> {
    let mut words = [0; N];
    for word in &mut words {
        *word = next()?;
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting() -> Setting {
        Setting {
            world: World::Pae,
            defined: 0x1234,
            registers: [3; 16],
            rip: 4,
            flags: 2,
            selectors: [1, 2, 3, 4, 5, 6],
            descriptors: [7; DESCRIPTORS],
            pages: [Page { target: Target::Apic, bits: page::USER }; PAGES],
            cr0: 8,
            cr4: 9,
            debug: [1, 2, 3, 4, 0x400],
            bases: [10, 11],
            stack: 12,
            interrupt: true,
            origin: 0x100,
            base: ARENA,
        }
    }

    #[test]
    fn words_are_a_program() {
        let mut program = Program::new(setting());
        program.push(&[0x90]).unwrap();
        program.push(&[0xb8; 12]).unwrap();
        let (words, count) = program.to_words();
        assert_eq!(words[0] as usize + 1, count);
        assert_eq!(Program::from_words(&words[1..count]).as_ref(), Some(&program));
        assert_eq!(Program::from_words(&words[1..count - 1]), None);
    }

    #[test]
    fn a_full_program_fits() {
        let mut program = Program::new(setting());
        for _ in 0..STEPS {
            program.push(&[0; CODE / STEPS]).unwrap();
        }
        assert_eq!(program.push(&[0]), None);
        let (words, count) = program.to_words();
        assert!(count <= WORDS && Program::from_words(&words[1..count]) == Some(program));
    }

    #[test]
    fn addresses_have_steps() {
        let mut program = Program::new(setting());
        program.push(&[0x90]).unwrap();
        program.push(&[0x0f, 0x0b]).unwrap();
        let start = ARENA + 0x100;
        let steps =
            [start - 1, start, start + 1, start + 2, start + 3].map(|rip| program.step(rip));
        assert_eq!(steps, [None, Some(0), Some(1), Some(1), None]);
        assert_eq!((program.behind(0), program.behind(1)), (Some(start + 1), None));
    }
}

//! Where code, operands and scratch memory lie.
//!
//! Each ring has a block of 64 KiB for each kind of memory, so that 16-bit code reaches all of it:
//! the code, the scratch page, and the two pages of the operand.

use guest_kernels::kit::descriptors::{self, GDT_WORDS};
use guest_kernels::kit::frames::{Frame, Pool};
use guest_kernels::kit::observe::Observer;
use guest_kernels::kit::space::Space;
use guest_kernels::kit::{access, apic};
use umbra_forms::{Contents, Form, Kind, Mode, Page, Ring};
use umbra_paging::{Gva, Level, bits};

/// The first block.
const BASE: u64 = 0x9000_0000;
/// How far the blocks of ring 3 are from those of ring 0.
const RINGS: u64 = 16 << 20;
const BLOCK: u64 = 64 << 10;
/// What the page table in use maps.
const MAPPED_BY_TABLE: u64 = 0x9800_0000;
/// Its one entry in use.
const ENTRY: usize = 256;
/// An address without memory.
const HOLE: u64 = 0xd000_0000;

const SCRATCH: u64 = 0x2000;
const FIRST: u64 = 0x5000;
const SECOND: u64 = 0x6000;

/// Where an operand begins that crosses nothing.
const PLAIN: u64 = 0x400;
/// What TPR is before each case.
const PRIORITY: u32 = 0x50;

/// Offsets in the scratch page.
pub mod scratch {
    /// Where RBX leads with the displacement.
    pub const DATA: u64 = 0x200;
    /// RSI.
    pub const SOURCE: u64 = 0x580;
    /// RDI.
    pub const DESTINATION: u64 = 0x600;
    /// RBP.
    pub const FRAME: u64 = 0x900;
    /// RSP.
    pub const STACK: u64 = 0xc00;
}

/// Base and limit of the kit's tables.
pub fn table(contents: Contents) -> (u64, u64) {
    if contents == Contents::Idt {
        (descriptors::idt_base(), 4095)
    } else {
        (descriptors::gdt_base(), GDT_WORDS as u64 * 8 - 1)
    }
}

/// The block of a ring and a kind of memory.
#[derive(Clone, Copy)]
pub struct Block {
    pub base: u64,
    pub kind: &'static Kind,
}

impl Block {
    pub fn of(kind: &'static Kind, ring: Ring) -> Block {
        let ring = if ring == Ring::User { RINGS } else { 0 };
        Block { base: BASE + ring + u64::from(kind.number) * BLOCK, kind }
    }

    /// An address as code sees it.
    pub fn offset(&self, mode: Mode, address: u64) -> u64 {
        if mode == Mode::Bits16 { address - self.base } else { address }
    }

    /// A place in the scratch page.
    pub fn scratch(&self, offset: u64) -> u64 {
        self.base + SCRATCH + offset
    }

    /// Where the operand of a form begins.
    pub fn operand(&self, form: &Form) -> u64 {
        match self.kind.second {
            Some(_) => self.base + SECOND - form.before_border(),
            None if self.kind.first == Page::Apic => self.base + FIRST + apic::register::TPR,
            None => self.base + FIRST + PLAIN,
        }
    }
}

/// Word `index` of memory before each case.
fn pattern(index: usize) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The frames behind all blocks.
pub struct Places {
    code: Frame,
    scratch: Frame,
    first: Frame,
    second: Frame,
    table: Frame,
}

impl Places {
    /// Maps all blocks in `space`.
    pub fn new(pool: &mut Pool, space: &Space) -> Places {
        let table = space.table(pool, Gva::new(MAPPED_BY_TABLE), Level::L1);
        let behind = pool.frame();
        table.write(ENTRY, behind.address() | bits::P | bits::W | bits::A | bits::D);
        let (code, scratch) = (pool.frame(), pool.frame());
        let places = Places { code, scratch, first: pool.frame(), second: pool.frame(), table };
        for kind in &Kind::ALL {
            for ring in [Ring::Kernel, Ring::User] {
                places.map(pool, space, Block::of(kind, ring), ring);
            }
        }
        for frame in [scratch, places.first, places.second] {
            (0..512).for_each(|index| frame.write(index, pattern(index)));
        }
        (0..512)
            .filter(|&index| index != ENTRY)
            .for_each(|index| table.write(index, pattern(index)));
        apic::write(apic::register::TPR, PRIORITY);
        places
    }

    fn map(&self, pool: &mut Pool, space: &Space, block: Block, ring: Ring) {
        let user = if ring == Ring::User { bits::U } else { 0 };
        let mut map = |offset, address: u64, rights| {
            let entry = address | rights | bits::P | bits::A;
            space.map(pool, Gva::new(block.base + offset), Level::L1, entry);
        };
        let writable = user | bits::W | bits::D;
        map(0, self.code.address(), user);
        map(SCRATCH, self.scratch.address(), writable);
        let pages = [
            (FIRST, self.first, HOLE, Some(block.kind.first)),
            (SECOND, self.second, HOLE + 4096, block.kind.second),
        ];
        for (offset, frame, hole, page) in pages {
            match page {
                Some(Page::Ram) => map(offset, frame.address(), writable),
                Some(Page::Hole) => map(offset, hole, writable),
                Some(Page::Apic) => map(offset, apic::BASE, writable),
                Some(Page::Table) => map(offset, self.table.address(), writable),
                Some(Page::ReadOnly) => map(offset, frame.address(), user),
                Some(Page::UserReadOnly) => map(offset, frame.address(), bits::U),
                Some(Page::Nothing) | None => (),
            }
        }
    }

    /// The frame behind an address of a block, if there is one that keeps what is written.
    fn behind(&self, block: &Block, address: u64) -> Option<Frame> {
        let (page, frame) = match address - block.base {
            SCRATCH..FIRST => return Some(self.scratch),
            FIRST..SECOND => (Some(block.kind.first), self.first),
            _ => (block.kind.second, self.second),
        };
        match page? {
            Page::Ram | Page::ReadOnly | Page::UserReadOnly => Some(frame),
            Page::Table => Some(self.table),
            Page::Hole | Page::Apic | Page::Nothing => None,
        }
    }

    /// Writes bytes to where an address of a block leads.
    pub fn put(&self, block: &Block, address: u64, bytes: &[u8]) {
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let length = rest.len().min(4096 - at as usize % 4096);
            let (now, later) = rest.split_at(length);
            if let Some(frame) = self.behind(block, at) {
                frame.write_bytes(at as usize % 4096, now);
            }
            (at, rest) = (at + length as u64, later);
        }
    }

    /// Sets the code.
    pub fn set_code(&self, code: &[u8]) {
        let start = umbra_forms::ORIGIN as usize / 8;
        let (words, rest) = code.as_chunks::<8>();
        assert!(rest.is_empty() && start + words.len() <= 512, "whole words, in one page");
        for (index, word) in words.iter().enumerate() {
            self.code.update(start + index, u64::from_le_bytes(*word));
        }
    }

    /// Sets the code of a form.
    pub fn set_form(&self, form: &Form, absolute: u64) {
        const STOP: [u8; 2] = [0xcd, descriptors::STOP];
        const BREAKPOINT: u8 = 0xcc;
        let mut code = [BREAKPOINT; 256];
        let end = form.bytes().len();
        code[..end].copy_from_slice(form.bytes());
        let (at, width) = (usize::from(form.absolute.0), usize::from(form.absolute.1));
        code[at..at + width].copy_from_slice(&absolute.to_le_bytes()[..width]);
        let tail = end + form.tail().len();
        code[end..tail].copy_from_slice(form.tail());
        code[tail..tail + 2].copy_from_slice(&STOP);
        let landing = (umbra_forms::LANDING - umbra_forms::ORIGIN) as usize;
        code[landing..landing + 2].copy_from_slice(&STOP);
        self.set_code(&code[..landing + 8]);
    }

    /// Brings the page table into use again, if it has been written.
    pub fn use_table(&self) {
        let mapped = access::read(Gva::new(MAPPED_BY_TABLE + ENTRY as u64 * 4096));
        assert!(mapped.is_ok(), "what the table maps is there");
    }

    /// Tells what a case on `block` has changed in memory and devices, and takes it back.
    pub fn restore(&self, block: &Block, observer: &mut Observer) {
        let crosses = block.kind.second.is_some();
        restore("scratch", self.scratch, 0x180 / 8..0xd00 / 8, observer);
        if let Some(frame) = self.behind(block, block.base + FIRST) {
            let words = if crosses { 0xc00 / 8..512 } else { 0x300 / 8..0x800 / 8 };
            restore("first", frame, words, observer);
        }
        if let Some(frame) = self.behind(block, block.base + SECOND).filter(|_| crosses) {
            restore("second", frame, 0..0x400 / 8, observer);
        }
        restore_device(observer);
    }

    /// Tells what a program has changed anywhere, and takes it back.
    pub fn restore_all(&self, observer: &mut Observer) {
        restore("scratch", self.scratch, 0..512, observer);
        restore("first", self.first, 0..512, observer);
        restore("second", self.second, 0..512, observer);
        restore("table", self.table, 0..ENTRY, observer);
        restore("table", self.table, ENTRY + 1..512, observer);
        restore_device(observer);
    }
}

fn restore(name: &str, frame: Frame, words: core::ops::Range<usize>, observer: &mut Observer) {
    for index in words {
        let value = frame.read(index);
        if value != pattern(index) {
            observer.see(name, index * 8, value);
            frame.write(index, pattern(index));
        }
    }
}

fn restore_device(observer: &mut Observer) {
    let priority = apic::read(apic::register::TPR);
    if priority != PRIORITY {
        observer.see("tpr", 0, priority.into());
        apic::write(apic::register::TPR, PRIORITY);
    }
}

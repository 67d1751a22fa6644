//! Random guests: entries of any bits in tables that both formats use, each access judged by the
//! walk.

use guest_kernels::base::report::Report;
use guest_kernels::check;

use crate::kit::run::{self, Context};
use crate::kit::{cpu, descriptors, memory};
use crate::random::Random;
use crate::space::{
    self, DATA, DIRECTORY_32, MODES, Mode, PDPT, Space, TABLE_COUNT, TABLES, WINDOW,
};
use crate::walk::{self, Access, Format, Outcome, Walk, bit};

const PAGE_FAULT: u32 = 14;
const PAGE: u32 = 0x1000;

/// Entries of each table that are used: so many words.
const WORDS: u32 = 16;

/// Places in memory that hold entries.
#[derive(Clone, Copy)]
struct Place {
    at: u32,
}

/// How a program is written: what it does next.
pub struct Program<'a> {
    widths: u32,
    space: &'a mut Space,
    random: &'a mut Random,
    report: &'a mut Report,
}

/// Steps, with writes of 1, 2, 4 and, if they are so many `widths`, 8 bytes.
pub fn run(space: &mut Space, random: &mut Random, report: &mut Report, steps: u32, widths: u32) {
    space.enter(Mode::Paged(Format::Bits32));
    space.clear();
    let mut program = Program { widths, space, random, report };
    for _ in 0..steps {
        program.step();
    }
}

impl Program<'_> {
    fn step(&mut self) {
        match self.random.below(64) {
            0 => {
                let mode = MODES[1 + self.random.below(2) as usize];
                self.space.enter(mode);
            }
            1 => {
                let [wp, pse, nxe] = core::array::from_fn(|_| self.random.once_in(2));
                self.space.set_bits(wp, pse, nxe);
            }
            2 => self.change_pdpte(),
            3..=30 => self.change_entry(),
            _ => self.access(),
        }
    }

    /// Another directory behind the window, which counts from the next load on.
    fn change_pdpte(&mut self) {
        let table = TABLES + PAGE * self.random.below(TABLE_COUNT);
        let present = u32::from(!self.random.once_in(4));
        memory::write(PDPT + 8, table | present);
        if self.random.once_in(2) {
            self.space.flush();
        }
    }

    fn place(&mut self) -> Place {
        let word = self.random.below(WORDS);
        let table = self.random.below(TABLE_COUNT + 1);
        let first = if table == TABLE_COUNT {
            DIRECTORY_32 + 4 * (WINDOW >> 22)
        } else {
            TABLES + PAGE * table
        };
        Place { at: first + 4 * word }
    }

    /// A word that is an entry of 32-bit paging, or the low half of one of PAE.
    fn low(&mut self) -> u32 {
        let address = match self.random.below(8) {
            0..=2 => DATA + PAGE * self.random.below(WORDS),
            3 => DATA + 0x20_0000 * self.random.below(4),
            4 => self.random.below(4) << 21 | DATA | self.random.below(256) << 13,
            _ => TABLES + PAGE * self.random.below(TABLE_COUNT),
        };
        let mut flags = self.random.next() as u32 & 0xe66;
        for (bit, times) in [(bit::P, 8), (bit::W, 4), (bit::U, 4)] {
            if !self.random.once_in(times) {
                flags |= bit as u32;
            }
        }
        if self.random.once_in(4) {
            flags |= bit::PS as u32;
        }
        address | flags
    }

    /// A word that is the high half of an entry of PAE paging.
    fn high(&mut self) -> u32 {
        match self.random.below(16) {
            0 | 1 => 0x8000_0000,
            2 => 1 << (self.random.below(23) + 8),
            3 => 1 << self.random.below(self.widths),
            _ => 0,
        }
    }

    /// Writes an entry, whole or in part, by the identity map, and flushes as the manual asks for
    /// it.
    fn change_entry(&mut self) {
        let place = self.place();
        let is_high = place.at & 4 != 0 && self.space.controls.format == Format::Pae;
        let value = if is_high { self.high() } else { self.low() };
        let old = memory::entry((place.at & !7).into(), 8).expect("tables are test memory");
        match self.random.below(8) {
            0 => memory::write_byte(place.at + self.random.below(4), value as u8),
            1 => memory::write_half(place.at + 2 * self.random.below(2), value as u16),
            2 => {
                let half = if self.space.controls.format == Format::Pae {
                    self.high()
                } else {
                    self.low()
                };
                let registers = Context::kernel(run::write64());
                Context { ecx: place.at & !7, ebx: value, esi: half, ..registers }.run();
            }
            _ => memory::write(place.at, value),
        }
        // What is not present is never cached (SDM, "Optional Invalidation").
        let absent = match self.space.controls.format {
            Format::Pae => old & bit::P == 0,
            Format::Bits32 => old & bit::P == 0 && old >> 32 & bit::P == 0,
        };
        if !absent {
            self.forget();
        }
    }

    /// Flushes: by CR3, or page by page.
    fn forget(&mut self) {
        if self.random.once_in(4) && self.space.controls.pdptes == self.in_memory() {
            for table in 0..8 {
                for page in 0..WORDS {
                    cpu::invlpg(WINDOW + (table << 21) + (page << 12));
                }
            }
        } else {
            self.space.flush();
        }
    }

    fn in_memory(&self) -> [u64; 4] {
        core::array::from_fn(|index| {
            memory::entry((PDPT + 8 * index as u32).into(), 8).unwrap_or(0)
        })
    }

    fn access(&mut self) {
        let linear = WINDOW + (self.random.below(8) << 21) + (self.random.below(WORDS) << 12);
        let user = self.random.once_in(2);
        let kind = self.random.below(8);
        let (write, fetch) = (kind < 3, kind == 3);
        let access = Access { linear, write, fetch, user };
        let before = self.walk(access);
        let physical = match before.outcome {
            Outcome::Nowhere => return,
            Outcome::Page(physical) => match u32::try_from(physical) {
                Ok(low) if (TABLES..memory::END - PAGE).contains(&low) => Some(low),
                _ => return,
            },
            Outcome::Fault(_) => None,
        };
        let is_data = physical.is_some_and(|physical| physical >= DATA);
        // Tables hold no code; a page of data is written behind its name.
        if fetch && physical.is_some() && !is_data {
            return;
        }
        let offset = match (write, fetch) {
            (_, true) => 0x10,
            (true, _) if is_data => 8,
            (true, _) => 8 * self.random.below(WORDS / 2),
            _ => 0,
        };
        let value = if write && !is_data { self.low() } else { self.random.next() as u32 };
        let old = physical.map(|physical| {
            memory::entry((physical + offset).into(), 8).expect("what is mapped is test memory")
        });
        let bytes = if write { 1 << self.random.below(self.widths) } else { 4 };
        let ends = self.perform(access, linear + offset, value, bytes);
        match before.outcome {
            Outcome::Fault(error) => {
                check!(
                    self.report,
                    (ends.vector, ends.error, ends.cr2) == (PAGE_FAULT, error, linear + offset),
                    "{access:x?} under {:x?}: {ends:x?} instead of error code {error:#x}; {before:x?}",
                    self.space.controls
                );
                self.check_entries(access, &before, false);
            }
            _ => {
                check!(
                    self.report,
                    ends.vector == run::INTERRUPT,
                    "{access:x?} under {:x?}: {ends:x?} instead of {before:x?}",
                    self.space.controls
                );
                let (physical, old) = (physical.unwrap_or(DATA) + offset, old.unwrap_or(0));
                let wide = u64::from(!value) << 32 | u64::from(value);
                let mask = u64::MAX >> (64 - 8 * bytes);
                let written = write.then_some((wide & mask, mask));
                self.check_effect(access, &before, physical, old, written, &ends);
            }
        }
    }

    /// Makes the access, by the mode's own registers or by a segment with a base.
    fn perform(&mut self, access: Access, linear: u32, value: u32, bytes: u32) -> Context {
        const BASE: u32 = 0x1234_5000;
        let ring = |eip| Context::ring(access.user, eip);
        if access.fetch {
            return Context { ecx: linear, ..ring(run::jump()) }.run();
        }
        if bytes == 4 && self.random.once_in(8) {
            let kind = descriptors::kind::DATA | descriptors::kind::RING_3;
            let selector = descriptors::selector::TEST[0];
            descriptors::set(selector, descriptors::descriptor(BASE, 0xf_ffff, kind, true, true));
            let snippet = if access.write { run::write_fs() } else { run::through_fs() };
            let registers = ring(snippet);
            return Context {
                ecx: linear.wrapping_sub(BASE),
                edx: value,
                fs: selector | 3,
                ..registers
            }
            .run();
        }
        let snippet = match bytes {
            _ if !access.write => run::read(),
            1 => run::write8(),
            2 => run::write16(),
            8 => run::write64(),
            _ => run::write(),
        };
        // The wide one compares with what it has read, so it writes.
        Context { ecx: linear, edx: value, ebx: value, esi: !value, ..ring(snippet) }.run()
    }

    fn walk(&self, access: Access) -> Walk {
        walk::walk(&self.space.controls, access, memory::entry)
    }

    /// The access has done what it should, and set A and D.
    fn check_effect(
        &mut self,
        access: Access,
        walk: &Walk,
        physical: u32,
        old: u64,
        written: Option<(u64, u64)>,
        ends: &Context,
    ) {
        let entries = walk.entries;
        // The data may be an entry of the walk: A and D come first.
        let mut expected = old;
        for entry in entries.iter().flatten() {
            for byte in 0..entry.bytes {
                let at = entry.at + byte;
                if let Some(index) = at.checked_sub(physical.into()).filter(|&index| index < 8) {
                    expected &= !(0xff << (8 * index));
                    expected |= (entry.new >> (8 * byte) & 0xff) << (8 * index);
                }
            }
        }
        if let Some((value, mask)) = written {
            expected = expected & !mask | value;
        }
        let found = memory::entry(physical.into(), 8).expect("what is mapped is test memory");
        check!(
            self.report,
            found == expected,
            "{access:x?} under {:x?}: {physical:#x} holds {found:#x} instead of {expected:#x}; {walk:x?}",
            self.space.controls
        );
        if !access.write && !access.fetch {
            check!(
                self.report,
                ends.eax == expected as u32,
                "{access:x?} under {:x?}: read {:#x} instead of {expected:#x}; {walk:x?}",
                self.space.controls,
                ends.eax
            );
        }
        let overlaps = |at: u64| at & !7 == u64::from(physical);
        if !entries.iter().flatten().any(|entry| access.write && overlaps(entry.at)) {
            self.check_entries(access, walk, true);
        }
        // A table may have changed.
        if access.write && physical < DATA {
            self.space.flush();
        }
        if access.write && physical >= DATA {
            memory::write(physical & !0xfff, space::name(physical & !0xfff));
        }
    }

    /// A and D: as they must be where the access was made. One that was not made may set A on its
    /// way.
    fn check_entries(&mut self, access: Access, walk: &Walk, made: bool) {
        for entry in walk.entries.iter().flatten() {
            let found = memory::entry(entry.at, entry.bytes).expect("tables are test memory");
            let as_expected =
                if made { found == entry.new } else { found & !bit::A == entry.old & !bit::A };
            check!(
                self.report,
                as_expected,
                "{access:x?} under {:x?}: an entry is {found:#x}; {walk:x?}",
                self.space.controls
            );
        }
    }
}

//! Where tables lie, and the CPU's way from one mode to another.

use crate::kit::{cpu, memory};
use crate::walk::{Controls, Format, bit};

/// How addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Unpaged,
    Paged(Format),
}

/// All of them.
pub const MODES: [Mode; 3] = [Mode::Unpaged, Mode::Paged(Format::Bits32), Mode::Paged(Format::Pae)];

/// Tables that map the first 16 MiB to themselves, in either format.
const IDENTITY_32: u32 = 0x40_0000;
const IDENTITY_PAE: u32 = 0x41_0000;
/// The directory of 32-bit paging, that of the first GiB of PAE paging, and the frame of the
/// PDPTEs.
pub const DIRECTORY_32: u32 = 0x42_0000;
const DIRECTORY_PAE: u32 = 0x42_1000;
const PDPT_FRAME: u32 = 0x42_2000;
/// The PDPTEs: not at the start of their page.
pub const PDPT: u32 = PDPT_FRAME + 0x60;
/// Two frames for PDPTEs at the start of each, as Linux has them with page-table isolation.
pub const ROOTS: [u32; 2] = [0x42_4000, 0x42_5000];
/// What the tests' tables are: of both formats, one after the other. The first is PAE's directory
/// of the second GiB.
pub const TABLES: u32 = 0x60_0000;
pub const TABLE_COUNT: u32 = 6;
/// Data, to the end of test memory. Each frame starts with its name.
pub const DATA: u32 = 0x80_0000;
/// The second GiB.
pub const WINDOW: u32 = 0x4000_0000;

const PAGE: u32 = 0x1000;
/// Present, writable, for all rings, accessed, dirty.
const OPEN: u32 = 0x67;

/// What the frame of data at this address starts with.
pub fn name(frame: u32) -> u32 {
    0x1d00_0000 | frame >> 12
}

/// The CPU's paging state, as this kernel has set it.
pub struct Space {
    pub controls: Controls,
    pub mode: Mode,
}

impl Space {
    /// Writes tables and data. Paging is off, as it was.
    pub fn new() -> Space {
        for page in 0..memory::END / PAGE {
            memory::write(IDENTITY_32 + 4 * page, page * PAGE | OPEN);
            memory::write(IDENTITY_PAE + 8 * page, page * PAGE | OPEN);
            memory::write(IDENTITY_PAE + 8 * page + 4, 0);
        }
        for word in 0..PAGE / 4 {
            for table in [DIRECTORY_32, DIRECTORY_PAE, PDPT_FRAME] {
                memory::write(table + 4 * word, 0);
            }
        }
        for table in 0..memory::END >> 22 {
            memory::write(DIRECTORY_32 + 4 * table, IDENTITY_32 + table * PAGE | OPEN);
        }
        for table in 0..memory::END >> 21 {
            memory::write(DIRECTORY_PAE + 8 * table, IDENTITY_PAE + table * PAGE | OPEN);
        }
        memory::write(PDPT, DIRECTORY_PAE | 1);
        memory::write(PDPT + 8, TABLES | 1);
        for frame in (DATA..memory::END).step_by(PAGE as usize) {
            memory::write(frame, name(frame));
            // INT 0x80.
            memory::write(frame + 0x10, 0x9090_80cd);
        }
        let [highest, ..] = cpu::cpuid(0x8000_0000);
        let maxphyaddr =
            if highest >= 0x8000_0008 { cpu::cpuid(0x8000_0008)[0] & 0xff } else { 36 };
        let controls = Controls {
            format: Format::Bits32,
            directory: DIRECTORY_32,
            pdptes: [0; 4],
            wp: false,
            pse: false,
            nxe: false,
            maxphyaddr,
        };
        let mut space = Space { controls, mode: Mode::Unpaged };
        space.set_bits(true, true, false);
        space
    }

    /// Empties the tests' tables and their places in the directories.
    pub fn clear(&mut self) {
        for word in 0..TABLE_COUNT * PAGE / 4 {
            memory::write(TABLES + 4 * word, 0);
        }
        for word in 0..16 {
            memory::write(DIRECTORY_32 + 4 * (WINDOW >> 22) + 4 * word, 0);
        }
        self.flush();
    }

    /// Goes to this mode, by way of none.
    pub fn enter(&mut self, mode: Mode) {
        cpu::set_cr0(cpu::cr0() & !cpu::bit::CR0_PG);
        self.mode = mode;
        let Mode::Paged(format) = mode else { return };
        self.controls.format = format;
        let pae = if format == Format::Pae { cpu::bit::CR4_PAE } else { 0 };
        cpu::set_cr4(cpu::cr4() & !cpu::bit::CR4_PAE | pae);
        self.flush();
        cpu::set_cr0(cpu::cr0() | cpu::bit::CR0_PG);
        self.sample();
    }

    /// Loads CR3, which drops what is cached and samples the PDPTEs.
    pub fn flush(&mut self) {
        cpu::set_cr3(self.cr3());
        self.sample();
    }

    /// CR3's value.
    pub fn cr3(&self) -> u32 {
        if self.controls.format == Format::Pae { PDPT } else { DIRECTORY_32 }
    }

    /// What the PDPTEs are in memory now.
    pub fn sample(&mut self) {
        for (index, pdpte) in (0..).zip(&mut self.controls.pdptes) {
            *pdpte =
                memory::entry((PDPT + 8 * index).into(), 8).expect("the PDPTEs are in test memory");
        }
    }

    /// Sets CR0.WP, CR4.PSE, and EFER.NXE, and flushes.
    pub fn set_bits(&mut self, wp: bool, pse: bool, nxe: bool) {
        let with = |value: u32, bit: u32, on: bool| value & !bit | if on { bit } else { 0 };
        cpu::set_cr0(with(cpu::cr0(), cpu::bit::CR0_WP, wp));
        cpu::set_cr4(with(cpu::cr4(), cpu::bit::CR4_PSE, pse));
        cpu::set_nxe(nxe);
        (self.controls.wp, self.controls.pse, self.controls.nxe) = (wp, pse, nxe);
        self.flush();
    }

    /// Maps one 4 KiB page of the window to a frame, in the mode's format, by the first two tables.
    pub fn map(&mut self, linear: u32, frame: u32) {
        let flags = (bit::P | bit::W | bit::U) as u32;
        match self.controls.format {
            Format::Bits32 => {
                memory::write(DIRECTORY_32 + 4 * (linear >> 22), TABLES + PAGE | flags);
                memory::write(TABLES + PAGE + 4 * (linear >> 12 & 0x3ff), frame | flags);
            }
            Format::Pae => {
                let entries = [
                    (TABLES + 8 * (linear >> 21 & 0x1ff), TABLES + PAGE),
                    (TABLES + PAGE + 8 * (linear >> 12 & 0x1ff), frame),
                ];
                for (at, address) in entries {
                    memory::write(at, address | flags);
                    memory::write(at + 4, 0);
                }
            }
        }
        self.flush();
    }
}

//! What every test gets.

use guest_kernels::kit::cpu::{self, Cpu};
use guest_kernels::kit::frames::Pool;
use guest_kernels::kit::oracle::{Judge, Quirks};
use guest_kernels::kit::space::Space;
use guest_kernels::random::Random;
use umbra_paging::{Mode, Paging};

/// What every test gets.
pub struct Setting {
    /// Memory; what a test takes is taken back after it.
    pub pool: Pool,
    /// The CPU.
    pub cpu: Cpu,
    /// The machine.
    pub quirks: Quirks,
    /// The first address beyond memory.
    pub memory_end: u64,
    /// Random numbers; the seed of each test is the same.
    pub random: Random,
    /// How often tests repeat what they repeat, as a multiple.
    rounds: u64,
    /// The part of it that is done: one in so many.
    share: u64,
}

impl Setting {
    /// For a machine with these properties: tests repeat what they do as often as they say.
    pub fn new(pool: Pool, cpu: Cpu, quirks: Quirks, memory_end: u64, random: Random) -> Setting {
        Setting { pool, cpu, quirks, memory_end, random, rounds: 1, share: 1 }
    }

    /// Tests repeat `rounds` times as much, of which one part in `share` is done.
    pub fn repeating(self, rounds: u64, share: u64) -> Setting {
        Setting { rounds, share, ..self }
    }

    /// How often to do what is done `count` times by default.
    pub fn times(&self, count: u64) -> u64 {
        (count * self.rounds).div_ceil(self.share)
    }

    /// Sets control bits and returns a judge of accesses under them.
    pub fn judge(&self, space: &Space, wp: bool, smep: bool, smap: bool, nxe: bool) -> Judge {
        let (smep, smap, nxe) = (smep && self.cpu.smep, smap && self.cpu.smap, nxe && self.cpu.nx);
        cpu::set_paging_bits(wp, smep, smap, nxe);
        let root = space.root().gfn();
        let paging = Paging { mode: Mode::Long4, root, wp, smep, smap, pge: true, nxe };
        Judge { paging, features: self.cpu.features, quirks: self.quirks }
    }
}

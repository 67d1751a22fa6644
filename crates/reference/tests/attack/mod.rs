//! A guest written by hand, on the shadow MMU and under judgement: every access is compared with
//! what bare hardware allows, and after every step the MMU's auditor and the check of what the
//! hardware can reach look at everything.

// Each test file uses its own part of this.
#![allow(dead_code)]

use std::rc::Rc;

use umbra_mmu::{FilterPolicy, MIN_FRAMES_PER_VCPU};
use umbra_paging::{Access, AccessKind, Gfn, Gpa, Gva};
use umbra_reference::Session;
use umbra_reference::hardware::Temper;
use umbra_reference::machine::{Shadow, ShadowConfig, Start};
use umbra_reference::memory::{PhysAddr, Ram};
use umbra_reference::oracle::Observed;
use umbra_reference::program::{HostEvent, Op};
use umbra_reference::registers::{Cpu, Privileged, Registers};
use umbra_reference::universe::{END, HOLE, Universe, WINDOW, WINDOW_SLOT};

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const A: u64 = 0x20;
pub const D: u64 = 0x40;
pub const PS: u64 = 0x80;
pub const G: u64 = 0x100;
pub const NX: u64 = 1 << 63;
/// A table or a page with all rights.
pub const ALL: u64 = P | W | U | A | D;

/// The frame of the first root. The window's tables follow.
pub const ROOT: u64 = 0x10;
const MODEL: Cpu = Cpu { maxphyaddr: 40, gib_pages: true };

pub type Judged = Result<(), String>;

pub struct Attack {
    session: Session<Shadow>,
    steps: u64,
    /// Everything is audited after every so many steps, in between what changed.
    pub audit_every: u64,
}

/// Tables as the attack finds them: (frame, index, entry).
pub type Tables = Vec<(u64, usize, u64)>;

/// An address by its index at each level.
pub const fn gva(l4: u64, l3: u64, l2: u64, l1: u64) -> u64 {
    let top = if l4 >= 256 { 0xffff << 48 } else { 0 };
    top | l4 << 39 | l3 << 30 | l2 << 21 | l1 << 12
}

/// What an attack runs on.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub shadow: ShadowConfig,
    /// CR4.PCIDE is set at the start.
    pub pcide: bool,
    /// Of the choices that hardware and hypervisor make by chance.
    pub seed: u64,
}

impl Setting {
    /// Writes to tables in use are emulated, and every CR3 load exits.
    pub fn plain(bypass: bool) -> Setting {
        Setting { shadow: ShadowConfig::plain(bypass, MIN_FRAMES_PER_VCPU), pcide: false, seed: 1 }
    }

    /// Everything that goes around the hypervisor does: CR3 loads of four values, user faults,
    /// bursts of table writes.
    pub fn all(seed: u64) -> Setting {
        let plain = Setting::plain(true);
        let shadow = ShadowConfig {
            filter: [FilterPolicy::User, FilterPolicy::Auto][seed as usize % 2],
            detach: [255, 100, 0][seed as usize % 3],
            unsync: [0, 255][seed as usize / 6 % 2],
            release: [0, 16][seed as usize % 2],
            targets: 4,
            frames: MIN_FRAMES_PER_VCPU + 4,
            ..plain.shadow
        };
        Setting { shadow, seed, ..plain }
    }
}

impl Attack {
    /// A guest on one vCPU that will access these addresses, and through the window those frames,
    /// in a pool of the minimum size. Not-present faults are bypassed, and the caches keep whatever
    /// they may.
    pub fn new(
        tables: &Tables,
        addresses: &[u64],
        window: impl IntoIterator<Item = u64>,
    ) -> Attack {
        Attack::on(tables, addresses, window, true)
    }

    pub fn on(
        tables: &Tables,
        addresses: &[u64],
        window: impl IntoIterator<Item = u64>,
        bypass: bool,
    ) -> Attack {
        Attack::with(tables, addresses, window, &Setting::plain(bypass))
    }

    pub fn with(
        tables: &Tables,
        addresses: &[u64],
        window: impl IntoIterator<Item = u64>,
        setting: &Setting,
    ) -> Attack {
        let mut memory = Ram::new(END as usize).with_hole(HOLE);
        let mut put = |frame: u64, index: usize, entry: u64| {
            memory.write(PhysAddr::new(Gfn::new(frame).entry(index).raw()), entry);
        };
        put(ROOT, WINDOW_SLOT, (ROOT + 1) << 12 | P | W | A);
        put(ROOT + 1, 0, (ROOT + 2) << 12 | P | W | A);
        for region in 0..3 {
            put(ROOT + 2, region, (region as u64) << 21 | PS | P | W | A | D);
        }
        tables.iter().for_each(|&(frame, index, entry)| put(frame, index, entry));
        memory.take_journal();
        let pages = addresses.iter().map(|&address| Gva::new(address & !0xfff));
        let window = window.into_iter().map(|frame| Gva::new(WINDOW + frame * 4096));
        let universe = Rc::new(Universe::new(pages.chain(window).collect()));
        let Setting { shadow, pcide, seed } = *setting;
        let registers =
            Registers { smep: false, smap: false, pcide, ..Registers::long_mode(Gfn::new(ROOT)) };
        let start = Start {
            model: MODEL,
            cpus: 1,
            registers,
            memory: memory.clone(),
            universe: universe.clone(),
            temper: Temper { ahead: 8, ..Temper::STICKY },
            seed,
        };
        let machine = Shadow::new(shadow, start);
        let session = Session::new(machine, universe, memory, MODEL, vec![registers]);
        Attack { session, steps: 0, audit_every: 1 }
    }

    fn step(&mut self, op: &Op) -> Judged {
        self.steps += 1;
        let full = self.steps % self.audit_every == 0;
        self.session.step(op, full).map_err(|why| format!("{op:x?}: {why}"))
    }

    pub fn read(&mut self, address: u64, user: bool) -> Judged {
        self.access(address, AccessKind::Read, user)
    }

    pub fn access(&mut self, address: u64, kind: AccessKind, user: bool) -> Judged {
        let access = Access { kind, user, smap_override: false };
        self.step(&Op::Load { cpu: 0, gva: Gva::new(address), access, length: 1 })
    }

    /// A store of these bytes to a linear address.
    pub fn store(&mut self, address: u64, bytes: &[u8], user: bool) -> Judged {
        let bytes = bytes.iter().copied().collect();
        self.step(&Op::Store { cpu: 0, gva: Gva::new(address), user, ac: true, bytes })
    }

    /// A store to guest-physical memory through the window.
    pub fn poke(&mut self, gpa: u64, bytes: &[u8]) -> Judged {
        self.store(WINDOW + gpa, bytes, false)
    }

    /// A store of a whole entry through the window.
    pub fn set(&mut self, frame: u64, index: usize, entry: u64) -> Judged {
        self.poke(Gfn::new(frame).entry(index).raw(), &entry.to_le_bytes())
    }

    pub fn execute(&mut self, instruction: Privileged) -> Judged {
        self.step(&Op::Execute { cpu: 0, instruction })
    }

    pub fn invlpg(&mut self, address: u64) -> Judged {
        self.execute(Privileged::Invlpg(Gva::new(address)))
    }

    pub fn load_root(&mut self, frame: u64) -> Judged {
        self.load_cr3(frame, 0, false)
    }

    pub fn load_cr3(&mut self, frame: u64, pcid: u16, no_flush: bool) -> Judged {
        self.execute(Privileged::LoadCr3 { root: Gfn::new(frame), pcid, no_flush })
    }

    pub fn host(&mut self, event: HostEvent) -> Judged {
        self.step(&Op::Host(event))
    }

    pub fn device_write(&mut self, frame: u64, index: usize, entry: u64) -> Judged {
        let gpa: Gpa = Gfn::new(frame).entry(index);
        self.step(&Op::DeviceWrite { gpa, bytes: entry.to_le_bytes().into_iter().collect() })
    }

    /// Whether the last access took place.
    pub fn done(&self) -> bool {
        matches!(self.session.observed(), Some(Observed::Done(_)))
    }

    /// How often something was met, at the end.
    pub fn met(self, name: &str) -> u64 {
        self.session.finish().get(name)
    }
}

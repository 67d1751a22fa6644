//! The guest on shadow tables: a VMX hypervisor without EPT around `umbra_mmu`, reduced to what
//! concerns memory. Its hardware walks the shadow tables in host-physical memory.

mod cpu;
mod dice;
mod host;
mod race;
mod reach;
mod targets;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use arrayvec::ArrayVec;
use fastrand::Rng;
use umbra_mmu::{
    Config, Encodings, EntryState, FaultContext, FaultOutcome, FilterPolicy, GuestFaults, Mmu,
    RootFormat, TranslateError, VcpuId, Work,
};
use umbra_paging::{Access, Cr3Value, Features, Gfn, Gpa, Gva, Paging, Pfec};

use super::{Broken, Interleaved, Machine, Planned, Preempt, Start};
use crate::coverage::{Coverage, Moment};
use crate::hardware::{Control, Filter, PageFault, PagingMode, PagingUnit};
use crate::memory::{PhysAddr, PhysicalMemory};
use crate::oracle::{Change, Observed, Piece};
use crate::program::HostEvent;
use crate::registers::{Cpu, Invalidation, Privileged, Registers, pdpte_reserved};
use crate::universe::{HOT, Universe, hot, unused, used};
pub use cpu::Protocol;
use cpu::{Attempt, Entry, Presence};
use dice::Dice;
use host::Host;
use race::{Busy, Race};
use targets::{Targets, operand};

/// An access that exits more often than this makes no progress (I6).
const MAX_EXITS: usize = 64;
/// What other CPUs do during one access ends long before this.
const MAX_RACED: u32 = 10_000;

/// How the hypervisor of a [`Shadow`] machine works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowConfig {
    /// Not-present faults go straight to the guest.
    pub bypass: bool,
    /// Shadow frames in the pool.
    pub frames: u32,
    /// What is cached outlives VM exits and entries, tagged by a VPID.
    pub vpid: bool,
    /// Of 256 writes to tables that are to be emulated, so many are answered by releasing the
    /// frame.
    pub release: u8,
    /// Which page faults may go straight to the guest.
    pub filter: FilterPolicy,
    /// Of 256 writes to tables in use, so many are answered by detaching the frame.
    pub detach: u8,
    /// Of 256 other writes to page tables, so many are answered by making the table unsync.
    pub unsync: u8,
    /// Tables are filled when they are built, always; else mostly.
    pub eager: bool,
    /// CR3-target values that each CPU has. If there are any, guest frames lie at the same place in
    /// host memory, where no remapping has put them elsewhere.
    pub targets: usize,
    /// The CPU has none of these: their roots serve for CR3 to be read.
    pub cr3_loads_exit: bool,
    /// MAXPHYADDR of the real CPU: not less than the guest's.
    pub host_maxphyaddr: u8,
    /// How a CPU enters the guest.
    pub protocol: Protocol,
}

impl ShadowConfig {
    /// The least that a hypervisor needs: every fault exits or, with `bypass`, all but those with P
    /// = 0; a pool of `frames`; what is cached outlives exits; every write to a table in use is
    /// emulated.
    pub const fn plain(bypass: bool, frames: u32) -> ShadowConfig {
        let filter = FilterPolicy::Present;
        ShadowConfig {
            bypass,
            frames,
            vpid: true,
            release: 0,
            filter,
            detach: 0,
            unsync: 0,
            eager: false,
            targets: 0,
            cr3_loads_exit: false,
            host_maxphyaddr: 40,
            protocol: Protocol::PublishFirst,
        }
    }
}

/// The calls of the MMU that build shadow pages, and so may have to reclaim others. None of the
/// other calls does.
#[derive(Clone, Copy)]
enum EntryPoint {
    PageFault,
    LoadPaging,
    Other,
}

impl EntryPoint {
    fn reclaims(self) -> &'static str {
        match self {
            EntryPoint::PageFault => "mmu: reclaims in page_fault",
            EntryPoint::LoadPaging => "mmu: reclaims in load_paging",
            EntryPoint::Other => "mmu: reclaims in a call that builds nothing",
        }
    }
}

/// The hypervisor and its guest.
pub struct Shadow {
    config: ShadowConfig,
    model: Cpu,
    mmu: Mmu<Dice>,
    host: Host,
    /// The CR3-target values of each CPU.
    targets: Vec<Targets>,
    /// What other CPUs do meanwhile.
    race: Option<Race>,
    universe: Rc<Universe>,
    random: Rng,
    /// What happened since it was last asked for.
    moment: Moment,
    delivery: Option<Delivery>,
}

impl fmt::Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow")
            .field("config", &self.config)
            .field("model", &self.model)
            .field("mmu", &self.mmu)
            .finish_non_exhaustive()
    }
}

/// How a page fault got to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// By the CPU, past the hypervisor.
    Native,
    /// By the hypervisor, after an exit.
    Injected,
}

impl Shadow {
    /// A hypervisor whose guest is in this state.
    ///
    /// # Panics
    /// If the MMU refuses the configuration.
    pub fn new(config: ShadowConfig, start: Start) -> Shadow {
        let Start { model, cpus, registers, memory, universe, temper, seed } = start;
        let mut random = Rng::with_seed(seed);
        let units = (0..cpus).map(|_| PagingUnit::new(random.u64(..), temper)).collect();
        let mut host =
            Host::new(&memory, config.frames, config.targets > 0, units, registers, random.u64(..));
        let features = Features::new(model.maxphyaddr, model.gib_pages);
        let encodings = if config.bypass {
            Encodings::reserved(config.host_maxphyaddr)
                .expect("bypass is tested with MAXPHYADDR below 52")
        } else {
            Encodings::not_present(config.host_maxphyaddr)
        };
        let mut mmu_config = Config::new(features, encodings);
        mmu_config.filter = config.filter;
        mmu_config.loadable_roots = config.targets;
        mmu_config.cr3_loads_exit = config.cr3_loads_exit;
        mmu_config.eager = random.u8(..8) != 0 || config.eager;
        mmu_config.prefetch_tables = seed % 4 == 0;
        mmu_config.prefetch_accessed = seed % 8 != 1;
        mmu_config.shadow_walk = seed % 8 != 2;
        mmu_config.vcpus = cpus;
        mmu_config.log_changes = true;
        let dice = Dice::new(random.u64(..), config.detach, config.unsync);
        let mut mmu = Mmu::with_policy(mmu_config, &mut host, dice)
            .expect("the test asks for a possible configuration");
        for cpu in 0..cpus {
            mmu.load_paging(&mut host, VcpuId::new(cpu), registers.for_mmu(&model));
        }
        Shadow {
            config,
            model,
            mmu,
            host,
            targets: vec![Targets::new(config.targets); cpus],
            race: None,
            universe,
            random,
            moment: Moment::default(),
            delivery: None,
        }
    }

    /// Which page faults the CPU delivers when the guest runs next.
    pub fn guest_faults(&self) -> GuestFaults {
        self.mmu.guest_faults()
    }

    /// How the last page fault that the guest saw was delivered; `None` if the last access raised
    /// none.
    pub fn delivery(&self) -> Option<Delivery> {
        self.delivery
    }

    /// What the MMU does in `call` is counted under the name of its entry point where it reclaims,
    /// splits or zaps.
    fn call<T>(
        &mut self,
        entry: EntryPoint,
        call: impl FnOnce(&mut Mmu<Dice>, &mut Busy) -> T,
    ) -> T {
        let (before, seen) = (self.mmu.counters(), self.host.seen());
        let unsync = self.mmu.has_unsync_tables();
        let withdrawn = self.mmu.roots_changed();
        let result = call(&mut self.mmu, &mut Busy::new(&mut self.host, self.race.as_mut()));
        let after = self.mmu.counters();
        if after.reclaimed != before.reclaimed {
            self.moment.note(entry.reclaims());
            if unsync {
                self.moment.note("mmu: reclaims while a table is unsync");
            }
        }
        // A walk takes three tables below the root.
        if matches!(entry, EntryPoint::PageFault)
            && after.built + after.attached > before.built + before.attached + 3
        {
            self.moment.note("mmu: links tables ahead");
        }
        if self.host.seen().compared != seen.compared {
            self.moment.note("mmu: compares a table with its copy");
        }
        if after.splits != before.splits {
            self.moment.note("mmu: splits a large page");
        }
        if unsync && !self.mmu.has_unsync_tables() {
            self.moment.note("mmu: tracks unsync tables again");
        }
        for (what, now, before) in [
            ("mmu: detaches a table", after.detached, before.detached),
            ("mmu: attaches a table", after.attached, before.attached),
            ("mmu: tables become unsync", after.unsynced, before.unsynced),
            ("mmu: moves a root", after.roots_moved, before.roots_moved),
            ("mmu: changes the filter", after.filter_switches, before.filter_switches),
        ] {
            if now != before {
                self.moment.note(what);
            }
        }
        if withdrawn != self.mmu.roots_changed() {
            self.moment.note("mmu: withdraws a root");
            for (cpu, targets) in self.targets.iter_mut().enumerate() {
                targets.retain(|root| self.mmu.is_loadable(VcpuId::new(cpu), root));
            }
        }
        result
    }

    /// What a CPU has to enter the guest with, asked for now. What it has loaded by itself is told
    /// first.
    fn ask(&mut self, cpu: usize) -> Result<Entry, Broken> {
        self.tell_root(cpu)?;
        let epoch = self.host.epoch();
        let EntryState { guest_faults, flushes_exit, .. } =
            self.mmu.entry_state(&self.host, VcpuId::new(cpu));
        let filter = match guest_faults {
            GuestFaults::Trap => Filter::TRAP,
            GuestFaults::Present => Filter::PRESENT,
            GuestFaults::User => Filter::USER,
        };
        let control = self.loaded(cpu)?;
        Ok(Entry {
            epoch,
            control,
            filter,
            flushes_exit,
            targets: match self.config.cr3_loads_exit {
                true => Vec::new(),
                false => self.targets[cpu].values().to_vec(),
            },
        })
    }

    /// Tells the MMU which root a CPU has loaded by itself: after it has left the guest, before
    /// anything else.
    fn tell_root(&mut self, cpu: usize) -> Result<(), Broken> {
        let vcpu = VcpuId::new(cpu);
        let Some(root) = self.host.cpu_mut(cpu).loaded.take() else { return Ok(()) };
        if self.mmu.paging(vcpu).root == root {
            return Ok(());
        }
        if !self.mmu.is_loadable(vcpu, root) {
            return Err(Broken(format!(
                "CPU {cpu} runs on {root:?}, which was withdrawn before it was stopped"
            )));
        }
        self.mmu.switched(vcpu, root);
        Ok(())
    }

    /// A CPU comes into the guest, if it is not there.
    fn enter(&mut self, cpu: usize) -> Result<(), Broken> {
        while !matches!(self.host.cpu(cpu).presence, Presence::Inside(_)) {
            if self.host.cpu(cpu).is_out() {
                let entry = self.ask(cpu)?;
                let unit = self.host.cpu_mut(cpu);
                unit.presence = Presence::Asked(entry);
                if !self.config.vpid {
                    // SDM, "Invalidation Caching", operations: VM entries and exits without VPID
                    // drop everything.
                    unit.unit.caches_mut().clear();
                }
            }
            let epoch = self.host.epoch();
            self.host.cpu_mut(cpu).proceed(self.config.protocol, epoch);
        }
        Ok(())
    }

    /// A CPU leaves the guest, if it is there, and asks what to enter it with again.
    fn begin_entry(&mut self, cpu: usize) -> Result<(), Broken> {
        self.leave(cpu)?;
        let entry = self.ask(cpu)?;
        self.host.cpu_mut(cpu).presence = Presence::Asked(entry);
        Ok(())
    }

    /// A CPU leaves the guest, and what it has loaded is told.
    fn leave(&mut self, cpu: usize) -> Result<(), Broken> {
        self.host.cpu_mut(cpu).presence = Presence::Out;
        self.tell_root(cpu)
    }

    /// A hypervisor with one CPU does nothing while the guest runs.
    fn leave_if_alone(&mut self) -> Result<(), Broken> {
        if self.host.cpus().len() == 1 { self.leave(0) } else { Ok(()) }
    }

    /// All CPUs have left the guest, and what they have loaded is told: before the host changes
    /// what lies behind guest frames, or which roots a CPU may load.
    fn stop_all(&mut self) -> Result<(), Broken> {
        self.host.stop_all();
        self.host.cpus().try_for_each(|cpu| self.tell_root(cpu))
    }

    /// The registers that the hardware walks by when it enters the guest now.
    fn loaded(&self, cpu: usize) -> Result<Control, Broken> {
        let vcpu = VcpuId::new(cpu);
        let root = self.mmu.root(&self.host, vcpu);
        let table = PhysAddr::new(root.hpa().raw());
        let registers = self.host.cpu(cpu).registers;
        let own = registers.root;
        if self.mmu.is_loadable(vcpu, own) && table.raw() != own.base().raw() {
            return Err(Broken(format!(
                "the guest's CR3 names {own:?}, and its loadable root is at {table:?}"
            )));
        }
        if *self.mmu.paging(vcpu) != registers.for_mmu(&self.model) {
            let found = self.mmu.paging(vcpu);
            return Err(Broken(format!("the guest runs as {found:?} with {registers:?}")));
        }
        let guest = registers.control(&self.model);
        // The real WP is always set: tracking would be void without it. A fetch is told from a read
        // by NXE with CR4.PAE only, which 32-bit paging has not.
        let nxe = guest.nxe && !matches!(guest.mode, PagingMode::Legacy32 { .. });
        let real = Control { wp: true, nxe, maxphyaddr: self.config.host_maxphyaddr, ..guest };
        match root.format() {
            RootFormat::Long4 => Ok(Control { mode: PagingMode::Long4 { root: table }, ..real }),
            RootFormat::Pae => {
                let mut pdptes = [0; 4];
                for (pdpte, n) in pdptes.iter_mut().zip(0..) {
                    *pdpte = self.host.ram().read(PhysAddr::new(table.raw() + 8 * n));
                    if *pdpte & 1 != 0 && *pdpte & pdpte_reserved(self.config.host_maxphyaddr) != 0
                    {
                        return Err(Broken(format!("VM entry fails: the PDPTE {n} is {pdpte:#x}")));
                    }
                }
                // Without paging the guest has no user mode to keep out.
                let (smep, smap) = (real.smep && registers.paging, real.smap && registers.paging);
                Ok(Control { mode: PagingMode::Pae { pdptes }, pcid: 0, smep, smap, ..real })
            }
        }
    }

    /// The guest's paging mode.
    fn mode(&self, cpu: usize) -> PagingMode {
        self.host.cpu(cpu).registers.control(&self.model).mode
    }

    /// Carries an instruction out as an instruction emulator does.
    fn emulate(
        &mut self,
        cpu: usize,
        access: Access,
        pieces: &[Piece],
    ) -> Result<Option<Observed>, Broken> {
        let mut places: ArrayVec<Gpa, 2> = ArrayVec::new();
        for piece in pieces {
            let translated = self.call(EntryPoint::Other, |mmu, host| {
                mmu.translate(host, VcpuId::new(cpu), piece.gva, access)
            });
            if self.swap_in_wanted()? {
                return Ok(None);
            }
            match translated {
                Ok(gpa) => places.push(gpa),
                Err(TranslateError::Fault(fault)) => {
                    return Ok(Some(Observed::Fault(PageFault {
                        code: fault.pfec,
                        gva: fault.gva,
                    })));
                }
                Err(TranslateError::Raced) => return Ok(None),
            }
        }
        for &gpa in places.iter().filter(|_| access.is_write()) {
            if self.restore(gpa.gfn())? {
                return Ok(None);
            }
        }
        for (piece, &gpa) in pieces.iter().zip(&places).filter(|(piece, _)| !piece.bytes.is_empty())
        {
            self.call(EntryPoint::Other, |mmu, host| mmu.write_guest(host, gpa, &piece.bytes));
        }
        Ok(Some(Observed::Done(places.iter().map(|gpa| PhysAddr::new(gpa.raw())).collect())))
    }

    /// Gives a frame back to the guest that was swapped out or write-protected.
    fn restore(&mut self, gfn: Gfn) -> Result<bool, Broken> {
        if !self.host.is_withheld(gfn) {
            return Ok(false);
        }
        self.moment.note("host: frames given back");
        self.change_host(gfn..gfn + 1, |host| host.give_back(gfn))?;
        Ok(true)
    }

    /// Pages that the MMU's walk found swapped out come back, and the walk is to be repeated.
    fn swap_in_wanted(&mut self) -> Result<bool, Broken> {
        let mut restored = false;
        for gfn in self.host.take_wanted() {
            restored |= self.restore(gfn)?;
        }
        Ok(restored)
    }

    /// As often as it takes.
    fn swap_in_all(&mut self) -> Result<(), Broken> {
        while self.swap_in_wanted()? {}
        Ok(())
    }

    /// Whether the guest executes the instruction without an exit; if so, it has.
    fn executes_natively(
        &mut self,
        cpu: usize,
        instruction: Privileged,
        after: &Registers,
        invalidation: Invalidation,
    ) -> Result<bool, Broken> {
        self.enter(cpu)?;
        let native = self.host.execute(cpu, instruction, after, invalidation);
        if native {
            self.moment.note(match instruction {
                Privileged::LoadCr3 { .. } if after.long => "shadow: CR3 loaded without exit",
                Privileged::LoadCr3 { .. } => "shadow: CR3 and PDPTEs loaded without exit",
                _ => "shadow: flushes without exit",
            });
        }
        Ok(native)
    }

    /// The CPU may load this value by itself from now on, if the MMU allows it for its root, which
    /// is current.
    fn list(&mut self, cpu: usize, value: Cr3Value) -> Result<(), Broken> {
        if !self.host.cpu(cpu).registers.paging || self.config.targets == 0 {
            return Ok(());
        }
        let vcpu = VcpuId::new(cpu);
        self.make_room(cpu);
        let offered = self.call(EntryPoint::Other, |mmu, host| mmu.allow_native_load(host, vcpu));
        // Not if it was withdrawn for the frames that were given back.
        self.swap_in_all()?;
        if offered && self.mmu.is_loadable(vcpu, value.root) {
            if !self.host.cpu(cpu).registers.long {
                self.moment.note("shadow: offers a root of PAE paging");
            }
            self.targets[cpu].insert(value);
        }
        if self.random.u8(..4) == 0 {
            self.list_other(cpu)?;
        }
        Ok(())
    }

    /// The CPU may load a root that it does not run on, if the MMU allows it.
    fn list_other(&mut self, cpu: usize) -> Result<(), Broken> {
        let root = hot(if self.random.bool() {
            8 * self.random.usize(..2)
        } else {
            self.random.usize(..HOT.len())
        });
        let pcide = self.host.cpu(cpu).registers.pcide;
        let pcid = if pcide { self.random.u16(..3) } else { 0 };
        let value = Cr3Value { root, pcid, no_flush: pcide && self.random.bool() };
        let vcpu = VcpuId::new(cpu);
        self.make_room(cpu);
        let offered =
            self.call(EntryPoint::Other, |mmu, host| mmu.allow_native_load_of(host, vcpu, root));
        self.swap_in_all()?;
        // Not if it was withdrawn for the frames that were given back.
        if offered && self.mmu.is_loadable(vcpu, root) {
            self.moment.note("shadow: offers a root that is not in use");
            if !self.targets[cpu].expect(value) {
                self.mmu.withdraw_root(vcpu, root);
            }
        }
        Ok(())
    }

    fn make_room(&mut self, cpu: usize) {
        while let Some(gone) = self.targets[cpu].make_room(&mut self.random) {
            if !self.targets[cpu].has_root(gone) {
                self.mmu.withdraw_root(VcpuId::new(cpu), gone);
            }
        }
    }

    /// Lists what the CPU has in CR3 now.
    fn offer(&mut self, cpu: usize) -> Result<(), Broken> {
        let Registers { root, pcid, pcide, .. } = self.host.cpu(cpu).registers;
        let value = Cr3Value { root, pcid, no_flush: pcide && self.random.bool() };
        // Nothing is loaded: what the PCID holds is of this root.
        self.targets[cpu].mixes(value);
        self.list(cpu, value)
    }

    fn change_backing(&mut self, gfn: Gfn, change: impl Fn(&mut Host, Gfn)) -> Result<(), Broken> {
        self.change_range(gfn..gfn + 1, change, |_, _| ())
    }

    /// Changes the frames of a range: those that programs use, and the others, which decide
    /// whether a whole region can be mapped, and how.
    fn change_range(
        &mut self,
        gfns: Range<Gfn>,
        change: impl Fn(&mut Host, Gfn),
        change_unused: impl Fn(&mut Host, Gfn),
    ) -> Result<(), Broken> {
        self.change_host(gfns.clone(), |host| {
            used().filter(|gfn| gfns.contains(gfn)).for_each(|gfn| change(host, gfn));
            unused().filter(|gfn| gfns.contains(gfn)).for_each(|gfn| change_unused(host, gfn));
        })
    }

    /// Revokes the frames and changes what is behind them.
    fn change_host(
        &mut self,
        gfns: Range<Gfn>,
        change: impl FnOnce(&mut Host),
    ) -> Result<(), Broken> {
        self.moment.note("host: revokes");
        self.stop_all()?;
        self.call(EntryPoint::Other, |mmu, host| mmu.revoke(host, gfns));
        change(&mut self.host);
        // What the revocation itself read of other frames.
        self.swap_in_all()
    }
}

impl Machine for Shadow {
    fn access(&mut self, cpu: usize, access: Access, pieces: &[Piece]) -> Result<Observed, Broken> {
        let mut exits: Vec<String> = Vec::new();
        let mut raced = 0;
        let context = FaultContext::at(Gva::new(0x1000 + 8 * self.random.u64(..4)));
        self.delivery = None;
        loop {
            let out = self.host.cpu(cpu).is_out();
            self.enter(cpu)?;
            if out {
                let mode = self.mode(cpu);
                self.host.speculate(cpu, self.universe.pages_in(&mode));
            }
            let fault = match self.host.attempt(cpu, access, pieces).map_err(Broken)? {
                Attempt::Done(places) => return Ok(Observed::Done(places)),
                Attempt::Delivered(fault) => {
                    self.moment.note(match fault.code.contains(Pfec::PRESENT) {
                        true => "shadow: protection faults delivered natively",
                        false => "shadow: faults delivered natively",
                    });
                    self.delivery = Some(Delivery::Native);
                    return Ok(Observed::Fault(fault));
                }
                Attempt::Exits(fault) => fault,
            };
            self.leave(cpu)?;
            let bypasses = self.mmu.guest_faults() == GuestFaults::Present;
            if exits.len() == MAX_EXITS {
                let last = exits[MAX_EXITS - 4..].join(", ");
                return Err(Broken(format!(
                    "no progress after {MAX_EXITS} exits, the last are {last} (I6)"
                )));
            }
            let updates = self.host.seen().updates;
            let outcome = self.call(EntryPoint::PageFault, |mmu, host| {
                mmu.page_fault(host, VcpuId::new(cpu), fault.gva, access, &context)
            });
            // Nothing races with a CPU that is alone.
            if outcome == FaultOutcome::Resume(Work::Raced) && self.host.cpus().len() > 1 {
                raced += 1;
                if raced == MAX_RACED {
                    return Err(Broken(format!("raced {MAX_RACED} times in one access (I6)")));
                }
            } else {
                exits.push(format!("{outcome:?}"));
            }
            if self.swap_in_wanted()? {
                continue;
            }
            let emulated = match outcome {
                FaultOutcome::Resume(work) => {
                    self.moment.note(match work {
                        Work::Detach => "shadow: exits, Detach",
                        Work::Link => "shadow: exits, Link",
                        Work::Dirty => "shadow: exits, Dirty",
                        Work::Accessed => "shadow: exits, Accessed",
                        Work::Install => "shadow: exits, Install",
                        Work::Raced => "shadow: exits, Raced",
                    });
                    None
                }
                FaultOutcome::Guest(guest) => {
                    // A walk that faults sets nothing.
                    if self.host.seen().updates != updates {
                        self.moment.note("mmu: sets accessed bits ahead");
                    }
                    self.moment.note(match guest.pfec.contains(Pfec::PRESENT) {
                        true => "shadow: exits, injected",
                        false if bypasses => {
                            "shadow: exits, injected, not present, although bypass"
                        }
                        false => "shadow: exits, injected, not present",
                    });
                    Some(Observed::Fault(PageFault { code: guest.pfec, gva: guest.gva }))
                }
                FaultOutcome::Mmio { gpa } => {
                    if self.restore(gpa.gfn())? {
                        continue;
                    }
                    if self.host.is_ram(gpa.gfn()) {
                        return Err(Broken(format!("{gpa:?} is reported as MMIO, and it is RAM")));
                    }
                    self.moment.note("shadow: exits, MMIO");
                    self.emulate(cpu, access, pieces)?
                }
                FaultOutcome::TableWrite { ticket, .. } => {
                    self.moment.note("shadow: exits, TableWrite");
                    if self.random.u8(..) < self.config.release {
                        self.moment.note("shadow: table writes released");
                        self.call(EntryPoint::Other, |mmu, host| mmu.release(host, ticket));
                        None
                    } else {
                        self.emulate(cpu, access, pieces)?
                    }
                }
                FaultOutcome::Override { .. } => {
                    self.moment.note("shadow: exits, Override");
                    self.emulate(cpu, access, pieces)?
                }
            };
            if let Some(observed) = emulated {
                if matches!(observed, Observed::Fault(_)) {
                    self.delivery = Some(Delivery::Injected);
                }
                return Ok(observed);
            }
        }
    }

    fn execute(
        &mut self,
        cpu: usize,
        instruction: Privileged,
        after: &Registers,
        invalidation: Invalidation,
    ) -> Result<(), Broken> {
        if self.executes_natively(cpu, instruction, after, invalidation)? {
            return Ok(());
        }
        self.leave(cpu)?;
        let vcpu = VcpuId::new(cpu);
        let before = std::mem::replace(&mut self.host.cpu_mut(cpu).registers, *after);
        let (old, new) = (before.for_mmu(&self.model), after.for_mmu(&self.model));
        if old != new || matches!(instruction, Privileged::LoadCr3 { .. }) {
            if (Paging { root: new.root, ..old }) != new {
                self.moment.note("shadow: role changes");
            }
            self.call(EntryPoint::LoadPaging, |mmu, host| mmu.load_paging(host, vcpu, new));
        }
        if let Privileged::LoadCr3 { root, pcid, no_flush } = instruction {
            let value = operand(after, root, pcid, no_flush);
            let mixes = self.targets[cpu].mixes(value);
            self.list(cpu, value)?;
            if mixes && invalidation == Invalidation::Nothing {
                self.moment.note("shadow: another root under a PCID that is kept");
                self.call(EntryPoint::Other, |mmu, host| mmu.flush_guest(host));
            }
        }
        match invalidation {
            Invalidation::Nothing => (),
            Invalidation::Page(gva) => {
                self.call(EntryPoint::Other, |mmu, host| mmu.invlpg(host, vcpu, gva));
            }
            Invalidation::Context
            | Invalidation::Address(..)
            | Invalidation::Pcid(_)
            | Invalidation::AllButGlobals
            | Invalidation::All => {
                self.call(EntryPoint::Other, |mmu, host| mmu.flush_guest(host));
            }
        }
        self.swap_in_all()
    }

    fn device_write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), Broken> {
        self.leave_if_alone()?;
        let gpa = Gpa::new(at.raw());
        self.restore(gpa.gfn())?;
        self.call(EntryPoint::Other, |mmu, host| mmu.write_guest(host, gpa, bytes));
        self.swap_in_all()
    }

    fn host(&mut self, event: HostEvent) -> Result<(), Broken> {
        self.leave_if_alone()?;
        match event {
            HostEvent::Remap(gfn) => self.change_backing(gfn, Host::remap)?,
            HostEvent::WriteProtect(gfn) => self.change_backing(gfn, Host::write_protect)?,
            HostEvent::SwapOut(gfn) => self.change_backing(gfn, Host::swap_out)?,
            HostEvent::RemapRange(start, end) => {
                self.change_range(start..end, Host::remap, Host::give_back)?
            }
            HostEvent::WriteProtectRange(start, end) => {
                self.change_range(start..end, Host::write_protect, Host::write_protect)?
            }
            HostEvent::SwapOutRange(start, end) => {
                self.change_range(start..end, Host::swap_out, |_, _| ())?
            }
            HostEvent::ZapAll => self.call(EntryPoint::Other, |mmu, host| mmu.zap_all(host)),
            HostEvent::Release(gfn) => {
                self.call(EntryPoint::Other, |mmu, host| mmu.release_frame(host, gfn))
            }
            HostEvent::Offer => {
                self.stop_all()?;
                self.host.cpus().try_for_each(|cpu| self.offer(cpu))?;
            }
            HostEvent::Withdraw(gfn) => {
                self.stop_all()?;
                for (cpu, targets) in self.targets.iter_mut().enumerate() {
                    targets.retain(|root| root != gfn);
                    self.mmu.withdraw_root(VcpuId::new(cpu), gfn);
                }
            }
        }
        self.swap_in_all()
    }

    fn race(&mut self, preempt: Preempt, steps: Vec<Planned>) {
        let Preempt { when, entering } = preempt;
        let cpus: BTreeSet<usize> = steps.iter().map(|planned| planned.cpu).collect();
        let mut race = Race::new(when, self.config.protocol, steps);
        for cpu in cpus {
            let ready = if entering { self.begin_entry(cpu) } else { self.enter(cpu) };
            if let Err(Broken(why)) = ready {
                race.fail(why);
            }
        }
        self.race = Some(race);
    }

    fn take_interleaved(&mut self) -> Result<(Vec<Interleaved>, u32), Broken> {
        let Some(mut race) = self.race.take() else { return Ok((Vec::new(), 0)) };
        match race.take() {
            (_, Some(broken)) => {
                Err(Broken(format!("while another CPU was in the hypervisor: {broken}")))
            }
            (done, None) => {
                if !done.is_empty() {
                    self.moment.note("race: another CPU gets further while the MMU works");
                }
                Ok((done, race.points()))
            }
        }
    }

    fn speculate(&mut self) {
        for cpu in self.host.cpus() {
            let mode = self.mode(cpu);
            // Some CPUs stay out for a while, others are on their way in.
            if self.host.cpu(cpu).is_out() {
                match self.random.u8(..8) {
                    0..4 => _ = self.enter(cpu),
                    4 => _ = self.begin_entry(cpu),
                    _ => (),
                }
            }
            self.host.speculate(cpu, self.universe.pages_in(&mode));
        }
    }

    fn take_changes(&mut self) -> Result<Vec<Change>, Broken> {
        self.host.take_changes().map_err(Broken)
    }

    fn audit(&mut self, full: bool) -> Result<(), Broken> {
        let verdict =
            if full { self.mmu.audit(&self.host) } else { self.mmu.audit_changed(&self.host) };
        self.host.take_wanted();
        verdict.map_err(|violation| Broken(format!("the auditor says: {violation}")))?;
        if full {
            for cpu in self.host.cpus() {
                match self.host.cpu(cpu).entry(self.host.epoch()) {
                    Some(entry) => reach::check(&self.host, cpu, &entry.control).map_err(Broken)?,
                    None => {
                        self.tell_root(cpu)?;
                        reach::check(&self.host, cpu, &self.loaded(cpu)?).map_err(Broken)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn take_moment(&mut self) -> Moment {
        self.moment.note(match (self.config.bypass, self.mmu.has_unsync_tables()) {
            (false, _) => "state: guest faults trapped",
            (true, false) => "state: guest faults bypassed",
            (true, true) => "state: more guest faults exit while a table is unsync",
        });
        std::mem::take(&mut self.moment)
    }

    fn count(&self, coverage: &mut Coverage) {
        let counters = self.mmu.counters();
        coverage.add("mmu: shadow pages built", counters.built);
        coverage.add("mmu: shadow pages zapped", counters.zapped);
        coverage.add("mmu: shadow pages reclaimed", counters.reclaimed);
        coverage.add("mmu: splits", counters.splits);
        coverage.add("mmu: flushes", counters.flushes);
        for cpu in self.host.cpus() {
            coverage.unit("shadow", self.host.cpu(cpu).unit.counters());
        }
    }
}

//! The guest on shadow tables: a VMX hypervisor without EPT around `umbra_mmu`, reduced to what concerns
//! memory. Its hardware walks the shadow tables in host-physical memory.

mod dice;
mod host;
mod reach;
mod targets;

use std::ops::Range;
use std::rc::Rc;

use arrayvec::ArrayVec;
use fastrand::Rng;
use umbra_mmu::{Config, Encodings, FaultOutcome, FilterPolicy, GuestFaults, Mmu, Origin, RootFormat, Work};
use umbra_paging::{Access, Cr3Value, Features, Gfn, Gpa, Gva, Mode, Paging, Pfec};

use super::{Broken, Machine, Start};
use crate::coverage::{Coverage, Moment};
use crate::hardware::{Control, Filter, PageFault, PagingMode, PagingUnit};
use crate::memory::{PhysAddr, PhysicalMemory};
use crate::oracle::{Change, Observed, Piece};
use crate::program::HostEvent;
use crate::registers::{Cpu, Invalidation, Privileged, Registers};
use crate::universe::{HOT, Universe, hot, used};
use dice::Dice;
use host::Host;
use targets::Targets;

/// An access that exits more often than this makes no progress (I6).
const MAX_EXITS: usize = 64;

/// How the hypervisor of a [`Shadow`] machine works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowConfig {
    /// Not-present faults go straight to the guest.
    pub bypass: bool,
    /// Shadow frames in the pool.
    pub frames: u32,
    /// What is cached outlives VM exits and entries, tagged by a VPID.
    pub vpid: bool,
    /// Of 256 writes to tables that are to be emulated, so many are answered by releasing the frame.
    pub release: u8,
    /// Which page faults may go straight to the guest.
    pub filter: FilterPolicy,
    /// Of 256 writes to tables in use, so many are answered by detaching the frame.
    pub detach: u8,
    /// Tables are filled when they are built, always; else mostly.
    pub eager: bool,
    /// CR3-target values that each CPU has. If there are any, guest frames lie at the same place in host memory, where
    /// no remapping has put them elsewhere.
    pub targets: usize,
    /// MAXPHYADDR of the real CPU: not less than the guest's.
    pub host_maxphyaddr: u8,
}

impl ShadowConfig {
    /// The least that a hypervisor needs: every fault exits or, with `bypass`, all but those with P = 0; a pool of
    /// `frames`; what is cached outlives exits; every write to a table in use is emulated.
    pub const fn plain(bypass: bool, frames: u32) -> ShadowConfig {
        let filter = FilterPolicy::Present;
        ShadowConfig {
            bypass,
            frames,
            vpid: true,
            release: 0,
            filter,
            detach: 0,
            eager: false,
            targets: 0,
            host_maxphyaddr: 40,
        }
    }
}

/// The calls of the MMU that build shadow pages, and so may have to reclaim others. None of the other calls does.
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
    registers: Vec<Registers>,
    /// The CR3-target values of each CPU.
    targets: Vec<Targets>,
    /// The CPU has left the guest since its last entry.
    exited: Vec<bool>,
    universe: Rc<Universe>,
    random: Rng,
    /// What happened since it was last asked for.
    moment: Moment,
    delivery: Option<Delivery>,
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
        let mut host = Host::new(&memory, config.frames, config.targets > 0, units, random.u64(..));
        let features = Features::new(model.maxphyaddr, model.gib_pages);
        let encodings = if config.bypass {
            Encodings::reserved(config.host_maxphyaddr).expect("bypass is tested with MAXPHYADDR below 52")
        } else {
            Encodings::not_present(config.host_maxphyaddr)
        };
        let mut mmu_config = Config::new(features, encodings);
        mmu_config.filter = config.filter;
        mmu_config.loadable_roots = config.targets;
        mmu_config.eager = random.u8(..8) != 0 || config.eager;
        mmu_config.prefetch_tables = seed % 4 == 0;
        mmu_config.prefetch_accessed = seed % 8 != 1;
        mmu_config.shadow_walk = seed % 8 != 2;
        mmu_config.vcpus = cpus;
        mmu_config.log_changes = true;
        let dice = Dice::new(random.u64(..), config.detach);
        let mut mmu = Mmu::with_policy(mmu_config, &mut host, dice)
            .expect("the test asks for a possible configuration");
        let registers = vec![registers; cpus];
        for (cpu, registers) in registers.iter().enumerate() {
            mmu.load_paging(&mut host, cpu, paging(registers));
        }
        Shadow {
            config,
            model,
            mmu,
            host,
            registers,
            targets: vec![Targets::new(config.targets); cpus],
            exited: vec![true; cpus],
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

    /// How the last page fault that the guest saw was delivered; `None` if the last access raised none.
    pub fn delivery(&self) -> Option<Delivery> {
        self.delivery
    }

    /// What the MMU does in `call` is counted under the name of its entry point where it reclaims, splits or zaps.
    fn call<T>(&mut self, entry: EntryPoint, call: impl FnOnce(&mut Mmu<Dice>, &mut Host) -> T) -> T {
        let (before, seen) = (self.mmu.counters(), self.host.seen());
        let loose = self.mmu.has_loose_tables();
        let withdrawn = self.mmu.roots_changed();
        let result = call(&mut self.mmu, &mut self.host);
        let after = self.mmu.counters();
        if after.reclaimed != before.reclaimed {
            self.moment.note(entry.reclaims());
            if loose {
                self.moment.note("mmu: reclaims while a table is loose");
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
        if loose && !self.mmu.has_loose_tables() {
            self.moment.note("mmu: tracks loose tables again");
        }
        for (what, now, before) in [
            ("mmu: detaches a table", after.detached, before.detached),
            ("mmu: attaches a table", after.attached, before.attached),
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
                targets.retain(|root| self.mmu.is_loadable(cpu, root));
            }
        }
        result
    }

    /// VM entry: pays what flushes are owed, and loads the registers that the hardware walks by.
    fn enter(&mut self, cpu: usize) -> Result<Control, Broken> {
        self.host.pay_flush(cpu);
        if std::mem::take(&mut self.exited[cpu]) && !self.config.vpid {
            // SDM, "Invalidation Caching", operations: VM entries and exits without VPID drop everything.
            self.host.unit(cpu).caches_mut().clear();
        }
        self.loaded(cpu)
    }

    /// The registers that the hardware walks by when it enters the guest now.
    fn loaded(&self, cpu: usize) -> Result<Control, Broken> {
        let root = self.mmu.root(&self.host, cpu);
        let table = PhysAddr::new(root.hpa.raw());
        let own = self.registers[cpu].root;
        if self.mmu.is_loadable(cpu, own) && table.raw() != own.base().raw() {
            return Err(Broken(format!(
                "the guest's CR3 names {own:?}, and its loadable root is at {table:?}"
            )));
        }
        if *self.mmu.paging(cpu) != paging(&self.registers[cpu]) {
            let found = self.mmu.paging(cpu);
            return Err(Broken(format!("the guest runs as {found:?} with {:?}", self.registers[cpu])));
        }
        let guest = self.registers[cpu].control(&self.model);
        // The real WP is always set: tracking would be void without it.
        let real = Control { wp: true, maxphyaddr: self.config.host_maxphyaddr, ..guest };
        match root.format {
            RootFormat::Long4 => Ok(Control { mode: PagingMode::Long4 { root: table }, ..real }),
            RootFormat::Pae => {
                let mut pdptes = [0; 4];
                for (pdpte, n) in pdptes.iter_mut().zip(0..) {
                    *pdpte = self.host.ram().read(PhysAddr::new(table.raw() + 8 * n));
                    if *pdpte & 1 != 0 && *pdpte & pdpte_reserved(self.config.host_maxphyaddr) != 0 {
                        return Err(Broken(format!("VM entry fails: the PDPTE {n} is {pdpte:#x}")));
                    }
                }
                Ok(Control { mode: PagingMode::Pae { pdptes }, pcid: 0, smep: false, smap: false, ..real })
            }
        }
    }

    /// One attempt of the real CPU at an instruction.
    fn attempt(
        &mut self,
        cpu: usize,
        access: Access,
        pieces: &[Piece],
    ) -> Result<Result<ArrayVec<PhysAddr, 2>, PageFault>, Broken> {
        let exited = self.exited[cpu];
        let control = self.enter(cpu)?;
        if exited {
            self.host.speculate(cpu, &control, self.universe.pages());
        }
        let mut places: ArrayVec<PhysAddr, 2> = ArrayVec::new();
        for piece in pieces {
            let gva = control.linear(piece.gva);
            match self.host.translate(cpu, &control, gva, access) {
                Ok(at) => places.push(at),
                // CR2 is compared with the address that the program used.
                Err(fault) => return Ok(Err(PageFault { gva: piece.gva, ..fault })),
            }
        }
        let mut guest = ArrayVec::new();
        for &at in &places {
            guest.push(self.host.guest_address(at, access.is_write()).map_err(Broken)?);
        }
        for (piece, &at) in pieces.iter().zip(&places).filter(|(piece, _)| !piece.bytes.is_empty()) {
            self.host.native_write(at, &piece.bytes);
        }
        Ok(Ok(guest))
    }

    /// Carries an instruction out as an instruction emulator does.
    fn emulate(&mut self, cpu: usize, access: Access, pieces: &[Piece]) -> Option<Observed> {
        let mut places: ArrayVec<Gpa, 2> = ArrayVec::new();
        for piece in pieces {
            let translated =
                self.call(EntryPoint::Other, |mmu, host| mmu.translate(host, cpu, piece.gva, access));
            if self.swap_in_wanted() {
                return None;
            }
            match translated {
                Ok(gpa) => places.push(gpa),
                Err(fault) => {
                    return Some(Observed::Fault(PageFault { code: fault.pfec, gva: fault.gva }));
                }
            }
        }
        if access.is_write() && places.iter().any(|gpa| self.restore(gpa.gfn())) {
            return None;
        }
        for (piece, &gpa) in pieces.iter().zip(&places).filter(|(piece, _)| !piece.bytes.is_empty()) {
            self.call(EntryPoint::Other, |mmu, host| mmu.write_guest(host, gpa, &piece.bytes));
        }
        Some(Observed::Done(places.iter().map(|gpa| PhysAddr::new(gpa.raw())).collect()))
    }

    /// Gives a frame back to the guest that was swapped out or write-protected.
    fn restore(&mut self, gfn: Gfn) -> bool {
        if !self.host.is_withheld(gfn) {
            return false;
        }
        self.moment.note("host: frames given back");
        self.change_backing(gfn, Host::give_back);
        true
    }

    /// Pages that the MMU's walk found swapped out come back, and the walk is to be repeated.
    fn swap_in_wanted(&mut self) -> bool {
        let mut restored = false;
        for gfn in self.host.take_wanted() {
            restored |= self.restore(gfn);
        }
        restored
    }

    /// Whether the guest executes the instruction without an exit; if so, it has.
    fn executes_natively(
        &mut self,
        cpu: usize,
        instruction: Privileged,
        after: &Registers,
        invalidation: Invalidation,
    ) -> Result<bool, Broken> {
        let native = match instruction {
            Privileged::Invlpg(_)
            | Privileged::InvpcidAddress { .. }
            | Privileged::InvpcidContext(_)
            | Privileged::InvpcidAllButGlobals
            | Privileged::FlushAll => !self.mmu.has_loose_tables(),
            Privileged::LoadCr3 { root, pcid, no_flush } => {
                let pcid = if after.pcide { pcid } else { 0 };
                let value = Cr3Value { root, pcid, no_flush: after.pcide && no_flush };
                after.paging && self.targets[cpu].contains(value)
            }
            _ => false,
        };
        if native {
            self.enter(cpu)?;
            self.moment.note(match instruction {
                Privileged::LoadCr3 { root, .. } => {
                    self.mmu.switched(cpu, root);
                    "shadow: CR3 loaded without exit"
                }
                _ => "shadow: flushes without exit",
            });
            self.registers[cpu] = *after;
            self.host.set_pcid(cpu, after.pcid);
            invalidation.apply(self.host.unit(cpu).caches_mut(), after.pcid);
        }
        Ok(native)
    }

    /// The CPU may load this value by itself from now on, if the MMU allows it for its root, which is current.
    fn list(&mut self, cpu: usize, value: Cr3Value) {
        if !self.registers[cpu].paging || self.config.targets == 0 {
            return;
        }
        self.make_room(cpu);
        if self.call(EntryPoint::Other, |mmu, host| mmu.offer_root(host, cpu)) {
            self.targets[cpu].insert(value);
        }
        if self.random.u8(..4) == 0 {
            self.list_other(cpu);
        }
    }

    /// The CPU may load a root that it does not run on, if the MMU allows it.
    fn list_other(&mut self, cpu: usize) {
        let root =
            hot(if self.random.bool() { 8 * self.random.usize(..2) } else { self.random.usize(..HOT.len()) });
        let pcide = self.registers[cpu].pcide;
        let pcid = if pcide { self.random.u16(..3) } else { 0 };
        let value = Cr3Value { root, pcid, no_flush: pcide && self.random.bool() };
        self.make_room(cpu);
        let offered = self.call(EntryPoint::Other, |mmu, host| mmu.offer_other_root(host, cpu, root));
        while self.swap_in_wanted() {}
        // Not if it was withdrawn for the frames that were given back.
        if offered && self.mmu.is_loadable(cpu, root) {
            self.moment.note("shadow: offers a root that is not in use");
            if !self.targets[cpu].expect(value) {
                self.mmu.withdraw_root(cpu, root);
            }
        }
    }

    fn make_room(&mut self, cpu: usize) {
        while let Some(gone) = self.targets[cpu].make_room(&mut self.random) {
            if !self.targets[cpu].has_root(gone) {
                self.mmu.withdraw_root(cpu, gone);
            }
        }
    }

    /// Lists what the CPU has in CR3 now.
    fn offer(&mut self, cpu: usize) {
        let Registers { root, pcid, pcide, .. } = self.registers[cpu];
        let value = Cr3Value { root, pcid, no_flush: pcide && self.random.bool() };
        // Nothing is loaded: what the PCID holds is of this root.
        self.targets[cpu].mixes(value);
        self.list(cpu, value);
    }

    fn change_backing(&mut self, gfn: Gfn, change: impl Fn(&mut Host, Gfn)) {
        self.change_range(gfn..gfn + 1, change);
    }

    /// Of all frames of a range only the hot ones change: programs touch no others.
    fn change_range(&mut self, gfns: Range<Gfn>, change: impl Fn(&mut Host, Gfn)) {
        self.moment.note("host: revokes");
        let range = gfns.clone();
        self.call(EntryPoint::Other, |mmu, host| mmu.revoke(host, range));
        used().filter(|gfn| gfns.contains(gfn)).for_each(|gfn| change(&mut self.host, gfn));
        // What the revocation itself read of other frames.
        while self.swap_in_wanted() {}
    }
}

impl Machine for Shadow {
    fn access(&mut self, cpu: usize, access: Access, pieces: &[Piece]) -> Result<Observed, Broken> {
        let mut exits: Vec<String> = Vec::new();
        let origin = Origin::at(Gva::new(0x1000 + 8 * self.random.u64(..4)));
        self.delivery = None;
        loop {
            let fault = match self.attempt(cpu, access, pieces)? {
                Ok(places) => return Ok(Observed::Done(places)),
                Err(fault) => fault,
            };
            // What the hypervisor wrote into the VMCS before this entry.
            let filter = match self.mmu.guest_faults() {
                GuestFaults::Trap => Filter::TRAP,
                GuestFaults::Present => Filter::PRESENT,
                GuestFaults::User => Filter::USER,
            };
            if !filter.exits(fault.code) {
                self.moment.note(match fault.code.contains(Pfec::PRESENT) {
                    true => "shadow: protection faults delivered natively",
                    false => "shadow: faults delivered natively",
                });
                self.delivery = Some(Delivery::Native);
                return Ok(Observed::Fault(fault));
            }
            self.exited[cpu] = true;
            if exits.len() == MAX_EXITS {
                let last = exits[MAX_EXITS - 4..].join(", ");
                return Err(Broken(format!("no progress after {MAX_EXITS} exits, the last are {last} (I6)")));
            }
            let updates = self.host.seen().updates;
            let outcome = self.call(EntryPoint::PageFault, |mmu, host| {
                mmu.page_fault(host, cpu, fault.gva, access, &origin)
            });
            exits.push(format!("{outcome:?}"));
            if self.swap_in_wanted() {
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
                        false if filter == Filter::PRESENT => {
                            "shadow: exits, injected, not present, although bypass"
                        }
                        false => "shadow: exits, injected, not present",
                    });
                    Some(Observed::Fault(PageFault { code: guest.pfec, gva: guest.gva }))
                }
                FaultOutcome::Mmio { gpa } if self.restore(gpa.gfn()) => None,
                FaultOutcome::Mmio { gpa } => {
                    if self.host.is_ram(gpa.gfn()) {
                        return Err(Broken(format!("{gpa:?} is reported as MMIO, and it is RAM")));
                    }
                    self.moment.note("shadow: exits, MMIO");
                    self.emulate(cpu, access, pieces)
                }
                FaultOutcome::TableWrite { ticket, .. } => {
                    self.moment.note("shadow: exits, TableWrite");
                    if self.random.u8(..) < self.config.release {
                        self.moment.note("shadow: table writes released");
                        self.call(EntryPoint::Other, |mmu, host| mmu.release(host, ticket));
                        None
                    } else {
                        self.emulate(cpu, access, pieces)
                    }
                }
                FaultOutcome::Override { .. } => {
                    self.moment.note("shadow: exits, Override");
                    self.emulate(cpu, access, pieces)
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
        self.exited[cpu] = true;
        let before = std::mem::replace(&mut self.registers[cpu], *after);
        self.host.set_pcid(cpu, after.pcid);
        if paging(&before) != paging(after) || matches!(instruction, Privileged::LoadCr3 { .. }) {
            let roles = |registers: &Registers| Paging { root: Gfn::new(0), ..paging(registers) };
            if roles(&before) != roles(after) {
                self.moment.note("shadow: role changes");
            }
            self.call(EntryPoint::LoadPaging, |mmu, host| mmu.load_paging(host, cpu, paging(after)));
        }
        if let Privileged::LoadCr3 { root, pcid, no_flush } = instruction {
            let value = Cr3Value {
                root,
                pcid: if after.pcide { pcid } else { 0 },
                no_flush: after.pcide && no_flush,
            };
            let mixes = self.targets[cpu].mixes(value);
            self.list(cpu, value);
            if mixes && invalidation == Invalidation::Nothing {
                self.moment.note("shadow: another root under a PCID that is kept");
                self.call(EntryPoint::Other, |mmu, host| mmu.flush_guest(host));
            }
        }
        match invalidation {
            Invalidation::Nothing => (),
            Invalidation::Page(gva) => {
                self.call(EntryPoint::Other, |mmu, host| mmu.invlpg(host, cpu, gva));
            }
            Invalidation::Context
            | Invalidation::Address(..)
            | Invalidation::Pcid(_)
            | Invalidation::AllButGlobals
            | Invalidation::All => {
                self.call(EntryPoint::Other, |mmu, host| mmu.flush_guest(host));
            }
        }
        while self.swap_in_wanted() {}
        Ok(())
    }

    fn device_write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), Broken> {
        let gpa = Gpa::new(at.raw());
        self.restore(gpa.gfn());
        self.call(EntryPoint::Other, |mmu, host| mmu.write_guest(host, gpa, bytes));
        while self.swap_in_wanted() {}
        Ok(())
    }

    fn host(&mut self, event: HostEvent) -> Result<(), Broken> {
        match event {
            HostEvent::Remap(gfn) => self.change_backing(gfn, Host::remap),
            HostEvent::WriteProtect(gfn) => self.change_backing(gfn, Host::write_protect),
            HostEvent::SwapOut(gfn) => self.change_backing(gfn, Host::swap_out),
            HostEvent::RemapRange(start, end) => self.change_range(start..end, Host::remap),
            HostEvent::WriteProtectRange(start, end) => self.change_range(start..end, Host::write_protect),
            HostEvent::SwapOutRange(start, end) => self.change_range(start..end, Host::swap_out),
            HostEvent::ZapAll => self.call(EntryPoint::Other, |mmu, host| mmu.zap_all(host)),
            HostEvent::Release(gfn) => self.call(EntryPoint::Other, |mmu, host| mmu.release_frame(host, gfn)),
            HostEvent::Offer => (0..self.registers.len()).for_each(|cpu| self.offer(cpu)),
            HostEvent::Withdraw(gfn) => {
                for (cpu, targets) in self.targets.iter_mut().enumerate() {
                    targets.retain(|root| root != gfn);
                    self.mmu.withdraw_root(cpu, gfn);
                }
            }
        }
        while self.swap_in_wanted() {}
        Ok(())
    }

    fn speculate(&mut self) {
        for cpu in 0..self.registers.len() {
            let Ok(control) = self.enter(cpu) else { continue };
            self.host.speculate(cpu, &control, self.universe.pages());
        }
    }

    fn take_changes(&mut self) -> Result<Vec<Change>, Broken> {
        self.host.take_changes().map_err(Broken)
    }

    fn audit(&mut self, full: bool) -> Result<(), Broken> {
        let verdict = if full { self.mmu.audit(&self.host) } else { self.mmu.audit_changed(&self.host) };
        self.host.take_wanted();
        verdict.map_err(|violation| Broken(format!("the auditor says: {violation}")))?;
        if full {
            for cpu in 0..self.registers.len() {
                reach::check(&self.host, cpu, &self.loaded(cpu)?).map_err(Broken)?;
            }
        }
        Ok(())
    }

    fn take_moment(&mut self) -> Moment {
        self.moment.note(match (self.config.bypass, self.mmu.has_loose_tables()) {
            (false, _) => "state: guest faults trapped",
            (true, false) => "state: guest faults bypassed",
            (true, true) => "state: guest faults trapped while a table is loose",
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
        for cpu in 0..self.registers.len() {
            coverage.unit("shadow", self.host.unit_counters(cpu));
        }
    }
}

/// What the MMU is told of the registers.
fn paging(registers: &Registers) -> Paging {
    Paging {
        mode: if registers.paging { Mode::Long4 } else { Mode::Off },
        root: registers.root,
        wp: registers.wp,
        smep: registers.smep,
        smap: registers.smap,
        pge: registers.pge,
        nxe: registers.nxe,
    }
}

/// Bits that must be clear in a present PDPTE (SDM, "Format of a PAE Page-Directory-Pointer-Table Entry").
fn pdpte_reserved(maxphyaddr: u8) -> u64 {
    0b1_1110_0110 | u64::MAX << maxphyaddr
}

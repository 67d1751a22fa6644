//! A toy hypervisor that runs its guest on `umbra_mmu`, on the reference machine's paging unit as
//! hardware.
//!
//! A guest here is a series of memory accesses and privileged instructions, so what is left of a
//! hypervisor is what concerns memory: [`Host`] is what the MMU asks of its embedder, [`Toy`] is
//! when to call the MMU. Read them in this order. On real hardware `Toy::attempt` is a VM entry,
//! and the rest is the handling of exits.
//!
//! The lines `ANCHOR` mark what the book shows (docs/book).
//!
//! `cargo test` puts it to the test; so it does with hypervisors that make a [`Mistake`], which
//! must not pass.

mod host;

use std::rc::Rc;

use arrayvec::ArrayVec;
use umbra_mmu::{
    Config, Encodings, FaultContext, FaultOutcome, FilterPolicy, GuestFaults, Mmu, RootFormat,
    TranslateError, VcpuId,
};
use umbra_paging::{Access, Features, Format, Gpa, Gva, Mode, Paging, Pdptes};
use umbra_reference::hardware::{Control, Filter, PageFault, PagingMode, PagingUnit};
use umbra_reference::machine::{Broken, Machine, Start};
use umbra_reference::memory::{PhysAddr, PhysicalMemory};
use umbra_reference::oracle::{Change, Observed, Piece};
use umbra_reference::program::HostEvent;
use umbra_reference::registers::{Cpu, Invalidation, Privileged, Registers};
use umbra_reference::universe::Universe;

use host::phys;
pub use host::{Host, Memory};

/// An access that exits more often makes no progress.
const MAX_EXITS: usize = 64;

// ANCHOR: mistakes
/// What an embedder may get wrong. Each is one line, and each lets a guest see or do what it must
/// not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// `Tlb::flush` does nothing: the CPU goes on with what it has cached.
    ForgetsFlush,
    /// `Tlb::flush` reaches the first CPU alone.
    FlushesOneCpu,
    /// Tracked tables stay writable: the real CR0.WP follows the guest's, so its kernel writes
    /// through read-only shadow entries.
    LetsTablesBeWritten,
    /// Devices store to guest memory past the MMU, which does not see that they change a page
    /// table.
    StoresPastTheMmu,
    /// INVLPG never exits, also while `EntryState::flushes_exit` asks for it.
    IgnoresFlushesExit,
    /// Faults on not-present entries go to the guest, also while `EntryState::guest_faults` asks
    /// for all because tables are unsync.
    IgnoresTrap,
}
// ANCHOR_END: mistakes

/// The hypervisor and its one guest.
pub struct Toy {
    mmu: Mmu,
    host: Host,
    /// The guest's control registers, by virtual CPU.
    registers: Vec<Registers>,
    model: Cpu,
    universe: Rc<Universe>,
    audited: bool,
}

impl Toy {
    /// A hypervisor whose guest is in this state. `audited`: the MMU's own auditor is asked after
    /// every step.
    pub fn new(start: Start, audited: bool, mistake: Option<Mistake>) -> Toy {
        let Start { model, cpus, registers, memory, universe, temper, seed } = start;
        let units = (0..cpus as u64).map(|cpu| PagingUnit::new(seed ^ cpu, temper)).collect();
        let mut host = Host::new(memory, units, mistake);
        let features = Features::new(model.maxphyaddr, model.gib_pages);
        // Reserved bits tell host faults from guest faults. With MAXPHYADDR = 52 there are none,
        // and every page fault has to exit. On real hardware, also try `Encodings::probes` on the
        // CPU first.
        let encodings = Encodings::reserved(features.maxphyaddr)
            .unwrap_or_else(|| Encodings::not_present(features.maxphyaddr));
        let mut config = Config::new(features, encodings);
        config.filter = FilterPolicy::Present;
        config.vcpus = cpus;
        config.log_changes = audited;
        let mut mmu = Mmu::new(config, &mut host).expect("there are enough shadow frames");
        for cpu in 0..cpus {
            mmu.load_paging(&mut host, VcpuId::new(cpu), paging(&registers, &model));
        }
        Toy { mmu, host, registers: vec![registers; cpus], model, universe, audited }
    }

    /// What the real CPU's registers hold while the guest runs.
    fn real_control(&self, cpu: usize) -> Control {
        let guest = self.registers[cpu].control(&self.model);
        // The root may be another one after any call of the MMU.
        let root = self.mmu.entry_state(&self.host, VcpuId::new(cpu)).root;
        let table = PhysAddr::new(root.hpa().raw());
        let wp = !self.makes(Mistake::LetsTablesBeWritten) || guest.wp;
        match root.format() {
            RootFormat::Long4 => Control { mode: PagingMode::Long4 { root: table }, wp, ..guest },
            // The guest uses PAE or 32-bit paging, or it has paging off: the CPU has not, it walks
            // an identity map of the MMU's making. Then there is no user mode to keep out, so SMEP
            // and SMAP are off. In 32-bit paging NXE does nothing.
            RootFormat::Pae => {
                let pdptes =
                    [0, 8, 16, 24].map(|at| self.host.memory.read(PhysAddr::new(table.raw() + at)));
                let format = self.registers[cpu].format();
                let (smep, smap) = (guest.smep && format.is_some(), guest.smap && format.is_some());
                let nxe = guest.nxe && !matches!(format, Some(Format::Legacy32 { .. }));
                Control { mode: PagingMode::Pae { pdptes }, wp, pcid: 0, smep, smap, nxe, ..guest }
            }
        }
    }

    fn makes(&self, mistake: Mistake) -> bool {
        self.host.mistake == Some(mistake)
    }

    /// Not where there are no reserved bits: there, all faults exit at any time.
    fn ignores_trap(&self) -> bool {
        self.makes(Mistake::IgnoresTrap) && self.model.maxphyaddr < 52
    }

    /// A control of the VM entry.
    fn invlpg_exits(&self, cpu: usize) -> bool {
        let entry = self.mmu.entry_state(&self.host, VcpuId::new(cpu));
        entry.flushes_exit && !self.makes(Mistake::IgnoresFlushesExit)
    }

    /// Enters the guest: the CPU tries an access. Returns where it went, or the page fault.
    fn attempt(
        &mut self,
        cpu: usize,
        access: Access,
        pieces: &[Piece],
    ) -> Result<Result<Observed, PageFault>, Broken> {
        let control = self.real_control(cpu);
        let mut places = ArrayVec::new();
        for piece in pieces {
            let Host { units, memory, .. } = &mut self.host;
            match units[cpu].translate(memory, &control, control.linear(piece.gva), access) {
                Ok(reached) => places.push(reached.at),
                Err(fault) => return Ok(Err(PageFault { gva: piece.gva, ..fault })),
            }
        }
        if let Some(at) = places.iter().find(|&&at| !self.host.memory.guest.contains(at)) {
            return Err(Broken(format!(
                "the guest reached host memory that is not its own, at {at:?}"
            )));
        }
        for (piece, &at) in pieces.iter().zip(&places).filter(|(piece, _)| !piece.bytes.is_empty())
        {
            self.host.memory.guest.write_bytes(at, &piece.bytes);
        }
        Ok(Ok(Observed::Done(places)))
    }

    /// Carries an access out for the guest, as the instruction emulator of a real hypervisor does.
    fn emulate(&mut self, cpu: usize, access: Access, pieces: &[Piece]) -> Observed {
        let mut places: ArrayVec<Gpa, 2> = ArrayVec::new();
        for piece in pieces {
            match self.mmu.translate(&mut self.host, VcpuId::new(cpu), piece.gva, access) {
                Ok(gpa) => places.push(gpa),
                Err(TranslateError::Fault(fault)) => {
                    return Observed::Fault(PageFault { code: fault.pfec, gva: fault.gva });
                }
                // With CPUs that run at the same time, the guest would execute the instruction
                // again.
                Err(TranslateError::Raced) => {
                    unreachable!("the CPUs of this hypervisor take turns")
                }
            }
        }
        for (piece, &gpa) in pieces.iter().zip(&places).filter(|(piece, _)| !piece.bytes.is_empty())
        {
            // Never store to guest memory in another way: it may be a table that has shadows.
            self.mmu.write_guest(&mut self.host, gpa, &piece.bytes);
        }
        Observed::Done(places.into_iter().map(phys).collect())
    }
}

impl Machine for Toy {
    // ANCHOR: page_fault
    fn access(&mut self, cpu: usize, access: Access, pieces: &[Piece]) -> Result<Observed, Broken> {
        let vcpu = VcpuId::new(cpu);
        for _ in 0..MAX_EXITS {
            // Goes into the VMCS, before each entry anew.
            let entry = self.mmu.entry_state(&self.host, vcpu);
            let filter = match entry.guest_faults {
                GuestFaults::Present | GuestFaults::User => Filter::PRESENT,
                GuestFaults::Trap if self.ignores_trap() => Filter::PRESENT,
                GuestFaults::Trap => Filter::TRAP,
            };
            let fault = match self.attempt(cpu, access, pieces)? {
                Ok(done) => return Ok(done),
                // Not for the hypervisor: the CPU delivers it to the guest.
                Err(fault) if !filter.exits(fault.code) => return Ok(Observed::Fault(fault)),
                Err(fault) => fault,
            };
            // A #PF exit. The instruction pointer would tell the write policy who writes.
            match self.mmu.page_fault(
                &mut self.host,
                vcpu,
                fault.gva,
                access,
                &FaultContext::at(Gva::new(0)),
            ) {
                // A host fault, dealt with: enter again.
                FaultOutcome::Resume(_) => (),
                // The guest's own fault: inject it. The error code is the MMU's, not the one of the
                // exit.
                FaultOutcome::Guest(fault) => {
                    return Ok(Observed::Fault(PageFault { code: fault.pfec, gva: fault.gva }));
                }
                // A device, a write to a page table, or an access that no shadow entry can allow.
                FaultOutcome::Mmio { .. }
                | FaultOutcome::TableWrite { .. }
                | FaultOutcome::Override { .. } => {
                    return Ok(self.emulate(cpu, access, pieces));
                }
            }
        }
        Err(Broken(format!("no progress after {MAX_EXITS} exits")))
    }
    // ANCHOR_END: page_fault

    /// A privileged instruction. MOV to a control register, WRMSR of EFER and INVPCID exit. INVLPG
    /// exits while the MMU asks for it; at other times the CPU's own invalidation is enough.
    fn execute(
        &mut self,
        cpu: usize,
        _: Privileged,
        after: &Registers,
        invalidation: Invalidation,
    ) -> Result<(), Broken> {
        self.registers[cpu] = *after;
        self.host.pcids[cpu] = after.pcid;
        let paging = paging(after, &self.model);
        let vcpu = VcpuId::new(cpu);
        if *self.mmu.paging(vcpu) != paging {
            self.mmu.load_paging(&mut self.host, vcpu, paging);
        }
        match invalidation {
            Invalidation::Nothing => (),
            Invalidation::Page(gva) if !self.invlpg_exits(cpu) => {
                let gva = self.real_control(cpu).linear(gva);
                self.host.units[cpu].caches_mut().invlpg(after.pcid, gva);
            }
            Invalidation::Page(gva) => self.mmu.invlpg(&mut self.host, vcpu, gva),
            _ => self.mmu.flush_guest(&mut self.host),
        }
        Ok(())
    }

    fn device_write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), Broken> {
        if self.makes(Mistake::StoresPastTheMmu) {
            self.host.memory.guest.write_bytes(at, bytes);
        } else {
            self.mmu.write_guest(&mut self.host, Gpa::new(at.raw()), bytes);
        }
        Ok(())
    }

    fn host(&mut self, event: HostEvent) -> Result<(), Broken> {
        match event {
            HostEvent::ZapAll => self.mmu.zap_all(&mut self.host),
            // A table that is about to be written past the MMU.
            HostEvent::Release(gfn) => self.mmu.release_frame(&mut self.host, gfn),
            // This host never moves or protects guest memory.
            _ => (),
        }
        Ok(())
    }

    fn speculate(&mut self) {
        for cpu in 0..self.registers.len() {
            let control = self.real_control(cpu);
            let pages = self.universe.pages_in(&self.registers[cpu].control(&self.model).mode);
            self.host.units[cpu].speculate(&mut self.host.memory, &control, pages);
        }
    }

    fn take_changes(&mut self) -> Result<Vec<Change>, Broken> {
        let journal = self.host.memory.guest.take_journal().into_iter();
        Ok(journal.map(|(at, _)| Change { at, value: self.host.memory.guest.read(at) }).collect())
    }

    fn audit(&mut self, full: bool) -> Result<(), Broken> {
        let verdict = match (self.audited, full) {
            (false, _) => Ok(()),
            (true, false) => self.mmu.audit_changed(&self.host),
            (true, true) => self.mmu.audit(&self.host),
        };
        verdict.map_err(|violation| Broken(format!("the auditor says: {violation}")))
    }
}

/// What the MMU has to know of the guest's registers. From raw values, `Paging::with_pdptes` makes
/// it, and `Pdptes::load` the PDPTE registers of PAE paging.
fn paging(registers: &Registers, model: &Cpu) -> Paging {
    let &Registers { root, wp, smep, smap, pge, nxe, pdptes, .. } = registers;
    let mode = match registers.format() {
        None => Mode::Off,
        Some(Format::Long4) => Mode::Long4,
        Some(Format::Legacy32 { pse }) => Mode::Legacy32 { pse },
        Some(Format::Pae) => {
            let features = Features::new(model.maxphyaddr, model.gib_pages);
            Mode::Pae {
                pdptes: Pdptes::checked(pdptes, &features).expect("the guest's load was checked"),
            }
        }
    };
    Paging { mode, root, wp, smep, smap, pge, nxe }
}

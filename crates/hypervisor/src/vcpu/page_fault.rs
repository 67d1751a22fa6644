//! #PF exits.

use umbra_emulator::Gpr;
use umbra_mmu::{FaultOutcome, Origin, Work};
use umbra_paging::{Access, GuestFault, Gva, Pfec};
use umbra_telemetry::{ExitCause, GuestExit};

use super::Vcpu;
use super::access::{Exit, classify};
use super::backend::{Backend, CodeMode, rflags};
use super::emulation::Emulated;
use super::event::Event;
use crate::hw::cpu;

/// Exits by the same fault of the same instruction that are allowed in a row: a bound for what I6 rules out.
const MAX_REPEATS: u32 = 64;

/// The guest has run for a short time if it was fewer ticks than these: a kernel that walks a table spends some hundred
/// instructions on an entry, and some thousand on a page fault.
const SOON: u64 = 1500;

/// Whether the guest makes progress: the last fault, and how often it came in a row.
#[derive(Default)]
pub struct Progress {
    last: Option<(u64, Gva, u32)>,
    repeats: u32,
}

impl Progress {
    /// Another fault; returns how often exactly it has come before without a break.
    fn fault(&mut self, rip: u64, gva: Gva, error_code: u32) -> u32 {
        let this = Some((rip, gva, error_code));
        self.repeats = if self.last == this { self.repeats + 1 } else { 0 };
        self.last = this;
        self.repeats
    }

    /// An instruction retired, an iteration of one, or an event is delivered.
    pub fn made(&mut self) {
        self.last = None;
    }
}

impl<B: Backend> Vcpu<B> {
    pub(super) fn page_fault_exit(&mut self, gva: Gva, error_code: u32) -> ExitCause {
        let rip = self.backend.rip();
        let repeats = self.progress.fault(rip, gva, error_code);
        if repeats > MAX_REPEATS {
            self.end = Some(GuestExit::Unsupported(alloc::format!(
                "the instruction at {rip:#x} faults at {gva:#x} again and again without getting further; please \
                 report this with the guest's name and version"
            )));
            return ExitCause::Other;
        }
        let pfec = Pfec::from_bits_truncate(error_code);
        let access = self.fault_access(gva, pfec, repeats);
        let origin = self.origin(rip);
        match self.mmu.page_fault(&mut self.env, 0, gva, access, &origin) {
            FaultOutcome::Resume(work) => match work {
                Work::Detach => ExitCause::HostFaultTableWrite,
                Work::Link => {
                    self.list_twin(true);
                    ExitCause::HostFaultLink
                }
                Work::Install => ExitCause::HostFaultInstall,
                Work::Dirty => ExitCause::HostFaultDirty,
                Work::Accessed => ExitCause::HostFaultAccessed,
            },
            FaultOutcome::Guest(fault) => self.guest_fault(fault),
            FaultOutcome::Mmio { gpa } => {
                self.note(|exit| exit.gpa = Some(gpa.raw()));
                if pfec.contains(Pfec::FETCH) || gva.raw() == rip {
                    self.end = Some(GuestExit::Unsupported(alloc::format!(
                        "the guest executes instructions at {gpa:#x}, where it has no memory"
                    )));
                    return ExitCause::HostFaultMmio;
                }
                if self.simple_mmio(gva, gpa, access.is_write()) {
                    return ExitCause::HostFaultMmio;
                }
                self.emulate_or_end("an access to a device", gva, ExitCause::HostFaultMmio)
            }
            FaultOutcome::TableWrite { gpa, ticket } => {
                self.note(|exit| exit.gpa = Some(gpa.raw()));
                if self.simple_table_write(gva, gpa) {
                    return ExitCause::HostFaultTableWrite;
                }
                // An event under way has no instruction to emulate: what it pushes must be written by the CPU.
                if self.pending.is_none() {
                    match self.emulate() {
                        Emulated::Done => return ExitCause::HostFaultTableWrite,
                        Emulated::Faulted(cause) => return cause.unwrap_or(ExitCause::HostFaultTableWrite),
                        Emulated::Unsupported(_) => (),
                    }
                }
                self.mmu.release(&mut self.env, ticket);
                ExitCause::HostFaultTableWrite
            }
            FaultOutcome::Override { .. } => {
                self.emulate_or_end("a write under CR0.WP = 0", gva, ExitCause::HostFaultInstall)
            }
        }
    }

    fn origin(&mut self, rip: u64) -> Origin {
        let cr2 = cpu::cr2();
        let same_fault = core::mem::replace(&mut self.last_cr2, cr2) == cr2;
        let long = self.backend.code_mode() == CodeMode::Bits64;
        Origin {
            rip: Gva::new(rip),
            rsp: long.then(|| Gva::new(self.backend.gpr(Gpr::Rsp as u8))),
            soon: same_fault && self.ran < SOON,
        }
    }

    fn fault_access(&self, gva: Gva, pfec: Pfec, repeats: u32) -> Access {
        let alignment_check = !pfec.contains(Pfec::USER)
            && self.backend.rflags() & rflags::AC != 0
            && self.backend.cpl() < 3
            && self.pending.is_none();
        let rip = || Gva::new(self.linear_rip());
        classify(&Exit { pfec, alignment_check, repeats }, self.mmu.paging(0), gva, rip)
    }

    /// Injects a fault of the guest's own tables.
    pub(super) fn guest_fault(&mut self, fault: GuestFault) -> ExitCause {
        self.raise_page_fault(fault);
        cause(fault.pfec)
    }

    pub(super) fn raise_page_fault(&mut self, fault: GuestFault) {
        self.backend.set_cr2(fault.gva);
        self.raise(Event::page_fault(fault.pfec));
    }

    fn emulate_or_end(&mut self, what: &str, gva: Gva, own: ExitCause) -> ExitCause {
        if self.pending.is_some() {
            self.end = Some(GuestExit::Unsupported(alloc::format!(
                "the guest's event delivery makes {what} at {gva:#x}, which Umbra does not emulate"
            )));
            return own;
        }
        match self.emulate() {
            Emulated::Done => own,
            Emulated::Faulted(cause) => cause.unwrap_or(own),
            Emulated::Unsupported(bytes) => {
                self.end = Some(GuestExit::Unsupported(alloc::format!(
                    "the guest makes {what} at {gva:#x} by an instruction that Umbra does not emulate: {bytes:02x?} \
                     at {:#x}",
                    self.backend.rip()
                )));
                own
            }
        }
    }
}

/// The cause of an exit that ended in an injected page fault.
pub fn cause(pfec: Pfec) -> ExitCause {
    let user = pfec.contains(Pfec::USER);
    if pfec.contains(Pfec::RSVD) {
        ExitCause::GuestFaultReserved
    } else if pfec.contains(Pfec::PRESENT) {
        if user { ExitCause::GuestFaultProtectionUser } else { ExitCause::GuestFaultProtectionKernel }
    } else if user {
        ExitCause::GuestFaultNotPresentUser
    } else {
        ExitCause::GuestFaultNotPresentKernel
    }
}

//! #PF exits.

use umbra_emulator::{DescriptorTable, Gpr, SystemSegment};
use umbra_mmu::{FaultContext, FaultOutcome, Work};
use umbra_paging::{Access, GuestFault, Gva, Pfec};
use umbra_telemetry::{ExitCause, GuestExit};
use umbra_vcpu::access::{Exit, Instruction, classify};
use umbra_vcpu::backend::{Backend, CodeMode, rflags};
use umbra_vcpu::event::Event;

use super::emulation::{Emulated, MAX_INSTRUCTION};
use super::{VCPU, Vcpu};

/// Exits by the same fault of the same instruction that are allowed in a row: a bound for what I6
/// rules out.
const MAX_REPEATS: u32 = 64;

impl<B: Backend> Vcpu<B> {
    pub(super) fn page_fault_exit(&mut self, gva: Gva, error_code: u32) -> ExitCause {
        let rip = self.backend.rip();
        let repeats = self.faults.fault(rip, gva, error_code);
        if repeats > MAX_REPEATS {
            self.end = Some(GuestExit::Unsupported(alloc::format!(
                "the instruction at {rip:#x} faults at {gva:#x} again and again without getting further; please \
                 report this with the guest's name and version"
            )));
            return ExitCause::Other;
        }
        let pfec = Pfec::from_bits_truncate(error_code);
        let access = self.fault_access(gva, pfec);
        let fault_context = self.fault_context(rip);
        match self.mmu.page_fault(&mut self.env, VCPU, gva, access, &fault_context) {
            FaultOutcome::Resume(work) => match work {
                Work::Detach => ExitCause::HostFaultTableWrite,
                Work::Link => {
                    self.list_pti_sibling(true);
                    ExitCause::HostFaultLink
                }
                Work::Install => ExitCause::HostFaultInstall,
                Work::Dirty => ExitCause::HostFaultDirty,
                Work::Accessed => ExitCause::HostFaultAccessed,
                Work::Raced => {
                    // Not the instruction's fault: it gets further once the other vCPU lets go.
                    self.faults.progress_made();
                    ExitCause::HostFaultAccessed
                }
            },
            FaultOutcome::Guest(fault) => self.guest_fault(fault),
            FaultOutcome::Mmio { gpa } => {
                self.note(|exit| exit.gpa = Some(gpa.raw()));
                if self.simple_mmio(gva, gpa, access.is_write()) {
                    return ExitCause::HostFaultMmio;
                }
                self.carry_out(ExitCause::HostFaultMmio)
            }
            FaultOutcome::TableWrite { gpa, ticket } => {
                self.note(|exit| exit.gpa = Some(gpa.raw()));
                if self.simple_table_write(gva, gpa) {
                    return ExitCause::HostFaultTableWrite;
                }
                // An event under way has no instruction to emulate. Mostly the CPU can write what
                // it pushes once the table is released.
                if self.events.under_way() && repeats > 0 {
                    return self.deliver_by_software().unwrap_or(ExitCause::HostFaultTableWrite);
                }
                if !self.events.under_way() {
                    match self.emulate() {
                        Emulated::Done => {
                            self.other_half(gva, gpa);
                            return ExitCause::HostFaultTableWrite;
                        }
                        Emulated::Faulted(cause) => {
                            return cause.unwrap_or(ExitCause::HostFaultTableWrite);
                        }
                        Emulated::Unsupported(_) => (),
                    }
                }
                self.mmu.release(&mut self.env, ticket);
                ExitCause::HostFaultTableWrite
            }
            FaultOutcome::Override { .. } => self.carry_out(ExitCause::HostFaultInstall),
        }
    }

    fn fault_context(&mut self, rip: u64) -> FaultContext {
        let back_to_back = self.faults.is_back_to_back(self.backend.cr2());
        let fault_context = FaultContext::at(Gva::new(rip)).with_back_to_back(back_to_back);
        let rsp = self.backend.gpr(Gpr::Rsp as u8);
        match self.backend.code_mode() {
            CodeMode::Bits64 => fault_context.with_stack(Gva::new(rsp)),
            // Kernels that write page tables have flat segments.
            CodeMode::Bits32 => fault_context.with_stack(Gva::new(rsp & 0xffff_ffff)),
            CodeMode::Bits16 => fault_context,
        }
    }

    fn fault_access(&mut self, gva: Gva, pfec: Pfec) -> Access {
        let exit = Exit {
            pfec,
            alignment_check: self.backend.rflags() & rflags::AC != 0,
            delivery: self.events.under_way(),
        };
        let paging = *self.mmu.paging(VCPU);
        classify(&exit, &paging, gva, self)
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

    /// Carries out the instruction at RIP, or the delivery under way, whatever it is. An
    /// instruction that neither the emulator nor the sandbox knows is undefined: the book's limits
    /// list these.
    fn carry_out(&mut self, own: ExitCause) -> ExitCause {
        if self.events.under_way() {
            return self.deliver_by_software().unwrap_or(own);
        }
        let emulated = match self.emulate() {
            Emulated::Unsupported(bytes) => self.run_natively(&bytes),
            emulated => Some(emulated),
        };
        match emulated {
            Some(Emulated::Done) => own,
            Some(Emulated::Faulted(cause)) => cause.unwrap_or(own),
            Some(Emulated::Unsupported(_)) | None => {
                self.raise(Event::invalid_opcode());
                own
            }
        }
    }
}

impl<B: Backend> Instruction for Vcpu<B> {
    fn start(&self) -> Gva {
        Gva::new(self.linear_rip())
    }

    fn names(&mut self, gva: Gva) -> bool {
        let mut buffer = [0; MAX_INSTRUCTION];
        let (length, _) = self.fetch(&mut buffer);
        umbra_emulator::names_operand(self, &buffer[..length], gva.raw())
    }

    fn is_in_system_table(&self, gva: Gva) -> bool {
        let within = |base: u64, limit: u64| gva.raw().wrapping_sub(base) <= limit;
        let gdt = self.backend.descriptor_table(DescriptorTable::Gdt);
        within(gdt.base, gdt.limit.into())
            || [SystemSegment::Ldtr, SystemSegment::Tr].into_iter().any(|segment| {
                let register = self.backend.system_segment(segment);
                !register.rights.is_unusable() && within(register.base, register.limit.into())
            })
    }
}

/// The cause of an exit that ended in an injected page fault.
pub fn cause(pfec: Pfec) -> ExitCause {
    let user = pfec.contains(Pfec::USER);
    if pfec.contains(Pfec::RSVD) {
        ExitCause::GuestFaultReserved
    } else if pfec.contains(Pfec::PRESENT) {
        if user {
            ExitCause::GuestFaultProtectionUser
        } else {
            ExitCause::GuestFaultProtectionKernel
        }
    } else if user {
        ExitCause::GuestFaultNotPresentUser
    } else {
        ExitCause::GuestFaultNotPresentKernel
    }
}

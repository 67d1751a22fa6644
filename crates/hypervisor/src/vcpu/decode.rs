//! Instructions of which the CPU does not tell enough: their length, or that they exit and no more.

use umbra_emulator::{Cpu, Identity, Operation, identify};
use umbra_paging::{GuestFault, Gva};
use umbra_telemetry::{ExitCause, GuestExit};
use umbra_vcpu::backend::Backend;
use umbra_vcpu::event::Event;

use super::Vcpu;
use super::emulation::{Emulated, MAX_INSTRUCTION};

impl<B: Backend> Vcpu<B> {
    /// Notes the length of the instruction that exited, which the CPU tells or the decoder. False
    /// if the guest executes it again instead.
    ///
    /// # Errors
    /// The instruction cannot be fetched any more: the guest has changed its tables without a
    /// flush, and gets the fault that the CPU raises without its cached translation.
    pub(super) fn measure_instruction(&mut self) -> Result<bool, GuestFault> {
        let length = match self.backend.instruction_length() {
            Some(length) => length,
            None if self.resync_code() => return Ok(false),
            None => self.decode_length()?,
        };
        self.instruction.set_length(length);
        Ok(true)
    }

    /// Flushes if tables are unsync: true if so. Then what the guest's tables lead to now need not
    /// be what the CPU has executed, and the guest executes that once more.
    fn resync_code(&mut self) -> bool {
        let unsync = self.mmu.has_unsync_tables();
        if unsync {
            self.mmu.flush_guest(&mut self.env);
        }
        unsync
    }

    #[inline(never)]
    fn decode_length(&mut self) -> Result<u8, GuestFault> {
        let mut buffer = [0; MAX_INSTRUCTION];
        let (fetched, fault) = self.fetch(&mut buffer);
        match (identify(&buffer[..fetched], self.mode()), fault) {
            (Some(identity), _) => Ok(identity.length),
            (None, Some(fault)) => Err(fault),
            (None, None) => {
                self.end_with_changed_code(&buffer[..fetched]);
                Ok(0)
            }
        }
    }

    /// An instruction that accesses control registers, flushes translations or raises an event.
    pub(super) fn undecoded_exit(&mut self) -> ExitCause {
        let identity = match self.plain_code() {
            Some(bytes) => identify(&bytes.to_le_bytes()[..MAX_INSTRUCTION], self.mode()),
            None => self.identity(),
        };
        self.instruction.set_length(identity.map_or(0, |identity| identity.length));
        // The CPU has checked the privilege level of what it executed. What the guest's tables lead
        // to now may be another instruction, if it has not flushed, or has changed its code.
        if identity.is_some_and(|identity| identity.operation.is_privileged())
            && self.backend.cpl() != 0
        {
            self.raise(Event::general_protection());
            return ExitCause::Other;
        }
        let cause = match identity.map(|identity| identity.operation) {
            Some(Operation::MovToCr { cr, gpr }) => return self.write_cr_exit(cr, gpr as u8),
            Some(Operation::MovFromCr { cr, gpr }) => return self.read_cr_exit(cr, gpr as u8),
            Some(Operation::Invlpg { gpr }) => {
                return self.invlpg_exit(Gva::new(self.backend.gpr(gpr as u8)));
            }
            Some(Operation::MachineStatusWord) => ExitCause::Cr0,
            Some(Operation::Invalidation) => ExitCause::Invlpg,
            Some(Operation::SoftwareInterrupt | Operation::Virtualization | Operation::Other)
            | None => ExitCause::Other,
        };
        match self.emulate() {
            Emulated::Done => cause,
            Emulated::Faulted(fault) => fault.unwrap_or(cause),
            Emulated::Unsupported(bytes) => {
                if !self.resync_code() {
                    self.end_with_changed_code(&bytes);
                }
                cause
            }
        }
    }

    /// Whether the instruction at RIP, which has raised an exception, is one of a virtualization
    /// extension.
    pub(super) fn is_virtualization(&mut self) -> bool {
        if self.events.under_way() {
            return false;
        }
        self.identity().is_some_and(|identity| identity.operation == Operation::Virtualization)
    }

    /// What the instruction at RIP is, by a walk of the guest's tables.
    fn identity(&mut self) -> Option<Identity> {
        let mut buffer = [0; MAX_INSTRUCTION];
        let (fetched, _) = self.fetch(&mut buffer);
        identify(&buffer[..fetched], self.mode())
    }

    fn end_with_changed_code(&mut self, bytes: &[u8]) {
        self.end = Some(GuestExit::Unsupported(alloc::format!(
            "the guest changed its code or its mapping while it ran: {bytes:02x?} at {:#x} is not what exited",
            self.backend.rip()
        )));
    }
}

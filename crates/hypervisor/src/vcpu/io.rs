//! Port I/O exits.

use alloc::format;

use umbra_devices::Platform;
use umbra_telemetry::{ExitCause, GuestExit};
use umbra_vcpu::backend::Backend;
use umbra_vcpu::breakpoints::Watched;

use super::Vcpu;
use super::emulation::Emulated;

const RAX: u8 = 0;

impl<B: Backend> Vcpu<B> {
    /// IN or OUT. `None` for the phase marks, which do not count.
    pub(super) fn io_exit(&mut self, port: u16, size: u8, input: bool) -> Option<ExitCause> {
        let now = self.time.now();
        let rax = self.backend.gpr(RAX);
        if input {
            let value = u64::from(self.platform.port_read(now, port, size));
            let kept = match size {
                1 => rax & !0xff,
                2 => rax & !0xffff,
                // Writing EAX clears the upper half of RAX.
                _ => 0,
            };
            self.backend.set_gpr(RAX, kept | value);
        } else {
            let event = self.platform.port_write(now, port, size, rax as u32);
            self.platform_event(event);
            self.flush_output_if_due();
        }
        self.watch(Watched::Io, port.into(), size.into());
        self.skip();
        (!Platform::is_mark_port(port)).then_some(ExitCause::Io)
    }

    /// INS or OUTS. The CPU has checked the right to the port, and nothing of the memory operand.
    pub(super) fn string_io_exit(&mut self) -> ExitCause {
        let cause = match self.emulate() {
            Emulated::Done => ExitCause::Io,
            Emulated::Faulted(cause) => cause.unwrap_or(ExitCause::Io),
            Emulated::Unsupported(bytes) => {
                self.end = Some(GuestExit::Unsupported(format!(
                    "the guest changed its code or its mapping while it ran: {bytes:02x?} at {:#x} is no INS or OUTS",
                    self.backend.rip()
                )));
                ExitCause::Io
            }
        };
        self.flush_output_if_due();
        cause
    }
}

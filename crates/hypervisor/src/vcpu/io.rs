//! Port I/O exits.

use umbra_devices::Platform;
use umbra_paging::{AccessKind, GuestFault, Gva};
use umbra_telemetry::ExitCause;

use super::Vcpu;
use super::backend::{Backend, StringIo, rflags};
use super::breakpoints::Watched;
use super::event::Event;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// Elements of a repeated INS or OUTS that one exit does; the instruction exits again for the rest.
const BATCH: u64 = 256;

impl<B: Backend> Vcpu<B> {
    /// IN or OUT. `None` for the phase marks, which do not count.
    pub(super) fn io_exit(&mut self, port: u16, size: u8, input: bool) -> Option<ExitCause> {
        let now = self.clock.now();
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

    /// INS or OUTS.
    pub(super) fn string_io_exit(&mut self, io: StringIo) -> ExitCause {
        let index = if io.input { RDI } else { RSI };
        let count = if io.repeated { address_part(self.backend.gpr(RCX), io.address_bits) } else { 1 };
        let down = self.backend.rflags() & rflags::DF != 0;
        let size = u64::from(io.size);
        let step = if down { size.wrapping_neg() } else { size };
        let mut gva = io.gva.raw();
        let mut done = 0;
        // A debug trap comes after the iteration that it is due for.
        let single = self.backend.rflags() & rflags::TF != 0;
        let batch = if single { count.min(1) } else { count.min(BATCH) };
        while done < batch && self.met == 0 && self.end.is_none() {
            if !Gva::new(gva).is_canonical() {
                self.raise(Event::general_protection());
                return ExitCause::Io;
            }
            if let Err(fault) = self.string_io_element(&io, gva) {
                return self.guest_fault(fault);
            }
            done += 1;
            gva = self.linear(gva.wrapping_add(step));
            let next = self.backend.gpr(index).wrapping_add(step);
            self.set_address_part(index, next, io.address_bits);
            if io.repeated {
                self.set_address_part(RCX, self.backend.gpr(RCX).wrapping_sub(1), io.address_bits);
            }
        }
        self.flush_output_if_due();
        if done == count {
            self.skip();
        } else if single || self.met != 0 {
            self.backend.retire(self.met);
            self.backend.set_rflags(self.backend.rflags() | rflags::RF);
        }
        ExitCause::Io
    }

    fn string_io_element(&mut self, io: &StringIo, gva: u64) -> Result<(), GuestFault> {
        let mut bytes = [0; 4];
        let bytes = &mut bytes[..usize::from(io.size)];
        if io.input {
            // The write must be allowed before the port is read: a read may have side effects.
            self.read_linear(gva, bytes, AccessKind::Write)?;
            let value = self.platform.port_read(self.clock.now(), io.port, io.size);
            bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
            self.write_linear(gva, bytes)
        } else {
            self.read_linear(gva, bytes, AccessKind::Read)?;
            let value = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
            let event = self.platform.port_write(self.clock.now(), io.port, io.size, value);
            self.platform_event(event);
            Ok(())
        }?;
        self.watch(Watched::Io, io.port.into(), io.size.into());
        Ok(())
    }

    /// Writes the part of a register that addresses of `bits` bits use: a write of 32 bits clears the upper half.
    fn set_address_part(&mut self, gpr: u8, value: u64, bits: u8) {
        let kept = if bits == 16 { self.backend.gpr(gpr) & !0xffff } else { 0 };
        self.backend.set_gpr(gpr, kept | address_part(value, bits));
    }
}

fn address_part(value: u64, bits: u8) -> u64 {
    match bits {
        16 => value & 0xffff,
        32 => value & 0xffff_ffff,
        _ => value,
    }
}

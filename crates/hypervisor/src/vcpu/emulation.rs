//! Instructions carried out by the hypervisor: the virtual CPU as the emulator sees it.

use alloc::vec::Vec;
use core::arch::x86_64::CpuidResult;

use umbra_emulator::{Cpu, Error, Feature, Gpr, Mode, Outcome, Segment, SegmentRegister, emulate};
use umbra_mmu::{Backing, GuestMemory, TranslateError};
use umbra_paging::{Access, AccessKind, Gpa, GuestFault, Gva, PAGE_SIZE};
use umbra_telemetry::ExitCause;
use umbra_vcpu::backend::{Backend, CodeMode, rflags};
use umbra_vcpu::breakpoints::Watched;

use super::{VCPU, Vcpu};
use crate::hw::cpu;

/// The longest instruction.
pub(super) const MAX_INSTRUCTION: usize = 15;

/// What came of emulating one instruction.
pub enum Emulated {
    /// It retired, or iterations of it.
    Done,
    /// It raised an exception, which is on its way; the exit's cause if that is a page fault.
    Faulted(Option<ExitCause>),
    /// The emulator does not know it: its bytes.
    Unsupported(Vec<u8>),
}

impl<B: Backend> Vcpu<B> {
    /// Carries out the instruction at RIP.
    pub(super) fn emulate(&mut self) -> Emulated {
        let mut buffer = [0; MAX_INSTRUCTION];
        let (length, fetch_fault) = self.fetch(&mut buffer);
        let bytes = &buffer[..length];
        if let Some(fault) = fetch_fault.filter(|_| bytes.is_empty()) {
            return Emulated::Faulted(Some(self.guest_fault(fault)));
        }
        let stepping = self.backend.rflags() & rflags::TF;
        match emulate(self, bytes) {
            Ok(outcome) => {
                match outcome {
                    Outcome::Done => self.retire_emulated(stepping),
                    Outcome::Continue => {
                        self.retire_emulated(stepping);
                        self.backend.set_rflags(self.backend.rflags() | rflags::RF);
                    }
                    Outcome::Transferred => self.retire_transfer(),
                }
                if self.instruction.take_loaded_ss() {
                    self.backend.block_by_mov_ss();
                }
                self.faults.progress_made();
                Emulated::Done
            }
            Err(Error::Fault(fault)) => {
                let cause = self.guest_fault(fault);
                Emulated::Faulted(self.leave_half_loaded_task().or(Some(cause)))
            }
            Err(Error::Exception(exception)) => {
                self.raise(exception.into());
                Emulated::Faulted(self.leave_half_loaded_task())
            }
            Err(Error::Truncated) => match fetch_fault {
                Some(fault) => Emulated::Faulted(Some(self.guest_fault(fault))),
                None => Emulated::Unsupported(bytes.to_vec()),
            },
            Err(Error::Unsupported) => Emulated::Unsupported(bytes.to_vec()),
        }
    }

    /// The instruction retired. A single-step trap is due if TF was set before it: POPF may have
    /// changed that.
    fn retire_emulated(&mut self, stepping: u64) {
        let flags = self.backend.rflags();
        if (flags ^ stepping) & rflags::TF == 0 {
            return self.backend.retire(self.instruction.met());
        }
        self.backend.set_rflags(flags ^ rflags::TF);
        self.backend.retire(self.instruction.met());
        self.backend.set_rflags(flags);
    }

    /// Fetches what can be fetched at RIP: how many bytes, and the fault that ended it early.
    pub(super) fn fetch(
        &mut self,
        bytes: &mut [u8; MAX_INSTRUCTION],
    ) -> (usize, Option<GuestFault>) {
        let start = self.linear_rip();
        let first = (PAGE_SIZE - start % PAGE_SIZE).min(MAX_INSTRUCTION as u64) as usize;
        let mut have = 0;
        for part in [0..first, first..MAX_INSTRUCTION] {
            if part.is_empty() {
                continue;
            }
            let gva = self.linear(start.wrapping_add(part.start as u64));
            match self.read_linear(gva, &mut bytes[part.clone()], AccessKind::Fetch) {
                Ok(()) => have = part.end,
                Err(fault) => return (have, Some(fault)),
            }
        }
        (have, None)
    }

    /// The linear address of the instruction at RIP.
    pub(super) fn linear_rip(&self) -> u64 {
        self.linear(self.backend.segment_base(Segment::Cs).wrapping_add(self.backend.rip()))
    }

    /// Linear addresses have 32 bits outside 64-bit mode.
    pub(super) fn linear(&self, address: u64) -> u64 {
        if self.backend.code_mode() == CodeMode::Bits64 { address } else { address & 0xffff_ffff }
    }

    /// RIP behind an instruction of `length` bytes: it is never cut to 16 bits, and 64-bit mode
    /// takes any value.
    pub(super) fn next_rip(&self, length: u64) -> u64 {
        self.linear(self.backend.rip().wrapping_add(length))
    }

    /// Where the guest's tables lead, for an access by the instruction at RIP.
    pub(super) fn translate(&mut self, gva: u64, kind: AccessKind) -> Result<Gpa, GuestFault> {
        let access = self.access(kind);
        self.translate_as(gva, access)
    }

    fn translate_as(&mut self, gva: u64, access: Access) -> Result<Gpa, GuestFault> {
        loop {
            match self.mmu.translate(&mut self.env, VCPU, Gva::new(gva), access) {
                Ok(gpa) => return Ok(gpa),
                Err(TranslateError::Fault(fault)) => return Err(fault),
                // Only another vCPU can change entries meanwhile, and there is none.
                Err(TranslateError::Raced) => (),
            }
        }
    }

    /// Whether memory lies at `gpa`.
    pub(super) fn is_ram(&self, gpa: u64) -> bool {
        matches!(self.env.backing(Gpa::new(gpa).gfn()), Backing::Ram { .. })
    }

    /// Where each page of an access goes: (gpa, bytes), before anything is done.
    pub(super) fn pieces(
        &mut self,
        gva: u64,
        length: usize,
        access: Access,
    ) -> Result<[(Gpa, usize); 2], GuestFault> {
        let first = ((PAGE_SIZE - gva % PAGE_SIZE) as usize).min(length);
        let gpa = self.translate_as(gva, access)?;
        let mut pieces = [(gpa, first), (gpa, 0)];
        if first < length {
            let next = gva.wrapping_add(first as u64);
            // Compatibility mode has its descriptor tables above 4 GiB, where nothing wraps.
            let next = if gva >> 32 == 0 { self.linear(next) } else { next };
            pieces[1] = (self.translate_as(next, access)?, length - first);
        }
        Ok(pieces)
    }

    /// Reads at a linear address with the guest's rights.
    pub(super) fn read_linear(
        &mut self,
        gva: u64,
        buf: &mut [u8],
        kind: AccessKind,
    ) -> Result<(), GuestFault> {
        self.read_with(gva, buf, self.access(kind))
    }

    /// Reads at a linear address with these rights.
    pub(super) fn read_with(
        &mut self,
        gva: u64,
        buf: &mut [u8],
        access: Access,
    ) -> Result<(), GuestFault> {
        let pieces = self.pieces(gva, buf.len(), access)?;
        let (first, second) = buf.split_at_mut(pieces[0].1);
        for ((gpa, _), part) in pieces.into_iter().zip([first, second]) {
            if part.is_empty() {
                continue;
            }
            if self.is_ram(gpa.raw()) {
                self.env.ram.read(gpa, part);
            } else if access.kind == AccessKind::Fetch {
                // Code is not fetched from devices: where there is no memory, the bus gives ones.
                part.fill(0xff);
            } else {
                let now = self.time.now();
                for (at, size) in bus_accesses(gpa.raw(), part.len()) {
                    let value = self.platform.mmio_read(now, at, size as u8).to_le_bytes();
                    let offset = (at - gpa.raw()) as usize;
                    part[offset..offset + size].copy_from_slice(&value[..size]);
                }
            }
        }
        if access.kind != AccessKind::Fetch {
            self.watch(Watched::Read, gva, buf.len());
        }
        Ok(())
    }

    /// Writes at a linear address with the guest's rights: all or nothing.
    pub(super) fn write_linear(&mut self, gva: u64, bytes: &[u8]) -> Result<(), GuestFault> {
        self.write_with(gva, bytes, self.access(AccessKind::Write))
    }

    /// Writes at a linear address with these rights: all or nothing.
    pub(super) fn write_with(
        &mut self,
        gva: u64,
        bytes: &[u8],
        access: Access,
    ) -> Result<(), GuestFault> {
        let pieces = self.pieces(gva, bytes.len(), access)?;
        let (first, second) = bytes.split_at(pieces[0].1);
        for ((gpa, _), part) in pieces.into_iter().zip([first, second]) {
            self.write_physical(gpa, part);
        }
        self.watch(Watched::Write, gva, bytes.len());
        Ok(())
    }

    /// Writes to memory, or to the device that is there. The bytes lie in one page.
    pub(super) fn write_physical(&mut self, gpa: Gpa, bytes: &[u8]) {
        if self.is_ram(gpa.raw()) {
            self.mmu.write_guest(&mut self.env, gpa, bytes);
            return;
        }
        let now = self.time.now();
        for (at, size) in bus_accesses(gpa.raw(), bytes.len()) {
            let offset = (at - gpa.raw()) as usize;
            let mut value = [0; 8];
            value[..size].copy_from_slice(&bytes[offset..offset + size]);
            let event = self.platform.mmio_write(now, at, size as u8, u64::from_le_bytes(value));
            self.platform_event(event);
        }
    }
}

/// Cuts an access to a device into naturally aligned pieces of 1, 2, 4 or 8 bytes: (gpa, bytes).
fn bus_accesses(gpa: u64, length: usize) -> impl Iterator<Item = (u64, usize)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let left = length - done;
        let at = gpa + done as u64;
        let size = [8, 4, 2, 1]
            .into_iter()
            .find(|&size| size <= left && at.is_multiple_of(size as u64))?;
        done += size;
        Some((at, size))
    })
}

impl<B: Backend> Cpu for Vcpu<B> {
    type Fault = GuestFault;

    fn mode(&self) -> Mode {
        mode(self.backend.code_mode())
    }

    fn stack_mode(&self) -> Mode {
        mode(self.backend.stack_mode())
    }

    fn gpr(&self, gpr: Gpr) -> u64 {
        self.backend.gpr(gpr as u8)
    }

    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.backend.set_gpr(gpr as u8, value);
    }

    fn rip(&self) -> u64 {
        self.backend.rip()
    }

    fn set_rip(&mut self, rip: u64) {
        self.backend.set_rip(rip);
    }

    fn rflags(&self) -> u64 {
        self.backend.rflags()
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.backend.set_rflags(rflags);
    }

    fn segment(&self, segment: Segment) -> SegmentRegister {
        self.backend.segment(segment)
    }

    fn cpl(&self) -> u8 {
        self.backend.cpl()
    }

    fn cr0(&self) -> u64 {
        self.backend.cr0()
    }

    fn cr4(&self) -> u64 {
        self.backend.cr4()
    }

    fn has(&self, feature: Feature) -> bool {
        let has = |max, leaf, bit: fn(CpuidResult) -> u32| {
            cpu::cpuid(max, 0).eax >= leaf && bit(cpu::cpuid(leaf, 0)) != 0
        };
        match feature {
            // BMI1.
            Feature::Tzcnt => has(0, 7, |features| features.ebx & 1 << 3),
            Feature::Lzcnt => has(0x8000_0000, 0x8000_0001, |features| features.ecx & 1 << 5),
        }
    }

    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        self.watch(Watched::Io, port.into(), size.into());
        self.platform.port_read(self.time.now(), port, size)
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) {
        self.watch(Watched::Io, port.into(), size.into());
        let event = self.platform.port_write(self.time.now(), port, size, value);
        self.platform_event(event);
    }

    fn read(&mut self, gva: u64, buf: &mut [u8]) -> Result<(), GuestFault> {
        self.read_linear(gva, buf, AccessKind::Read)
    }

    fn read_modify(&mut self, gva: u64, buf: &mut [u8]) -> Result<(), GuestFault> {
        self.read_linear(gva, buf, AccessKind::Write)
    }

    fn write(&mut self, gva: u64, bytes: &[u8]) -> Result<(), GuestFault> {
        self.write_linear(gva, bytes)
    }

    fn check(&mut self, gva: u64, length: usize, write: bool) -> Result<(), GuestFault> {
        if !write {
            return self.pieces(gva, length, self.access(AccessKind::Read)).map(drop);
        }
        // The dirty bit is the write's own: #AC, which comes behind page faults, leaves it clear.
        let features = self.cpu.cpuid().features();
        let paging = *self.mmu.paging(VCPU);
        let access = self.access(AccessKind::Write);
        let walk = |gva| umbra_paging::walk(&self.env, &paging, &features, Gva::new(gva), access);
        walk(gva)?;
        let last = self.linear(gva.wrapping_add(length as u64 - 1));
        if last / PAGE_SIZE != gva / PAGE_SIZE {
            walk(last & !(PAGE_SIZE - 1))?;
        }
        Ok(())
    }

    fn trap_due(&self) -> bool {
        // MOV SS may have held back a trap, to behind the first iteration. A write to a port may
        // end the guest.
        self.instruction.met() != 0 || self.backend.debug_trap_due() || self.end.is_some()
    }
}

fn mode(mode: CodeMode) -> Mode {
    match mode {
        CodeMode::Bits16 => Mode::Bits16,
        CodeMode::Bits32 => Mode::Bits32,
        CodeMode::Bits64 => Mode::Bits64,
    }
}

//! One instruction in the sandbox.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use umbra_emulator::{Native, NativeOperand};
use umbra_paging::{AccessKind, Gpa, GuestFault, Hpa, PAGE_SIZE, Pfec};
use umbra_vcpu::backend::{Backend, Exit};
use umbra_vcpu::breakpoints::Watched;
use umbra_vcpu::cpuid::xcr0;
use umbra_vcpu::event::Event;
use umbra_vcpu::isolation::{Page, Rights, Space};

use crate::hw::cpu;
use crate::hw::interrupts::MACHINE_BROKEN;
use crate::hw::phys::HostPage;
use crate::telemetry;
use crate::vcpu::Vcpu;
use crate::vcpu::emulation::Emulated;

/// Pages for the code, operands and tables of one instruction: two pages of code and eight elements
/// of a gather, all far from each other. Each has a page table, a directory and a pointer table;
/// then there is the root.
const PAGES: usize = 10 * 4 + 1;

/// CPUID: it exits at every privilege level.
const MARKER: [u8; 2] = [0x0f, 0xa2];

/// The address space, made of pages that are the hypervisor's.
pub struct Sandbox {
    space: Space<Box<HostPage>>,
}

impl Sandbox {
    /// An empty one.
    pub fn new() -> Sandbox {
        Sandbox { space: Space::new((0..PAGES).map(|_| HostPage::new()).collect()) }
    }
}

impl Page for Box<HostPage> {
    fn hpa(&self) -> Hpa {
        HostPage::hpa(self)
    }

    fn bytes(&self) -> &[u8; PAGE_SIZE as usize] {
        HostPage::bytes(self)
    }

    fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE as usize] {
        HostPage::bytes_mut(self)
    }
}

/// Why the instruction has not been carried out.
enum Stopped {
    /// The guest's tables refuse one of its accesses.
    Fault(GuestFault),
    /// It raises this.
    Exception(Event),
    /// It cannot be carried out here.
    Refused,
}

impl<B: Backend> Vcpu<B> {
    /// Carries out the instruction at RIP, which starts with `bytes`, if the CPU can do so on
    /// copies. None otherwise: then nothing has changed.
    pub(in crate::vcpu) fn run_natively(&mut self, bytes: &[u8]) -> Option<Emulated> {
        let has_avx = self.cpu.xcr0() & xcr0::AVX != 0;
        let vector = |number| has_avx.then(|| cpu::ymm(number));
        let native =
            Native::decode(self, bytes, self.cpu.cpuid().xsave_area(self.cpu.xcr0()), vector)?;
        let (rip, rflags) = (self.backend.rip(), self.backend.rflags());
        let next = self.next_rip(native.length as u64);
        self.sandbox.space.reset(self.space.root_format());
        self.map_code(&bytes[..native.length])?;
        if let Err(stopped) = self.fill_code_pages(&native) {
            return self.stopped(stopped);
        }
        self.backend.isolate(&self.sandbox.space);
        let outcome = self.run_isolated(&native, next);
        self.backend.end_isolation();
        let touched = match outcome {
            Ok(touched) => touched,
            Err(stopped) => {
                self.backend.set_rip(rip);
                self.backend.set_rflags(rflags);
                return self.stopped(stopped);
            }
        };
        // The guest's breakpoints were off while the copies were filled.
        for part in touched.iter().filter(|part| part.read) {
            self.watch(Watched::Read, part.gva, part.length);
        }
        self.write_back(&touched);
        self.backend.set_rip(next);
        self.backend.retire(self.instruction.met());
        self.faults.progress_made();
        Some(Emulated::Done)
    }

    fn stopped(&mut self, stopped: Stopped) -> Option<Emulated> {
        match stopped {
            Stopped::Fault(fault) => Some(Emulated::Faulted(Some(self.guest_fault(fault)))),
            Stopped::Exception(event)
                if event.is_fpu_error() && self.reports_fpu_errors_by_line() =>
            {
                self.fpu_error_exit();
                Some(Emulated::Faulted(None))
            }
            Stopped::Exception(event) => {
                self.raise(event);
                Some(Emulated::Faulted(None))
            }
            Stopped::Refused => None,
        }
    }

    /// Maps a copy of the instruction at RIP, with the marker behind it.
    fn map_code(&mut self, instruction: &[u8]) -> Option<()> {
        let (start, user) = (self.linear_rip(), self.backend.cpl() == 3);
        for (at, byte) in (0..).zip(instruction.iter().chain(&MARKER)) {
            let gva = self.linear(start.wrapping_add(at));
            if self.sandbox.space.bytes(gva).is_none() {
                self.sandbox.space.map(gva, Rights { write: false, user }).then_some(())?;
            }
            self.sandbox.space.bytes_mut(gva)?[offset(gva)] = *byte;
        }
        Some(())
    }

    /// Copies what the instruction may read in the pages of its own code, which are mapped already:
    /// it reads there without a fault.
    fn fill_code_pages(&mut self, native: &Native) -> Result<(), Stopped> {
        for part in
            native.operands.iter().flat_map(parts).filter(|part| part.read || part.conditional)
        {
            if self.sandbox.space.bytes(part.gva).is_none() {
                continue;
            }
            if self.marker_overlaps(native, part.gva, part.length) {
                return Err(Stopped::Refused);
            }
            let mut bytes = vec![0; part.length];
            self.read_linear(part.gva, &mut bytes, AccessKind::Read).map_err(Stopped::Fault)?;
            let page = self.sandbox.space.bytes_mut(part.gva).ok_or(Stopped::Refused)?;
            page[offset(part.gva)..offset(part.gva) + part.length].copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// Runs until RIP is `next`: the instruction has retired then, whatever exit tells so.
    fn run_isolated(&mut self, native: &Native, next: u64) -> Result<Vec<Touched>, Stopped> {
        let mut touched = Vec::new();
        loop {
            let exit = self.backend.enter().map_err(|_| Stopped::Refused)?;
            if self.backend.rip() == next {
                return Ok(touched);
            }
            match exit {
                Exit::PageFault { gva, error_code } => {
                    let write = Pfec::from_bits_truncate(error_code).contains(Pfec::WRITE);
                    self.map_operands(native, gva.raw(), write, &mut touched)?;
                }
                Exit::Reflect(event) => return Err(Stopped::Exception(event)),
                Exit::Interrupt => cpu::take_interrupts(),
                Exit::Nmi => cpu::end_nmi(),
                Exit::Nothing => (),
                Exit::MachineCheck => telemetry::fail(MACHINE_BROKEN),
                _ => return Err(Stopped::Refused),
            }
        }
    }

    /// Maps the page of `gva`, which the instruction reads or writes, with the parts of its
    /// operands that lie there.
    fn map_operands(
        &mut self,
        native: &Native,
        gva: u64,
        write: bool,
        touched: &mut Vec<Touched>,
    ) -> Result<(), Stopped> {
        let here = |at: u64| at / PAGE_SIZE == gva / PAGE_SIZE;
        let parts: Vec<_> =
            native.operands.iter().flat_map(parts).filter(|part| here(part.gva)).collect();
        if !parts.iter().any(|part| gva.wrapping_sub(part.gva) < part.length as u64) {
            return Err(Stopped::Refused);
        }
        let kind = if write { AccessKind::Write } else { AccessKind::Read };
        let gpa = self.translate(gva, kind).map_err(Stopped::Fault)?;
        let rights = Rights { write, user: self.backend.cpl() == 3 };
        if touched.iter().any(|part| here(part.gva)) {
            // It was read before, and is written now.
            let mut unwritten = touched.iter_mut().filter(|part| here(part.gva) && !part.written);
            let upgraded = write && unwritten.next().map(|part| part.written = true).is_some();
            unwritten.for_each(|part| part.written = true);
            return (upgraded && self.sandbox.space.map(gva, rights))
                .then_some(())
                .ok_or(Stopped::Refused);
        }
        for part in parts {
            if self.marker_overlaps(native, part.gva, part.length) {
                return Err(Stopped::Refused);
            }
            let mut bytes = vec![0; part.length];
            // A read from a device has effects: only what the instruction reads is read, and once.
            if part.read || part.conditional || self.is_ram(gpa.raw()) {
                self.read_linear(part.gva, &mut bytes, kind).map_err(Stopped::Fault)?;
            }
            if !self.sandbox.space.map(part.gva, rights) {
                return Err(Stopped::Refused);
            }
            let page = self.sandbox.space.bytes_mut(part.gva).ok_or(Stopped::Refused)?;
            page[offset(part.gva)..offset(part.gva) + part.length].copy_from_slice(&bytes);
            let original = part.conditional.then_some(bytes);
            let gpa = Gpa::new(gpa.raw() / PAGE_SIZE * PAGE_SIZE + offset(part.gva) as u64);
            touched.push(Touched {
                gva: part.gva,
                gpa,
                length: part.length,
                read: part.read,
                written: write,
                original,
            });
        }
        Ok(())
    }

    /// Whether the marker lies where the operand does: in code that writes to itself.
    fn marker_overlaps(&self, native: &Native, at: u64, length: usize) -> bool {
        let marker = self.linear_rip().wrapping_add(native.length as u64);
        (0..MARKER.len() as u64)
            .any(|n| self.linear(marker.wrapping_add(n)).wrapping_sub(at) < length as u64)
    }

    /// Writes to the guest's memory and devices what the instruction has written to the copies.
    fn write_back(&mut self, touched: &[Touched]) {
        for part in touched.iter().filter(|part| part.written) {
            let Some(page) = self.sandbox.space.bytes(part.gva) else { continue };
            let bytes = page[offset(part.gva)..offset(part.gva) + part.length].to_vec();
            // Of an operand that is written in parts only what has changed is known to be written.
            let written =
                |n: usize| part.original.as_ref().is_none_or(|original| original[n] != bytes[n]);
            let mut rest = 0..part.length;
            while let Some(first) = rest.find(|&n| written(n)) {
                let end = rest.find(|&n| !written(n)).unwrap_or(part.length);
                let (gva, gpa) = (part.gva + first as u64, Gpa::new(part.gpa.raw() + first as u64));
                self.write_physical(gpa, &bytes[first..end]);
                self.watch(Watched::Write, gva, end - first);
                rest = end..part.length;
            }
        }
    }
}

/// A part of an operand, within one page, that has a copy.
struct Touched {
    gva: u64,
    /// Where it lay when the instruction touched it. Its own writes may change the tables that say
    /// so.
    gpa: Gpa,
    length: usize,
    read: bool,
    written: bool,
    /// What it was, if parts of it may be written.
    original: Option<Vec<u8>>,
}

/// What of an operand lies in one page.
struct Part {
    gva: u64,
    length: usize,
    /// All of the operand is read.
    read: bool,
    /// Parts of it are.
    conditional: bool,
}

/// The parts of an operand in the pages that it touches.
fn parts(operand: &NativeOperand) -> impl Iterator<Item = Part> + use<> {
    let (read, conditional) = (operand.read, operand.is_conditional());
    let first = ((PAGE_SIZE - operand.gva % PAGE_SIZE) as usize).min(operand.length);
    let second = (operand.gva.wrapping_add(first as u64), operand.length - first);
    [(operand.gva, first), second]
        .into_iter()
        .filter(|(_, length)| *length > 0)
        .map(move |(gva, length)| Part { gva, length, read, conditional })
}

/// Where in its page an address lies.
fn offset(gva: u64) -> usize {
    (gva % PAGE_SIZE) as usize
}

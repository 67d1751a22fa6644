//! Programs on a [`Machine`]: a hypervisor that stands on the reference machine's paging unit.
//!
//! With it the judge itself is put to the test, and the toy in `examples/`, which runs no code.

use std::collections::BTreeMap;

use umbra_paging::{Access, AccessKind, Gfn, Gva};
use umbra_reference::hardware::Temper;
use umbra_reference::machine::{Broken, Machine, Start};
use umbra_reference::memory::{PhysAddr, PhysicalMemory, Ram};
use umbra_reference::oracle::{Observed, Piece};
use umbra_reference::program::HostEvent as MachineEvent;
use umbra_reference::registers::Registers;

use crate::image;
use crate::judge::universe;
use crate::layout::{PAGE, REGION, watched};
use crate::program::{HostEvent, Program, Step};
use crate::record::{End, Record, Seen, unparse};
use crate::stub::{BREAKPOINT, DONE, NO_VECTOR, PAGE_FAULT, Stub};

/// How a machine has to be when the program begins.
pub fn start(program: &Program, temper: Temper) -> Start {
    Start {
        model: image::cpu(program),
        cpus: program.cpus(),
        registers: image::registers(program),
        memory: image::arena(program),
        universe: universe(),
        temper,
        seed: program.seed,
    }
}

/// Runs a program on a machine that is as [`start`] says.
pub fn run(machine: impl Machine, program: &Program) -> Record {
    let mut run = Run {
        machine,
        memory: image::arena(program),
        registers: vec![image::registers(program); program.cpus()],
        stub: Stub::assemble(),
        strays: BTreeMap::new(),
    };
    let mut seen = Vec::new();
    let mut harvests = Vec::new();
    let mut end = End::Complete;
    for (at, step) in program.steps.iter().enumerate() {
        match run.step(program.cpu(at), step) {
            Ok(step) => seen.push(step),
            Err(Broken(why)) => {
                end = End::GaveUp(why);
                break;
            }
        }
        if let Step::Host(HostEvent::Harvest { region }) = step {
            // These machines have no dirty log: every page may have been written.
            let first = region * (REGION / PAGE);
            harvests.push((at, (first..first + REGION / PAGE).collect()));
        }
    }
    Record { results: unparse(&seen), end, harvests, strays: run.strays.into_iter().collect() }
}

/// A machine and its guest, as the stub would see it.
struct Run<M> {
    machine: M,
    memory: Ram,
    /// By virtual CPU.
    registers: Vec<Registers>,
    stub: Stub,
    /// Words that changed and are not watched.
    strays: BTreeMap<u64, u64>,
}

impl<M: Machine> Run<M> {
    fn step(&mut self, cpu: usize, step: &Step) -> Result<Seen, Broken> {
        let mut seen = match *step {
            Step::Read { gva, size, user, ac } => {
                let access = Access { kind: AccessKind::Read, user, smap_override: ac && !user };
                self.access(cpu, access, gva, &[], size, self.stub.read_rip(size, user))?
            }
            Step::Write { gva, size, user, ac, value } => {
                let access = Access { kind: AccessKind::Write, user, smap_override: ac && !user };
                let bytes = &value.to_le_bytes()[..usize::from(size)];
                self.access(cpu, access, gva, bytes, size, self.stub.write_rip(size, user))?
            }
            Step::Fetch { gva, user } => {
                let access = Access { kind: AccessKind::Fetch, user, smap_override: false };
                self.access(cpu, access, gva, &[], 8, gva)?
            }
            Step::Host(event) => {
                host(&mut self.machine, event)?;
                plain()
            }
            _ => {
                if let Some(instruction) = image::privileged(step) {
                    let registers = &mut self.registers[cpu];
                    let invalidation = registers.execute(instruction);
                    self.machine.execute(cpu, instruction, registers, invalidation)?;
                }
                plain()
            }
        };
        // No emulator speculates either: a step's changes are its own.
        self.machine.audit(false)?;
        self.changes(&mut seen)?;
        seen.changes.sort_unstable();
        Ok(seen)
    }

    fn access(
        &mut self,
        cpu: usize,
        access: Access,
        gva: u64,
        bytes: &[u8],
        size: u8,
        rip: u64,
    ) -> Result<Seen, Broken> {
        let piece = Piece { gva: Gva::new(gva), bytes: bytes.iter().copied().collect() };
        let observed = self.machine.access(cpu, access, &[piece])?;
        let mut seen = Seen { rip, ..plain() };
        self.changes(&mut seen)?;
        match observed {
            Observed::Done(places) => {
                // The walk has set its bits when the CPU reads.
                let word = self.memory.read(places[0].word());
                (seen.vector, seen.value) = match access.kind {
                    AccessKind::Fetch => (BREAKPOINT, image::code_value(word)),
                    _ => (DONE, image::part(word, places[0].raw(), size)),
                };
            }
            Observed::Fault(fault) => {
                (seen.vector, seen.error, seen.cr2) =
                    (PAGE_FAULT, fault.code.bits(), fault.gva.raw());
            }
        }
        Ok(seen)
    }

    /// Takes what has changed over.
    fn changes(&mut self, seen: &mut Seen) -> Result<(), Broken> {
        for change in self.machine.take_changes()? {
            let (gpa, value) = (change.at.raw(), change.value);
            if !self.memory.contains(change.at) || self.memory.read(change.at) == value {
                continue;
            }
            self.memory.write_silently(change.at, value);
            if watched().any(|watched| watched == gpa) {
                seen.changes.retain(|&(at, _)| at != gpa);
                seen.changes.push((gpa, value));
            } else {
                self.strays.insert(gpa, value);
            }
        }
        Ok(())
    }
}

fn plain() -> Seen {
    Seen { vector: NO_VECTOR, error: 0, value: 0, cr2: 0, rip: 0, changes: Vec::new() }
}

fn host(machine: &mut impl Machine, event: HostEvent) -> Result<(), Broken> {
    let frames = |region: u64| {
        let first = region * (REGION / PAGE);
        (Gfn::new(first), Gfn::new(first + REGION / PAGE))
    };
    match event {
        HostEvent::Write { gpa, value } => {
            machine.device_write(PhysAddr::new(gpa), &value.to_le_bytes())
        }
        HostEvent::Cycle { .. } | HostEvent::Move { .. } | HostEvent::Shift { .. } => {
            machine.host(MachineEvent::ZapAll)
        }
        HostEvent::Discard { frame } => machine.host(MachineEvent::SwapOut(Gfn::new(frame))),
        HostEvent::DiscardRegion { region } => {
            let (from, to) = frames(region);
            machine.host(MachineEvent::SwapOutRange(from, to))
        }
        HostEvent::Protect { region } => {
            let (from, to) = frames(region);
            machine.host(MachineEvent::WriteProtectRange(from, to))
        }
        HostEvent::Log { .. } | HostEvent::Harvest { .. } | HostEvent::Registers => Ok(()),
    }
}

//! The guest on bare hardware, walking its own tables.

use std::fmt;
use std::rc::Rc;

use fastrand::Rng;
use umbra_paging::Access;

use super::{Broken, Machine, Start};
use crate::coverage::Coverage;
use crate::hardware::{Control, PagingUnit};
use crate::memory::{PhysAddr, PhysicalMemory, Ram};
use crate::oracle::{Change, Observed, Piece};
use crate::registers::{Cpu, Invalidation, Privileged, Registers};
use crate::universe::Universe;

/// Bare hardware: a paging unit per CPU in front of the guest's memory.
pub struct Bare {
    model: Cpu,
    memory: Ram,
    cpus: Vec<(Control, PagingUnit)>,
    universe: Rc<Universe>,
}

impl fmt::Debug for Bare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bare")
            .field("model", &self.model)
            .field("cpus", &self.cpus.len())
            .finish_non_exhaustive()
    }
}

impl Bare {
    /// A machine in this state.
    pub fn new(start: Start) -> Bare {
        let mut random = Rng::with_seed(start.seed);
        let control = start.registers.control(&start.model);
        let unit = |_| (control, PagingUnit::new(random.u64(..), start.temper));
        let cpus = (0..start.cpus).map(unit).collect();
        Bare { model: start.model, memory: start.memory, cpus, universe: start.universe }
    }

    /// The paging unit of a CPU.
    pub fn unit(&self, cpu: usize) -> &PagingUnit {
        &self.cpus[cpu].1
    }
}

impl Machine for Bare {
    fn access(&mut self, cpu: usize, access: Access, pieces: &[Piece]) -> Result<Observed, Broken> {
        let (control, unit) = &mut self.cpus[cpu];
        let mut places = arrayvec::ArrayVec::new();
        for piece in pieces {
            match unit.translate(&mut self.memory, control, piece.gva, access) {
                Ok(reached) => places.push(reached.at),
                Err(fault) => return Ok(Observed::Fault(fault)),
            }
        }
        for (piece, &place) in
            pieces.iter().zip(&places).filter(|(piece, _)| !piece.bytes.is_empty())
        {
            self.memory.write_bytes(place, &piece.bytes);
        }
        Ok(Observed::Done(places))
    }

    fn execute(
        &mut self,
        cpu: usize,
        _: Privileged,
        after: &Registers,
        invalidation: Invalidation,
    ) -> Result<(), Broken> {
        let (control, unit) = &mut self.cpus[cpu];
        *control = after.control(&self.model);
        invalidation.apply(unit.caches_mut(), control.pcid);
        Ok(())
    }

    fn device_write(&mut self, at: PhysAddr, bytes: &[u8]) -> Result<(), Broken> {
        self.memory.write_bytes(at, bytes);
        Ok(())
    }

    fn speculate(&mut self) {
        for (control, unit) in &mut self.cpus {
            unit.speculate(&mut self.memory, control, self.universe.pages_in(&control.mode));
        }
    }

    fn take_changes(&mut self) -> Result<Vec<Change>, Broken> {
        let journal = self.memory.take_journal();
        let change = |(at, _): (PhysAddr, u64)| Change { at, value: self.memory.read(at) };
        Ok(journal.into_iter().map(change).collect())
    }

    fn count(&self, coverage: &mut Coverage) {
        for (_, unit) in &self.cpus {
            coverage.unit("bare", unit.counters());
        }
    }
}

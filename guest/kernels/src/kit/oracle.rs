//! One access, judged by the walk of `umbra-paging`: its outcome, where it went, and A and D
//! afterwards.
//!
//! The judge knows tables of any shape, as long as they lie in test memory: loops, tables that are
//! their own pages, entries used at several levels at once.

use umbra_paging::{
    Access, AccessKind, Features, Gpa, GuestFault, Gva, Level, Paging, Pfec, Step, bits, walk,
};

use super::access::{self, Fault};
use super::cpu::{self, Cpu};
use super::frames::{Frame, Pool};
use super::report::Report;
use super::space::{self, Memory, Space};
use crate::check;

/// What this machine is known to do otherwise than the manuals say.
#[derive(Clone, Copy, Debug)]
pub struct Quirks {
    /// Reserved-bit faults have P clear in the error code (QEMU's TCG).
    pub reserved_without_present: bool,
    /// What a walk reads where there is no memory: all ones on a PC; zeros in QEMU.
    pub beyond: u64,
}

/// A physical address below MAXPHYADDR where nothing is.
pub const NOWHERE: u64 = 1 << 35;

impl Quirks {
    /// Tries, in the last test slot of `space`.
    pub fn probe(pool: &mut Pool, space: &Space, cpu: &Cpu) -> Quirks {
        let gva = space::slot(255);
        let fault = |pfec: Pfec| Err(Fault::page(pfec.bits().into(), gva.raw()));
        let reserved_without_present = cpu.features.maxphyaddr < 52 && {
            let entry = bits::P | 1 << cpu.features.maxphyaddr;
            space.map(pool, gva, Level::L1, entry);
            cpu::invlpg(gva);
            access::read(gva) == fault(Pfec::RSVD)
        };
        space.map(pool, gva, Level::L2, NOWHERE | crate::entries::TABLE);
        cpu::invlpg(gva);
        let beyond = if access::read(gva) == fault(Pfec::empty()) { 0 } else { u64::MAX };
        space.root().write(gva.index(Level::L4), 0);
        cpu::invlpg(gva);
        Quirks { reserved_without_present, beyond }
    }

    /// The fault as this machine reports it.
    pub fn report(&self, fault: GuestFault) -> Fault {
        let mut pfec = fault.pfec;
        if self.reserved_without_present && pfec.contains(Pfec::RSVD) {
            pfec.remove(Pfec::PRESENT);
        }
        Fault::page(pfec.bits().into(), fault.gva.raw())
    }
}

/// What a judge looks at.
#[derive(Debug)]
pub struct Judge {
    /// The control bits and the root.
    pub paging: Paging,
    /// What the CPU can do.
    pub features: Features,
    /// What the machine does otherwise.
    pub quirks: Quirks,
}

/// What came of a judged access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It went to a page.
    Done,
    /// It faulted, as it must.
    Faulted,
    /// It would leave test memory, and was not done.
    Skipped,
}

impl Judge {
    /// Where in test memory an access goes, or the fault that it raises.
    ///
    /// # Errors
    /// That fault.
    pub fn walk(&self, pool: &Pool, gva: Gva, access: Access) -> Result<Option<Frame>, GuestFault> {
        let memory = Memory { pool, beyond: self.quirks.beyond };
        walk(&memory, &self.paging, &self.features, gva, access)
            .map(|walk| pool.at(walk.gpa().raw()))
    }

    /// Flushes `gva` and judges an access to it: see [`Judge::judge`].
    pub fn flush_and_judge(
        &self,
        pool: &Pool,
        report: &mut Report,
        gva: Gva,
        access: Access,
        value: u64,
    ) -> Judged {
        cpu::invlpg(gva);
        self.judge(pool, report, gva, access, value)
    }

    /// Does one read or write of the word at `gva` (a multiple of 8) and checks everything about
    /// it. The CPU must have nothing cached for `gva` that its tables do not say.
    ///
    /// # Panics
    /// If it is a fetch.
    pub fn judge(
        &self,
        pool: &Pool,
        report: &mut Report,
        gva: Gva,
        access: Access,
        value: u64,
    ) -> Judged {
        assert!(access.kind != AccessKind::Fetch, "a fetch needs code at its end");
        let memory = Memory { pool, beyond: self.quirks.beyond };
        let walked = walk(&memory, &self.paging, &self.features, gva, access);
        let (steps, gpa) = match &walked {
            Err(fault) => {
                let found = access::access(access, gva, value);
                let expected = Err(self.quirks.report(*fault));
                check!(
                    report,
                    found == expected,
                    "{access:?} at {gva:#x}: {found:x?} instead of {expected:x?}"
                );
                return Judged::Faulted;
            }
            Ok(walk) => (walk.steps(), walk.gpa()),
        };
        let Some(page) = pool.at(gpa.raw()) else { return Judged::Skipped };
        // One entry may be used at several levels: it gets the bits of all.
        let updated = |at: Gpa| {
            let used = steps.iter().filter(|step| step.at == at);
            used.fold(None, |so_far: Option<u64>, step| {
                Some(so_far.unwrap_or(0) | step.update(access).unwrap_or(step.entry.raw()))
            })
        };
        let index = gpa.page_offset() as usize / 8;
        let here = updated(gpa).unwrap_or(page.read(index));
        let expected_read = if access.is_write() { 0 } else { here };
        let expected_word = if access.is_write() { value } else { here };
        let words: [Option<(Step, u64)>; 4] = core::array::from_fn(|n| {
            steps.get(n).and_then(|step| Some((*step, updated(step.at)?)))
        });

        let found = access::access(access, gva, value);
        check!(
            report,
            found == Ok(expected_read),
            "{access:?} at {gva:#x}: {found:x?} instead of {expected_read:#x} (to {gpa:#x} through {steps:x?})"
        );
        let word = page.read(index);
        check!(
            report,
            word == expected_word,
            "{access:?} at {gva:#x}: {gpa:#x} holds {word:#x} instead of {expected_word:#x} (through {steps:x?})"
        );
        for (step, expected) in words.into_iter().flatten().filter(|(step, _)| step.at != gpa) {
            let found = memory_word(pool, step.at);
            check!(
                report,
                found == expected,
                "{access:?} at {gva:#x}: the entry at {:#x} is {found:#x} instead of {expected:#x}",
                step.at
            );
        }
        Judged::Done
    }
}

fn memory_word(pool: &Pool, gpa: Gpa) -> u64 {
    pool.at(gpa.raw()).map_or(0, |frame| frame.read(gpa.page_offset() as usize / 8))
}

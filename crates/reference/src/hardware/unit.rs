//! The paging unit of one logical processor.

use fastrand::Rng;
use umbra_paging::{Access, Gva, Pfec};

use super::format::{A, D};
use super::walk::{root, step};
use super::{
    Caches, Control, End, Filter, PagingMode, Start, Translation, Visit, Walk, walk, walk_from,
};
use crate::memory::{PhysAddr, PhysicalMemory};

/// A page fault, as the CPU delivers it or exits with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The error code.
    pub code: Pfec,
    /// CR2.
    pub gva: Gva,
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The address of its first byte.
    pub at: PhysAddr,
}

/// How a paging unit uses the freedom that it has. Fields without another unit are chances in 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Temper {
    /// To use something cached rather than to walk from the root.
    pub cling: u8,
    /// To cache an entry that was met.
    pub fill: u8,
    /// To drop an entry, for each entry and access.
    pub forget: u8,
    /// To set accessed bits on the way to a fault, or where it speculates.
    pub mark: u8,
    /// To keep, when a page fault exits, what one that is delivered invalidates.
    pub keep: u8,
    /// The most addresses that it speculates about between two instructions.
    pub ahead: u8,
}

impl Temper {
    /// Keeps everything and uses it as long as it may.
    pub const STICKY: Temper =
        Temper { cling: 255, fill: 255, forget: 0, mark: 128, keep: 255, ahead: 40 };
    /// Any choice is as likely as the other.
    pub const ERRATIC: Temper =
        Temper { cling: 128, fill: 128, forget: 16, mark: 128, keep: 128, ahead: 12 };
    /// Walks most of the time, with a few old entries to surprise with.
    pub const FORGETFUL: Temper =
        Temper { cling: 32, fill: 64, forget: 64, mark: 32, keep: 0, ahead: 3 };
}

/// What a paging unit did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitCounters {
    /// Accesses served, or refused, by a TLB entry.
    pub from_translation: u64,
    /// Walks begun below a cached paging-structure entry.
    pub from_structure: u64,
    /// Walks begun at the root.
    pub from_root: u64,
    /// Of the cached outcomes, those that a walk from the root would not have given.
    pub stale: u64,
}

/// A paging unit whose caches are as hostile as the SDM allows: a seeded random source decides what
/// is kept, dropped and refilled, and which of several possible entries is used.
///
/// Cached are only entries with P = 1, no reserved bit and A = 1. On the way to a fault, and where
/// it speculates, it may set accessed bits that no access of the guest needs ([`Temper::mark`]).
#[derive(Clone, Debug)]
pub struct PagingUnit {
    caches: Caches,
    random: Rng,
    temper: Temper,
    counters: UnitCounters,
}

/// What an access is decided by.
enum Choice {
    Translation(Translation),
    Structure(Start),
    Root,
}

impl PagingUnit {
    /// A unit with empty caches.
    pub fn new(seed: u64, temper: Temper) -> PagingUnit {
        PagingUnit {
            caches: Caches::default(),
            random: Rng::with_seed(seed),
            temper,
            counters: UnitCounters::default(),
        }
    }

    /// What is cached.
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// The caches, for the operations that invalidate.
    pub fn caches_mut(&mut self) -> &mut Caches {
        &mut self.caches
    }

    /// What the unit did so far.
    pub fn counters(&self) -> UnitCounters {
        self.counters
    }

    fn chance(&mut self, of_256: u8) -> bool {
        of_256 == 255 || self.random.u8(..) < of_256
    }

    /// Translates `gva` for an access within its page, and sets accessed and dirty bits on the way.
    ///
    /// # Errors
    /// The page fault, which has also invalidated what it must.
    pub fn translate(
        &mut self,
        memory: &mut impl PhysicalMemory,
        control: &Control,
        gva: Gva,
        access: Access,
    ) -> Result<Reached, PageFault> {
        self.attempt(memory, control, gva, access, &Filter::NONE)
    }

    /// As [`PagingUnit::translate`], in a guest whose page faults may exit.
    ///
    /// # Errors
    /// The page fault. One that is delivered has invalidated what it must; one that exits may have
    /// left it: not all CPUs do so before a VM exit.
    pub fn attempt(
        &mut self,
        memory: &mut impl PhysicalMemory,
        control: &Control,
        gva: Gva,
        access: Access,
        filter: &Filter,
    ) -> Result<Reached, PageFault> {
        if control.mode == PagingMode::Off {
            return Ok(Reached { at: PhysAddr::new(control.linear(gva).raw()) });
        }
        let temper = self.temper;
        if temper.forget != 0 {
            let random = &mut self.random;
            self.caches.retain(|| random.u8(..) >= temper.forget);
        }
        let choice = self.choose(control, gva, access);
        let before = walk(memory, control, gva);
        let outcome = match choice {
            Choice::Translation(entry) => {
                self.counters.from_translation += 1;
                if entry.page.rights.permit(access, control) {
                    Ok(entry.page.place(gva))
                } else {
                    Err(Pfec::PRESENT)
                }
            }
            Choice::Structure(start) => {
                self.counters.from_structure += 1;
                let found = walk_from(memory, control, gva, start);
                self.finish(memory, control, gva, access, &found)
            }
            Choice::Root => {
                self.counters.from_root += 1;
                self.finish(memory, control, gva, access, &before)
            }
        };
        if outcome != judge(control, gva, access, &before) {
            self.counters.stale += 1;
        }
        match outcome {
            Ok(at) => Ok(Reached { at }),
            Err(cause) => {
                let fault = PageFault { code: cause | control.access_code(access), gva };
                if !filter.exits(fault.code) || !self.chance(temper.keep) {
                    self.caches.page_fault(control.pcid, gva);
                }
                Err(fault)
            }
        }
    }

    fn choose(&mut self, control: &Control, gva: Gva, access: Access) -> Choice {
        if !self.chance(self.temper.cling) {
            return Choice::Root;
        }
        // A write through a translation that is not dirty yet has to set D, hence to find the entry
        // in memory. One that lacks the right may fault without that.
        let usable = |entry: &&Translation| {
            let first_write = access.is_write() && !entry.page.dirty;
            !(first_write && entry.page.rights.permit(access, control))
        };
        let translations = self.caches.translations_for(control.pcid, gva).filter(usable).copied();
        let translations: Vec<Choice> = translations.map(Choice::Translation).collect();
        let structures = self.caches.structures_for(control.pcid, gva);
        let structures: Vec<Choice> =
            structures.map(|entry| Choice::Structure(entry.next)).collect();
        // Each kind has its chance, however many there are of the other.
        let (first, second) = if self.random.bool() {
            (translations, structures)
        } else {
            (structures, translations)
        };
        self.pick(first).or_else(|| self.pick(second)).unwrap_or(Choice::Root)
    }

    fn pick<T>(&mut self, mut from: Vec<T>) -> Option<T> {
        (!from.is_empty()).then(|| from.swap_remove(self.random.usize(..from.len())))
    }

    /// Carries out a walk: updates memory, fills caches.
    fn finish(
        &mut self,
        memory: &mut impl PhysicalMemory,
        control: &Control,
        gva: Gva,
        access: Access,
        found: &Walk,
    ) -> Result<PhysAddr, Pfec> {
        let outcome = judge(control, gva, access, found);
        if outcome.is_err() && !self.chance(self.temper.mark) {
            return outcome;
        }
        for visit in &found.visits {
            let mut wanted = A;
            if outcome.is_ok() && access.is_write() && visit.page().is_some() {
                wanted |= D;
            }
            // Read again: a table that maps itself is visited more than once.
            let (word, wanted) = visit.in_word(wanted);
            if memory.read(word) & wanted != wanted {
                memory.set_bits(word, wanted);
            }
        }
        for visit in &found.visits {
            let marked = Visit { entry: visit.width.read(memory, visit.at), ..*visit };
            self.fill(control, gva, &marked);
        }
        outcome
    }

    /// Caches an entry whose A is set, or does not.
    fn fill(&mut self, control: &Control, gva: Gva, visit: &Visit) {
        if !self.chance(self.temper.fill) {
            return;
        }
        match visit.page() {
            Some(page) => {
                let global = page.global && control.pge;
                self.caches.insert_translation(control.pcid, global, gva, page);
            }
            None => self.caches.insert_structure(control.pcid, gva, visit),
        }
    }

    /// Walks ahead for accesses to some of `pages` that may never come, and caches what it meets:
    /// from the root or from any cached entry, as far as accessed bits are set, or as it sets them.
    pub fn speculate(
        &mut self,
        memory: &mut impl PhysicalMemory,
        control: &Control,
        pages: &[Gva],
    ) {
        if control.mode == PagingMode::Off || pages.is_empty() {
            return;
        }
        for _ in 0..self.random.u8(..=self.temper.ahead) {
            let gva = control.linear(pages[self.random.usize(..pages.len())]);
            self.speculate_about(memory, control, gva);
        }
    }

    fn speculate_about(&mut self, memory: &mut impl PhysicalMemory, control: &Control, gva: Gva) {
        let cached = self.caches.structures_for(control.pcid, gva).map(|entry| entry.next);
        let starts: Vec<Start> = cached.chain(root(control, gva)).collect();
        let mut from = self.pick(starts);
        while let Some(start) = from.take() {
            let Ok(mut visit) = step(memory, control, gva, start) else { return };
            if visit.entry & A == 0 {
                if !self.chance(self.temper.mark / 8) {
                    return;
                }
                let (word, mark) = visit.in_word(A);
                memory.set_bits(word, mark);
                visit.entry |= A;
            }
            self.fill(control, gva, &visit);
            if visit.page().is_none() {
                from = Some(visit.next());
            }
        }
    }
}

/// What a walk means for an access: where it goes, or the part of the error code that says why not.
pub(crate) fn judge(
    control: &Control,
    gva: Gva,
    access: Access,
    found: &Walk,
) -> Result<PhysAddr, Pfec> {
    match found.end {
        End::NotPresent => Err(Pfec::empty()),
        End::Reserved => Err(Pfec::PRESENT | Pfec::RSVD),
        End::Page(page) if page.rights.permit(access, control) => Ok(page.place(gva)),
        End::Page(_) => Err(Pfec::PRESENT),
    }
}

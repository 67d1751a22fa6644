//! Judging a step during which other CPUs got further.
//!
//! The hypervisor carries a step out in pieces: it sets accessed bits, another CPU stores, and then
//! the instruction is executed again. So the step may end as it could at any of the moments in
//! between, and what it has changed up to one of them must be a part of what it may change. Words
//! that another CPU has stored to meanwhile are that CPU's affair.

use std::collections::{BTreeMap, BTreeSet};

use umbra_paging::Access;

use super::allowed::{Bits, describe, join};
use super::possible::Possible;
use super::{Candidate, Change, Observed, Oracle, Piece, drop_faulted, learn};
use crate::hardware::{A, Control, D, PageFault, Width};
use crate::memory::{PhysAddr, PhysicalMemory, overlay};

/// A step that is under way.
#[derive(Clone, Debug)]
pub enum Step {
    /// An access.
    Access(usize, Access, Vec<Piece>),
    /// A write by a device or the hypervisor.
    Write(PhysAddr, Vec<u8>),
    /// Something that changes no memory.
    Nothing,
}

/// A step that is under way, and what it may have come to at the moments so far.
#[derive(Debug)]
pub struct Open {
    step: Step,
    /// By piece.
    allowed: Vec<Vec<Candidate>>,
    may: Bits,
    /// Words that other CPUs have changed.
    touched: BTreeSet<PhysAddr>,
    /// Page faults that could have ended it at an earlier moment, each with what the CPU may have
    /// cached since then. What a fault drops may be cached anew before another CPU stores.
    faulted: Vec<(PageFault, Possible)>,
}

impl Oracle {
    /// A step begins.
    pub fn open(&self, step: Step) -> Open {
        let pieces = if let Step::Access(_, _, pieces) = &step { pieces.len() } else { 0 };
        let mut open = Open {
            step,
            allowed: vec![Vec::new(); pieces],
            may: Bits::new(),
            touched: BTreeSet::new(),
            faulted: Vec::new(),
        };
        self.moment(&mut open);
        open
    }

    /// Another moment at which the step may be decided.
    pub fn moment(&self, open: &mut Open) {
        let Step::Access(cpu, access, pieces) = &open.step else { return };
        for (piece, allowed) in pieces.iter().zip(&mut open.allowed) {
            for candidate in self.candidates(*cpu, piece.gva, *access) {
                join(&mut open.may, candidate.passed.iter().copied());
                join(&mut open.may, candidate.required.iter().copied());
                if !allowed.contains(&candidate) {
                    allowed.push(candidate);
                }
            }
        }
    }

    /// The moment passes, as another CPU gets further: the step may have ended with a page fault.
    pub fn pass(&self, open: &mut Open) {
        let Step::Access(cpu, access, pieces) = &open.step else { return };
        let (control, cached) = &self.cpus[*cpu];
        for piece in pieces {
            for candidate in self.candidates(*cpu, piece.gva, *access) {
                let Err(code) = candidate.result else { continue };
                let fault = PageFault { code, gva: piece.gva };
                if open.faulted.iter().all(|(earlier, _)| *earlier != fault) {
                    let mut possible = cached.clone();
                    drop_faulted(&self.universe, control, &mut possible, piece.gva);
                    open.faulted.push((fault, possible));
                }
            }
        }
        for (_, possible) in &mut open.faulted {
            learn(&self.universe, &self.memory, control, possible);
        }
    }

    /// Another CPU has changed these words.
    pub fn touched(&self, open: &mut Open, changes: &[Change]) {
        open.touched.extend(changes.iter().map(|change| change.at));
    }

    /// The step has changed these words so far.
    ///
    /// # Errors
    /// It may not.
    pub fn partial(&mut self, open: &Open, changes: &[Change]) -> Result<(), String> {
        let none = Bits::new();
        let stores = open.stores();
        for change in changes {
            let fits = |data: &BTreeMap<PhysAddr, (u64, u64)>| {
                self.explain(&none, &open.may, data, std::slice::from_ref(change))
            };
            // Without the store, or with it: part of it, where it goes to two places.
            let of_word =
                |(at, mask, value): (PhysAddr, u64, u64)| BTreeMap::from([(at, (mask, value))]);
            let with = stores.iter().filter(|&&(at, ..)| at == change.at).copied().map(of_word);
            let mut verdicts = std::iter::once(BTreeMap::new()).chain(with).map(|data| fits(&data));
            if !verdicts.clone().any(|verdict| verdict.is_ok()) {
                return verdicts.next().expect("there is one without a store");
            }
        }
        self.adopt(changes);
        Ok(())
    }

    /// The step has ended.
    ///
    /// # Errors
    /// Bare hardware does not allow this.
    pub fn close(
        &mut self,
        open: Open,
        observed: Option<&Observed>,
        changes: &[Change],
    ) -> Result<(), String> {
        self.partial(&open, changes)?;
        // Others may set accessed and dirty bits in what is stored: in both halves of a word, where
        // entries have 4 bytes.
        let short = |(control, _): &(Control, _)| Width::of(control) != Width::Eight;
        let marks = if self.cpus.iter().any(short) { (A | D) << 32 | A | D } else { A | D };
        let lacks = |at: PhysAddr, mask: u64, value: u64| {
            let differs = (self.memory.read(at) ^ value) & mask & !marks != 0;
            !open.touched.contains(&at) && self.memory.contains(at) && differs
        };
        match (&open.step, observed) {
            (Step::Nothing, _) => Ok(()),
            (Step::Write(at, bytes), _) => {
                match overlay(*at, bytes).find(|&(at, mask, value)| lacks(at, mask, value)) {
                    Some((at, ..)) => Err(format!("the write to {at:?} did not take place")),
                    None => Ok(()),
                }
            }
            (Step::Access(_, _, pieces), Some(Observed::Done(places))) => {
                let stored: BTreeSet<PhysAddr> = (pieces.iter().zip(places))
                    .filter(|(piece, _)| !piece.bytes.is_empty())
                    .flat_map(|(piece, &place)| overlay(place, &piece.bytes).map(|(at, ..)| at))
                    .collect();
                for ((piece, candidates), &place) in pieces.iter().zip(&open.allowed).zip(places) {
                    let marked = |&(at, bits): &(PhysAddr, u64)| {
                        let own = open.touched.contains(&at) || stored.contains(&at);
                        own || !self.memory.contains(at) || self.memory.read(at) & bits == bits
                    };
                    let fits = |candidate: &Candidate| {
                        candidate.result == Ok(place) && candidate.required.iter().all(marked)
                    };
                    if !candidates.iter().any(fits) {
                        return Err(describe(&open.allowed));
                    }
                    let data = (!piece.bytes.is_empty()).then(|| overlay(place, &piece.bytes));
                    if let Some((at, ..)) =
                        data.into_iter().flatten().find(|&(at, mask, value)| lacks(at, mask, value))
                    {
                        return Err(format!("the store to {at:?} did not take place"));
                    }
                }
                Ok(())
            }
            (Step::Access(cpu, _, pieces), Some(Observed::Fault(fault))) => {
                let fits = |(piece, candidates): (&Piece, &Vec<Candidate>)| {
                    piece.gva == fault.gva
                        && candidates.iter().any(|candidate| candidate.result == Err(fault.code))
                };
                if !pieces.iter().zip(&open.allowed).any(fits) {
                    return Err(describe(&open.allowed));
                }
                match open.faulted.into_iter().find(|(earlier, _)| earlier == fault) {
                    Some((_, possible)) => {
                        self.cpus[*cpu].1 = possible;
                        self.learn();
                    }
                    None => self.faulted(*cpu, fault.gva),
                }
                Ok(())
            }
            (Step::Access(..), None) => Err("the access did not end".to_owned()),
        }
    }
}

impl Open {
    /// The words that the step may store to, with what it stores.
    fn stores(&self) -> Vec<(PhysAddr, u64, u64)> {
        match &self.step {
            Step::Nothing => Vec::new(),
            Step::Write(_, bytes) if bytes.is_empty() => Vec::new(),
            Step::Write(at, bytes) => overlay(*at, bytes).collect(),
            Step::Access(_, _, pieces) => {
                let written =
                    pieces.iter().zip(&self.allowed).filter(|(piece, _)| !piece.bytes.is_empty());
                let of = |(piece, candidates): (&Piece, &Vec<Candidate>)| -> Vec<_> {
                    let places = candidates.iter().filter_map(|candidate| candidate.result.ok());
                    places
                        .flat_map(|place| overlay(place, &piece.bytes).collect::<Vec<_>>())
                        .collect()
                };
                written.flat_map(of).collect()
            }
        }
    }
}

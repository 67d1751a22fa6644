//! The outcomes of one access that bare hardware allows.

use std::collections::{BTreeMap, BTreeSet};

use arrayvec::ArrayVec;
use umbra_paging::{Access, Gva, Pfec};

use super::{Change, Oracle};
use crate::hardware::{
    A, D, Page, PageFault, PagingMode, Start, Walk, Width, judge, root, step_at, walk, walk_from,
};
use crate::memory::{PhysAddr, PhysicalMemory, Ram, overlay};

/// The part of an access that lies in one page. Accesses across a page boundary have two.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where it begins.
    pub gva: Gva,
    /// The bytes that it writes: empty unless the access is a write.
    pub bytes: ArrayVec<u8, 8>,
}

/// What a guest sees of an access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It took place, and its pieces went there (guest-physical).
    Done(ArrayVec<PhysAddr, 2>),
    /// It raised a page fault, and nothing was written.
    Fault(PageFault),
}

/// One way in which hardware may decide the access to a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it goes, or the whole error code.
    pub result: Result<PhysAddr, Pfec>,
    /// Accessed and dirty bits that are set then, and no less.
    pub required: ArrayVec<(PhysAddr, u64), 4>,
    /// Accessed bits that may be set by the way: of the entries that a walk goes through before it
    /// faults.
    pub passed: ArrayVec<(PhysAddr, u64), 4>,
}

/// Bits of words that are set, or may be.
pub(super) type Bits = BTreeMap<PhysAddr, u64>;

pub(super) fn join(bits: &mut Bits, more: impl IntoIterator<Item = (PhysAddr, u64)>) {
    for (at, set) in more {
        *bits.entry(at).or_default() |= set;
    }
}

impl Oracle {
    /// All ways in which `cpu` may decide an access to `gva`. The first is a walk from the root.
    ///
    /// # Panics
    /// If paging is on and `gva` is not in the oracle's universe.
    pub fn candidates(&self, cpu: usize, gva: Gva, access: Access) -> Vec<Candidate> {
        let (control, possible) = &self.cpus[cpu];
        if control.mode == PagingMode::Off {
            let result = Ok(PhysAddr::new(gva.raw() & 0xffff_ffff));
            return vec![Candidate { result, required: ArrayVec::new(), passed: ArrayVec::new() }];
        }
        let tree = self.universe.tree(&control.mode);
        let path = tree.path(gva).expect("the oracle is asked about addresses of its universe");
        let full = |cause| cause | control.access_code(access);
        let by_walk = |found: Walk| {
            let result = judge(control, gva, access, &found).map_err(full);
            let mut required = ArrayVec::new();
            for visit in found.visits.iter().filter(|_| result.is_ok()) {
                let dirty = access.is_write() && visit.page().is_some();
                required.push(visit.in_word(if dirty { A | D } else { A }));
            }
            Candidate {
                result,
                required,
                passed: found.visits.iter().map(|visit| visit.in_word(A)).collect(),
            }
        };
        let by_translation = |page: &Page| {
            let result = match page.rights.permit(access, control) {
                // D must be set in memory first, so this translation cannot serve alone.
                true if access.is_write() && !page.dirty => return None,
                true => Ok(page.place(gva)),
                false => Err(full(Pfec::PRESENT)),
            };
            Some(Candidate { result, required: ArrayVec::new(), passed: ArrayVec::new() })
        };
        let mut candidates = vec![by_walk(walk(&self.memory, control, gva))];
        let below = possible.structures(control.pcid, path);
        let below = below.map(|&start| by_walk(walk_from(&self.memory, control, gva, start)));
        let cached = possible.translations(control.pcid, path).filter_map(by_translation);
        for candidate in below.chain(cached) {
            if !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        }
        candidates
    }

    /// Judges an access: what was observed and every word of guest memory that changed. On
    /// agreement the oracle goes on with the machine's choice.
    ///
    /// # Errors
    /// Bare hardware does not allow this. The text says what it allows.
    pub fn judge_access(
        &mut self,
        cpu: usize,
        access: Access,
        pieces: &[Piece],
        observed: &Observed,
        changes: &[Change],
    ) -> Result<(), String> {
        let allowed: Vec<Vec<Candidate>> =
            pieces.iter().map(|piece| self.candidates(cpu, piece.gva, access)).collect();
        let mut may = Bits::new();
        for candidate in allowed.iter().flatten() {
            join(&mut may, candidate.passed.iter().copied());
        }
        // Each way to choose one candidate per piece that explains the observation: the bits it
        // requires.
        let mut explanations: Vec<Bits> = Vec::new();
        match observed {
            Observed::Done(places) => {
                explanations.push(Bits::new());
                for (candidates, &place) in allowed.iter().zip(places) {
                    let fits = candidates.iter().filter(|candidate| candidate.result == Ok(place));
                    explanations = fits
                        .flat_map(|candidate| {
                            explanations.iter().map(|bits| {
                                let mut bits = bits.clone();
                                join(&mut bits, candidate.required.iter().copied());
                                bits
                            })
                        })
                        .collect();
                }
            }
            Observed::Fault(fault) => {
                for (piece, candidates) in pieces.iter().zip(&allowed) {
                    let fits = |candidate: &Candidate| candidate.result == Err(fault.code);
                    if piece.gva == fault.gva && candidates.iter().any(fits) {
                        explanations.push(Bits::new());
                    } else {
                        // The other piece may have got as far as setting its dirty bit.
                        join(
                            &mut may,
                            candidates.iter().flat_map(|other| other.required.iter().copied()),
                        );
                    }
                }
            }
        }
        if explanations.is_empty() {
            return Err(describe(&allowed));
        }
        let mut data = BTreeMap::new();
        if let Observed::Done(places) = observed {
            for (piece, &place) in
                pieces.iter().zip(places).filter(|(piece, _)| !piece.bytes.is_empty())
            {
                data.extend(
                    overlay(place, &piece.bytes).map(|(at, mask, value)| (at, (mask, value))),
                );
            }
        }
        let mut refusal = String::new();
        let fits = |must: &&Bits| match self.explain(must, &may, &data, changes) {
            Ok(()) => true,
            Err(why) => {
                refusal = why;
                false
            }
        };
        let Some(must) = explanations.iter().find(fits) else { return Err(refusal) };
        // Between the walk and the store a CPU may cache entries with their new accessed and dirty
        // bits. (Also where the store leaves these bits alone and changes others of the same
        // entry.)
        for &at in data.keys() {
            let bits = must.get(&at).unwrap_or(&0) | may.get(&at).unwrap_or(&0);
            if self.memory.contains(at) && bits != 0 {
                self.memory.set_bits(at, bits);
            }
        }
        for change in changes.iter().filter(|change| !data.contains_key(&change.at)) {
            self.memory.write(change.at, change.value);
        }
        self.learn();
        self.adopt(changes);
        if let Observed::Fault(fault) = observed {
            self.faulted(cpu, fault.gva);
        }
        Ok(())
    }

    /// Judges a write by a device or the hypervisor, or (with no bytes) something that changes no
    /// memory.
    ///
    /// # Errors
    /// Memory is not what it must be.
    pub fn judge_write(
        &mut self,
        at: PhysAddr,
        bytes: &[u8],
        changes: &[Change],
    ) -> Result<(), String> {
        let mut data = BTreeMap::new();
        if !bytes.is_empty() {
            data.extend(overlay(at, bytes).map(|(at, mask, value)| (at, (mask, value))));
        }
        self.explain(&Bits::new(), &Bits::new(), &data, changes)?;
        self.adopt(changes);
        Ok(())
    }

    pub(super) fn adopt(&mut self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        for change in changes {
            self.memory.write(change.at, change.value);
        }
        self.memory.take_journal();
        self.learn();
    }

    /// Whether memory is what it was, with the bits in `must` and perhaps some in `may`, then with
    /// `data`.
    pub(super) fn explain(
        &self,
        must: &Bits,
        may: &Bits,
        data: &BTreeMap<PhysAddr, (u64, u64)>,
        changes: &[Change],
    ) -> Result<(), String> {
        let changed: BTreeMap<PhysAddr, u64> =
            changes.iter().map(|change| (change.at, change.value)).collect();
        let words = changed.keys().chain(must.keys()).chain(data.keys());
        let mut ahead = None;
        for &at in words.filter(|&&at| self.memory.contains(at)) {
            let old = self.memory.read(at);
            let now = changed.get(&at).copied().unwrap_or(old);
            let (mask, value) = data.get(&at).copied().unwrap_or((0, 0));
            let least = old | must.get(&at).unwrap_or(&0);
            let most = least | may.get(&at).unwrap_or(&0);
            let (least, most) = (least & !mask | value, most & !mask | value);
            let more = now & !most;
            if now & least == least && more != 0 && more & !(A | A << 32) == 0 {
                // Words without a change are not looked at, so few are: see `speculation_marks`.
                let marked = ahead.get_or_insert_with(|| self.speculation_marks(&changed));
                if marked.get(&at).is_some_and(|bits| more & !bits == 0) {
                    continue;
                }
            }
            if now & least != least || now & !most != 0 {
                return Err(format!(
                    "the word at {at:?} was {old:#x} and is {now:#x}: bare hardware leaves {least:#x}{}",
                    if least == most { String::new() } else { format!(" to {most:#x}") }
                ));
            }
        }
        Ok(())
    }
}

/// Memory with some words changed.
struct Changed<'a> {
    memory: &'a Ram,
    words: &'a BTreeMap<PhysAddr, u64>,
}

impl PhysicalMemory for Changed<'_> {
    fn read(&self, at: PhysAddr) -> u64 {
        self.words.get(&at).copied().unwrap_or_else(|| self.memory.read(at))
    }

    fn set_bits(&mut self, _: PhysAddr, _: u64) {
        unreachable!("it is only looked at");
    }
}

impl Oracle {
    /// The entries in which a CPU may set A though no access of the program goes through them:
    /// those on the way to any address that it might speculate about (SDM, "Accessed and Dirty
    /// Flags" and "Details of TLB Use"). The way goes on below an entry only if its own A is set,
    /// for the CPU sets the flags from the root down. D is set by writes alone.
    fn speculation_marks(&self, changed: &BTreeMap<PhysAddr, u64>) -> Bits {
        let memory = Changed { memory: &self.memory, words: changed };
        let mut marks = Bits::new();
        for (control, possible) in
            self.cpus.iter().filter(|(control, _)| control.mode != PagingMode::Off)
        {
            let width = Width::of(control);
            // Those of PAE paging are one for each GiB.
            let mut starts: Vec<Start> =
                (0..4).filter_map(|n| root(control, Gva::new(n << 30))).collect();
            starts.extend(possible.all_structures(control.pcid));
            let mut seen = BTreeSet::new();
            while let Some(start) = starts.pop() {
                if !seen.insert((start.table, start.level)) {
                    continue;
                }
                let entries = 0..width.entries();
                for visit in
                    entries.filter_map(|index| step_at(&memory, control, index, start).ok())
                {
                    join(&mut marks, [visit.in_word(A)]);
                    if visit.entry & A != 0 && visit.page().is_none() {
                        starts.push(visit.next());
                    }
                }
            }
        }
        marks
    }
}

pub(super) fn describe(allowed: &[Vec<Candidate>]) -> String {
    let mut text = String::from("bare hardware allows");
    for (piece, candidates) in allowed.iter().enumerate() {
        let mut results: Vec<String> = Vec::new();
        for candidate in candidates {
            let result = match candidate.result {
                Ok(at) => format!("{at:?}"),
                Err(code) => format!("#PF({:#x})", code.bits()),
            };
            if !results.contains(&result) {
                results.push(result);
            }
        }
        let joined = results.join(", ");
        text += &if piece == 0 { format!(" {joined}") } else { format!("; then {joined}") };
    }
    text
}

//! The CR3-target values of a CPU: what MOV to CR3 loads without an exit (SDM, "Instructions That
//! Cause VM Exits Conditionally").

use fastrand::Rng;
use umbra_paging::{Cr3Value, Gfn};

use crate::registers::Registers;

/// The operand as it counts with these registers: the PCID and bit 63 only while CR4.PCIDE is set.
pub(super) fn operand(registers: &Registers, root: Gfn, pcid: u16, no_flush: bool) -> Cr3Value {
    let pcide = registers.pcide;
    Cr3Value { root, pcid: if pcide { pcid } else { 0 }, no_flush: pcide && no_flush }
}

#[derive(Clone, Debug)]
pub(super) struct Targets {
    values: Vec<Cr3Value>,
    room: usize,
    /// The root that was loaded last under each PCID; `None` if it may have been one of several,
    /// without an exit.
    last: Vec<(u16, Option<Gfn>)>,
}

impl Targets {
    pub(super) fn new(room: usize) -> Targets {
        Targets { values: Vec::new(), room, last: Vec::new() }
    }

    pub(super) fn contains(&self, value: Cr3Value) -> bool {
        self.values.contains(&value)
    }

    /// What is listed.
    pub(super) fn values(&self) -> &[Cr3Value] {
        &self.values
    }

    pub(super) fn has_root(&self, root: Gfn) -> bool {
        self.values.iter().any(|value| value.root == root)
    }

    pub(super) fn retain(&mut self, keep: impl Fn(Gfn) -> bool) {
        self.values.retain(|value| keep(value.root));
    }

    pub(super) fn insert(&mut self, value: Cr3Value) {
        if !self.contains(value) {
            self.values.push(value);
        }
    }

    /// Takes a value out if the list is full, or by chance: its root.
    pub(super) fn make_room(&mut self, random: &mut Rng) -> Option<Gfn> {
        if self.values.is_empty() || (self.values.len() < self.room && random.u8(..8) != 0) {
            return None;
        }
        Some(self.values.swap_remove(random.usize(..self.values.len())).root)
    }

    /// Lists a value that was not loaded, unless it keeps what its PCID holds and that may be of
    /// another root. What the PCID holds is not known any more. Says whether its root is listed.
    pub(super) fn expect(&mut self, value: Cr3Value) -> bool {
        let last = self.last.iter().find(|(pcid, _)| *pcid == value.pcid);
        let own = last.is_some_and(|&(_, root)| root == Some(value.root));
        if value.no_flush && !own {
            return self.has_root(value.root);
        }
        self.mixes(value);
        if !own {
            self.last.retain(|(pcid, _)| *pcid != value.pcid);
        }
        self.insert(value);
        true
    }

    /// Notes an exit that loads a value, and says whether what the PCID may have cached is of
    /// another root. Listed values of another root under the same PCID must go if one of the two
    /// keeps translations: the CPU would load one after the other without telling.
    pub(super) fn mixes(&mut self, value: Cr3Value) -> bool {
        self.values.retain(|other| {
            let foreign = other.pcid == value.pcid && other.root != value.root;
            !foreign || !(other.no_flush || value.no_flush)
        });
        // Where values of other roots stay listed, each flushes; but then which was the last is not
        // seen.
        let alone =
            self.values.iter().all(|other| other.pcid != value.pcid || other.root == value.root);
        let new = alone.then_some(value.root);
        match self.last.iter_mut().find(|(pcid, _)| *pcid == value.pcid) {
            Some((_, root)) => std::mem::replace(root, new) != Some(value.root),
            None => {
                self.last.push((value.pcid, new));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn value(root: u64, pcid: u16, no_flush: bool) -> Cr3Value {
        Cr3Value { root: Gfn::new(root), pcid, no_flush }
    }

    /// An exit that loads the value, and lists it.
    fn load(targets: &mut Targets, value: Cr3Value) -> bool {
        let mixes = targets.mixes(value);
        targets.insert(value);
        mixes
    }

    #[test]
    fn a_value_passes_as_a_whole() {
        let mut targets = Targets::new(4);
        load(&mut targets, value(7, 1, false));
        for other in [value(7, 1, true), value(7, 2, false), value(8, 1, false)] {
            assert!(targets.contains(value(7, 1, false)) && !targets.contains(other), "{other:?}");
        }
        targets.retain(|root| root != Gfn::new(7));
        assert!(!targets.contains(value(7, 1, false)) && !targets.has_root(Gfn::new(7)));
    }

    #[test]
    fn what_is_kept_of_another_root_is_noticed() {
        let mut targets = Targets::new(4);
        assert!(load(&mut targets, value(7, 1, true)), "nothing is known of the PCID yet");
        assert!(!load(&mut targets, value(7, 1, true)));
        assert!(!load(&mut targets, value(7, 1, false)));
        assert!(load(&mut targets, value(9, 2, false)), "another PCID");
        // Both would be loaded without an exit, one with what is cached of the other.
        assert!(load(&mut targets, value(8, 1, false)));
        assert!(!targets.contains(value(7, 1, true)) && targets.contains(value(7, 1, false)));
        assert!(targets.contains(value(9, 2, false)));
        assert!(load(&mut targets, value(7, 1, true)));
        assert!(!targets.has_root(Gfn::new(8)));
    }

    #[test]
    fn loads_that_nobody_sees_count() {
        let mut targets = Targets::new(4);
        load(&mut targets, value(7, 1, false));
        load(&mut targets, value(8, 1, false));
        assert!(targets.contains(value(7, 1, false)) && targets.contains(value(8, 1, false)));
        // Root 7 may have been loaded since, by itself.
        assert!(load(&mut targets, value(8, 1, true)), "the last to be seen was 8");
        assert!(!load(&mut targets, value(8, 1, true)), "and now it was the last");
        // Also if it is not on the list any more.
        load(&mut targets, value(7, 1, false));
        load(&mut targets, value(8, 1, false));
        targets.retain(|root| root != Gfn::new(7));
        assert!(load(&mut targets, value(8, 1, true)));
    }

    #[test]
    fn room_is_made_in_a_full_list() {
        let (mut targets, mut random) = (Targets::new(2), Rng::with_seed(1));
        assert_eq!(targets.make_room(&mut random), None);
        load(&mut targets, value(7, 1, false));
        load(&mut targets, value(7, 2, false));
        let gone = (0..2).map_while(|_| targets.make_room(&mut random)).count();
        assert!(gone >= 1 && targets.values.len() < 2);
    }
}

//! The CR3-target values of a CPU: what MOV to CR3 loads without an exit (SDM, "Instructions That Cause VM Exits
//! Conditionally").

use fastrand::Rng;
use umbra_paging::Gfn;

/// An operand of MOV to CR3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) root: Gfn,
    pub(super) pcid: u16,
    /// Bit 63.
    pub(super) no_flush: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Targets {
    values: Vec<Target>,
    room: usize,
    /// The root that was loaded last under each PCID.
    last: Vec<(u16, Gfn)>,
}

impl Targets {
    pub(super) fn new(room: usize) -> Targets {
        Targets { values: Vec::new(), room, last: Vec::new() }
    }

    pub(super) fn contains(&self, value: Target) -> bool {
        self.values.contains(&value)
    }

    pub(super) fn has_root(&self, root: Gfn) -> bool {
        self.values.iter().any(|value| value.root == root)
    }

    pub(super) fn retain(&mut self, keep: impl Fn(Gfn) -> bool) {
        self.values.retain(|value| keep(value.root));
    }

    pub(super) fn insert(&mut self, value: Target) {
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

    /// Notes an exit that loads a value, and says whether what the PCID may have cached is of another root. Listed
    /// values of another root under the same PCID must go if one of the two keeps translations: the CPU would load one
    /// after the other without telling.
    pub(super) fn mixes(&mut self, value: Target) -> bool {
        // One that is listed may have been loaded without an exit since the root was noted.
        let mut unseen = false;
        self.values.retain(|other| {
            let foreign = other.pcid == value.pcid && other.root != value.root;
            unseen |= foreign;
            !foreign || !(other.no_flush || value.no_flush)
        });
        let before = match self.last.iter_mut().find(|(pcid, _)| *pcid == value.pcid) {
            Some((_, root)) => Some(std::mem::replace(root, value.root)),
            None => {
                self.last.push((value.pcid, value.root));
                None
            }
        };
        before != Some(value.root) || unseen
    }
}

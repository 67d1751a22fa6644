//! The values of CR3 that the guest may load without an exit: a small list, kept up to date by
//! hand.
//!
//! A value passes as a whole: root, PCID and bit 63 (keep the PCID's translations). Loads of listed
//! values do not exit. Umbra sees only loads of unlisted values, and CR3 at each exit. So each
//! value has a score. It rises when the value had to be listed (anew) and when the guest is seen
//! under it, and falls with time; the lowest gives way.

use umbra_paging::Cr3Value;

/// Bit 63 of the operand of MOV to CR3: keep the PCID's translations.
pub const NO_FLUSH: u64 = Cr3Value::NO_FLUSH;
/// With page-table isolation Linux has two roots for each process, in neighbouring frames: the
/// upper one is for user mode.
const SIBLING: u64 = 0x1000;
const PCID: u64 = Cr3Value::PCID;

/// As many as a CPU has (SDM, "CR3-Target Controls").
const MAX: usize = 4;
/// Values that are remembered with their score when they are not listed.
const KNOWN: usize = 16;
/// PCIDs of which it is remembered whose translations they hold: direct-mapped.
const PCIDS: usize = 32;

/// What a value starts with, what it gains by being missed again, and by being seen.
const NEW: u32 = 16;
const MISSED: u32 = 128;
const SEEN: u32 = 1;
const TOP: u32 = 1 << 16;

/// Evidence that the guest has siblings: what one pair of loads counts; as much and no more is
/// remembered. Each sibling that was listed ahead counts one, for or against.
const PAIR: u8 = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Value {
    /// Zero: none. (No root lies in the frame at 0 with PCID 0: that one is not listed.)
    raw: u64,
    score: u32,
    listed: bool,
    /// Its root is loadable, for all that is known here.
    offered: bool,
    /// It was listed ahead, and the guest was not seen under it since.
    expected: bool,
}

/// The list of one vCPU.
#[derive(Debug)]
pub struct Targets {
    known: [Value; KNOWN],
    room: usize,
    /// By PCID: (PCID + 1, root) of what was loaded last; none if it may have been one of several,
    /// without an exit.
    owners: [(u64, u64); PCIDS],
    /// Evidence that the guest has siblings.
    siblings: u8,
}

/// The root that a value names: its address.
pub fn root(value: u64) -> u64 {
    Cr3Value::new(value).root.base().raw()
}

impl Targets {
    /// An empty list with room for so many values.
    pub fn new(room: usize) -> Targets {
        Targets {
            known: [Value::default(); KNOWN],
            room: room.min(MAX),
            owners: [(0, 0); PCIDS],
            siblings: 0,
        }
    }

    /// Whether anything can be listed at all.
    pub fn has_room(&self) -> bool {
        self.room > 0
    }

    /// The listed values.
    pub fn listed(&self) -> impl Iterator<Item = u64> + '_ {
        self.known.iter().filter(|value| value.listed).map(|value| value.raw)
    }

    /// Takes values off the list whose root is not `loadable` any more.
    pub fn retain(&mut self, loadable: impl Fn(u64) -> bool) {
        for value in self.known.iter_mut().filter(|value| value.listed) {
            value.listed = loadable(root(value.raw));
            value.offered = value.listed;
            if !value.listed && core::mem::take(&mut value.expected) {
                self.siblings = self.siblings.saturating_sub(1);
            }
        }
    }

    /// A sibling could not be listed ahead.
    pub fn refused(&mut self) {
        self.siblings = self.siblings.saturating_sub(1);
    }

    /// The guest was seen under this value of CR3 (without bit 63).
    pub fn seen(&mut self, cr3: u64) {
        let same = |value: &&mut Value| value.raw & !NO_FLUSH == cr3;
        for value in self.known.iter_mut().filter(same) {
            value.score = (value.score + SEEN).min(TOP);
            if core::mem::take(&mut value.expected) {
                self.siblings = (self.siblings + 1).min(PAIR);
            }
        }
    }

    /// Notes an exit that loads `value`, and says whether what its PCID holds may be of another
    /// root. Listed values of another root under the same PCID go if one of the two keeps
    /// translations: the CPU would load one after the other without telling.
    pub fn mixes(&mut self, value: u64) -> bool {
        let pcid = value & PCID;
        for other in self.known.iter_mut().filter(|other| other.listed) {
            let foreign = other.raw & PCID == pcid && root(other.raw) != root(value);
            other.listed = !foreign || (other.raw | value) & NO_FLUSH == 0;
        }
        // Where values of other roots stay listed, each flushes; but then which was the last is not
        // seen.
        let alone = self.listed().all(|other| other & PCID != pcid || root(other) == root(value));
        let owner = &mut self.owners[(pcid ^ pcid >> 7) as usize % PCIDS];
        let new = (pcid + 1, root(value));
        core::mem::replace(owner, if alone { new } else { (0, 0) }) != new
    }

    /// Whether this value is listed.
    pub fn contains(&self, value: u64) -> bool {
        self.listed().any(|listed| listed == value)
    }

    /// A root that was listed and of which no value is any more; each is told once.
    pub fn take_unlisted_root(&mut self) -> Option<u64> {
        while let Some(value) = self.known.iter_mut().find(|value| value.offered && !value.listed) {
            value.offered = false;
            if core::mem::take(&mut value.expected) {
                self.siblings = self.siblings.saturating_sub(1);
            }
            let gone = root(value.raw);
            if !self.listed().any(|value| root(value) == gone) {
                return Some(gone);
            }
        }
        None
    }

    /// Notes that CR3 was `before` when the guest exited to load `value`.
    pub fn follows(&mut self, before: u64, value: u64) {
        if before ^ value == SIBLING {
            self.siblings = PAIR;
        }
    }

    /// What the guest is likely to load next that runs on `own` now, if it is not listed: to be
    /// listed with its root, it will be loaded without an exit. (With PCIDs it has several values,
    /// and which of them is next is not known.)
    pub fn pti_sibling(&self, own: u64) -> Option<u64> {
        let lower = own & (PCID | NO_FLUSH | SIBLING) == 0;
        let sibling = own | SIBLING;
        let likely = self.siblings > 0 && lower && self.room > 1;
        (likely && self.contains(own) && !self.contains(sibling)).then_some(sibling)
    }

    /// Lists a value that the guest has not loaded. Before room is made for it, [`Targets::mixes`]
    /// must know of it: with another root listed for the same PCID it is not known any more which
    /// it holds.
    pub fn expect(&mut self, value: u64) {
        let at = self.place(value);
        let score = self.known[at].score.max(NEW);
        self.known[at] = Value { raw: value, score, listed: true, offered: true, expected: true };
    }

    /// Finds room for one more beside `kept`; the value that has to go for it, if one has.
    pub fn make_room(&mut self, kept: Option<u64>) -> Option<u64> {
        if self.listed().count() < self.room {
            return None;
        }
        let may_go = self.known.iter_mut().filter(|value| value.listed && Some(value.raw) != kept);
        let lowest = may_go.min_by_key(|value| value.score)?;
        lowest.listed = false;
        Some(lowest.raw)
    }

    /// Lists a value that the guest had to exit for.
    pub fn insert(&mut self, value: u64) {
        self.known.iter_mut().for_each(|known| known.score -= known.score.div_ceil(16));
        let at = self.place(value);
        let known = &mut self.known[at];
        let again = known.raw == value;
        let score = if again { (known.score + MISSED).min(TOP) } else { NEW };
        let there = value != 0;
        *known = Value { raw: value, score, listed: there, offered: there, expected: false };
    }

    /// The place of `value`: where it is known, or in that of the worst that is not listed.
    fn place(&mut self, value: u64) -> usize {
        self.known.iter().position(|known| known.raw == value).unwrap_or_else(|| {
            let worst = self.known.iter().enumerate().filter(|(_, known)| !known.listed);
            let (at, _) =
                worst.min_by_key(|(_, known)| known.score).expect("more are known than listed");
            self.known[at] = Value::default();
            at
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn list(targets: &mut Targets, value: u64) -> Option<u64> {
        let gone = targets.make_room(None);
        targets.insert(value);
        gone
    }

    /// How many of these loads exit.
    fn misses(targets: &mut Targets, loads: impl Iterator<Item = u64>) -> usize {
        let mut misses = 0;
        for value in loads {
            if !targets.listed().any(|listed| listed == value) {
                misses += 1;
                list(targets, value);
            }
        }
        misses
    }

    #[test]
    fn what_fits_is_missed_once() {
        let mut targets = Targets::new(4);
        let loads = [0x1000, 0x2000, 0x3000 | NO_FLUSH, 0x3000].repeat(100);
        assert_eq!(misses(&mut targets, loads.into_iter()), 4);
        assert_eq!(targets.listed().count(), 4);
    }

    #[test]
    fn two_hot_values_stay_while_others_come_and_go() {
        let mut targets = Targets::new(4);
        let loads = (0..100u64)
            .flat_map(|n| [0x1000, 0x2000, 0x10_0000 + 0x2000 * n, 0x10_1000 + 0x2000 * n]);
        let mut hot = 0;
        for value in loads {
            let listed = targets.listed().any(|listed| listed == value);
            if !listed {
                hot += usize::from(value < 0x10_0000);
                list(&mut targets, value);
            }
            targets.seen(value);
        }
        assert!(hot <= 20, "{hot}");
    }

    #[test]
    fn a_root_is_told_with_its_last_value() {
        let mut targets = Targets::new(2);
        list(&mut targets, 0x1001);
        list(&mut targets, 0x1002);
        let gone: Vec<_> = [0x2001, 0x3001]
            .into_iter()
            .map(|value| {
                list(&mut targets, value);
                (0..50).for_each(|_| targets.seen(value));
                [(); 2].map(|()| targets.take_unlisted_root())
            })
            .collect();
        assert_eq!(gone, [[None; 2], [Some(0x1000), None]]);
        targets.retain(|root| root != 0x2000);
        assert_eq!(targets.take_unlisted_root(), None, "the MMU has withdrawn it");
    }

    #[test]
    fn roots_that_are_not_loadable_any_more_go() {
        let mut targets = Targets::new(4);
        [0x1001, 0x1002, 0x2001].into_iter().for_each(|value| {
            list(&mut targets, value);
        });
        targets.retain(|root| root != 0x1000);
        assert_eq!(targets.listed().collect::<Vec<_>>(), [0x2001]);
    }

    #[test]
    fn a_pcid_that_is_kept_holds_translations_of_one_root() {
        let mut targets = Targets::new(4);
        assert!(targets.mixes(0x1001 | NO_FLUSH), "nothing is known of the PCID");
        list(&mut targets, 0x1001 | NO_FLUSH);
        assert!(!targets.mixes(0x1001));
        assert!(targets.mixes(0x2001));
        assert_eq!(targets.listed().count(), 0, "the other root's value is off the list");
        list(&mut targets, 0x2001);
        targets.mixes(0x3001);
        assert_eq!(targets.listed().count(), 1, "both flush");
        assert!(targets.mixes(0x1001));
    }

    #[test]
    fn the_pti_sibling_is_expected_once_siblings_were_seen() {
        let mut targets = Targets::new(4);
        list(&mut targets, 0x2000);
        assert_eq!(targets.pti_sibling(0x2000), None, "no siblings were seen");
        targets.follows(0x2000, 0x4000);
        targets.follows(0x2000, 0x3001);
        assert_eq!(targets.pti_sibling(0x2000), None);
        targets.follows(0x2000, 0x3000);
        assert_eq!(targets.pti_sibling(0x2000), Some(0x3000));
        for other in [0x3000, 0x4000, 0x2001, 0x2000 | NO_FLUSH] {
            assert_eq!(targets.pti_sibling(other), None, "{other:#x}");
        }
        targets.mixes(0x3000);
        targets.expect(0x3000);
        assert_eq!(targets.pti_sibling(0x2000), None, "it is listed");
        assert_eq!(targets.listed().collect::<Vec<_>>(), [0x2000, 0x3000]);
        // The guest may have loaded it without an exit.
        assert!(targets.mixes(0x2000));
    }

    /// Processes come and go, each with a sibling that the guest is seen to use or not: how many
    /// were expected.
    fn expected(used: impl Fn(u64) -> bool) -> usize {
        let mut targets = Targets::new(4);
        targets.follows(0x2000, 0x3000);
        (1..100u64)
            .filter(|n| {
                let own = n * 0x10_0000;
                list(&mut targets, own);
                while targets.take_unlisted_root().is_some() {}
                let sibling = targets.pti_sibling(own);
                if let Some(sibling) = sibling {
                    targets.make_room(Some(own));
                    while targets.take_unlisted_root().is_some() {}
                    targets.expect(sibling);
                    if used(*n) {
                        targets.seen(sibling);
                    }
                }
                sibling.is_some()
            })
            .count()
    }

    #[test]
    fn neighbours_that_were_loaded_by_chance_are_forgotten() {
        assert!(expected(|_| false) <= usize::from(PAIR) + 4);
        assert_eq!(expected(|_| true), 99);
        assert!(expected(|n| n % 2 == 0) > 80);
    }

    #[test]
    fn what_is_kept_does_not_give_way() {
        let mut targets = Targets::new(2);
        [0x2000, 0x4000].into_iter().for_each(|value| targets.insert(value));
        (0..50).for_each(|_| targets.seen(0x2000));
        assert_eq!(targets.make_room(Some(0x4000)), Some(0x2000));
        let mut targets = Targets::new(1);
        targets.insert(0x2000);
        targets.follows(0x2000, 0x3000);
        assert_eq!((targets.pti_sibling(0x2000), targets.make_room(Some(0x2000))), (None, None));
    }

    #[test]
    fn loads_that_nobody_sees_count() {
        let mut targets = Targets::new(4);
        for value in [0x1001, 0x2001] {
            targets.mixes(value);
            list(&mut targets, value);
        }
        assert_eq!(targets.listed().count(), 2);
        // The guest loads the first again, without an exit; then the second, and keeps what the
        // PCID holds.
        assert!(targets.mixes(0x2001 | NO_FLUSH));
        assert_eq!(targets.listed().collect::<Vec<_>>(), [0x2001]);
        assert!(!targets.mixes(0x2001 | NO_FLUSH));
        // Also if the first is not on the list any more by then.
        for value in [0x1001, 0x2001] {
            targets.mixes(value);
            list(&mut targets, value);
        }
        targets.retain(|root| root != 0x1000);
        assert!(targets.mixes(0x2001 | NO_FLUSH));
    }

    #[test]
    fn values_that_go_leave_roots_to_withdraw() {
        let mut targets = Targets::new(4);
        for value in [0x1001, 0x1002, 0x2001] {
            list(&mut targets, value);
        }
        targets.mixes(0x3001 | NO_FLUSH);
        let gone = [(); 2].map(|()| targets.take_unlisted_root());
        assert_eq!(gone, [Some(0x2000), None], "0x1000 has another value");
    }

    #[test]
    fn no_room_no_list() {
        let mut targets = Targets::new(0);
        assert!(!targets.has_room());
        assert_eq!(targets.make_room(None), None);
    }
}

//! Which combinations of entry bits at two adjacent levels make a case.
//!
//! An entry is chosen by ten bits ([`choice`]). Of the 2^20 pairs, those are always taken in which
//! every chosen bit takes part in the walk; where some cannot matter (below an entry that is not
//! present, say), one in `spare` is, at random, to see that they do not.

use core::array;
use core::fmt;

use umbra_paging::{Features, Format, GuestEntry, Level, bits};

use crate::random::scramble;

/// The bits of a choice.
pub mod choice {
    /// P.
    pub const P: u16 = 1 << 0;
    /// W.
    pub const W: u16 = 1 << 1;
    /// U.
    pub const U: u16 = 1 << 2;
    /// A.
    pub const A: u16 = 1 << 3;
    /// D.
    pub const D: u16 = 1 << 4;
    /// PS; the PAT bit in a PTE.
    pub const PS: u16 = 1 << 5;
    /// G.
    pub const G: u16 = 1 << 6;
    /// NX.
    pub const NX: u16 = 1 << 7;
    /// Address bit 13: of the twin table or page, or reserved in a large page.
    pub const LOW: u16 = 1 << 8;
    /// An address bit from MAXPHYADDR on: reserved.
    pub const HIGH: u16 = 1 << 9;
}

/// Choices of one entry.
pub const CHOICES: u32 = 1 << 10;
/// Pairs of choices.
pub const PAIRS: u32 = CHOICES * CHOICES;

/// The address bit of [`choice::LOW`].
pub const TWIN: u64 = 1 << 13;

/// Where entries of one level point to. Both have a twin [`TWIN`] further.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// The next table; for a page table: the page.
    pub table: u64,
    /// The large page.
    pub large: u64,
}

/// The entry that a choice makes. `salt` selects which of the bits from MAXPHYADDR on is set by
/// [`choice::HIGH`].
pub fn compose(
    level: Level,
    chosen: u16,
    targets: &Targets,
    features: &Features,
    salt: u64,
) -> u64 {
    const PLACES: [(u16, u64); 8] = [
        (choice::P, bits::P),
        (choice::W, bits::W),
        (choice::U, bits::U),
        (choice::A, bits::A),
        (choice::D, bits::D),
        (choice::PS, bits::PS),
        (choice::G, bits::G),
        (choice::NX, bits::NX),
    ];
    let has = |bit| chosen & bit != 0;
    let large = has(choice::PS) && matches!(level, Level::L2 | Level::L3);
    let mut entry = if large { targets.large } else { targets.table };
    for (bit, place) in PLACES {
        if has(bit) {
            entry |= place;
        }
    }
    if has(choice::LOW) {
        entry |= TWIN;
    }
    let count = 52 - u64::from(features.maxphyaddr);
    if has(choice::HIGH) && count > 0 {
        entry |= 1 << (u64::from(features.maxphyaddr) + salt % count);
    }
    entry
}

/// As [`compose`], for an entry of a page directory or page table of this format. Under PAE
/// paging [`choice::HIGH`] may also be a bit from 52 on. 32-bit paging has no [`choice::NX`], and
/// its [`choice::HIGH`] is bit 21, which is reserved in a 4 MiB page.
pub fn compose_in(
    format: Format,
    level: Level,
    chosen: u16,
    targets: &Targets,
    features: &Features,
    salt: u64,
) -> u64 {
    let plain = |chosen| compose(level, chosen, targets, features, salt);
    let high = chosen & choice::HIGH != 0;
    match format {
        Format::Long4 => plain(chosen),
        Format::Pae => {
            let lowest = u64::from(features.maxphyaddr);
            let bit = 1 << (lowest + salt % (63 - lowest));
            plain(chosen & !choice::HIGH) | if high { bit } else { 0 }
        }
        Format::Legacy32 { pse } => {
            let large = pse && level == Level::L2;
            // Without PSE the PS bit changes nothing, the address neither.
            let ignored = if large { 0 } else { choice::PS };
            let entry = plain(chosen & !(choice::HIGH | choice::NX | ignored));
            let ps = if chosen & ignored != 0 { bits::PS } else { 0 };
            entry | ps | if high { 1 << 21 } else { 0 }
        }
    }
}

/// Two adjacent levels: the upper and the lower one.
pub const LEVELS: [(Level, Level); 3] =
    [(Level::L2, Level::L1), (Level::L3, Level::L2), (Level::L4, Level::L3)];

/// Which pairs are taken.
pub struct Selection {
    /// Of the upper choices: those that lead to the lower entry.
    leads_on: [bool; CHOICES as usize],
    /// Of the lower choices: those that are neither absent nor reserved.
    plain: [bool; CHOICES as usize],
    spare: u64,
    seed: u64,
}

impl fmt::Debug for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selection")
            .field("spare", &self.spare)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// A pair of choices, numbered from 0 to [`PAIRS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The choice for the upper entry.
    pub upper: u16,
    /// The choice for the lower entry.
    pub lower: u16,
}

impl Pair {
    /// The pair of this number.
    pub const fn new(number: u32) -> Pair {
        Pair { upper: (number / CHOICES) as u16, lower: (number % CHOICES) as u16 }
    }
}

impl Selection {
    /// For entries of the level `upper` and the one below it, under EFER.NXE or not. Of the pairs
    /// with bits that cannot matter one in `spare` is taken; `seed` selects which.
    pub fn new(upper: Level, nxe: bool, features: &Features, spare: u64, seed: u64) -> Selection {
        Selection::new_in(Format::Long4, upper, nxe, features, spare, seed)
    }

    /// As [`Selection::new`], for entries of this format.
    pub fn new_in(
        format: Format,
        upper: Level,
        nxe: bool,
        features: &Features,
        spare: u64,
        seed: u64,
    ) -> Selection {
        let lower = upper.below().unwrap_or(Level::L1);
        let targets = Targets { table: 0, large: 0 };
        let entry = |level, chosen| {
            GuestEntry::new(compose_in(format, level, chosen, &targets, features, 0))
        };
        let plain = |level, chosen| {
            let entry = entry(level, chosen);
            let without = format.has_nx() || chosen & choice::NX == 0;
            without && entry.present() && format.reserved(entry, level, nxe, features) == 0
        };
        // The twin's entry is not the chosen one, nor is that of a table elsewhere.
        let leads_on = |chosen| {
            let elsewhere = chosen & (choice::LOW | choice::HIGH) != 0;
            plain(upper, chosen) && !format.is_leaf(entry(upper, chosen), upper) && !elsewhere
        };
        Selection {
            leads_on: array::from_fn(|chosen| leads_on(chosen as u16)),
            plain: array::from_fn(|chosen| plain(lower, chosen as u16)),
            spare: spare.max(1),
            seed,
        }
    }

    /// Whether all bits of both entries take part in a walk.
    fn matters(&self, pair: Pair) -> bool {
        self.leads_on[usize::from(pair.upper)] && self.plain[usize::from(pair.lower)]
    }

    /// Whether the pair is a case.
    pub fn takes(&self, number: u32) -> bool {
        let lot = || scramble(self.seed ^ u64::from(number)) % self.spare == 0;
        self.matters(Pair::new(number)) || lot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEATURES: Features = Features::new(40, true);

    fn selection(upper: Level, nxe: bool, spare: u64) -> Selection {
        Selection::new(upper, nxe, &FEATURES, spare, 1)
    }

    #[test]
    fn a_choice_sets_its_bits() {
        let targets = Targets { table: 0x10_0000, large: 0x4000_0000 };
        let compose = |level, chosen, salt| compose(level, chosen, &targets, &FEATURES, salt);
        assert_eq!(compose(Level::L2, choice::P | choice::U, 0), 0x10_0005);
        assert_eq!(compose(Level::L2, choice::P | choice::PS, 0), 0x4000_0081);
        assert_eq!(compose(Level::L1, choice::P | choice::PS, 0), 0x10_0081);
        assert_eq!(compose(Level::L4, choice::PS | choice::LOW, 0), 0x10_2080);
        assert_eq!(
            compose(Level::L1, choice::NX | choice::HIGH, 11),
            bits::NX | 1 << 51 | 0x10_0000
        );
        assert_eq!(compose(Level::L1, choice::HIGH, 12), 1 << 40 | 0x10_0000);
        assert_eq!(
            super::compose(Level::L1, choice::HIGH, &targets, &Features::new(52, true), 0),
            0x10_0000
        );
    }

    #[test]
    fn a_choice_in_other_formats() {
        let targets = Targets { table: 0x10_0000, large: 0x40_0000 };
        let compose = |format, level, chosen, salt| {
            compose_in(format, level, chosen, &targets, &FEATURES, salt)
        };
        let legacy = |pse| Format::Legacy32 { pse };
        let chosen = choice::P | choice::PS | choice::NX | choice::HIGH;
        assert_eq!(compose(legacy(true), Level::L2, chosen, 0), 0x40_0081 | 1 << 21);
        assert_eq!(compose(legacy(false), Level::L2, chosen, 0), 0x10_0081 | 1 << 21);
        assert_eq!(compose(legacy(true), Level::L1, chosen, 0), 0x10_0081 | 1 << 21);
        for (salt, bit) in [(0, 40), (11, 51), (12, 52), (22, 62), (23, 40)] {
            let entry = compose(Format::Pae, Level::L1, choice::HIGH, salt);
            assert_eq!(entry, 1 << bit | 0x10_0000, "{salt}");
        }
        let count = |format, nxe| {
            let selection = Selection::new_in(format, Level::L2, nxe, &FEATURES, 1, 1);
            (0..PAIRS).filter(|&n| selection.matters(Pair::new(n))).count()
        };
        // Upper: W U A D G, and PS where it is ignored. Lower: these, PS, LOW, HIGH.
        assert_eq!(count(legacy(true), true), 32 * 256);
        assert_eq!(count(legacy(false), true), 64 * 256);
        assert_eq!(count(Format::Pae, true), 64 * 256);
    }

    #[test]
    fn the_counts_of_pairs_that_matter() {
        let count = |upper, nxe| {
            let selection = selection(upper, nxe, 1);
            (0..PAIRS).filter(|&n| selection.matters(Pair::new(n))).count()
        };
        // Upper: W U A D G NX. Lower PTE: these, PS, LOW.
        assert_eq!(count(Level::L2, true), 64 * 256);
        assert_eq!(count(Level::L2, false), 32 * 128);
        // Lower PDE: a table or its twin, or a large page.
        assert_eq!(count(Level::L3, true), 64 * (128 + 64));
    }

    #[test]
    fn everything_is_taken_without_spare() {
        let count = |selection: Selection| (0..PAIRS).filter(|&n| selection.takes(n)).count();
        assert_eq!(count(selection(Level::L4, true, 1)), PAIRS as usize);
        let some = count(selection(Level::L2, true, 64));
        assert!((30_000..36_000).contains(&some), "{some}");
    }
}

//! Which stretches of the guest-virtual address space get a row of their own.

use std::collections::BTreeMap;

/// The smallest region: 2 MiB, what one page of PTEs maps.
const SMALLEST: u32 = 21;

/// A region: an aligned stretch of a power of two bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first address.
    pub start: u64,
    /// Its size is two to this power.
    pub bits: u32,
}

impl Region {
    /// The smallest region of an address.
    pub fn smallest(gva: u64) -> u64 {
        gva >> SMALLEST
    }

    /// Its size in words.
    pub fn size(&self) -> String {
        let (unit, bits) = match self.bits {
            0..30 => ("MiB", 20),
            30..40 => ("GiB", 30),
            _ => ("TiB", 40),
        };
        format!("{} {unit}", 1_u64 << (self.bits - bits))
    }
}

/// The counts of some smallest regions.
type Counts<'a> = &'a [(u64, u64)];

/// Divides what was touched into at most `most` regions: that with the most faults is divided
/// first, and each is as small as what it has. `counts` has the faults by [`Region::smallest`].
///
/// # Panics
/// If `most` is less than 2.
pub fn regions(counts: &BTreeMap<u64, u64>, most: usize) -> Vec<Region> {
    assert!(most >= 2, "user and kernel halves are two");
    let all: Vec<(u64, u64)> = counts.iter().map(|(&place, &count)| (place, count)).collect();
    // The halves, so that no region reaches from one into the other.
    let middle = all.partition_point(|(place, _)| place >> (63 - SMALLEST) == 0);
    let mut parts: Vec<Counts> =
        [&all[..middle], &all[middle..]].into_iter().filter(|part| !part.is_empty()).collect();
    while parts.len() < most {
        let faults =
            |part: Counts| part.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
        let Some(busiest) =
            (0..parts.len()).filter(|&n| parts[n].len() > 1).max_by_key(|&n| faults(parts[n]))
        else {
            break;
        };
        let part = parts[busiest];
        // The half of the region that a place is in: its highest bit in which first and last
        // differ.
        let half = 1 << (bits(part) - 1);
        let (low, high) = part.split_at(part.partition_point(|(place, _)| place & half == 0));
        parts.splice(busiest..=busiest, [low, high]);
    }
    parts
        .into_iter()
        .map(|part| {
            let bits = bits(part);
            Region { start: part[0].0 >> bits << bits << SMALLEST, bits: bits + SMALLEST }
        })
        .collect()
}

/// How many bits of the place differ within the part.
fn bits(part: Counts) -> u32 {
    let (first, last) = (part[0].0, part[part.len() - 1].0);
    64 - (first ^ last).leading_zeros()
}

/// The row that a smallest region is in.
pub fn row_of(regions: &[Region], place: u64) -> Option<usize> {
    let gva = place << SMALLEST;
    regions.iter().position(|region| gva >> region.bits == region.start >> region.bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(u64, u64)]) -> BTreeMap<u64, u64> {
        of.iter().map(|&(gva, count)| (Region::smallest(gva), count)).collect()
    }

    #[test]
    fn what_has_most_is_divided_and_all_is_in_one_row() {
        let counts = counts(&[
            (0x40_0000, 5),
            (0x60_0000, 1),
            (0x7fff_f000_0000, 2),
            (0xffff_8880_0000_0000, 1000),
            (0xffff_8880_0100_0000, 900),
            (0xffff_ffff_8100_0000, 10),
        ]);
        for most in 2..10 {
            let rows = regions(&counts, most);
            assert!(rows.len() <= most && rows.is_sorted_by_key(|row| row.start), "{rows:?}");
            for &place in counts.keys() {
                let gva = place << SMALLEST;
                let of = rows.iter().filter(|row| gva >> row.bits == row.start >> row.bits).count();
                assert_eq!(of, 1, "{gva:#x} in {rows:?}");
                assert!(row_of(&rows, place).is_some());
            }
        }
        assert_eq!(regions(&counts, 10).len(), 6);
        let three = regions(&counts, 3);
        assert_eq!(three[1], Region { start: 0xffff_8880_0000_0000, bits: 25 });
        assert_eq!(three[2], Region { start: 0xffff_ffff_8100_0000, bits: 21 });
    }

    #[test]
    fn nothing_has_no_rows() {
        assert!(regions(&BTreeMap::new(), 24).is_empty());
    }

    #[test]
    fn sizes() {
        let size = |bits| Region { start: 0, bits }.size();
        assert_eq!(
            [size(21), size(29), size(30), size(47)],
            ["2 MiB", "512 MiB", "1 GiB", "128 TiB"]
        );
    }
}

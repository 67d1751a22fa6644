//! In which order to move files from where the boot loader put them to where the guest wants them.

use alloc::vec::Vec;
use core::ops::Range;

/// One move; its own ranges may overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// From this address ...
    pub from: u64,
    /// ... to this one ...
    pub to: u64,
    /// ... so many bytes.
    pub length: u64,
}

impl Move {
    fn source(&self) -> Range<u64> {
        self.from..self.from + self.length
    }

    fn target(&self) -> Range<u64> {
        self.to..self.to + self.length
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}

/// Moves that do what `moves` mean together, without one overwriting what another still has to
/// read. Their targets do not overlap each other. Where each waits for another, one goes by way of
/// free room within `ram`; `None` if there is no such room.
pub fn order(moves: &[Move], ram: Range<u64>) -> Option<Vec<Move>> {
    let mut waiting = moves.to_vec();
    let mut ordered = Vec::new();
    while let Some(last) = waiting.len().checked_sub(1) {
        // From each move to one that must come before it: that leads to a move that can be made, or
        // around a circle, where it is after as many steps as there are moves.
        let mut at = last;
        let ready = (0..=waiting.len()).any(|_| match blocker(&waiting, at) {
            Some(before) => {
                at = before;
                false
            }
            None => true,
        });
        if ready {
            ordered.push(waiting.swap_remove(at));
        } else {
            let to = free_room(&waiting, moves, waiting[at].length, &ram)?;
            ordered.push(Move { to, ..waiting[at] });
            waiting[at].from = to;
        }
    }
    Some(ordered)
}

/// A move whose source the move at `index` would overwrite.
fn blocker(waiting: &[Move], index: usize) -> Option<usize> {
    let target = waiting[index].target();
    waiting
        .iter()
        .enumerate()
        .position(|(other, m)| other != index && overlap(&m.source(), &target))
}

/// Where there are `length` bytes that are no move's target and that no waiting move reads.
fn free_room(waiting: &[Move], all: &[Move], length: u64, ram: &Range<u64>) -> Option<u64> {
    let taken: Vec<_> =
        all.iter().map(Move::target).chain(waiting.iter().map(Move::source)).collect();
    let starts = taken.iter().map(|range| range.end).chain([ram.start]);
    starts.filter(|start| *start >= ram.start).find(|start| {
        let room = *start..start.saturating_add(length);
        room.end <= ram.end && !taken.iter().any(|range| overlap(range, &room))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 10;

    /// All places for blobs of these lengths that do not overlap.
    fn places(lengths: &[u64]) -> Vec<Vec<u64>> {
        let Some((length, rest)) = lengths.split_last() else { return alloc::vec![Vec::new()] };
        let mut all = Vec::new();
        for places in places(rest) {
            for place in 0..=SIZE - length {
                let apart = places
                    .iter()
                    .zip(rest)
                    .all(|(&p, &l)| !overlap(&(p..p + l), &(place..place + length)));
                if apart {
                    all.push(places.iter().copied().chain([place]).collect());
                }
            }
        }
        all
    }

    /// All placements of some blobs in a small memory: the moves always do what they mean.
    fn no_byte_is_lost(lengths: &[u64]) {
        let places = places(lengths);
        let (mut by_way, mut stuck) = (0, 0);
        for from in &places {
            for to in &places {
                let moves: Vec<_> = (0..lengths.len())
                    .map(|i| Move { from: from[i], to: to[i], length: lengths[i] })
                    .collect();
                let Some(ordered) = order(&moves, 0..SIZE) else {
                    stuck += 1;
                    continue;
                };
                by_way += u32::from(ordered.len() > moves.len());
                let before: Vec<u64> = (0..SIZE).collect();
                let mut after = before.clone();
                for step in ordered {
                    let range = step.source();
                    after.copy_within(range.start as usize..range.end as usize, step.to as usize);
                }
                for step in &moves {
                    for offset in 0..step.length {
                        assert_eq!(
                            after[(step.to + offset) as usize],
                            step.from + offset,
                            "{moves:?}"
                        );
                    }
                }
            }
        }
        assert!(by_way > 0 && stuck > 0, "{by_way} {stuck}");
    }

    #[test]
    fn two_blobs() {
        no_byte_is_lost(&[3, 4]);
    }

    #[test]
    fn three_blobs() {
        no_byte_is_lost(&[1, 2, 3]);
    }

    /// Two segments of one file may share bytes.
    #[test]
    fn sources_may_overlap() {
        let moves = [
            Move { from: 2, to: 0, length: 3 },
            Move { from: 4, to: 5, length: 2 },
            Move { from: 0, to: 8, length: 2 },
        ];
        let mut memory: Vec<u64> = (0..SIZE).collect();
        for step in order(&moves, 0..SIZE).unwrap() {
            memory.copy_within(
                step.from as usize..(step.from + step.length) as usize,
                step.to as usize,
            );
        }
        assert_eq!(
            (&memory[..3], &memory[5..7], &memory[8..]),
            (&[2, 3, 4][..], &[4, 5][..], &[0, 1][..])
        );
    }
}

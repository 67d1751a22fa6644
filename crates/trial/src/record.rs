//! What a program's run left: the stub's results, and how the run ended.

use serde::{Deserialize, Serialize};

use crate::layout::watched;
use crate::stub::NO_VECTOR;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// All steps were taken.
    Complete,
    /// The guest had a triple fault.
    TripleFault,
    /// The hypervisor could not go on with the guest, and said so.
    GaveUp(String),
    /// The guest did not come back.
    Hung,
}

/// A run, as the driver reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The stub's results, as they stand in its memory.
    pub results: Vec<u8>,
    /// How the run ended.
    pub end: End,
    /// Dirty logs that were taken: the step, and the frames that they name.
    pub harvests: Vec<(usize, Vec<u64>)>,
    /// Words of the arena that are not watched and have changed at the end: address and value. At
    /// most a few.
    pub strays: Vec<(u64, u64)>,
}

/// What the guest saw in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How an access ended: the vector, or [`NO_VECTOR`] after another step.
    pub vector: u8,
    /// The error code.
    pub error: u32,
    /// RAX.
    pub value: u64,
    /// CR2.
    pub cr2: u64,
    /// Where the interrupt or exception came.
    pub rip: u64,
    /// Watched words that changed: address and new value.
    pub changes: Vec<(u64, u64)>,
}

impl Seen {
    /// Whether the step is one that the stub finished without an exception.
    pub fn is_plain(&self) -> bool {
        self.vector == NO_VECTOR
    }
}

/// Results that no stub leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the results of step {0} are not what the stub writes")]
pub struct Garbled(pub usize);

/// Splits the stub's results into steps.
///
/// # Errors
/// They are not in order: the stub's own memory was damaged.
pub fn parse(results: &[u8]) -> Result<Vec<Seen>, Garbled> {
    let addresses: Vec<u64> = watched().collect();
    let (chunks, _) = results.as_chunks::<8>();
    let words: Vec<u64> = chunks.iter().map(|&word| u64::from_le_bytes(word)).collect();
    let mut steps = Vec::new();
    let mut rest = words.as_slice();
    while !rest.is_empty() {
        let garbled = Garbled(steps.len());
        let [header, value, cr2, rip, after @ ..] = rest else { return Err(garbled) };
        let count = (header >> 24 & 0xff) as usize;
        if (header & 0xffff) as usize != steps.len() || after.len() < 2 * count {
            return Err(garbled);
        }
        let (pairs, after) = after.split_at(2 * count);
        let change =
            |pair: &[u64; 2]| Some((*addresses.get(usize::try_from(pair[0]).ok()?)?, pair[1]));
        let changes: Option<Vec<(u64, u64)>> =
            pairs.as_chunks::<2>().0.iter().map(change).collect();
        steps.push(Seen {
            vector: (header >> 16) as u8,
            error: (header >> 32) as u32,
            value: *value,
            cr2: *cr2,
            rip: *rip,
            changes: changes.ok_or(garbled)?,
        });
        rest = after;
    }
    Ok(steps)
}

/// What [`parse`] reads.
pub fn unparse(steps: &[Seen]) -> Vec<u8> {
    let addresses: Vec<u64> = watched().collect();
    let mut words = Vec::new();
    for (at, seen) in steps.iter().enumerate() {
        let count = seen.changes.len() as u64;
        let header =
            at as u64 | u64::from(seen.vector) << 16 | count << 24 | u64::from(seen.error) << 32;
        words.extend([header, seen.value, seen.cr2, seen.rip]);
        for &(gpa, value) in &seen.changes {
            let index = addresses.iter().position(|&at| at == gpa).unwrap_or(usize::MAX);
            words.extend([index as u64, value]);
        }
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        let changes = vec![(0x1_0000, 7), (0x1_0008, 9)];
        Seen { vector: 14, error: 0x19, value: 5, cr2: 0x1000, rip: 0x2000, changes }
    }

    #[test]
    fn there_and_back() {
        let steps = vec![seen(), Seen { vector: NO_VECTOR, changes: vec![], ..seen() }, seen()];
        assert_eq!(parse(&unparse(&steps)), Ok(steps));
    }

    #[test]
    fn damage_is_seen() {
        let bytes = unparse(&[seen(), seen()]);
        assert_eq!(parse(&bytes[..bytes.len() - 8]), Err(Garbled(1)));
        assert_eq!(parse(&bytes[64..]), Err(Garbled(0)));
        let mut wild = bytes.clone();
        wild[32] = 0xff;
        wild[33] = 0xff;
        assert_eq!(parse(&wild), Err(Garbled(0)));
    }
}

//! What a case did, as one number or in words.

use crate::say;

/// Takes what was observed.
#[derive(Debug)]
pub enum Observer {
    /// A hash of it.
    Hash(u64),
    /// Lines of text.
    Words,
}

impl Observer {
    /// Takes a value. Where names repeat, `index` tells them apart.
    pub fn see(&mut self, name: &str, index: usize, value: u64) {
        match self {
            Observer::Hash(hash) => {
                // FNV-1a's prime, and a rotation that brings high bits down.
                let mixed = (*hash ^ value ^ (index as u64) << 48).wrapping_mul(0x100_0000_01b3);
                *hash = mixed.rotate_left(23);
            }
            Observer::Words => say!("  {name}[{index:#x}] = {value:#x}"),
        }
    }

    /// The hash, if it is one.
    pub fn hash(&self) -> Option<u32> {
        match self {
            Observer::Hash(hash) => Some((hash ^ hash >> 32) as u32),
            Observer::Words => None,
        }
    }
}

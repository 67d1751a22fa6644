//! The simple instructions that were decoded last.

use alloc::boxed::Box;

use crate::Simple;

/// A kernel has a few dozen places that write page tables.
const SLOTS: usize = 64;

/// What was made of the bytes at an address.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    rip: u64,
    bytes: u128,
    /// None for what is not simple: as for the zeros that an unused slot holds.
    simple: Option<Simple>,
}

impl Slot {
    #[cold]
    fn fill(&mut self, bytes: u128, rip: u64) {
        *self = Slot { rip, bytes, simple: Simple::decode(&bytes.to_le_bytes(), rip) };
    }
}

/// A direct-mapped cache of decoded instructions. It is asked with the bytes as they are now, so it
/// needs no invalidation.
#[derive(Debug)]
pub struct Recent(Box<[Slot; SLOTS]>);

impl Recent {
    /// An empty cache.
    pub fn new() -> Recent {
        Recent(Box::new([Slot::default(); SLOTS]))
    }

    /// The instruction at `rip`, of which the first 16 bytes are given in memory order, if it is
    /// simple.
    #[inline]
    pub fn decode(&mut self, bytes: u128, rip: u64) -> Option<&Simple> {
        let slot = &mut self.0[(rip ^ rip >> 6) as usize % SLOTS];
        if slot.rip != rip || slot.bytes != bytes {
            slot.fill(bytes, rip);
        }
        slot.simple.as_ref()
    }
}

impl Default for Recent {
    fn default() -> Recent {
        Recent::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_code_is_decoded_anew() {
        let mov =
            |modrm: u8| u128::from_le_bytes(core::array::from_fn(|i| [0x48, 0x89, modrm][i % 3]));
        let mut recent = Recent::new();
        let places = [0, 0x1000, 0x1040, u64::MAX - 16, 0xffff_ffff_8107_35d0];
        for (modrm, rip) in
            [0x37, 0x3e, 0xc0, 0x37].into_iter().flat_map(|modrm| places.map(|rip| (modrm, rip)))
        {
            let expected = Simple::decode(&mov(modrm).to_le_bytes(), rip);
            assert_eq!([(); 2].map(|()| recent.decode(mov(modrm), rip).copied()), [expected; 2]);
            assert_eq!(expected.is_some(), modrm != 0xc0);
        }
        assert_eq!(Recent::new().decode(0, 0).copied(), Simple::decode(&[0; 16], 0));
    }
}

//! A set of interrupt vectors, as in the local APIC's ISR, TMR and IRR.

/// 256 bits in eight registers.
#[derive(Clone, Copy, Default)]
pub(super) struct Vectors([u32; 8]);

impl Vectors {
    pub(super) fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }

    pub(super) fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
    }

    /// The vector with the highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        (0..8u8)
            .rev()
            .find_map(|i| self.0[usize::from(i)].checked_ilog2().map(|bit| i << 5 | bit as u8))
    }

    /// One of the eight registers.
    pub(super) fn register(&self, index: u16) -> u32 {
        self.0[usize::from(index & 7)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_has_its_bit() {
        let mut all = Vectors::default();
        for vector in 0..=255 {
            let mut one = Vectors::default();
            one.insert(vector);
            assert_eq!(one.highest(), Some(vector));
            assert_eq!(one.register(u16::from(vector) / 32), 1 << (vector % 32));
            all.insert(vector);
            assert_eq!(all.highest(), Some(vector));
            one.remove(vector);
            assert_eq!(
                (one.highest(), one.contains(vector), all.contains(vector)),
                (None, false, true)
            );
        }
    }
}

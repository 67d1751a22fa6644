//! Random numbers that a seed repeats (Marsaglia, "Xorshift RNGs").

/// The generator.
pub struct Random(u64);

impl Random {
    /// From any seed.
    pub fn new(seed: u64) -> Random {
        Random(seed ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        ((self.next() >> 33) % u64::from(end)) as u32
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u32) -> bool {
        self.below(times) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn a_seed_repeats_and_all_numbers_come() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            core::array::from_fn::<u32, 64, _>(|_| random.below(8))
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
        assert!(Random::new(3).once_in(1));
        assert!((0..8).all(|number| numbers(1).contains(&number)));
    }
}

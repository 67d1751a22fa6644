//! A pattern over the memory that is nobody's: whoever writes there has left what is his.

use alloc::vec::Vec;

use umbra_paging::Hpa;

/// Bytes in a word.
const WORD: u64 = 8;

/// Memory that nobody uses.
pub trait Area {
    /// Where it starts.
    fn start(&self) -> Hpa;

    /// How many 8-byte words it has.
    fn words(&self) -> u64;

    /// Reads the word of that number.
    fn read(&self, word: u64) -> u64;

    /// Writes the word of that number.
    fn write(&mut self, word: u64, value: u64);
}

/// Areas with the pattern in them.
#[derive(Debug)]
pub struct Canary<A> {
    areas: Vec<A>,
}

impl<A: Area> Canary<A> {
    /// Fills the areas.
    pub fn plant(mut areas: Vec<A>) -> Canary<A> {
        for area in &mut areas {
            for word in 0..area.words() {
                area.write(word, pattern(address(area, word)));
            }
        }
        Canary { areas }
    }

    /// Looks whether all words are as they were planted, and says how many bytes they are.
    ///
    /// # Errors
    /// The first word that is not.
    pub fn check(&self) -> Result<u64, Hpa> {
        for area in &self.areas {
            let mut addresses = (0..area.words()).map(|word| (word, address(area, word)));
            if let Some((_, hpa)) = addresses.find(|&(word, hpa)| area.read(word) != pattern(hpa)) {
                return Err(hpa);
            }
        }
        Ok(self.areas.iter().map(|area| area.words() * WORD).sum())
    }
}

fn address(area: &impl Area, word: u64) -> Hpa {
    Hpa::new(area.start().raw() + word * WORD)
}

/// The value of a word: another one for each address, so that memory copied here from elsewhere
/// shows too. (The output function of SplitMix64, which is a bijection and has no fixed point at
/// the addresses in use.)
fn pattern(hpa: Hpa) -> u64 {
    let mut x = hpa.raw().wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x204_0000;

    struct Words(u64, Vec<u64>);

    impl Area for Words {
        fn start(&self) -> Hpa {
            Hpa::new(self.0)
        }
        fn words(&self) -> u64 {
            self.1.len() as u64
        }
        fn read(&self, word: u64) -> u64 {
            self.1[word as usize]
        }
        fn write(&mut self, word: u64, value: u64) {
            self.1[word as usize] = value;
        }
    }

    /// Two areas with a hole between them.
    fn planted() -> Canary<Words> {
        let area = |start| Words(start, alloc::vec![0; 1024]);
        Canary::plant(alloc::vec![area(START), area(START + 0x10_0000)])
    }

    #[test]
    fn untouched_memory_passes() {
        assert_eq!(planted().check(), Ok(2 * 8192));
    }

    #[test]
    fn every_bit_of_every_word_counts_and_the_first_change_is_named() {
        let mut canary = planted();
        for (area, start) in [(0, START), (1, START + 0x10_0000)] {
            for word in 0..1024 {
                for bit in 0..64 {
                    canary.areas[area].1[word] ^= 1 << bit;
                    assert_eq!(canary.check(), Err(Hpa::new(start + word as u64 * 8)));
                    canary.areas[area].1[word] ^= 1 << bit;
                }
            }
        }
        canary.areas[1].1[7] = 0;
        canary.areas[0].1[9] = 0;
        canary.areas[0].1[5] ^= 1;
        assert_eq!(canary.check(), Err(Hpa::new(START + 5 * 8)));
    }

    #[test]
    fn a_copy_of_the_pattern_from_elsewhere_is_noticed() {
        let mut canary = planted();
        canary.areas[1].1[0] = canary.areas[0].1[0];
        assert_eq!(canary.check(), Err(Hpa::new(START + 0x10_0000)));
        let mut canary = planted();
        canary.areas[0].1.rotate_left(512);
        assert_eq!(canary.check(), Err(Hpa::new(START)));
    }

    #[test]
    fn no_word_is_what_fresh_memory_holds() {
        let canary = planted();
        let words = canary.areas.iter().flat_map(|area| &area.1);
        assert!(words.copied().all(|word| word != 0 && word != u64::MAX));
    }
}

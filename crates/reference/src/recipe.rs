//! What a run of a random program is made from, as bytes: to be kept, copied to another machine and
//! mutated.

use fastrand::Rng;

use crate::coverage::Coverage;
use crate::program::Program;
use crate::{Config, Divergence, run_program};

/// A random program and what it runs on, before either is interpreted. Any words are a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Chooses the configuration: [`Config::from_word`].
    pub config: u64,
    /// Shapes the tables: [`Program::setup`].
    pub setup: u64,
    /// Seeds the hardware's choices: [`Program::seed`].
    pub seed: u64,
    /// One word for each step: [`crate::program::Op::from_word`].
    pub words: Vec<u64>,
}

/// Bytes that are not a recipe: not a whole number of words, or fewer than three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotARecipe;

impl std::fmt::Display for NotARecipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a recipe is three or more words of 8 bytes")
    }
}

impl std::error::Error for NotARecipe {}

impl Recipe {
    /// The recipe of this number, with `steps` steps. Its program is that of [`Program::random`].
    pub fn random(seed: u64, steps: usize) -> Recipe {
        let mut random = Rng::with_seed(seed);
        let (setup, hardware) = (random.u64(..), random.u64(..));
        let words = (0..steps).map(|_| random.u64(..)).collect();
        Recipe { config: random.u64(..), setup, seed: hardware, words }
    }

    /// Reads what [`Recipe::to_bytes`] wrote.
    ///
    /// # Errors
    /// The length is none of a recipe.
    pub fn from_bytes(bytes: &[u8]) -> Result<Recipe, NotARecipe> {
        let word = |chunk: &[u8]| chunk.try_into().map(u64::from_le_bytes);
        let words =
            bytes.chunks(8).map(word).collect::<Result<Vec<u64>, _>>().map_err(|_| NotARecipe)?;
        match words[..] {
            [config, setup, seed, ref words @ ..] => {
                Ok(Recipe { config, setup, seed, words: words.to_vec() })
            }
            _ => Err(NotARecipe),
        }
    }

    /// The words one after the other, little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let head = [self.config, self.setup, self.seed];
        head.iter().chain(&self.words).flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The program.
    pub fn program(&self) -> Program {
        Program::new(self.setup, self.seed, &self.words)
    }

    /// What it runs on: a hypervisor on the shadow MMU.
    pub fn config(&self) -> Config {
        Config::from_word(self.config, true)
    }

    /// Runs the program.
    ///
    /// # Errors
    /// As [`run_program`].
    pub fn run(&self) -> Result<Coverage, Divergence> {
        run_program(&self.program(), &self.config())
    }

    /// A recipe like this one: a few changes, some of them with steps of `other`, and at most
    /// `most` steps.
    pub fn mutated(&self, other: &Recipe, random: &mut Rng, most: usize) -> Recipe {
        let mut new = self.clone();
        for _ in 0..random.usize(1..=4) {
            new.change(other, random);
        }
        new.words.truncate(most);
        new
    }

    fn change(&mut self, other: &Recipe, random: &mut Rng) {
        let at = random.usize(..=self.words.len());
        let range = |words: &[u64], random: &mut Rng| {
            let from = random.usize(..=words.len());
            from..random.usize(from..=words.len().min(from + 64))
        };
        match random.u8(..10) {
            0 => self.config = random.u64(..),
            1 => self.setup = random.u64(..),
            2 => self.seed = random.u64(..),
            3 => {
                self.words.drain(range(&self.words, random));
            }
            4 => {
                let again = self.words[range(&self.words, random)].to_vec();
                self.words.splice(at..at, again);
            }
            5 | 6 => {
                let foreign = other.words[range(&other.words, random)].to_vec();
                self.words.splice(at..at, foreign);
            }
            7 => {
                let fresh: Vec<u64> = (0..random.usize(1..=32)).map(|_| random.u64(..)).collect();
                self.words.splice(at..at, fresh);
            }
            _ => {
                if let Some(word) = self.words.get_mut(at) {
                    *word ^= 1 << random.u32(..64);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_back() {
        let recipe = Recipe::random(7, 20);
        assert_eq!(Recipe::from_bytes(&recipe.to_bytes()), Ok(recipe.clone()));
        assert_eq!(recipe.program(), Program::random(7, 20));
        assert_eq!(Recipe::from_bytes(&[0; 16]), Err(NotARecipe));
        assert_eq!(Recipe::from_bytes(&[0; 33]), Err(NotARecipe));
    }

    #[test]
    fn mutants_differ_and_stay_short() {
        let (one, other) = (Recipe::random(1, 40), Recipe::random(2, 40));
        let mut random = Rng::with_seed(3);
        let mutants: Vec<Recipe> = (0..200).map(|_| one.mutated(&other, &mut random, 50)).collect();
        assert!(mutants.iter().all(|mutant| mutant.words.len() <= 50));
        assert!(mutants.iter().filter(|&mutant| *mutant != one).count() > 150);
        let spliced = |mutant: &Recipe| mutant.words.iter().any(|word| other.words.contains(word));
        assert!(mutants.iter().any(spliced));
    }

    #[test]
    fn the_configuration_does_not_hang_together_with_the_tables() {
        // Two CPUs, and tables that are entangled.
        let both = |seed| {
            let recipe = Recipe::random(seed, 0);
            recipe.config().cpus == 2 && recipe.setup & 1 != 0
        };
        assert!((0..100).any(both));
    }
}

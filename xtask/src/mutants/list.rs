//! Which mutants there are, and which are judged.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use umbra_cases::random::scramble;

use crate::{paths, process};

/// Chooses the sample. Another seed is another sample.
const SEED: u64 = 0x6d75_7461_6e74_7321;

/// What has no part in what a guest sees: the auditor, and what only prints.
const LEFT_OUT: [&str; 2] = ["crates/mmu/src/audit.rs", "crates/mmu/src/mmu/audit.rs"];
const LEFT_OUT_BY_NAME: &str = r"impl (fmt::)?(Debug|Display)|::fmt |(replace|in) \w+::audit\b";

/// A mutant, as cargo-mutants describes it.
#[derive(Clone, Debug, Deserialize)]
pub struct Mutant {
    /// Its file, place and change in words.
    pub name: String,
    /// From the root of the tree.
    pub file: String,
    /// What is replaced.
    pub span: Span,
    /// By what.
    pub replacement: String,
    /// The kind of change.
    pub genre: Genre,
}

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Genre {
    FnValue,
    BinaryOperator,
    UnaryOperator,
    MatchArm,
    MatchArmGuard,
    StructField,
}

/// From a place up to another one.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Span {
    /// The first character.
    pub start: Place,
    /// The character behind the last.
    pub end: Place,
}

/// A place in a text, counted in lines and characters from 1.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The character.
    pub column: usize,
}

impl Place {
    /// The byte that this is in a text.
    pub fn byte(self, text: &str) -> Option<usize> {
        let lines = text.split_inclusive('\n');
        let start: usize = lines.clone().take(self.line - 1).map(str::len).sum();
        let line = lines.clone().nth(self.line - 1)?;
        let column = line.char_indices().map(|(at, _)| at).chain([line.len()]);
        Some(start + column.clone().nth(self.column - 1)?)
    }
}

/// All mutants.
///
/// # Errors
/// cargo-mutants fails.
pub fn all(program: &Path) -> Result<Vec<Mutant>> {
    let mut command = Command::new(program);
    command.current_dir(paths::workspace()).args(["mutants", "--list", "--json"]);
    command.args(["--package", "umbra-mmu", "--exclude-re", LEFT_OUT_BY_NAME]);
    command.args(LEFT_OUT.iter().flat_map(|file| ["--exclude", file]));
    serde_json::from_str(&process::capture(&mut command)?).context("what cargo-mutants says")
}

/// A sample, in its order: the mutants with the smallest numbers, which are scrambled by the seed.
/// So it changes little when the source does.
pub fn sample(mutants: Vec<Mutant>, size: usize) -> Vec<Mutant> {
    let mut alike = BTreeMap::<String, usize>::new();
    let number = |mutant: Mutant| {
        // Lines and columns move with every edit.
        let parts = mutant.name.split(':').filter(|part| part.parse::<u64>().is_err());
        let words: String = parts.collect();
        let number = words.bytes().fold(SEED, |sum, byte| scramble(sum ^ u64::from(byte)));
        // One function may have many changes that are called the same: each has a number.
        let before = alike.entry(words).or_default();
        let number = (0..*before).fold(number, |number, _| scramble(number));
        *before += 1;
        (number, mutant)
    };
    let mut numbered: Vec<(u64, Mutant)> = mutants.into_iter().map(number).collect();
    numbered.sort_by_key(|&(number, _)| number);
    numbered.into_iter().take(size).map(|(_, mutant)| mutant).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A mutant that replaces what lies in these columns of line 1 of `a.rs`.
    pub fn mutant(name: &str, genre: Genre, columns: [usize; 2], replacement: &str) -> Mutant {
        let [start, end] = columns.map(|column| Place { line: 1, column });
        Mutant {
            name: name.to_owned(),
            file: "crates/mmu/src/a.rs".to_owned(),
            span: Span { start, end },
            replacement: replacement.to_owned(),
            genre,
        }
    }

    #[test]
    fn a_sample_is_fixed_and_does_not_depend_on_lines() {
        let mutants = |line: u32| -> Vec<Mutant> {
            let name = |n| format!("a.rs:{}:9: replace f{n} -> bool with true", line + n);
            (0..50).map(|n| mutant(&name(n), Genre::FnValue, [1, 1], "true")).collect()
        };
        let functions = |line| -> Vec<String> {
            let word = |mutant: &Mutant| mutant.name.split(' ').nth(2).map(str::to_owned);
            sample(mutants(line), 10).iter().filter_map(word).collect()
        };
        assert_eq!(functions(1), functions(300));
        assert_ne!(functions(1), (0..10).map(|n| format!("f{n}")).collect::<Vec<_>>());
        assert_eq!(sample(mutants(1), 99).len(), 50);
        let alike = |n| mutant(&format!("a.rs:1:{n}: delete !"), Genre::UnaryOperator, [1, 1], "");
        let mixed = sample(mutants(1).into_iter().chain((0..50).map(alike)).collect(), 50);
        let count = mixed.iter().filter(|mutant| mutant.name.ends_with('!')).count();
        assert!((10..40).contains(&count), "{count} that are called the same");
    }

    #[test]
    fn places_are_counted_in_characters() {
        let byte = |line, column| Place { line, column }.byte("ä = 1;\nb");
        assert_eq!(byte(1, 2), Some(2));
        assert_eq!(byte(2, 1), Some(8));
        assert_eq!(byte(2, 2), Some(9));
        assert_eq!(byte(3, 1), None);
    }
}

//! The options of the example `exhaustive`.

use super::number::{positive, whole};
use clap::Parser;

/// Run all combinations of entry bits, control bits and accesses through the shadow MMU.
#[derive(Parser)]
#[command(name = "exhaustive", bin_name = "cargo xtask exhaustive")]
pub struct Arguments {
    /// Take every Nth case.
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = positive::<u64>,
        allow_negative_numbers = true
    )]
    pub stride: u64,
    /// Shift which of them are taken.
    #[arg(
        long,
        value_name = "K",
        default_value = "0",
        value_parser = whole::<u64>,
        allow_negative_numbers = true
    )]
    pub offset: u64,
    /// Of the pairs of entries with bits that cannot matter take one in N; 1 takes all 2^20 pairs.
    #[arg(
        long,
        value_name = "N",
        default_value = "64",
        value_parser = positive::<u64>,
        allow_negative_numbers = true
    )]
    pub spare: u64,
    /// Run so many parts at a time [default: one per core]
    #[arg(long, value_name = "N", value_parser = positive::<u64>, allow_negative_numbers = true)]
    pub jobs: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_none_are_refused_in_words() {
        for (option, wrong, least) in [
            ("--stride", "0", 1),
            ("--stride", "-1", 1),
            ("--spare", "many", 1),
            ("--jobs", "0", 1),
            ("--offset", "-1", 0),
        ] {
            let refused =
                Arguments::try_parse_from(["exhaustive", option, wrong]).err().unwrap().to_string();
            assert!(
                refused.contains(&format!("give a whole number, {least} or more")),
                "{refused}"
            );
        }
    }
}

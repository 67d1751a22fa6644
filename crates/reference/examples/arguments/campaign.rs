//! The options of the example `campaign`.

use std::path::PathBuf;

use super::number::{positive, whole};
use clap::Parser;

/// Run random guest programs through the shadow MMU and judge every step.
#[derive(Parser)]
#[command(name = "campaign", bin_name = "cargo xtask campaign")]
pub struct Arguments {
    /// How long.
    #[arg(long, value_name = "MINUTES", default_value_t = 10.0, allow_negative_numbers = true)]
    pub minutes: f64,
    /// The first program's seed; the next programs have the next numbers [default: by the clock]
    #[arg(long, value_parser = whole::<u64>, allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Run at most this many programs.
    #[arg(
        long,
        value_name = "N",
        default_value_t = u64::MAX,
        value_parser = whole::<u64>,
        allow_negative_numbers = true
    )]
    pub programs: u64,
    /// Stop after this many steps.
    #[arg(
        long,
        value_name = "N",
        default_value_t = u64::MAX,
        value_parser = whole::<u64>,
        allow_negative_numbers = true
    )]
    pub total_steps: u64,
    /// Steps in a program.
    #[arg(
        long,
        value_name = "N",
        default_value = "300",
        value_parser = positive::<usize>,
        allow_negative_numbers = true
    )]
    pub steps: usize,
    /// Start from the programs in this folder, mutate them, and keep there what reaches something
    /// new. Corpora of several machines are merged by copying their files together.
    #[arg(long, value_name = "DIR")]
    pub corpus: Option<PathBuf>,
    /// Merge these corpora into --corpus, keep only programs that add something, and end.
    #[arg(long, value_name = "DIR", num_args = 1.., requires = "corpus")]
    pub merge: Vec<PathBuf>,
    /// At the end, say what each kind of program has met, and how often.
    #[arg(long)]
    pub coverage: bool,
    /// Run the program in this file, as a corpus or a failure left it, and end.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["corpus", "seed"])]
    pub replay: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_none_are_refused_in_words() {
        for (option, wrong, least) in [
            ("--steps", "0", 1),
            ("--seed", "-1", 0),
            ("--programs", "many", 0),
            ("--total-steps", "1.5", 0),
        ] {
            let refused =
                Arguments::try_parse_from(["campaign", option, wrong]).err().unwrap().to_string();
            assert!(
                refused.contains(&format!("give a whole number, {least} or more")),
                "{refused}"
            );
        }
    }
}

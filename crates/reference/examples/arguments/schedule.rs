//! The options of the example `schedule`.

use super::number::positive;
use clap::Parser;

/// Run small programs for two CPUs in every order with up to two preemptions.
#[derive(Parser)]
#[command(name = "schedule", bin_name = "cargo xtask schedule")]
pub struct Arguments {
    /// Preempt so many times.
    #[arg(
        long,
        value_name = "N",
        default_value = "2",
        value_parser = preemptions,
        allow_negative_numbers = true
    )]
    pub preemptions: u32,
    /// Take the seeds of the hardware's choices from 1 to this.
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = positive::<u64>,
        allow_negative_numbers = true
    )]
    pub seeds: u64,
    /// Preempt first at no more than so many points, spread over all.
    #[arg(
        long,
        value_name = "N",
        default_value_t = u32::MAX,
        value_parser = positive::<u32>,
        allow_negative_numbers = true
    )]
    pub points: u32,
    /// Only programs whose name has this in it.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub program: String,
    /// Run the programs in one order only: the points at which the other CPU gets further, such as
    /// 5,5,9.
    #[arg(long, value_name = "POINTS", value_delimiter = ',')]
    pub at: Option<Vec<u32>>,
    /// With --at: the other CPU is on its way into the guest.
    #[arg(long)]
    pub entering: bool,
}

fn preemptions(text: &str) -> Result<u32, &'static str> {
    text.parse().ok().filter(|count| (1..=2).contains(count)).ok_or("give 1 or 2")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_refused_in_words() {
        for (option, wrong, expected) in [
            ("--preemptions", "3", "give 1 or 2"),
            ("--preemptions", "-1", "give 1 or 2"),
            ("--seeds", "0", "give a whole number, 1 or more"),
            ("--points", "4294967296", "give a whole number, 1 or more"),
        ] {
            let refused =
                Arguments::try_parse_from(["schedule", option, wrong]).err().unwrap().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
    }
}

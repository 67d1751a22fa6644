//! Small programs for two CPUs through the shadow MMU, one CPU preempted everywhere by the other.

mod number;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use number::positive;
use umbra_reference::machine::Protocol;
use umbra_reference::schedule::{Order, Small};

/// Run small programs for two CPUs in every order with up to two preemptions.
#[derive(Parser)]
#[command(name = "schedule", bin_name = "cargo xtask schedule")]
struct Arguments {
    /// Preempt so many times.
    #[arg(
        long,
        value_name = "N",
        default_value = "2",
        value_parser = preemptions,
        allow_negative_numbers = true
    )]
    preemptions: u32,
    /// Take the seeds of the hardware's choices from 1 to this.
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = positive::<u64>,
        allow_negative_numbers = true
    )]
    seeds: u64,
    /// Preempt first at no more than so many points, spread over all.
    #[arg(
        long,
        value_name = "N",
        default_value_t = u32::MAX,
        value_parser = positive::<u32>,
        allow_negative_numbers = true
    )]
    points: u32,
    /// Only programs whose name has this in it.
    #[arg(long, value_name = "TEXT", default_value = "")]
    program: String,
    /// Run the programs in one order only: the points at which the other CPU gets further, such as
    /// 5,5,9.
    #[arg(long, value_name = "POINTS", value_delimiter = ',')]
    at: Option<Vec<u32>>,
    /// With --at: the other CPU is on its way into the guest.
    #[arg(long)]
    entering: bool,
}

fn preemptions(text: &str) -> Result<u32, &'static str> {
    text.parse().ok().filter(|count| (1..=2).contains(count)).ok_or("give 1 or 2")
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // What goes wrong by a panic is reported as everything else.
    std::panic::set_hook(Box::new(|_| ()));
    let start = Instant::now();
    let (mut orders, mut wrong, mut programs) = (0, 0, 0);
    for program in Small::all().iter().filter(|program| program.name.contains(&arguments.program)) {
        programs += 1;
        for seed in 1..=arguments.seeds {
            let verdict = match &arguments.at {
                Some(points) => {
                    let order =
                        Order { points: points.clone(), entering: arguments.entering, seed };
                    program.judge(Protocol::PublishFirst, order).map(|_| 1)
                }
                None => program.explore(
                    Protocol::PublishFirst,
                    arguments.preemptions,
                    seed,
                    arguments.points,
                ),
            };
            match verdict {
                Ok(count) => {
                    orders += count;
                    println!("{count:9} orders: {}, seed {seed}", program.name);
                }
                Err(found) => {
                    wrong += 1;
                    println!("{found}");
                }
            }
        }
    }
    println!(
        "{programs} programs, {orders} orders in {:.0} s, {wrong} wrong",
        start.elapsed().as_secs_f64()
    );
    ExitCode::from(u8::from(wrong != 0 || programs == 0))
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

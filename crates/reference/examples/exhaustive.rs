//! The exhaustive set through the shadow MMU, on all cores.

mod number;

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use clap::Parser;
use number::{positive, whole};
use umbra_reference::exhaustive::{Counts, Part};

/// Run all combinations of entry bits, control bits and accesses through the shadow MMU.
#[derive(Parser)]
#[command(name = "exhaustive", bin_name = "cargo xtask exhaustive")]
struct Arguments {
    /// Take every Nth case.
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = positive::<u64>,
        allow_negative_numbers = true
    )]
    stride: u64,
    /// Shift which of them are taken.
    #[arg(
        long,
        value_name = "K",
        default_value = "0",
        value_parser = whole::<u64>,
        allow_negative_numbers = true
    )]
    offset: u64,
    /// Of the pairs of entries with bits that cannot matter take one in N; 1 takes all 2^20 pairs.
    #[arg(
        long,
        value_name = "N",
        default_value = "64",
        value_parser = positive::<u64>,
        allow_negative_numbers = true
    )]
    spare: u64,
    /// Run so many parts at a time [default: one per core]
    #[arg(long, value_name = "N", value_parser = positive::<u64>, allow_negative_numbers = true)]
    jobs: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let start = Instant::now();
    let parts = Mutex::new(Part::all(arguments.spare, arguments.stride, arguments.offset));
    let results = Mutex::new((Counts::default(), 0));
    let next = || parts.lock().ok()?.pop();
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.unwrap_or(cores) {
            scope.spawn(|| {
                while let Some(part) = next() {
                    let outcome = part.run();
                    let mut results = results.lock().expect("no thread panics with the lock");
                    match outcome {
                        Ok(counts) => {
                            println!("{part:?}: {} cases", counts.cases);
                            results.0.add(&counts);
                        }
                        Err(why) => {
                            println!("difference: {why}");
                            results.1 += 1;
                        }
                    }
                }
            });
        }
    });
    let (counts, differences) = results.into_inner().expect("no thread panics with the lock");
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", counts.coverage);
    println!(
        "{} cases ({} faults delivered by the CPU, {} injected, {} accesses after P was set without a flush) \
         in {seconds:.0} s, {:.0} cases/s, {differences} differences",
        counts.cases,
        counts.native,
        counts.injected,
        counts.unflushed,
        counts.cases as f64 / seconds
    );
    ExitCode::from(u8::from(differences != 0 || counts.cases == 0))
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

//! The differential test for as long as one likes: random guest programs through the shadow MMU, each from a seed
//! that is printed and can be replayed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use umbra_reference::coverage::Coverage;
use umbra_reference::minimize::minimize_plain;
use umbra_reference::program::Program;
use umbra_reference::{Config, run_program};

/// Run random guest programs through the shadow MMU and judge every step.
#[derive(Parser)]
struct Arguments {
    /// How long.
    #[arg(long, value_name = "MINUTES", default_value_t = 10.0)]
    minutes: f64,
    /// The first program's seed; the next programs have the next numbers [default: by the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Run only this many programs.
    #[arg(long, value_name = "N", default_value_t = u64::MAX)]
    programs: u64,
    /// Steps in a program.
    #[arg(long, value_name = "N", default_value_t = 300)]
    steps: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Ok(time) = Duration::try_from_secs_f64(arguments.minutes * 60.0) else {
        eprintln!("campaign: --minutes {} is no length of time; give a positive number", arguments.minutes);
        return ExitCode::from(2);
    };
    let first = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let (start, mut coverage, mut done) = (Instant::now(), Coverage::default(), 0);
    println!("first seed {first}");
    while done < arguments.programs && start.elapsed() < time {
        let seed = first.wrapping_add(done);
        let program = Program::random(seed, arguments.steps);
        let config = Config::from_word(fastrand::Rng::with_seed(seed).u64(..), true);
        match run_program(&program, &config) {
            Ok(met) => coverage.merge(&met),
            Err(divergence) => {
                let shortest = minimize_plain(&program, &config);
                let why = shortest.map_or_else(|| divergence.to_string(), |failure| failure.to_string());
                println!("program {seed}: {why}");
                println!("replay: --seed {seed} --programs 1 --steps {}", arguments.steps);
                return ExitCode::FAILURE;
            }
        }
        done += 1;
    }
    println!("{coverage}");
    println!("{done} programs, {} steps, 0 divergences", done * arguments.steps as u64);
    ExitCode::SUCCESS
}

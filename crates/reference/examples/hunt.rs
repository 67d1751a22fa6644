//! Runs random guest programs through the shadow MMU until one fails, and makes that one short:
//! `cargo xtask sabotage` hunts for each broken rule with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;
use umbra_mmu::MIN_FRAMES_PER_VCPU;
use umbra_reference::machine::ShadowConfig;
use umbra_reference::minimize::minimize;
use umbra_reference::program::Program;
use umbra_reference::recipe::Recipe;
use umbra_reference::{Config, Divergence, run_program};

const STEPS: usize = 300;

/// Run random guest programs until one fails: exit code 1 if one does.
#[derive(Parser)]
struct Arguments {
    /// How many may pass.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    programs: u64,
}

fn main() -> ExitCode {
    let Arguments { programs } = Arguments::parse();
    // An assertion of the MMU is one of the ways to fail, of which one line says enough.
    std::panic::set_hook(Box::new(|_| ()));
    let failure = (0..programs).find_map(|seed| {
        let (program, config) = if seed % 2 == 0 { anything(seed) } else { crowded(seed) };
        run(&program, &config).err()?;
        minimize(&program, &config, run).map(|failure| (seed, failure))
    });
    let Some((seed, failure)) = failure else {
        println!("{programs} programs pass");
        return ExitCode::SUCCESS;
    };
    println!("program {seed}, {} steps suffice: {}", failure.program.ops.len(), failure.divergence);
    ExitCode::FAILURE
}

fn anything(seed: u64) -> (Program, Config) {
    let recipe = Recipe::random(seed, STEPS);
    (recipe.program(), recipe.config())
}

/// As many shadow pages as possible in as few frames as possible.
fn crowded(seed: u64) -> (Program, Config) {
    let (_, mut config) = anything(seed);
    config.cpus = 1;
    config.shadow = config.shadow.map(|shadow| ShadowConfig {
        frames: MIN_FRAMES_PER_VCPU,
        vpid: true,
        ..shadow
    });
    (Program::random_crowded(seed, STEPS), config)
}

fn run(program: &Program, config: &Config) -> Result<(), Divergence> {
    let run = AssertUnwindSafe(|| run_program(program, config).map(drop));
    catch_unwind(run).unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let why = why.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        let (step, op) = program.ops.iter().enumerate().next_back().expect("no program is empty");
        Err(Divergence { step, op: op.clone(), got: None, why: format!("the MMU panics: {why}") })
    })
}

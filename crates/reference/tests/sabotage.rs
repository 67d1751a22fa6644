//! Every rule of the MMU that can be broken on purpose is broken, and must be caught. `UMBRA_RULE=Limbo` breaks
//! only that one.

use std::panic::{AssertUnwindSafe, catch_unwind};

use umbra_mmu::{MIN_FRAMES_PER_VCPU, Rule};
use umbra_reference::machine::ShadowConfig;
use umbra_reference::minimize::minimize;
use umbra_reference::program::Program;
use umbra_reference::recipe::Recipe;
use umbra_reference::{Config, Divergence, run_on};

/// Programs that a broken rule may survive.
const PROGRAMS: u64 = 2000;
const STEPS: usize = 300;

/// Rules that are broken in tests of umbra-mmu, and in regressions, instead. The first four are about the order in which
/// several vCPUs see things, and one step at a time shows nothing of it (`tests/mmu/order.rs`); the next five need more in a
/// row than random programs come upon, or come upon soon (`tests/mmu/flushes.rs`, `roots.rs`, `copies.rs`); random programs know of no
/// address that `HideMmio` would give away (`tests/mmu/terminal_fault.rs`); the hypervisor here offers a root only when it
/// has just been loaded (`tests/mmu/roots.rs`); and what breaks the last one took a campaign to find
/// (`tests/regressions.rs`).
const AIMED: [Rule; 12] = [
    Rule::ReadAfterProtect,
    Rule::PendingBeforeWrite,
    Rule::ReadAfterAttach,
    Rule::FlushBeforeUnprotect,
    Rule::FlushAfterLarge,
    Rule::TrapWhileLoose,
    Rule::FlushBeforeDetach,
    Rule::FlushBeforeExchange,
    Rule::CopiesFollowStores,
    Rule::HideMmio,
    Rule::OfferFollowed,
    Rule::RefreshLoose,
];

fn run_broken(program: &Program, config: &Config, rule: Rule) -> Result<(), Divergence> {
    let shadow = config.shadow.expect("there is nothing to break in bare hardware");
    let run = AssertUnwindSafe(|| {
        let mut machine = config.shadowed(program, shadow);
        machine.mmu_mut().break_rule(rule);
        run_on(machine, program, config).map(drop)
    });
    // An assertion of the MMU catches as well as the judge.
    catch_unwind(run).unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let why = why.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        let (step, op) = program.ops.iter().enumerate().next_back().expect("no program is empty");
        Err(Divergence { step, op: op.clone(), got: None, why: format!("the MMU panics: {why}") })
    })
}

fn anything(seed: u64) -> (Program, Config) {
    let recipe = Recipe::random(seed, STEPS);
    (recipe.program(), recipe.config())
}

/// As many shadow pages as possible in as few frames as possible.
fn crowded(seed: u64) -> (Program, Config) {
    let (_, mut config) = anything(seed);
    config.cpus = 1;
    config.shadow =
        config.shadow.map(|shadow| ShadowConfig { frames: MIN_FRAMES_PER_VCPU, vpid: true, ..shadow });
    (Program::random_crowded(seed, STEPS), config)
}

#[test]
fn every_broken_rule_is_caught() {
    let mut survivors = Vec::new();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let only = std::env::var("UMBRA_RULE").ok();
    let chosen = |rule: &&Rule| only.as_ref().is_none_or(|only| *only == format!("{rule:?}"));
    for &rule in Rule::ALL.iter().filter(chosen).filter(|rule| !AIMED.contains(rule)) {
        let caught = (0..PROGRAMS).find_map(|seed| {
            let (program, config) = if seed % 2 == 0 { anything(seed) } else { crowded(seed) };
            run_broken(&program, &config, rule).err()?;
            let run = |program: &Program, config: &Config| run_broken(program, config, rule);
            minimize(&program, &config, run).map(|failure| (seed, failure))
        });
        match caught {
            Some((seed, failure)) => {
                let steps = failure.program.ops.len();
                println!("{rule:?}: caught by program {seed}, {steps} steps suffice: {}", failure.divergence);
            }
            None => {
                println!("{rule:?}: not caught");
                survivors.push(rule);
            }
        }
    }
    std::panic::set_hook(hook);
    assert!(survivors.is_empty(), "not caught in {PROGRAMS} programs each: {survivors:?}");
}

//! `cargo xtask sabotage`: breaks the rules of the MMU one by one, and expects each to be caught.
//!
//! The mutations of `crates/mmu/sabotage` are woven into a [copy](copy::Copy) of the tree, all at
//! once. One build of it breaks the rule whose number its environment names.

mod copy;
mod hypervisor;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use umbra_sabotage::{Catcher, Mutation};

use crate::paths;
use copy::{Copy, Outcome};

/// Break each rule of the shadow MMU in turn; show what catches it.
///
/// It shows after how many steps, too.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only this rule, for example `Quarantine`.
    #[arg(long, value_name = "RULE")]
    rule: Option<String>,

    /// Break what keeps a guest in under SVM instead, each rule in a build of its own, and run a
    /// guest kernel on it.
    #[arg(long)]
    hypervisor: bool,
}

/// Breaks the rules.
pub fn run(Arguments { rule, hypervisor }: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    let mutations = match hypervisor {
        true => hypervisor::rules()?,
        false => rules()?,
    };
    let chosen: Vec<(u32, &Mutation)> = (1..)
        .zip(&mutations)
        .filter(|(_, mutation)| rule.as_ref().is_none_or(|rule| *rule == mutation.name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = mutations.iter().map(|mutation| mutation.name.as_str()).collect();
        bail!("there is no such rule. The rules are: {}", names.join(", "));
    }
    if *hypervisor {
        let rules: Vec<&Mutation> = chosen.iter().map(|(_, mutation)| *mutation).collect();
        let survivors = hypervisor::run(&rules)?;
        println!(
            "{} rules: {survivors} not caught; {:.1} minutes",
            rules.len(),
            start.elapsed().as_secs_f64() / 60.0
        );
        return Ok(if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let copy = Copy::build(&mutations)?;
    copy.check_intact(chosen.iter().flat_map(|(_, mutation)| &mutation.caught_by))?;
    println!("built, and good while no rule is broken, after {} s", start.elapsed().as_secs());
    let mut survivors = 0;
    for &(number, mutation) in &chosen {
        for catcher in &mutation.caught_by {
            let since = Instant::now();
            let verdict = verdict(catcher, &copy.run(catcher, number)?);
            survivors += usize::from(verdict.is_err());
            let (Ok(text) | Err(text)) = verdict;
            println!("{}: {text} ({:.1} s)", mutation.name, since.elapsed().as_secs_f64());
        }
    }
    let random =
        chosen.iter().filter(|(_, mutation)| mutation.caught_by.contains(&Catcher::RandomPrograms));
    println!(
        "{} rules, {} of them hunted by random programs, the others by tests: {} not caught; {:.1} minutes",
        chosen.len(),
        random.count(),
        survivors,
        start.elapsed().as_secs_f64() / 60.0
    );
    Ok(if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The rules of the MMU.
///
/// # Errors
/// Their files cannot be read.
pub fn rules() -> Result<Vec<Mutation>> {
    umbra_sabotage::read(&paths::workspace().join("crates/mmu/sabotage"))
}

/// Whether the compiler takes the MMU with all rules of it broken: what it takes with none broken
/// changes, and the mutations with it. Says how many there are.
pub fn check() -> Result<String> {
    let rules = rules()?;
    Copy::check(&rules)?;
    Ok(format!("{} rules", rules.len()))
}

/// How a broken rule was caught; or that it was not.
fn verdict(catcher: &Catcher, outcome: &Outcome) -> Result<String, String> {
    match (outcome, catcher) {
        (Outcome::Passes(_), _) => Err(format!("NOT caught by {catcher}")),
        (Outcome::Hangs, _) => Err(format!("NOT caught by {catcher}, which does not end")),
        (Outcome::Fails(output), Catcher::RandomPrograms) => {
            Ok(format!("caught by {}", output.trim_end()))
        }
        (Outcome::Fails(output), _) => match catcher.says() {
            Some(text) if !output.contains(text) => Err(format!(
                "NOT caught as it should be by {catcher}, which does not say {text:?}:\n{output}"
            )),
            _ => Ok(format!("caught by {catcher}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_caught(catcher: &str, outcome: &Outcome) -> bool {
        verdict(&catcher.to_owned().try_into().unwrap(), outcome).is_ok()
    }

    #[test]
    fn only_a_failure_for_the_right_reason_catches() {
        let fails = Outcome::Fails("panicked: I5 (lifetime)".to_owned());
        assert!(is_caught("umbra-mmu mmu a::b", &fails));
        assert!(is_caught("umbra-mmu mmu a::b, saying I5 (lifetime)", &fails));
        assert!(!is_caught("umbra-mmu mmu a::b, saying I1", &fails));
        assert!(is_caught("random programs", &fails));
        for outcome in [Outcome::Hangs, Outcome::Passes("I1".to_owned())] {
            assert!(!is_caught("umbra-mmu mmu a::b, saying I1", &outcome));
            assert!(!is_caught("random programs", &outcome));
        }
    }
}

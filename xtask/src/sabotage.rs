//! `cargo xtask sabotage`: breaks the rules of the MMU one by one, and expects each to be caught.

use std::process::ExitCode;

use anyhow::Result;

use crate::process;

/// Break every rule of the shadow MMU in turn and show what catches it, and after how many steps.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only this rule, for example `Limbo`, in random programs.
    #[arg(long, value_name = "RULE")]
    rule: Option<String>,
}

/// Runs the tests that do it.
pub fn run(Arguments { rule }: &Arguments) -> Result<ExitCode> {
    let mut cargo = process::cargo();
    cargo.args(["test", "--package", "umbra-reference", "--features", "sabotage", "--test", "sabotage"]);
    cargo.args(["--", "--nocapture"]);
    if let Some(rule) = rule {
        cargo.env("UMBRA_RULE", rule);
    }
    process::show(&mut cargo)?;
    if rule.is_none() {
        // Rules about order, and the attacks that were made for certain rules.
        process::show(process::cargo().args(["test", "--package", "umbra-mmu", "--features", "sabotage"]))?;
        let mut attacks = process::cargo();
        attacks.args(["test", "--package", "umbra-reference", "--features", "sabotage"]);
        attacks.args(["--test", "cve_2026_53359", "--test", "cve_2026_46113", "--test", "cve_2026_64561"]);
        attacks.args(["--test", "regressions"]);
        process::show(&mut attacks)?;
    }
    Ok(ExitCode::SUCCESS)
}

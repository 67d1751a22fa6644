//! `cargo xtask sabotage`: breaks the rules of the MMU one by one, and expects each to be caught.

use std::process::ExitCode;

use anyhow::Result;

use crate::process;

/// Break every rule of the shadow MMU in turn and show what catches it, and after how many steps.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only this rule, for example `Limbo`.
    #[arg(long, value_name = "RULE")]
    rule: Option<String>,
}

/// Runs the test that does it.
pub fn run(Arguments { rule }: &Arguments) -> Result<ExitCode> {
    let mut cargo = process::cargo();
    cargo.args(["test", "--package", "umbra-reference", "--features", "sabotage", "--test", "sabotage"]);
    cargo.args(["--", "--nocapture"]);
    if let Some(rule) = rule {
        cargo.env("UMBRA_RULE", rule);
    }
    process::show(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}

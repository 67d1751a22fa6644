//! Tests on this machine: formatting, lints, unit and differential tests, documentation.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::report::{Report, last_lines};
use crate::{paths, process, sabotage};

/// How much of a failed step's output is shown.
const SHOWN_LINES: usize = 200;

/// Runs them all.
pub fn run(report: &mut Report) {
    report.step("format", || cargo(&["fmt", "--all", "--check"], &[]).map(|_| String::new()));
    report.step("lints", || {
        let arguments = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
        cargo(&arguments, &[]).map(|_| String::new())
    });
    report.step("lints of bare-metal code", bare_metal_lints);
    report.step("the compiler takes the MMU with every rule broken", sabotage::check);
    report.step("unit and differential tests", || {
        count_tests(&cargo(&["test", "--workspace"], &[])?)
    });
    report.step("documentation", || {
        let arguments = ["doc", "--workspace", "--no-deps", "--document-private-items"];
        cargo(&arguments, &[("RUSTDOCFLAGS", "--deny warnings")]).map(|_| String::new())
    });
}

/// Lints what exists only on the bare machine: for the host's own target with another name, so that
/// no toolchain but the one in use is needed.
fn bare_metal_lints() -> Result<String> {
    let folder = paths::target_dir()?.join("bare-metal-lints");
    let folder = folder.to_str().context("the target directory's name is not text")?;
    let mut arguments = vec!["clippy", "--target-dir", folder];
    for package in ["umbra-hypervisor", "umbra-guest-kernels"] {
        arguments.extend(["--package", package]);
    }
    arguments.extend(["--", "--deny", "warnings"]);
    let flags = "--cfg target_os=\"none\" -Aexplicit_builtin_cfgs_in_flags -Cpanic=abort";
    cargo(&arguments, &[("RUSTFLAGS", flags)]).map(|_| String::new())
}

/// Runs cargo and returns what it printed.
pub fn cargo(arguments: &[&str], variables: &[(&str, &str)]) -> Result<String> {
    let mut cargo = process::cargo();
    cargo.current_dir(paths::workspace()).args(arguments).envs(variables.iter().copied());
    let line = process::describe(&cargo);
    let output = cargo.output().with_context(|| format!("starting {line}"))?;
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        let log = paths::guest_dir()?.join(format!("{}.log", arguments[0]));
        fs::write(&log, format!("{stderr}{stdout}")).with_context(|| log.display().to_string())?;
        let ends = [stderr, stdout].map(|text| last_lines(&text, SHOWN_LINES));
        bail!(
            "{line} failed with {} (all of it: {}):\n{}",
            output.status,
            log.display(),
            ends.join("\n")
        );
    }
    Ok(stdout.into_owned())
}

/// Sums up libtest's closing lines.
pub fn count_tests(output: &str) -> Result<String> {
    let mut sum = 0;
    for line in output.lines().filter_map(|line| line.strip_prefix("test result: ok. ")) {
        let count = line.split_once(' ').and_then(|(count, _)| count.parse::<u32>().ok());
        sum += count.with_context(|| format!("not understood: {line}"))?;
    }
    if sum == 0 {
        bail!("no test was run:\n{output}");
    }
    Ok(format!("{sum} tests"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_of_all_crates_are_summed_up() {
        let output = "test result: ok. 12 passed; 0 failed; 0 ignored\n\ntest result: ok. 3 passed; 0 failed\n";
        assert_eq!(count_tests(output).unwrap(), "15 tests");
        assert!(count_tests("test result: ok. 0 passed; 0 failed").is_err());
    }
}

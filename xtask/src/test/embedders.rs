//! Tests of what others build on the crates: the embedder in `examples/`, a workspace of its own.

use super::host::{cargo, count_tests};
use crate::paths;
use crate::report::Report;

/// Runs them all.
pub fn run(report: &mut Report) {
    report.step("examples: a hypervisor conforms, mistakes do not", || {
        let target = paths::target_dir()?.join("examples");
        let target = target.to_string_lossy();
        let manifest = ["--manifest-path", "examples/Cargo.toml"];
        cargo(&["fmt", manifest[0], manifest[1], "--check"], &[])?;
        let shared = [manifest[0], manifest[1], "--locked", "--target-dir", &target];
        cargo(&[&["clippy", "--all-targets"], &shared[..], &["--", "--deny", "warnings"]].concat(), &[])?;
        count_tests(&cargo(&[&["test"], &shared[..]].concat(), &[])?)
    });
}

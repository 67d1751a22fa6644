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
        cargo(
            &[&["clippy", "--all-targets"], &shared[..], &["--", "--deny", "warnings"]].concat(),
            &[],
        )?;
        count_tests(&cargo(&[&["test"], &shared[..]].concat(), &[])?)
    });
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::paths;

    #[test]
    fn the_map_names_each_crate_that_is_packaged_and_no_other() {
        let map = fs::read_to_string(paths::workspace().join("ARCHITECTURE.md")).unwrap();
        let sentence = map.split(". ").map(|sentence| sentence.replace('\n', " "));
        let named = sentence
            .filter(|sentence| sentence.contains(" are packaged for a registry"))
            .collect::<String>();
        let mut packaged = 0;
        for entry in fs::read_dir(paths::workspace().join("crates")).unwrap() {
            let manifest = fs::read_to_string(entry.unwrap().path().join("Cargo.toml")).unwrap();
            let name = manifest.split('"').nth(1).unwrap();
            let is_packaged = manifest.lines().any(|line| line == "publish = true");
            assert_eq!(named.contains(&format!("`{name}`")), is_packaged, "{name}: {named}");
            packaged += u32::from(is_packaged);
        }
        assert!(packaged > 0);
    }
}

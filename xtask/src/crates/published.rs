//! Which crates go to a registry, by their manifests.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{paths, process};

/// The crates that are published, and the oldest compiler that they promise.
pub struct Published {
    names: Vec<String>,
    rust_version: String,
}

impl Published {
    /// Asks cargo.
    ///
    /// # Errors
    /// Cargo fails, or two of them promise different compilers: they are used together.
    pub fn find() -> Result<Published> {
        let mut cargo = process::cargo();
        cargo.current_dir(paths::workspace());
        cargo.args(["metadata", "--no-deps", "--locked", "--format-version", "1"]);
        Published::read(&process::capture(&mut cargo)?)
    }

    fn read(metadata: &str) -> Result<Published> {
        let metadata: Value = serde_json::from_str(metadata).context("reading `cargo metadata`")?;
        let packages =
            metadata["packages"].as_array().context("`cargo metadata` lists no packages")?;
        // No list of registries means any; an empty list means that it is not to be published.
        let published = packages.iter().filter(|package| package["publish"].is_null());
        let mut names = Vec::new();
        let mut versions = Vec::new();
        for package in published {
            let name = package["name"].as_str().context("a package without a name")?;
            let version = package["rust_version"].as_str();
            versions.push(
                version.with_context(|| format!("{name} states no rust-version"))?.to_owned(),
            );
            names.push(name.to_owned());
        }
        versions.dedup();
        ensure!(
            versions.len() == 1,
            "{} promise different compilers: {versions:?}",
            names.join(", ")
        );
        Ok(Published { names, rust_version: versions.remove(0) })
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The oldest compiler that compiles them, such as "1.85".
    pub fn rust_version(&self) -> &str {
        &self.rust_version
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn package(name: &str, publish: &str, rust_version: &str) -> String {
        format!(r#"{{"name":"{name}","publish":{publish},"rust_version":"{rust_version}"}}"#)
    }

    #[test]
    fn only_what_may_go_anywhere_is_published() {
        let packages = [
            package("a", "null", "1.85"),
            package("b", "[]", "1.95"),
            package("c", "null", "1.85"),
        ];
        let published =
            Published::read(&format!(r#"{{"packages":[{}]}}"#, packages.join(","))).unwrap();
        assert_eq!(published.names().collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(published.rust_version(), "1.85");
    }

    #[test]
    fn one_compiler_must_do_for_all() {
        let packages = [package("a", "null", "1.85"), package("c", "null", "1.90")];
        assert!(Published::read(&format!(r#"{{"packages":[{}]}}"#, packages.join(","))).is_err());
    }

    /// What a registry's page and a distributor need of each crate.
    #[test]
    fn each_has_licence_texts_a_read_me_and_all_metadata() {
        for name in Published::find().unwrap().names() {
            let folder =
                paths::workspace().join("crates").join(name.strip_prefix("umbra-").unwrap());
            for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
                let text = fs::read_to_string(folder.join(licence))
                    .unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(
                    text,
                    fs::read_to_string(paths::workspace().join(licence)).unwrap(),
                    "{name}"
                );
            }
            let read_me = fs::read_to_string(folder.join("README.md")).unwrap();
            assert!(read_me.contains("```rust"), "{name}: README.md has no example");
            let library = fs::read_to_string(folder.join("src/lib.rs")).unwrap();
            assert!(
                library.contains("include_str!(\"../README.md\")"),
                "{name}: no test compiles README.md"
            );
            let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
            for key in ["description", "readme", "keywords", "categories", "documentation"] {
                assert!(
                    manifest.lines().any(|line| line.starts_with(&format!("{key} = "))),
                    "{name}: no {key}"
                );
            }
        }
    }
}

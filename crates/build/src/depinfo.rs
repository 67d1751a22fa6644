//! Cargo's dep-info files: which sources a program was made from.
//!
//! One make rule, `program: source source ...`, with spaces in paths escaped by a backslash (The
//! Cargo Book, "Build Cache", dep-info files). It names the sources of all path dependencies too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The sources that the dep-info text names.
pub(crate) fn sources(text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((_, list)) = line.split_once(": ") else { continue };
        let mut path = String::new();
        let mut characters = list.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => path.extend(characters.next()),
                ' ' if !path.is_empty() => found.push(PathBuf::from(std::mem::take(&mut path))),
                ' ' => (),
                other => path.push(other),
            }
        }
        if !path.is_empty() {
            found.push(PathBuf::from(path));
        }
    }
    found
}

/// The nearest `Cargo.toml` above each source.
pub(crate) fn manifests(sources: &[PathBuf]) -> BTreeSet<PathBuf> {
    let manifest = |source: &PathBuf| {
        source
            .ancestors()
            .skip(1)
            .map(|folder| folder.join("Cargo.toml"))
            .find(|path| Path::is_file(path))
    };
    sources.iter().filter_map(manifest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_spaces_are_one_path() {
        let text = "/t/umbra-hypervisor: /a/b/main.rs /a/with\\ space/lib.rs\n";
        assert_eq!(
            sources(text),
            [PathBuf::from("/a/b/main.rs"), PathBuf::from("/a/with space/lib.rs")]
        );
        assert!(sources("").is_empty());
    }

    #[test]
    fn the_manifest_of_a_source_is_the_nearest() {
        let package = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap());
        let here = package.join("src/lib.rs");
        assert_eq!(manifests(&[here]), BTreeSet::from([package.join("Cargo.toml")]));
    }
}

//! Which module of a crate uses which: read from its sources, for tests that keep it so.
//!
//! A use is a path that starts with `crate::` or `super::`, in whatever spelling. Comments do not
//! count. A name that the modules' parent exports again counts as a use of the module that has it.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A row of a table of layers: a module, and those that it may use.
pub type Layer<'a> = (&'a str, &'a [&'a str]);

/// The modules in one folder of a crate, with their sources.
pub struct Modules {
    /// What a path from the crate's root to the folder starts with: `crate::`, `crate::hw::`.
    prefix: String,
    files: BTreeMap<String, Vec<File>>,
    /// Which module each name comes from that the folder's own module exports.
    exports: BTreeMap<String, String>,
}

impl fmt::Debug for Modules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Modules")
            .field("prefix", &self.prefix)
            .field("modules", &self.files.keys())
            .finish_non_exhaustive()
    }
}

/// A source file.
pub struct File {
    /// Where it lies.
    pub path: PathBuf,
    /// How often `super::` leads from it to the folder.
    depth: usize,
    /// Its text without comments.
    pub code: String,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Modules {
    /// Reads the modules in `folder` of the sources of a crate (`""` is the root), which lie at
    /// `source`.
    ///
    /// # Panics
    /// There is no such folder, or something in it is not readable.
    pub fn read(source: &Path, folder: &str) -> Modules {
        let at = source.join(folder);
        let mut prefix = String::from("crate::");
        folder
            .split('/')
            .filter(|part| !part.is_empty())
            .for_each(|part| prefix += &format!("{part}::"));
        let mut files = BTreeMap::<String, Vec<File>>::new();
        let mut folders = vec![at.clone()];
        let mut root = String::new();
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).expect("a folder of sources") {
                let path = entry.expect("an entry of it").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                if path.extension().is_none_or(|extension| extension != "rs") {
                    continue;
                }
                let code = without_comments(&fs::read_to_string(&path).expect("a source file"));
                let inside = path.strip_prefix(&at).expect("it lies below").with_extension("");
                let mut parts: Vec<_> =
                    inside.iter().map(|part| part.to_str().expect("text")).collect();
                if parts.len() == 1 && ["mod", "lib", "main"].contains(&parts[0]) {
                    root = code;
                    continue;
                }
                if parts.last() == Some(&"mod") {
                    parts.pop();
                }
                let depth = parts.len();
                files.entry(parts[0].to_owned()).or_default().push(File { path, depth, code });
            }
        }
        Modules { exports: exports(&root, files.keys()), prefix, files }
    }

    /// All files, with the module that each belongs to.
    pub fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files
            .iter()
            .flat_map(|(module, files)| files.iter().map(move |file| (module.as_str(), file)))
    }

    /// The other modules that a file of `module` uses.
    fn uses(&self, module: &str, file: &File) -> BTreeSet<String> {
        let mut names = names_behind(&file.code, &self.prefix);
        names.extend(names_behind_supers(&file.code, file.depth));
        let modules =
            names.into_iter().map(|name| self.exports.get(&name).cloned().unwrap_or(name));
        modules.filter(|used| used != module && self.files.contains_key(used)).collect()
    }

    /// Which modules each module uses.
    pub fn edges(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut edges: BTreeMap<_, _> =
            self.files.keys().map(|module| (module.clone(), BTreeSet::new())).collect();
        for (module, file) in self.files() {
            edges.entry(module.to_owned()).or_default().extend(self.uses(module, file));
        }
        edges
    }

    /// Checks that each module uses what its row of the table allows, all of it, and nothing else.
    ///
    /// # Panics
    /// It does not, or the table is not one of these modules, or a row allows a module below it.
    pub fn assert_layers(&self, layers: &[Layer]) {
        let known: BTreeSet<&str> = layers.iter().map(|(module, _)| *module).collect();
        assert_eq!(self.files.keys().map(String::as_str).collect::<BTreeSet<_>>(), known);
        for (row, (module, allowed)) in layers.iter().enumerate() {
            for used in *allowed {
                let above = layers[..row].iter().any(|(other, _)| other == used);
                assert!(above, "{module} may use {used}, which does not stand above it");
            }
            let mut all = BTreeSet::new();
            for file in &self.files[*module] {
                let uses = self.uses(module, file);
                let wrong: Vec<_> =
                    uses.iter().filter(|used| !allowed.contains(&used.as_str())).collect();
                assert!(wrong.is_empty(), "{} must not use {wrong:?}", file.path.display());
                all.extend(uses);
            }
            let unused: Vec<_> =
                allowed.iter().filter(|allowed| !all.contains(**allowed)).collect();
            assert!(unused.is_empty(), "{module} may use {unused:?}, but does not");
        }
    }

    /// Checks that no modules use each other, by whatever way.
    ///
    /// # Panics
    /// Some do.
    pub fn assert_no_circles(&self) {
        let edges = self.edges();
        let circle = circle(&edges);
        assert!(circle.is_empty(), "modules in {} use each other: {circle:?}", self.prefix);
    }
}

/// The modules that lie on circles, or between two of them; none if there are none.
pub fn circle(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<&str> {
    let mut left: BTreeSet<&str> = edges.keys().map(String::as_str).collect();
    loop {
        let users: BTreeSet<&str> =
            left.iter().flat_map(|module| edges[*module].iter().map(String::as_str)).collect();
        let before = left.len();
        // What nobody uses, and what uses nobody, is on no circle.
        left.retain(|module| users.contains(module));
        let rest = left.clone();
        left.retain(|module| edges[*module].iter().any(|used| rest.contains(used.as_str())));
        if left.len() == before {
            return left.into_iter().collect();
        }
    }
}

fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The identifier that a text starts with, or an empty one.
pub fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The first names of a path, or of all paths of a group in braces.
fn first_names(path: &str) -> Vec<&str> {
    let Some(group) = path.strip_prefix('{') else { return vec![identifier(path)] };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                found.push(identifier(group[start..at].trim()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => (),
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn names_behind(code: &str, prefix: &str) -> BTreeSet<String> {
    let paths = code.match_indices(prefix).map(|(at, found)| &code[at + found.len()..]);
    paths.flat_map(first_names).map(str::to_owned).collect()
}

/// The names behind `super::` so many times in a row, no more and no fewer.
fn names_behind_supers(code: &str, depth: usize) -> BTreeSet<String> {
    let prefix = "super::".repeat(depth);
    let starts = code.match_indices(&prefix).filter(|(at, _)| !code[..*at].ends_with("super::"));
    let paths = starts.map(|(at, found)| &code[at + found.len()..]);
    paths.flat_map(first_names).filter(|name| *name != "super").map(str::to_owned).collect()
}

/// Which of the modules each name comes from that their parent exports.
fn exports<'a>(root: &str, modules: impl Iterator<Item = &'a String>) -> BTreeMap<String, String> {
    let modules: BTreeSet<&str> = modules.map(String::as_str).collect();
    let uses = root.match_indices("pub use ").map(|(at, found)| &root[at + found.len()..]);
    let of_module = |path: &str| {
        let path = path.strip_prefix("self::").unwrap_or(path);
        let module = identifier(path).to_owned();
        let rest = path[module.len()..].strip_prefix("::").unwrap_or_default();
        let names = first_names(rest).into_iter().map(str::to_owned);
        names.map(|name| (name, module.clone())).collect::<Vec<_>>()
    };
    uses.flat_map(of_module).filter(|(_, module)| modules.contains(module.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(root: &str, files: &[(&str, usize, &str)]) -> Modules {
        let mut all = BTreeMap::<String, Vec<File>>::new();
        for (module, depth, text) in files {
            let file =
                File { path: PathBuf::from(module), depth: *depth, code: without_comments(text) };
            all.entry((*module).to_owned()).or_default().push(file);
        }
        Modules { exports: exports(root, all.keys()), prefix: "crate::".into(), files: all }
    }

    const ROOT: &str = "pub use config::{Config,\n    Work};\npub use mmu::Mmu;";
    const OTHERS: &[(&str, usize, &str)] = &[
        ("config", 1, ""),
        ("mmu", 1, ""),
        ("sync", 1, ""),
        ("fault", 1, ""),
        ("lifecycle", 1, ""),
        ("format", 1, ""),
    ];

    /// What a module with this text uses of them.
    fn found(depth: usize, text: &str) -> Vec<String> {
        let files = [OTHERS, &[("tables", depth, text)]].concat();
        modules(ROOT, &files).edges()["tables"].iter().cloned().collect()
    }

    #[test]
    fn uses_are_found_in_every_spelling() {
        assert_eq!(found(1, "use crate::lifecycle::Cx;"), ["lifecycle"]);
        let group = "use crate::{\n    Config, Mmu,\n    sync::{Entries, Other},\n};";
        assert_eq!(found(1, group), ["config", "mmu", "sync"]);
        assert_eq!(found(1, "fn f() { crate::fault::map() }"), ["fault"]);
        assert_eq!(found(1, "use super::{Mmu, format};"), ["format", "mmu"]);
        assert_eq!(found(2, "use super::super::sync;\nuse super::fault;"), ["sync"]);
    }

    #[test]
    fn comments_and_what_is_no_module_do_not_count() {
        assert!(found(1, "/// See [`crate::Mmu`].\n//! [`crate::fault`]").is_empty());
        assert!(
            found(1, "use crate::tables::Slot; use crate::nothing; use super::super::sync;")
                .is_empty()
        );
    }

    #[test]
    fn circles_are_found_and_what_only_leads_to_them_is_not_named() {
        let circle_of = |files: &[(&str, usize, &str)]| {
            let edges = modules("", files).edges();
            circle(&edges).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let line = [("a", 1, "use crate::b;"), ("b", 1, "use crate::c;"), ("c", 1, "")];
        assert!(circle_of(&line).is_empty());
        let ring = [
            ("a", 1, "use crate::b;"),
            ("b", 1, "use crate::c;"),
            ("c", 1, "use super::b;"),
            ("d", 1, ""),
        ];
        assert_eq!(circle_of(&ring), ["b", "c"]);
    }

    #[test]
    #[should_panic(expected = "a must not use [\"b\"]")]
    fn a_use_that_the_table_does_not_allow_fails() {
        modules("", &[("a", 1, "use crate::b;"), ("b", 1, "")])
            .assert_layers(&[("a", &[]), ("b", &[])]);
    }

    #[test]
    #[should_panic(expected = "a may use [\"b\"], but does not")]
    fn a_use_that_nobody_makes_has_no_place_in_the_table() {
        modules("", &[("a", 1, ""), ("b", 1, "")]).assert_layers(&[("b", &[]), ("a", &["b"])]);
    }

    #[test]
    #[should_panic(expected = "which does not stand above it")]
    fn a_table_in_the_wrong_order_fails() {
        modules("", &[("a", 1, ""), ("b", 1, "")]).assert_layers(&[("a", &["b"]), ("b", &[])]);
    }
}

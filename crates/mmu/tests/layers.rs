//! The layers of the crate: which module may use which. ARCHITECTURE.md has the same table, with
//! what each is for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module, and those that it may use: all of them stand in rows above its own, so no uses run
/// in a circle.
const LAYERS: &[(&str, &[&str])] = &[
    ("policy", &[]),
    ("format", &[]),
    ("config", &["format"]),
    ("outcome", &[]),
    ("event", &["config", "format"]),
    ("env", &["event"]),
    ("tables", &["config", "env", "event", "format"]),
    ("guest", &["env", "format", "tables"]),
    ("roots", &["format", "tables"]),
    ("derive", &["config", "env", "format", "guest", "tables"]),
    ("sync", &["config", "derive", "env", "event", "format", "guest", "roots", "tables"]),
    (
        "lifecycle",
        &["config", "derive", "env", "event", "format", "guest", "policy", "roots", "sync", "tables"],
    ),
    ("fault", &["config", "derive", "env", "event", "format", "lifecycle", "outcome", "policy", "tables"]),
    ("advice", &["config", "derive", "env", "fault", "format", "lifecycle", "policy", "tables"]),
    ("audit", &["derive", "env", "format", "guest", "lifecycle", "tables"]),
    ("mmu", &["advice", "audit", "config", "env", "event", "fault", "lifecycle", "outcome", "policy"]),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All source files by the module at the crate's root that they belong to.
fn modules() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let mut found = BTreeMap::<String, Vec<_>>::new();
    let mut folders = vec![source()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let inside = path.strip_prefix(source()).unwrap().with_extension("");
            let module = inside.iter().next().unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&path).unwrap();
            found.entry(module).or_default().push((path, text));
        }
    }
    found
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The first names of a path, or of all paths of a group in braces.
fn names(path: &str) -> Vec<&str> {
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

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// The names behind `crate::` in this text.
fn used(text: &str) -> BTreeSet<String> {
    let code = without_comments(text);
    let paths = code.match_indices("crate::").map(|(at, found)| &code[at + found.len()..]);
    paths.flat_map(names).map(str::to_owned).collect()
}

/// Which module each name comes from that the crate's root exports.
fn exports(root: &str) -> BTreeMap<String, String> {
    let code = without_comments(root);
    let uses = code.match_indices("pub use ").map(|(at, found)| &code[at + found.len()..]);
    let of_module = |path: &str| {
        let module = identifier(path).to_owned();
        let names = names(&path[module.len() + 2..]).into_iter().map(str::to_owned);
        names.map(|name| (name, module.clone())).collect::<Vec<_>>()
    };
    uses.flat_map(of_module).collect()
}

/// The modules that this text uses and `allowed` does not name, beside its own.
fn forbidden(module: &str, text: &str, exports: &BTreeMap<String, String>, allowed: &[&str]) -> Vec<String> {
    let modules = used(text).into_iter().map(|name| exports.get(&name).cloned().unwrap_or(name));
    modules.filter(|used| used != module && !allowed.contains(&used.as_str())).collect()
}

#[test]
fn modules_use_only_what_the_table_allows() {
    let mut modules = modules();
    let root = modules.remove("lib").expect("the crate has a root");
    let exports = exports(&root[0].1);
    let known: Vec<&str> = LAYERS.iter().map(|(module, _)| *module).collect();
    assert_eq!(modules.keys().map(String::as_str).collect::<BTreeSet<_>>(), known.into_iter().collect());
    for (module, allowed) in LAYERS {
        for (path, text) in &modules[*module] {
            let wrong = forbidden(module, text, &exports, allowed);
            assert!(wrong.is_empty(), "{} must not use {wrong:?}", path.display());
        }
        let all: BTreeSet<String> = modules[*module].iter().flat_map(|(_, text)| used(text)).collect();
        let uses: BTreeSet<String> =
            all.into_iter().map(|name| exports.get(&name).cloned().unwrap_or(name)).collect();
        let unused: Vec<_> = allowed.iter().filter(|allowed| !uses.contains(**allowed)).collect();
        assert!(unused.is_empty(), "{module} may use {unused:?}, but does not");
    }
}

#[test]
fn the_table_has_no_circles() {
    for (row, (module, allowed)) in LAYERS.iter().enumerate() {
        for used in *allowed {
            let above = LAYERS[..row].iter().any(|(other, _)| other == used);
            assert!(above, "{module} uses {used}, which does not stand above it");
        }
    }
}

#[test]
fn no_field_is_open_to_the_whole_crate() {
    for (path, text) in modules().into_values().flatten() {
        for line in text.lines() {
            let field = line.trim().strip_prefix("pub(crate) ").is_some_and(|rest| {
                let name = identifier(rest);
                !name.is_empty() && rest[name.len()..].starts_with(':')
            });
            assert!(!field, "{}: {line}", path.display());
        }
    }
}

/// `derive` owns the guest frames beside the shadow pages; what is Tracked changes with whole pages
/// only.
#[test]
fn only_lifecycle_changes_guest_frames() {
    for (module, files) in modules() {
        for (path, text) in files {
            let changes = without_comments(&text).contains(".both_mut()");
            assert!(!changes || module == "lifecycle", "{} changes guest frames", path.display());
        }
    }
}

#[test]
fn what_is_forbidden_is_found_in_every_spelling() {
    let exports = exports("pub use config::{Config,\n    Work};\npub use mmu::Mmu;");
    let find = |text| forbidden("tables", text, &exports, &["config", "format"]);
    assert_eq!(find("use crate::lifecycle::Cx;"), ["lifecycle"]);
    assert_eq!(find("use crate::{\n    Config, Mmu,\n    sync::{Entries, Other},\n};"), ["mmu", "sync"]);
    assert_eq!(find("fn f() { crate::fault::map() }"), ["fault"]);
    assert!(find("use crate::format::Role; use crate::Work; use crate::tables::Slot;").is_empty());
    assert!(find("/// See [`crate::Mmu`].\n//! [`crate::fault`]").is_empty());
}

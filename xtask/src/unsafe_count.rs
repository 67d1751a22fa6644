//! `cargo xtask unsafe-count`: how much unsafe code there is, and where.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::{paths, process};

/// Count unsafe blocks, functions and attributes by folder.
///
/// It fails if there are any outside the layer that touches CPU and memory.
#[derive(clap::Args)]
pub struct Arguments {}

/// The layer that touches CPU and memory.
const LAYER: &[&str] = &[
    "crates/hypervisor/src/boot",
    "crates/hypervisor/src/handover",
    "crates/hypervisor/src/hw",
    "crates/hypervisor/src/svm",
    "crates/hypervisor/src/vmx",
    "guest/kernels/src/base",
    "guest/kernels/src/kit",
    "guest/legacy/src/kit",
    "guest/init/src/sys",
    "guest/kvm-peer/src/sys.rs",
    "guest/kvm-trial/src/backing.rs",
    "guest/kvm-trial/src/ports.rs",
];

/// What `unsafe` stands before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    files: usize,
    blocks: usize,
    /// Lines from the opening brace of a block to the closing one, both included.
    lines: usize,
    /// Functions, traits, impls and extern blocks.
    items: usize,
    attributes: usize,
}

impl Count {
    fn add(&mut self, other: Count) {
        self.files += other.files;
        self.blocks += other.blocks;
        self.lines += other.lines;
        self.items += other.items;
        self.attributes += other.attributes;
    }
}

/// Counts.
pub fn run(Arguments {}: &Arguments) -> Result<ExitCode> {
    let mut sum = Count::default();
    println!(
        "{:<32} {:>5} {:>6} {:>5} {:>5} {:>10}",
        "folder", "files", "blocks", "lines", "items", "attributes"
    );
    let row = |name: &str, count: &Count| {
        let Count { files, blocks, lines, items, attributes } = count;
        println!("{name:<32} {files:>5} {blocks:>6} {lines:>5} {items:>5} {attributes:>10}");
    };
    let folders = by_folder()?;
    for (folder, count) in &folders {
        row(folder, count);
        sum.add(*count);
    }
    row("all", &sum);
    let outside: Vec<&str> =
        folders.keys().map(String::as_str).filter(|folder| !LAYER.contains(folder)).collect();
    if !outside.is_empty() {
        bail!(
            "there is unsafe code outside the layer that touches CPU and memory: {}",
            outside.join(", ")
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Folders of the layer, and other files, that have unsafe code.
fn by_folder() -> Result<BTreeMap<String, Count>> {
    let mut git = std::process::Command::new("git");
    git.current_dir(paths::workspace()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
    ]);
    let mut folders: BTreeMap<String, Count> = BTreeMap::new();
    for file in process::capture(&mut git)?.lines() {
        let path = paths::workspace().join(file);
        // Deleted, but git does not know yet.
        if !path.is_file() {
            continue;
        }
        let count = count_file(&path)?;
        if count.files > 0 {
            let folder = LAYER.iter().find(|folder| Path::new(file).starts_with(folder));
            folders.entry(String::from(*folder.unwrap_or(&file))).or_default().add(count);
        }
    }
    Ok(folders)
}

fn count_file(path: &Path) -> Result<Count> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut count = count(&text).with_context(|| path.display().to_string())?;
    count.files = usize::from(count != Count::default());
    Ok(count)
}

/// What a file has, comments and strings aside, macros included.
fn count(text: &str) -> Result<Count> {
    let tokens: TokenStream = text.parse().map_err(|error| anyhow::anyhow!("no Rust: {error}"))?;
    let mut count = Count::default();
    visit(tokens, &mut count);
    Ok(count)
}

fn visit(tokens: TokenStream, count: &mut Count) {
    let mut after_unsafe = false;
    for token in tokens {
        if after_unsafe {
            match &token {
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    let span = group.span();
                    count.blocks += 1;
                    count.lines += span.end().line - span.start().line + 1;
                }
                TokenTree::Group(_) => count.attributes += 1,
                _ => count.items += 1,
            }
        }
        after_unsafe = matches!(&token, TokenTree::Ident(ident) if *ident == "unsafe");
        if let TokenTree::Group(group) = token {
            visit(group.stream(), count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_items_and_attributes_are_told_apart() {
        let text = "#[unsafe(no_mangle)] unsafe fn f() { unsafe {\n g()\n } }\n\
                    // unsafe { }\n\
                    macro_rules! m { () => { const S: &str = \"unsafe {}\"; unsafe { h() } } }";
        let expected = Count { files: 0, blocks: 2, lines: 4, items: 1, attributes: 1 };
        assert_eq!(count(text).unwrap(), expected);
    }

    #[test]
    fn unsafe_code_is_in_the_layer_that_touches_cpu_and_memory() {
        let folders = by_folder().unwrap();
        assert!(
            folders.contains_key("crates/hypervisor/src/vmx"),
            "nothing was counted: {folders:?}"
        );
        let outside: Vec<_> =
            folders.keys().filter(|folder| !LAYER.contains(&folder.as_str())).collect();
        assert!(outside.is_empty(), "{outside:?}");
    }
}

//! The book's links and includes lead somewhere. (Building it needs mdbook: `cargo xtask book`.)

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use pulldown_cmark::{Event, Parser, Tag};

use crate::paths;
use crate::report::Report;

/// Checks every chapter.
pub fn run(report: &mut Report) {
    report.step("book: links and includes", || check(&paths::workspace().join("docs/book/src")));
}

fn check(book: &Path) -> Result<String> {
    let mut chapters = BTreeSet::new();
    for entry in fs::read_dir(book).with_context(|| book.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            chapters.insert(path);
        }
    }
    let summary = book.join("SUMMARY.md");
    ensure!(chapters.remove(&summary), "{} is missing", summary.display());
    let listed: BTreeSet<PathBuf> = links(&summary, &read(&summary)?)?.into_iter().collect();
    if let Some(odd) = listed.symmetric_difference(&chapters).next() {
        bail!("{} stands in the folder or in SUMMARY.md, and not in the other", odd.display());
    }
    let mut checked = listed.len();
    for chapter in &chapters {
        let text = read(chapter)?;
        checked += includes(chapter, &text)? + links(chapter, &text)?.len();
    }
    Ok(format!("{} chapters, {checked} links and includes", chapters.len()))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// The files that a text links to; each is there.
fn links(from: &Path, text: &str) -> Result<Vec<PathBuf>> {
    let target = |event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some(dest_url.into_string())
        }
        _ => None,
    };
    let inside = |target: &String| !target.contains("://") && !target.starts_with('#');
    let mut files = Vec::new();
    for target in Parser::new(text).filter_map(target).filter(inside) {
        let file = target.split('#').next().unwrap_or_default();
        let path = from.with_file_name(file);
        ensure!(path.is_file(), "{} links to {target}, which is not there", from.display());
        files.push(path);
    }
    Ok(files)
}

/// Counts what a text includes: files, or parts of them between anchors, which are there.
fn includes(from: &Path, text: &str) -> Result<usize> {
    let mut count = 0;
    for part in text.split("{{#include ").skip(1) {
        let (target, _) =
            part.split_once("}}").with_context(|| format!("{}: {{{{#include", from.display()))?;
        let (file, anchor) =
            target.split_once(':').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
        let included = read(&from.with_file_name(file))
            .with_context(|| format!("{} includes what is not there", from.display()))?;
        for mark in anchor
            .iter()
            .flat_map(|anchor| [format!("ANCHOR: {anchor}"), format!("ANCHOR_END: {anchor}")])
        {
            // In Markdown a mark is a comment.
            let is_mark = |line: &str| line.trim_end_matches(" -->").ends_with(&mark);
            ensure!(included.lines().any(is_mark), "{file} has no line `{mark}`");
        }
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_is_whole_and_what_is_missing_is_found() {
        let book = paths::workspace().join("docs/book/src");
        check(&book).unwrap();
        let page = book.join("README.md");
        assert_eq!(
            links(&page, "[a](limits.md#x) [b](https://example.org) `[c](d.md)`").unwrap().len(),
            1
        );
        assert!(
            links(&page, "[a](nothing.md)")
                .unwrap_err()
                .to_string()
                .contains("links to nothing.md")
        );
        assert!(includes(&page, "{{#include nothing.svg}}").is_err());
        assert_eq!(includes(&page, "{{#include ../../../examples/src/host.rs:tlb}}").unwrap(), 1);
        assert_eq!(includes(&page, "{{#include ../../measurements.md:conditions}}").unwrap(), 1);
        let missing =
            includes(&page, "{{#include ../../../examples/src/host.rs:nothing}}").unwrap_err();
        assert!(missing.to_string().contains("has no line `ANCHOR: nothing`"));
    }
}

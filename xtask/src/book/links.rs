//! A preprocessor of mdBook: mentions of files become links to them.
//!
//! Chapters name files by their paths from the top of the checkout, and include documents that do.
//! Written as links they would have to go up from each page, and an included document lies
//! elsewhere than the page that it becomes.

use std::io::{self, Read, Write};
use std::path::{Component, Path};
use std::process::ExitCode;

use anyhow::{Context, Result};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use serde_json::Value;

use crate::paths;

/// From a page, in `docs/book/build` as in `docs/book/src`, to the top of the checkout.
const TOP: &str = "../../..";

/// mdBook calls this itself: what it calls a preprocessor.
#[derive(clap::Args)]
pub struct Arguments {
    /// `supports RENDERER`, or nothing
    question: Vec<String>,
}

/// Answers mdBook's question whether this is for a renderer, or takes the book and gives it back.
pub fn run(Arguments { question }: &Arguments) -> Result<ExitCode> {
    if let [supports, renderer, ..] = &question[..]
        && supports == "supports"
    {
        return Ok(if renderer == "html" { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("reading the book from mdBook")?;
    let [_, mut book]: [Value; 2] = serde_json::from_str(&text).context("mdBook's book")?;
    link_chapters(&mut book, paths::workspace());
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, &book).context("writing the book to mdBook")?;
    stdout.flush().context("writing the book to mdBook")?;
    Ok(ExitCode::SUCCESS)
}

/// Whatever in the book is a chapter.
fn link_chapters(value: &mut Value, top: &Path) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| link_chapters(value, top)),
        Value::Object(object) => {
            if let Some(Value::String(content)) = object.get_mut("content") {
                *content = linked(content, top);
            }
            object.values_mut().for_each(|value| link_chapters(value, top));
        }
        _ => (),
    }
}

/// A chapter in which code that is the path of a file or folder, and in no link, is a link to it.
fn linked(text: &str, top: &Path) -> String {
    let mut linked = String::with_capacity(text.len());
    let (mut done, mut inside) = (0, 0_u32);
    let options = Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES;
    for (event, place) in Parser::new_ext(text, options).into_offset_iter() {
        match event {
            Event::Start(Tag::Link { .. } | Tag::Heading { .. }) => inside += 1,
            Event::End(TagEnd::Link | TagEnd::Heading(_)) => inside -= 1,
            Event::Code(path) if inside == 0 && is_of_checkout(&path, top) => {
                linked += &text[done..place.start];
                linked += &format!("[{}]({TOP}/{path})", &text[place.clone()]);
                done = place.end;
            }
            _ => (),
        }
    }
    linked + &text[done..]
}

/// Whether a text is the path of something below the top of the checkout that is not built there:
/// what cargo has built is not where the book is read.
fn is_of_checkout(text: &str, top: &Path) -> bool {
    let plain = |component| matches!(component, Component::Normal(_));
    let is_path = text.contains(['/', '.']) && !text.contains(char::is_whitespace);
    is_path
        && !Path::new(text).starts_with("target")
        && Path::new(text).components().all(plain)
        && top.join(text).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_there_become_links() {
        let top = paths::workspace();
        for (text, expected) in [
            ("see `README.md`.", "see [`README.md`](../../../README.md)."),
            (
                "| a |\n|---|\n| `crates/mmu` |\n",
                "| a |\n|---|\n| [`crates/mmu`](../../../crates/mmu) |\n",
            ),
        ] {
            assert_eq!(linked(text, top), expected);
        }
        for same in [
            "`crates/nothing.rs` and `crates` and `../x` and `/etc/passwd`",
            "[`README.md`](x)",
            "# `README.md`\n",
            "```text\nREADME.md\n```\n",
        ] {
            assert_eq!(linked(same, top), same);
        }
    }

    #[test]
    fn what_is_built_is_not_linked_to() {
        let top = tempfile::tempdir().unwrap();
        for file in ["target/release/umbra", "docs/target"] {
            std::fs::create_dir_all(top.path().join(file)).unwrap();
        }
        assert!(!is_of_checkout("target/release/umbra", top.path()));
        assert!(is_of_checkout("docs/target", top.path()));
    }

    #[test]
    fn every_chapter_of_a_book_is_looked_at() {
        let mut book = serde_json::json!({"items": [{"Chapter": {"name": "a", "content": "`README.md`",
            "sub_items": [{"Chapter": {"name": "b", "content": "`deny.toml`", "sub_items": []}}, "Separator"]}}]});
        link_chapters(&mut book, paths::workspace());
        let text = book.to_string();
        assert!(
            text.contains("](../../../README.md)") && text.contains("](../../../deny.toml)"),
            "{text}"
        );
    }
}

//! One source of many mutations.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::{Edit, Mutation, VARIABLE};

/// The module of the woven crate that knows which rule is broken.
const MODULE: &str = "sabotage_switch";

/// Stands before the number of the broken rule in a program with [`Switch::File`].
const MARK: &str = "UMBRA-BREAKS-RULE";

/// How a woven program learns which rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// By the [`VARIABLE`] of its environment.
    Environment,
    /// By a number in its own file, which [`set`] changes: bare metal has no environment.
    File,
}

/// Weaves all mutations into the crate whose sources are in `src`. Returns the files that change,
/// from there, with what they become.
///
/// # Errors
/// An edit's passage is not there, or not once; or two passages overlap and neither contains the
/// other.
pub fn weave(
    src: &Path,
    mutations: &[Mutation],
    switch: Switch,
) -> Result<BTreeMap<PathBuf, String>> {
    let mut edits = BTreeMap::<&Path, Vec<Numbered<'_>>>::new();
    for (number, mutation) in (1..).zip(mutations) {
        for edit in &mutation.edits {
            edits.entry(&edit.file).or_default().push(Numbered { number, mutation, edit });
        }
    }
    let mut files = BTreeMap::new();
    for (file, edits) in edits {
        let path = src.join(file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let text = weave_file(&text, &edits).with_context(|| format!("in {}", path.display()))?;
        files.insert(file.to_path_buf(), text);
    }
    with_switch(src, files, switch)
}

/// Breaks one rule of the crate whose sources are in `src`, and no other. Returns the files that
/// change, from there, with what they become: for code that knows no environment.
///
/// # Errors
/// An edit's passage is not there, or not once.
pub fn apply(src: &Path, mutation: &Mutation) -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    for Edit { file, keep, broken } in &mutation.edits {
        let path = src.join(file);
        let mut text = match files.remove(file) {
            Some(text) => text,
            None => {
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?
            }
        };
        let range = Squeezed::new(&text)
            .find(keep)
            .with_context(|| format!("in {}: {} does not apply", path.display(), mutation.name))?;
        text.replace_range(range, broken);
        files.insert(file.clone(), text);
    }
    Ok(files)
}

/// Adds the module that branches ask to the changed files of a crate.
///
/// # Errors
/// The crate has no `lib.rs`.
pub fn with_switch(
    src: &Path,
    mut files: BTreeMap<PathBuf, String>,
    switch: Switch,
) -> Result<BTreeMap<PathBuf, String>> {
    let root = PathBuf::from("lib.rs");
    let text = match files.remove(&root) {
        Some(text) => text,
        None => fs::read_to_string(src.join(&root)).context("reading lib.rs")?,
    };
    let library = match switch {
        Switch::Environment => "extern crate std;\n",
        Switch::File => "",
    };
    files.insert(root, format!("#![allow(warnings)]\n{text}\n{library}mod {MODULE};\n"));
    files.insert(PathBuf::from(format!("{MODULE}.rs")), module(switch));
    Ok(files)
}

/// The source of [`MODULE`].
fn module(switch: Switch) -> String {
    match switch {
        Switch::Environment => format!(
            r#"//! Which rule is broken: the number in the variable {VARIABLE}.

use std::sync::OnceLock;

#[inline]
pub(crate) fn breaks(rule: u32) -> bool {{
    static BROKEN: OnceLock<u32> = OnceLock::new();
    let read = || match std::env::var("{VARIABLE}") {{
        Ok(number) => number.parse().expect("{VARIABLE} is the number of a rule"),
        Err(_) => 0,
    }};
    *BROKEN.get_or_init(read) == rule
}}
"#
        ),
        Switch::File => format!(
            r#"//! Which rule is broken: the number behind the mark.

static SWITCH: ([u8; {length}], [u8; 4]) = (*b"{MARK}", [0; 4]);

#[inline]
pub(crate) fn breaks(rule: u32) -> bool {{
    // What the file says when the program starts, and not what the compiler has seen.
    u32::from_le_bytes(core::hint::black_box(&SWITCH).1) == rule
}}
"#,
            length = MARK.len()
        ),
    }
}

/// Breaks the rule of this number, or none by 0, in the file of a program with [`Switch::File`].
///
/// # Errors
/// The program has no such switch, or several.
pub fn set(program: &mut [u8], number: u32) -> Result<()> {
    let marks = program.windows(MARK.len()).enumerate();
    let places: Vec<usize> =
        marks.filter(|(_, text)| *text == MARK.as_bytes()).map(|(at, _)| at).collect();
    let [at] = places[..] else { bail!("the program has {} switches of rules", places.len()) };
    let from = at + MARK.len();
    let place = program.get_mut(from..from + 4).context("the program ends at its switch")?;
    place.copy_from_slice(&number.to_le_bytes());
    Ok(())
}

#[derive(Clone, Copy)]
struct Numbered<'a> {
    number: u32,
    mutation: &'a Mutation,
    edit: &'a Edit,
}

fn weave_file(text: &str, edits: &[Numbered<'_>]) -> Result<String> {
    let squeezed = Squeezed::new(text);
    let changes =
        edits.iter().map(|&Numbered { number, mutation: Mutation { name, .. }, edit }| {
            let range =
                squeezed.find(&edit.keep).with_context(|| format!("{name} does not apply"))?;
            let broken = Broken::Code(edit.broken.clone());
            Ok(Change { number, name: name.clone(), range, broken })
        });
    Ok(branch(text, changes.collect::<Result<_>>()?)?.text)
}

/// A change of a text, chosen at run time.
#[derive(Clone, Debug)]
pub struct Change {
    /// Chooses it.
    pub number: u32,
    /// What messages call it.
    pub name: String,
    /// The bytes that it changes: whole statements, an expression or a pattern.
    pub range: Range<usize>,
    /// Their other form.
    pub broken: Broken,
}

/// What a [`Change`] makes of its place.
#[derive(Clone, Debug)]
pub enum Broken {
    /// Other code.
    Code(String),
    /// A pattern that matches nothing. The arm must have no guard.
    Unmatched,
}

/// A text with changes in it.
#[derive(Debug)]
pub struct Woven {
    /// The text.
    pub text: String,
    /// The bytes of it that belong to one change only, with its number.
    pub branches: Vec<(Range<usize>, u32)>,
}

/// Makes every change of a text a branch on its number.
///
/// # Errors
/// Two ranges overlap and neither contains the other.
pub fn branch(text: &str, mut changes: Vec<Change>) -> Result<Woven> {
    // A range stands before those that it contains.
    changes.sort_by_key(|change| (change.range.start, std::cmp::Reverse(change.range.end)));
    let mut woven = Woven { text: String::new(), branches: Vec::new() };
    woven.emit(text, 0..text.len(), &mut &changes[..])?;
    Ok(woven)
}

impl Woven {
    /// Appends the text of a range, with the changes in it; those are taken from `rest`.
    fn emit(&mut self, text: &str, range: Range<usize>, rest: &mut &[Change]) -> Result<()> {
        let mut at = range.start;
        while let Some(Change { name, range: Range { start, end }, .. }) = rest.first()
            && *start < range.end
        {
            let (start, end) = (*start, *end);
            if end > range.end {
                bail!("{name} overlaps another mutation, and neither passage contains the other");
            }
            self.text.push_str(&text[at..start]);
            self.alternatives(text, start..end, rest)?;
            at = end;
        }
        self.text.push_str(&text[at..range.end]);
        Ok(())
    }

    /// Appends a range in all its forms.
    fn alternatives(
        &mut self,
        text: &str,
        range: Range<usize>,
        rest: &mut &[Change],
    ) -> Result<()> {
        let count = rest.iter().take_while(|change| change.range == range).count();
        let (changes, others) = rest.split_at(count);
        *rest = others;
        let (mut unmatched, mut codes) = (Vec::new(), Vec::new());
        for change in changes {
            match &change.broken {
                Broken::Unmatched => unmatched.push(change.number),
                Broken::Code(code) => codes.push((change.number, code)),
            }
        }
        let is_statement = text[range.clone()].ends_with([';', '}']);
        let (open, close) = match (codes.is_empty(), is_statement) {
            (true, _) => ("", ""),
            (false, true) => ("{ ", " }"),
            (false, false) => ("{ ", " })"),
        };
        if !codes.is_empty() && !is_statement {
            self.text.push('(');
        }
        for (number, code) in codes {
            let question = format!("if crate::{MODULE}::breaks({number}) {{ {code} }} else ");
            self.own(number, &question);
        }
        self.text.push_str(open);
        self.emit(text, range, rest)?;
        self.text.push_str(close);
        for number in unmatched {
            self.own(number, &format!(" if !crate::{MODULE}::breaks({number})"));
        }
        Ok(())
    }

    /// Appends what belongs to this change only.
    fn own(&mut self, number: u32, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        self.branches.push((start..self.text.len(), number));
    }
}

/// The characters of a text that are code: neither white space nor in a comment behind `//`.
fn code(text: &str) -> impl Iterator<Item = (usize, char)> + '_ {
    let lines = text.split_inclusive('\n').scan(0, |next, line| {
        let start = *next;
        *next += line.len();
        // Behind an odd number of quotation marks it stands in a string.
        let is_comment = |at: &usize| line[..*at].matches('"').count().is_multiple_of(2);
        let end = line.match_indices("//").map(|(at, _)| at).find(is_comment).unwrap_or(line.len());
        Some((start, &line[..end]))
    });
    let characters =
        lines.flat_map(|(start, line)| line.char_indices().map(move |(at, c)| (start + at, c)));
    characters.filter(|(_, c)| !c.is_whitespace())
}

/// A text without all that is not code, so that passages are found however they are wrapped.
struct Squeezed<'a> {
    text: &'a str,
    squeezed: String,
    /// Where each byte of it stands in the text.
    places: Vec<usize>,
}

impl<'a> Squeezed<'a> {
    fn new(text: &'a str) -> Squeezed<'a> {
        let (mut squeezed, mut places) = (String::new(), Vec::new());
        for (at, c) in code(text) {
            squeezed.push(c);
            places.extend(at..at + c.len_utf8());
        }
        Squeezed { text, squeezed, places }
    }

    /// The one place where this passage stands, as whole words.
    fn find(&self, passage: &str) -> Result<Range<usize>> {
        let wanted: String = code(passage).map(|(_, c)| c).collect();
        ensure!(!wanted.is_empty(), "the passage to keep is empty");
        let mut found = self.squeezed.match_indices(&wanted).filter_map(|(at, _)| {
            let range = self.places[at]..self.places[at + wanted.len() - 1] + 1;
            self.is_whole(&range).then_some(range)
        });
        let Some(range) = found.next() else {
            bail!("this passage is not there:\n{}", passage.trim())
        };
        let others = found.count();
        ensure!(others == 0, "this passage is there {} times:\n{}", others + 1, passage.trim());
        Ok(range)
    }

    /// Whether the range begins and ends between words.
    fn is_whole(&self, range: &Range<usize>) -> bool {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let splits =
            |at: usize| self.text[..at].ends_with(is_word) && self.text[at..].starts_with(is_word);
        !splits(range.start) && !splits(range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutation(name: &str, keep: &str, broken: &str) -> Mutation {
        let edit = Edit { file: "a.rs".into(), keep: keep.to_owned(), broken: broken.to_owned() };
        Mutation {
            name: name.to_owned(),
            rule: String::new(),
            caught_by: Vec::new(),
            edits: vec![edit],
        }
    }

    /// The text with these mutations in it, with `N?` for the question whether rule N is broken.
    fn woven(text: &str, mutations: &[(&str, &str)]) -> Result<String> {
        let mutations: Vec<Mutation> = (1..)
            .zip(mutations)
            .map(|(number, (keep, broken))| mutation(&format!("M{number}"), keep, broken))
            .collect();
        let numbered = |(number, mutation)| Numbered { number, mutation, edit: &mutation.edits[0] };
        let edits: Vec<Numbered<'_>> = (1..).zip(&mutations).map(numbered).collect();
        let woven = weave_file(text, &edits)?;
        Ok(woven.replace(&format!("crate::{MODULE}::breaks("), "").replace(") {", "? {"))
    }

    #[test]
    fn statements_and_expressions_become_branches() {
        assert_eq!(
            woven("a();\nflush();\nb(c)", &[("flush();", ""), ("c", "d")]).unwrap(),
            "a();\nif 1? {  } else { flush(); }\nb((if 2? { d } else { c }))"
        );
    }

    #[test]
    fn wrapping_does_not_matter() {
        assert_eq!(
            woven("f(\n    a,\n    b)", &[("f(a, b)", "0")]).unwrap(),
            "(if 1? { 0 } else { f(\n    a,\n    b) })"
        );
    }

    #[test]
    fn comments_do_not_matter() {
        let text = "// a();\nlet url = \"a://b\"; // a();\na(); // Why.\nb();";
        let expected = text.replace("a(); // Why.\nb();", "if 1? {  } else { a(); // Why.\nb(); }");
        assert_eq!(woven(text, &[("a(); b();", "")]).unwrap(), expected);
    }

    #[test]
    fn a_passage_may_contain_another_or_be_the_same() {
        assert_eq!(
            woven("x(); y();", &[("y();", ""), ("x(); y();", "y(); x();"), ("y();", "z();")])
                .unwrap(),
            "if 2? { y(); x(); } else { x(); if 1? {  } else if 3? { z(); } else { y(); } }"
        );
    }

    #[test]
    fn a_passage_that_is_not_there_once_is_refused() {
        let why = |text, keep| format!("{:#}", woven(text, &[(keep, "")]).unwrap_err());
        assert_eq!(why("a(); b();", "c();"), "M1 does not apply: this passage is not there:\nc();");
        assert_eq!(
            why("a(); a();", "a();"),
            "M1 does not apply: this passage is there 2 times:\na();"
        );
        // Part of a word is none.
        assert!(why("is_cached", "cached").contains("not there"));
        assert!(why("a();", " ").contains("empty"));
    }

    #[test]
    fn the_switch_in_a_file_is_set_where_its_mark_is() {
        let mut program = format!("ELF {MARK}....code").into_bytes();
        set(&mut program, 0x0403_0201).unwrap();
        assert_eq!(program, format!("ELF {MARK}\u{1}\u{2}\u{3}\u{4}code").into_bytes());
        assert!(module(Switch::File).contains(&format!("[u8; {}]", MARK.len())));
        for (bad, why) in [
            (String::from("ELF"), "the program has 0 switches of rules"),
            (format!("{MARK}....{MARK}...."), "the program has 2 switches of rules"),
            (format!("{MARK}.."), "the program ends at its switch"),
        ] {
            let error = set(&mut bad.into_bytes(), 1).unwrap_err();
            assert_eq!(error.to_string(), why);
        }
    }

    #[test]
    fn passages_that_only_overlap_are_refused() {
        let error = woven("a(); b(); c();", &[("a(); b();", ""), ("b(); c();", "")]).unwrap_err();
        assert!(error.to_string().starts_with("M2 overlaps"), "{error}");
    }
}

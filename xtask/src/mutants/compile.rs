//! Which mutants compile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use umbra_sabotage::Switch;

use super::list::Mutant;
use super::weave;
use crate::tree::copy_folder;
use crate::woven::Copy;
use crate::{paths, process};

/// The MMU's source, from the root of the tree.
const SRC: &str = "crates/mmu/src";

/// Mutants by their numbers.
pub type Mutants = BTreeMap<u32, Mutant>;

/// The bytes of each file that belong to one mutant only, with its number.
type Branches = BTreeMap<PathBuf, Vec<(Range<usize>, u32)>>;

/// Writes a source of all these mutants, and takes those away that do not compile in it.
///
/// # Errors
/// Something other than a mutant does not compile.
pub fn together(copy: &Copy, mutants: &mut Mutants) -> Result<Mutants> {
    let mut others = Mutants::new();
    loop {
        let branches = weave_all(copy, mutants)?;
        let errors = check(copy)?;
        if errors.is_empty() {
            return Ok(others);
        }
        let wrong: BTreeSet<u32> =
            errors.iter().flat_map(|error| error.mutants(&branches)).collect();
        if wrong.is_empty() {
            let texts: Vec<&str> = errors.iter().map(|error| error.text.as_str()).collect();
            bail!("the mutants do not compile beside each other:\n{}", texts.join("\n"));
        }
        others.extend(mutants.extract_if(.., |number, _| wrong.contains(number)));
    }
}

fn weave_all(copy: &Copy, mutants: &Mutants) -> Result<Branches> {
    let mut by_file = BTreeMap::<&str, Vec<(u32, &Mutant)>>::new();
    for (&number, mutant) in mutants {
        by_file.entry(&mutant.file).or_default().push((number, mutant));
    }
    restore(copy)?;
    let (mut files, mut branches) = (BTreeMap::new(), Branches::new());
    for (file, mutants) in by_file {
        let woven = weave::together(&original(file)?, &mutants).with_context(|| file.to_owned())?;
        files.insert(Path::new(file).strip_prefix(SRC)?.to_path_buf(), woven.text);
        branches.insert(file.into(), woven.branches);
    }
    copy.write(&umbra_sabotage::with_switch(&copy.src(), files, Switch::Environment)?)?;
    Ok(branches)
}

/// Writes the source with this mutant alone; returns whether it compiles.
///
/// # Errors
/// A file cannot be read or written.
pub fn alone(copy: &Copy, mutant: &Mutant) -> Result<bool> {
    restore(copy)?;
    let text = weave::alone(&original(&mutant.file)?, mutant)?;
    let file = Path::new(&mutant.file).strip_prefix(SRC)?.to_path_buf();
    copy.write(&BTreeMap::from([(file, text)]))?;
    Ok(check(copy)?.is_empty())
}

fn original(file: &str) -> Result<String> {
    fs::read_to_string(paths::workspace().join(file)).with_context(|| file.to_owned())
}

/// Makes the MMU's source what it is in the tree.
fn restore(copy: &Copy) -> Result<()> {
    copy_folder(&paths::workspace().join(SRC), &copy.src())
}

/// An error of the compiler.
struct Wrong {
    /// Files, and the bytes in them that it is about.
    places: Vec<(PathBuf, Range<usize>)>,
    text: String,
}

impl Wrong {
    /// The mutants that it is about: of each place those with the shortest branches.
    fn mutants(&self, branches: &Branches) -> impl Iterator<Item = u32> {
        self.places.iter().filter_map(|(file, place)| {
            let around = branches
                .get(file)?
                .iter()
                .filter(|(branch, _)| branch.start <= place.start && place.end <= branch.end);
            around.min_by_key(|(branch, _)| branch.len()).map(|&(_, number)| number)
        })
    }
}

/// The errors that the compiler finds in the copy's MMU.
fn check(copy: &Copy) -> Result<Vec<Wrong>> {
    let mut cargo = process::cargo();
    cargo.current_dir(&copy.tree).args(["check", "--package", "umbra-mmu"]);
    cargo.args(["--message-format", "json", "--target-dir"]).arg(copy.folder.join("build"));
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let messages = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    let wrong: Vec<Wrong> = messages.filter_map(wrong).collect();
    if !output.status.success() && wrong.is_empty() {
        bail!("{} fails without an error in the source", process::describe(&cargo));
    }
    Ok(wrong)
}

/// The error that a message of cargo's is, if it is one that has a place.
fn wrong(message: serde_json::Value) -> Option<Wrong> {
    let message = message.get("message")?;
    if message["level"] != "error" {
        return None;
    }
    let spans = message["spans"].as_array()?;
    let places = spans.iter().filter_map(|span| {
        let byte = |name: &str| usize::try_from(span[name].as_u64()?).ok();
        Some((span["file_name"].as_str()?.into(), byte("byte_start")?..byte("byte_end")?))
    });
    let text = message["rendered"].as_str().unwrap_or_default().to_owned();
    let places: Vec<_> = places.collect();
    (!places.is_empty()).then_some(Wrong { places, text })
}

//! `cargo xtask mutants`: changes the source of the MMU in ways that nobody chose, and counts what
//! no test notices.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use umbra_cases::random::scramble;

use crate::tool::CargoTool;
use crate::tree::copy_folder;
use crate::{paths, process};

/// Chooses the sample. Another seed is another sample.
const SEED: u64 = 0x6d75_7461_6e74_7321;

/// What has no part in what a guest sees: the auditor, and what only prints.
const LEFT_OUT: [&str; 2] = ["crates/mmu/src/audit.rs", "crates/mmu/src/mmu/audit.rs"];
const PRINTS: &str = "impl (fmt::)?(Debug|Display)|::fmt ";

/// What must notice a mutant, one after the other: a name, the package whose tests these are, and
/// what cargo is told of them.
const STAGES: [(&str, &str, &[&str]); 3] = [
    ("tests of the MMU", "umbra-mmu", &["--lib", "--test", "mmu", "--test", "memory"]),
    (
        "tests of the reference machine",
        "umbra-reference",
        &[
            "--test",
            "regressions",
            "--test",
            "formats",
            "--test",
            "hostile",
            "--test",
            "exhaustive",
        ],
    ),
    ("fixed programs", "umbra-reference", &["--test", "fixed"]),
];

/// Change the shadow MMU's source at random, and show which changes no test notices (installs
/// cargo-mutants).
///
/// A fixed sample of the mutants that cargo-mutants makes of crates/mmu, without the auditor and
/// what only prints. Each runs through the MMU's tests; a survivor through the reference machine's,
/// then through random programs of fixed seeds. What is known of a mutant is kept in the target
/// folder, so that the next run goes on; remove the folder after a change of the source.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many mutants the sample has.
    #[arg(long, value_name = "N", default_value_t = 300)]
    sample: usize,
    /// Of the sample every Nth mutant from the Kth on, counted from 0.
    #[arg(long, value_name = "K/N", default_value = "0/1", value_parser = shard)]
    shard: (usize, usize),
    /// Only what stands in files whose paths have this in them: all mutants there, no sample.
    #[arg(long, value_name = "PART")]
    file: Option<String>,
    /// Print the mutants and end.
    #[arg(long)]
    list: bool,
}

fn shard(text: &str) -> Result<(usize, usize), &'static str> {
    let numbers = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    numbers
        .filter(|&(k, n)| k < n)
        .ok_or("give two whole numbers such as 0/4, the first one smaller")
}

/// Runs the mutants.
pub fn run(Arguments { sample, shard: (first, of), file, list }: &Arguments) -> Result<ExitCode> {
    let program = CargoTool { name: "cargo-mutants", version: "^26" }.install()?;
    let folder = paths::target_dir()?.join("mutants");
    let tree = folder.join("tree");
    if !tree.exists() {
        copy_folder(paths::workspace(), &tree)?;
    }
    let mut mutants = known(&program, &tree)?;
    match file {
        Some(part) => {
            mutants.retain(|name| name.split(':').next().is_some_and(|path| path.contains(part)))
        }
        None => mutants = chosen(mutants, *sample),
    }
    let mutants: Vec<String> = mutants.into_iter().skip(*first).step_by(*of).collect();
    if *list {
        mutants.iter().for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    let results = folder.join("results.tsv");
    let mut verdicts = read(&results)?;
    for name in &mutants {
        if !verdicts.contains_key(name) {
            let verdict = judge(&program, &tree, &folder, name)?;
            println!("{verdict}: {name}");
            let mut file = OpenOptions::new().create(true).append(true).open(&results)?;
            writeln!(file, "{verdict}\t{name}").with_context(|| results.display().to_string())?;
            verdicts.insert(name.clone(), verdict);
        }
    }
    let summary = Summary::of(mutants.iter().filter_map(|name| Some((name, verdicts.get(name)?))));
    println!("{summary}");
    Ok(if summary.survivors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All mutants, by the names that cargo-mutants gives them.
fn known(program: &Path, tree: &Path) -> Result<Vec<String>> {
    let mut command = Command::new(program);
    command.current_dir(tree).args([
        "mutants",
        "--list",
        "--package",
        "umbra-mmu",
        "--exclude-re",
        PRINTS,
    ]);
    command.args(LEFT_OUT.iter().flat_map(|file| ["--exclude", file]));
    Ok(process::capture(&mut command)?.lines().map(str::to_owned).collect())
}

/// A sample, in its order: the names with the smallest numbers, which are scrambled by the seed.
/// So it changes little when the source does.
fn chosen(mut mutants: Vec<String>, sample: usize) -> Vec<String> {
    let number = |name: &str| {
        // Lines and columns move with every edit.
        let words = name.split(':').filter(|part| part.parse::<u64>().is_err());
        words.flat_map(str::bytes).fold(SEED, |sum, byte| scramble(sum ^ u64::from(byte)))
    };
    mutants.sort_by_cached_key(|name| (number(name), name.clone()));
    mutants.truncate(sample);
    mutants
}

/// What became of mutants before.
fn read(results: &Path) -> Result<BTreeMap<String, String>> {
    if !results.exists() {
        return Ok(BTreeMap::new());
    }
    let text = fs::read_to_string(results).with_context(|| results.display().to_string())?;
    let pairs = text.lines().filter_map(|line| line.split_once('\t'));
    Ok(pairs.map(|(verdict, name)| (name.to_owned(), verdict.to_owned())).collect())
}

/// Which stage notices a mutant.
fn judge(program: &Path, tree: &Path, folder: &Path, name: &str) -> Result<String> {
    for (stage, package, tests) in STAGES {
        let output = folder.join("output");
        let mut command = Command::new(program);
        command.current_dir(tree).args([
            "mutants",
            "--in-place",
            "--baseline",
            "skip",
            "--timeout",
            "900",
        ]);
        command
            .args(["--package", "umbra-mmu", "--test-package", package, "--output"])
            .arg(&output);
        command.arg("--re").arg(format!("^{}$", escaped(name)));
        let build = folder.join("build");
        command.arg(format!("--cargo-arg=--target-dir={}", build.display()));
        command.arg("--").args(tests).env("UMBRA_FIXED_PROGRAMS", "240");
        let log = fs::File::create(folder.join("output.txt"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let line = process::describe(&command);
        // Its code tells a mutant that survives from other failures, and both from success.
        command.status().with_context(|| format!("starting {line}"))?;
        match outcome(&output.join("mutants.out"))? {
            Outcome::Missed => (),
            Outcome::Unviable => return Ok("does not compile".to_owned()),
            Outcome::Caught => return Ok(format!("noticed by {stage}")),
            Outcome::Hangs => return Ok(format!("{stage} do not end")),
        }
    }
    Ok(SURVIVES.to_owned())
}

const SURVIVES: &str = "SURVIVES";

enum Outcome {
    Missed,
    Unviable,
    Caught,
    Hangs,
}

/// The outcome of the one mutant that was run: the list that has its name.
fn outcome(folder: &Path) -> Result<Outcome> {
    let lists = [
        ("missed.txt", Outcome::Missed),
        ("unviable.txt", Outcome::Unviable),
        ("caught.txt", Outcome::Caught),
        ("timeout.txt", Outcome::Hangs),
    ];
    for (list, outcome) in lists {
        let path: PathBuf = folder.join(list);
        if fs::read_to_string(&path).is_ok_and(|text| !text.trim().is_empty()) {
            return Ok(outcome);
        }
    }
    bail!("cargo-mutants ran no mutant; see {}", folder.display());
}

/// A regular expression that matches this text.
fn escaped(text: &str) -> String {
    // No others: behind a backslash `<` and `>` would be the bounds of a word.
    let special = |c: char| r"\.+*?()|[]{}^$".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// How many mutants were noticed.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    compiled: usize,
    survivors: Vec<String>,
    by_verdict: BTreeMap<String, usize>,
}

impl Summary {
    fn of<'a>(verdicts: impl Iterator<Item = (&'a String, &'a String)>) -> Summary {
        let mut summary =
            Summary { compiled: 0, survivors: Vec::new(), by_verdict: BTreeMap::new() };
        for (name, verdict) in verdicts {
            *summary.by_verdict.entry(verdict.clone()).or_default() += 1;
            summary.compiled += usize::from(verdict != "does not compile");
            if verdict == SURVIVES {
                summary.survivors.push(name.clone());
            }
        }
        summary
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (verdict, count) in &self.by_verdict {
            writeln!(f, "{count:5}  {verdict}")?;
        }
        self.survivors.iter().try_for_each(|name| writeln!(f, "survives: {name}"))?;
        let noticed = self.compiled - self.survivors.len();
        let percent = 100.0 * noticed as f64 / self.compiled.max(1) as f64;
        write!(f, "{noticed} of {} mutants that compile are noticed: {percent:.1} %", self.compiled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_fixed_and_does_not_depend_on_lines() {
        let names = |line: u32| -> Vec<String> {
            (0..50)
                .map(|n| {
                    format!("crates/mmu/src/a.rs:{}:9: replace f{n} -> bool with true", line + n)
                })
                .collect()
        };
        let functions = |line| -> Vec<String> {
            let word = |name: &String| name.split(' ').nth(2).map(str::to_owned);
            chosen(names(line), 10).iter().filter_map(word).collect()
        };
        assert_eq!(functions(1), functions(300));
        assert_ne!(functions(1), (0..10).map(|n| format!("f{n}")).collect::<Vec<_>>());
        assert_eq!(chosen(names(1), 99).len(), 50);
    }

    #[test]
    fn verdicts_are_summed_up() {
        let lines = ["SURVIVES\ta", "noticed by fixed programs\tb", "does not compile\tc"];
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), lines.join("\n")).unwrap();
        let verdicts = read(file.path()).unwrap();
        let summary = Summary::of(verdicts.iter());
        assert_eq!((summary.compiled, &summary.survivors[..]), (2, &["a".to_owned()][..]));
        assert!(
            summary.to_string().ends_with("1 of 2 mutants that compile are noticed: 50.0 %"),
            "{summary}"
        );
        assert!(read(Path::new("/nowhere")).unwrap().is_empty());
    }

    #[test]
    fn names_are_matched_as_they_are() {
        assert_eq!(escaped("a.rs:1: f() -> Option<u8>"), r"a\.rs:1: f\(\) -> Option<u8>");
        assert!(["4", "4/4", "a/b", "1/0"].iter().all(|text| shard(text).is_err()));
        assert_eq!(shard("1/4"), Ok((1, 4)));
    }
}

//! `cargo xtask coverage`: which lines of the MMU the tests on this machine execute.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::setup::install_packages;
use crate::tool::CargoTool;
use crate::{paths, process};

/// Show which lines of paging and MMU the tests execute.
///
/// It installs cargo-llvm-cov, and LLVM's tools.
///
/// Counted are the unit tests of both crates, and the differential and other tests of
/// crates/reference. Prints a table by file, and every line that is not covered;
/// docs/measurements.md explains those. Takes about five minutes.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many steps the random programs take; more find no further lines
    #[arg(long, value_name = "NUMBER", default_value = "100000", value_parser = steps, allow_negative_numbers = true)]
    steps: u64,
}

fn steps(text: &str) -> Result<u64, &'static str> {
    text.parse().ok().filter(|&steps| steps > 0).ok_or("give a whole number of steps, 1 or more")
}

/// What is measured, and by whose tests.
const PACKAGES: &[&str] = &["umbra-paging", "umbra-mmu", "umbra-reference"];

/// Files beside those that are measured.
const IGNORED: &str = "crates/reference|crates/cases|/tests/|/rustc/";

/// Measures.
pub fn run(Arguments { steps }: &Arguments) -> Result<ExitCode> {
    let tools = llvm_tools()?;
    let program = CargoTool { name: "cargo-llvm-cov", version: "^0.9" }.install()?;
    let result = paths::target_dir()?.join("coverage.lcov");
    let mut cargo = Command::new(program);
    cargo
        .current_dir(paths::workspace())
        .args(["llvm-cov", "--lcov", "--output-path"])
        .arg(&result);
    cargo
        .args(["--ignore-filename-regex", IGNORED])
        .args(PACKAGES.iter().flat_map(|name| ["--package", name]));
    cargo.env("LLVM_COV", tools.join("llvm-cov")).env("LLVM_PROFDATA", tools.join("llvm-profdata"));
    cargo.env("UMBRA_STEPS", steps.to_string());
    process::show(&mut cargo)?;
    let lcov = fs::read_to_string(&result).with_context(|| result.display().to_string())?;
    let mut files = read(&lcov)?;
    for (path, lines) in &mut files {
        let source = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let end = tests_begin(&source);
        lines.retain(|&line, _| line < end);
    }
    print!("\n{}\n{}", table(&files), sources(&files)?);
    Ok(ExitCode::SUCCESS)
}

/// How often each line was executed, by file.
type Files = BTreeMap<PathBuf, BTreeMap<usize, u64>>;

/// Reads an LCOV file (geninfo(1), "FILES"): `SF:` names a file, `DA:` a line and its count.
fn read(lcov: &str) -> Result<Files> {
    let mut files = Files::new();
    let mut lines = None;
    for record in lcov.lines() {
        if let Some(path) = record.strip_prefix("SF:") {
            lines = Some(files.entry(path.into()).or_default());
        } else if let Some(data) = record.strip_prefix("DA:") {
            let mut numbers = data.split(',').map_while(|number| number.parse::<u64>().ok());
            let (Some(lines), Some(line), Some(count)) =
                (&mut lines, numbers.next(), numbers.next())
            else {
                bail!("llvm-cov wrote a record that is not understood: {record}");
            };
            *lines.entry(line as usize).or_insert(0) += count;
        }
    }
    if files.is_empty() {
        bail!("llvm-cov names no file");
    }
    Ok(files)
}

/// The line from which on a file has tests only.
fn tests_begin(source: &str) -> usize {
    let mut lines = source.lines().enumerate().filter(|(_, line)| *line == "#[cfg(test)]");
    lines.next().map_or(usize::MAX, |(index, _)| index + 1)
}

fn uncovered(lines: &BTreeMap<usize, u64>) -> Vec<usize> {
    lines.iter().filter(|&(_, &count)| count == 0).map(|(&line, _)| line).collect()
}

/// How a file is called in what is printed.
fn name(path: &Path) -> String {
    path.strip_prefix(paths::workspace().join("crates")).unwrap_or(path).display().to_string()
}

/// Markdown, for docs/measurements.md.
fn table(files: &Files) -> String {
    let mut text = String::from("| file | lines | not covered | which |\n|---|---|---|---|\n");
    let (mut all, mut missing) = (0, 0);
    for (path, lines) in files {
        let uncovered = uncovered(lines);
        all += lines.len();
        missing += uncovered.len();
        let (count, which) = (uncovered.len(), ranges(&uncovered));
        let _ = writeln!(text, "| `{}` | {} | {count} | {which} |", name(path), lines.len());
    }
    let _ = writeln!(text, "| all | {all} | {missing} | |");
    text
}

/// `1, 3 to 5`.
fn ranges(lines: &[usize]) -> String {
    let runs = lines.chunk_by(|line, next| line + 1 == *next);
    let words = runs.map(|run| match run {
        [first, .., last] => format!("{first} to {last}"),
        one => one[0].to_string(),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// What stands in the lines that are not covered.
fn sources(files: &Files) -> Result<String> {
    let mut text = String::new();
    for (path, lines) in files {
        let source = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let source: Vec<&str> = source.lines().collect();
        for line in uncovered(lines) {
            let content = source.get(line - 1).unwrap_or(&"").trim_end();
            let _ = writeln!(text, "{}:{line}: {content}", name(path));
        }
    }
    Ok(text)
}

/// The folder with llvm-cov and llvm-profdata of the LLVM that rustc has: the toolchain's own
/// component, or Debian's.
fn llvm_tools() -> Result<PathBuf> {
    let sysroot = process::capture(Command::new("rustc").args(["--print", "sysroot"]))?;
    let verbose = process::capture(Command::new("rustc").arg("-vV"))?;
    let host = field(&verbose, "host: ").context("rustc names no host")?;
    let version = field(&verbose, "LLVM version: ").context("rustc names no LLVM version")?;
    let major = version.split('.').next().unwrap_or(version);
    let component = Path::new(sysroot.trim()).join("lib/rustlib").join(host).join("bin");
    let debian = PathBuf::from(format!("/usr/lib/llvm-{major}/bin"));
    let found = || {
        [&component, &debian].into_iter().find(|folder| folder.join("llvm-cov").is_file()).cloned()
    };
    if let Some(folder) = found() {
        return Ok(folder);
    }
    let package = format!("llvm-{major}");
    if let Err(error) = install_packages(&[&package]) {
        bail!(
            "llvm-cov {major} is missing; run this first: rustup component add llvm-tools ({error:#})"
        );
    }
    found().with_context(|| format!("the package {package} has no llvm-cov"))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_summed_up() {
        let lcov = "SF:/a.rs\nFN:1,f\nDA:1,7\nDA:2,0\nDA:3,0\nDA:5,0\nDA:6,1\nend_of_record\nSF:/b.rs\nDA:9,1\n";
        let files = read(lcov).unwrap();
        assert_eq!(ranges(&uncovered(&files[Path::new("/a.rs")])), "2 to 3, 5");
        let table = table(&files);
        assert!(
            table.contains(
                "| `/a.rs` | 5 | 3 | 2 to 3, 5 |\n| `/b.rs` | 1 | 0 |  |\n| all | 6 | 3 | |\n"
            ),
            "{table}"
        );
        assert!(
            read("").is_err() && read("SF:/a.rs\nDA:x\n").is_err() && read("DA:1,1\n").is_err()
        );
    }

    #[test]
    fn steps_are_a_whole_number() {
        assert_eq!(steps("7"), Ok(7));
        assert!(["0", "-1", "many", "1.5"].iter().all(|text| steps(text).is_err()));
    }

    #[test]
    fn tests_do_not_count() {
        assert_eq!(tests_begin("fn a() {}\n\n#[cfg(test)]\nmod tests {}\n"), 3);
        assert_eq!(tests_begin("fn a() {}\n"), usize::MAX);
    }

    #[test]
    fn fields_of_rustc() {
        let text = "rustc 1.95.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.2\n";
        assert_eq!(field(text, "LLVM version: "), Some("22.1.2"));
        assert_eq!(field(text, "release: "), None);
    }
}

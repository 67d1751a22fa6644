//! `cargo xtask fuzz`: libFuzzer on the targets of `fuzz/`, for as long as one likes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::tool::{CargoTool, nightly};
use crate::{paths, process};

/// The targets, and the longest input of each in bytes.
const TARGETS: &[(&str, u32)] = &[
    ("walk", 120),
    ("mmu", 2400),
    ("instruction", 240),
    ("loaders", 1200),
    ("telemetry", 2000),
    ("devices", 2000),
];

/// Fuzz a part of Umbra.
///
/// It needs a nightly toolchain and a C++ compiler, and installs cargo-fuzz.
///
/// Targets: walk (the guest walk against the reference machine), mmu (the whole MMU, audited after
/// every step), instruction (the emulator). The others are loaders (kernel images and modules),
/// telemetry, devices. What is found lies in fuzz/artifacts/TARGET. What was learned lies in
/// fuzz/corpus/TARGET, and the next run starts from it.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only this target [default: all, one after the other].
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TARGETS.iter().map(|(name, _)| *name)))]
    target: Option<String>,
    /// How long, for each target.
    #[arg(long, value_name = "MINUTES", default_value = "5", value_parser = minutes, allow_negative_numbers = true)]
    minutes: f64,
}

/// A length of time that libFuzzer takes: whole seconds, of which 0 is for ever.
fn minutes(text: &str) -> Result<f64, &'static str> {
    let minutes =
        text.parse().ok().filter(|minutes: &f64| (1.0..=1e6).contains(&(minutes * 60.0).ceil()));
    minutes.ok_or("give a number of minutes above 0 and below 16000, such as 5 or 0.5")
}

/// Runs the targets.
pub fn run(Arguments { target, minutes }: &Arguments) -> Result<ExitCode> {
    let seconds = (minutes * 60.0).ceil();
    let nightly = nightly()?;
    let cargo_fuzz = CargoTool { name: "cargo-fuzz", version: "^0.13" }.install()?;
    // Safe code does not need the address sanitizer; what can be found is a panic, a hang, or too
    // much memory.
    let command = |what: &str| {
        let mut command = Command::new(&cargo_fuzz);
        command.current_dir(paths::workspace()).args([what, "--sanitizer", "none"]);
        command.env("RUSTUP_TOOLCHAIN", &nightly);
        command
    };
    process::show(&mut command("build"))?;
    let mut failed = Vec::new();
    for (name, longest) in
        TARGETS.iter().filter(|(name, _)| target.as_deref().is_none_or(|target| target == *name))
    {
        eprintln!("xtask: fuzzing {name} for {seconds} s");
        let mut fuzzer = command("run");
        fuzzer.args([name, "--"]);
        fuzzer.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={longest}"));
        fuzzer.args(["-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"]);
        match fuzz(&mut fuzzer)? {
            Ok(executions) => println!("{name}: {executions} executions, 0 findings"),
            Err(finding) => {
                println!("{name}: {finding}");
                failed.push(*name);
            }
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("findings in: {}", failed.join(" "));
    Ok(ExitCode::FAILURE)
}

/// Runs libFuzzer; how often it has executed the target, or what it has found.
fn fuzz(command: &mut Command) -> Result<Result<u64, String>> {
    let line = process::describe(command);
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {line}"))?;
    let log = paths::target_dir()?.join("fuzz.log");
    let mut text = String::new();
    for read in BufReader::new(child.stderr.take().context("no standard error")?).split(b'\n') {
        text.push_str(&String::from_utf8_lossy(&read?));
        text.push('\n');
    }
    let status = child.wait()?;
    fs::write(&log, &text).with_context(|| log.display().to_string())?;
    match (status.success(), executions(&text)) {
        (true, Some(executions)) => Ok(Ok(executions)),
        (false, Some(_)) => Ok(Err(finding(&text, &log))),
        (_, None) => {
            bail!("{line} did not get to fuzz ({status}); all that it said is in {}", log.display())
        }
    }
}

/// From libFuzzer's final statistics.
fn executions(log: &str) -> Option<u64> {
    let line = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    line.trim().parse().ok()
}

/// Where the reproducer lies, and what panicked.
fn finding(log: &str, path: &Path) -> String {
    let after = |mark: &str| {
        log.lines().find_map(|line| line.split_once(mark).map(|(_, rest)| rest.trim()))
    };
    let reproducer = after("Test unit written to ").unwrap_or("(no file)");
    let why = log
        .lines()
        .skip_while(|line| !line.contains("panicked at"))
        .take(3)
        .collect::<Vec<_>>()
        .join(" ");
    let why = if why.is_empty() { after("ERROR: libFuzzer:").unwrap_or("it failed") } else { &why };
    format!("1 finding, {why}\n  reproducer: {reproducer}\n  log: {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATISTICS: &str =
        "Done 7 runs in 1 second(s)\nstat::number_of_executed_units: 4711\nstat::average: 3\n";

    #[test]
    fn a_length_of_time_is_a_positive_number() {
        assert_eq!((minutes("5"), minutes("0.01")), (Ok(5.0), Ok(0.01)));
        for text in ["0", "-1", "nan", "inf", "1e9", "soon", ""] {
            assert!(minutes(text).unwrap_err().starts_with("give a number of minutes"), "{text}");
        }
    }

    #[test]
    fn executions_are_read_from_the_statistics() {
        assert_eq!(executions(STATISTICS), Some(4711));
        assert_eq!(executions("error: could not compile"), None);
    }

    #[test]
    fn a_finding_names_its_panic_and_its_reproducer() {
        let log = "INFO\nthread '<unnamed>' panicked at walk.rs:1:2:\nleft and right\n\
                   artifact_prefix='x/'; Test unit written to x/crash-1\n";
        let sentence = finding(log, Path::new("log"));
        assert!(
            sentence.contains("left and right") && sentence.contains("reproducer: x/crash-1"),
            "{sentence}"
        );
    }

    #[test]
    fn the_targets_are_those_of_the_crate() {
        let manifest = fs::read_to_string(paths::workspace().join("fuzz/Cargo.toml")).unwrap();
        let names: Vec<_> =
            manifest.split("[[bin]]").skip(1).filter_map(|bin| bin.split('"').nth(1)).collect();
        assert_eq!(names, TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
}

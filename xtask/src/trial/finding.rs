//! What is written about a finding, for whoever maintains the kernel.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use umbra_trial::image;
use umbra_trial::judge::Tally;
use umbra_trial::program::Program;

use super::campaign::{Finding, State};
use super::suspect::Found;

/// Lines of the kernel's log on a page: a call trace is among them.
const LOG_LINES: usize = 120;

/// What no page can show.
pub const LIMITS: &str = "\
The judge allows what a CPU may have cached since the guest's last flush. The emulator keeps no
stale TLB entries across VM entries: a flush that the hypervisor forgets does not show here.";

/// Writes a finding's page, its program, and the kernel's log.
pub fn write(
    folder: &Path,
    number: usize,
    state: &State,
    finding: &Finding,
    program: &Program,
    found: &Found,
) -> Result<()> {
    let name = |extension: &str| folder.join(format!("finding-{number}.{extension}"));
    put(&name("json"), &serde_json::to_string_pretty(program)?)?;
    put(&name("txt"), &page(number, state, finding, program, found, &name("json")))
}

/// What [`write()`] has written about a finding.
pub fn read(folder: &Path, number: usize) -> Result<String> {
    let file = folder.join(format!("finding-{number}.txt"));
    fs::read_to_string(&file).with_context(|| file.display().to_string())
}

/// The rows that an interrupted trial of mutants has left in its report: none if there is none.
///
/// # Errors
/// The file is no report.
pub fn earlier_rows<R: DeserializeOwned>(report: &Path) -> Result<Vec<R>> {
    let Ok(text) = fs::read_to_string(report) else { return Ok(Vec::new()) };
    serde_json::from_str(&text)
        .with_context(|| format!("{} is no report; remove it to begin anew", report.display()))
}

/// Writes a file, whole or not at all.
pub fn put(file: &Path, text: &str) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, file))
        .with_context(|| format!("writing {}", file.display()))
}

fn page(
    number: usize,
    state: &State,
    finding: &Finding,
    program: &Program,
    found: &Found,
    replay: &Path,
) -> String {
    let mut text = format!("Finding {number}: {}\n\n", finding.symptom);
    let minimal = if finding.minimal { "; none of them can be left out" } else { "" };
    let _ = write!(
        text,
        "on trial: {}\nCPU:      {}\n\
         found by: program {}, after {} programs and {:.0} seconds\n\
         length:   {} steps{minimal}\n\
         repeat:   cargo xtask trial {} --replay {}\n\n{}\n",
        state.suspect,
        state.cpu,
        finding.seed,
        finding.after_programs,
        finding.after_seconds,
        finding.length,
        state.options,
        replay.display(),
        found.detail,
    );
    let _ = write!(
        text,
        "\nThe program\n{program}\nTables at the start\n{}",
        image::describe_tables(program)
    );
    let cpus = if program.cpus() == 1 { "one virtual CPU" } else { "two virtual CPUs" };
    let _ = write!(
        text,
        "\nA guest of {cpus} in 64-bit mode; CR0.WP, CR4.PGE, SMEP and SMAP, and EFER.NXE are\nset at the \
         start. Steps \"by the direct map\" are stores of the guest's kernel to its own tables.\n{LIMITS}\n"
    );
    if !found.log.is_empty() {
        let lines: Vec<&str> = found.log.lines().collect();
        let from = lines.len().saturating_sub(LOG_LINES);
        let _ = write!(text, "\nThe kernel's log\n{}\n", lines[from..].join("\n"));
    }
    text
}

/// The report as text.
pub fn report(state: &State) -> String {
    let State {
        suspect,
        options: _,
        cpu,
        seed: _,
        campaigns: _,
        programs,
        tally: Tally { steps, judged, excused, faults, defects },
        seconds,
        coverage,
        findings,
    } = state;
    let mut text = format!(
        "{suspect} on trial\n\nCPU:      {cpu}\nprograms: {programs}, {}\nsteps:    {steps}, in {seconds:.0} \
         seconds\naccesses: {judged} judged, {faults} of them page faults; {excused} not judged\n\n",
        state.numbers()
    );
    if *defects > 0 {
        let _ = writeln!(
            text,
            "{defects} known defects of the emulator were met: page faults for a reserved bit with P = 0.\n"
        );
    }
    if let Some(coverage) = coverage {
        let _ = writeln!(text, "{coverage}\n");
    }
    if findings.is_empty() {
        text += "Nothing was found.\n";
    }
    for (number, finding) in (1..).zip(findings) {
        let _ = writeln!(
            text,
            "{number}. {}\n   by program {}, after {} programs and {:.0} seconds; {} steps; seen {} times: \
             finding-{number}.txt",
            finding.symptom,
            finding.seed,
            finding.after_programs,
            finding.after_seconds,
            finding.length,
            finding.times
        );
    }
    let _ = write!(text, "\n{LIMITS}\n");
    text
}

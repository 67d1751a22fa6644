//! What passed and what failed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

/// The steps done so far.
pub struct Report {
    start: Instant,
    passed: u32,
    failed: u32,
}

impl Report {
    pub fn new() -> Report {
        Report { start: Instant::now(), passed: 0, failed: 0 }
    }

    /// Does one step and prints how it went. `body` returns a remark for the user.
    pub fn step(&mut self, name: &str, body: impl FnOnce() -> Result<String>) {
        println!("     {name}");
        let start = Instant::now();
        let outcome = body();
        self.record(name, start.elapsed(), outcome);
    }

    /// Prints how a step went that was done elsewhere.
    pub fn record(&mut self, name: &str, took: Duration, outcome: Result<String>) {
        let seconds = took.as_secs_f32();
        match outcome {
            Ok(remark) => {
                self.passed += 1;
                println!("ok   {name} ({seconds:.1} s) {remark}");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL {name} ({seconds:.1} s)\n{error:#}");
            }
        }
    }

    /// Prints the sums.
    pub fn finish(self) -> ExitCode {
        println!("all steps took {:.0} s", self.start.elapsed().as_secs_f32());
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 && self.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The end of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

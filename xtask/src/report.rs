//! What passed and what failed.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
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

    /// Does one step for each item, as many at a time as there are CPUs, in the order in which they
    /// stand.
    pub fn steps<T: Sync>(
        &mut self,
        items: &[T],
        name: impl Fn(&T) -> String + Sync,
        body: impl Fn(&T) -> Result<String> + Sync,
    ) {
        let next = AtomicUsize::new(0);
        let shared = Mutex::new(self);
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from).min(items.len()) {
                scope.spawn(|| {
                    while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let start = Instant::now();
                        let outcome = body(item);
                        let mut report = shared.lock().expect("no step panics");
                        report.record(&name(item), start.elapsed(), outcome);
                    }
                });
            }
        });
    }

    fn record(&mut self, name: &str, took: Duration, outcome: Result<String>) {
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

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;

    #[test]
    fn every_item_is_a_step_that_counts() {
        let mut report = Report::new();
        let even = |item: &u32| {
            ensure!(item.is_multiple_of(2), "{item} is odd");
            Ok(String::new())
        };
        report.steps(&[0, 1, 2, 3, 4], |item| format!("item {item}"), even);
        assert_eq!((report.passed, report.failed), (3, 2));
        report.steps(&[], |item| format!("item {item}"), even);
        assert_eq!((report.passed, report.failed), (3, 2));
    }
}

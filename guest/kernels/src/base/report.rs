//! Checks and what came of them.

use core::fmt;

use super::tsc::tsc;
use crate::options::Options;
use crate::say;

/// So many failures of one test are shown in words.
const SHOWN: u64 = 10;

/// Counts checks, shows failures.
#[derive(Debug, Default)]
pub struct Report {
    checks: u64,
    failures: u64,
    all_checks: u64,
    all_failures: u64,
}

/// Checks a condition; the words say what was found instead.
#[macro_export]
macro_rules! check {
    ($report:expr, $condition:expr, $($format:tt)*) => {
        $report.check($condition, format_args!($($format)*))
    };
}

impl Report {
    /// Counts a check. The first failures of a test are shown.
    pub fn check(&mut self, condition: bool, words: fmt::Arguments<'_>) {
        self.checks += 1;
        if !condition {
            self.failures += 1;
            match self.failures {
                ..=SHOWN => say!("  mismatch: {words}"),
                n if n == SHOWN + 1 => say!("  and more"),
                _ => (),
            }
        }
    }

    /// Runs one test, unless the option `only=` leaves it out or `except=` names it.
    pub fn test(&mut self, options: &Options<'_>, name: &str, test: impl FnOnce(&mut Report)) {
        if !options.lists("only", name)
            || (options.value("except").is_some() && options.lists("except", name))
        {
            return;
        }
        (self.checks, self.failures) = (0, 0);
        say!("{name} ...");
        let start = tsc();
        test(self);
        let ticks = tsc().wrapping_sub(start);
        let verdict = if self.failures == 0 { "ok" } else { "FAILED" };
        say!("{name} {verdict}: {} checks, {} failures, {ticks} ticks", self.checks, self.failures);
        self.all_checks += self.checks;
        self.all_failures += self.failures;
    }

    /// Says the sum of all tests, and returns the value for the exit port.
    pub fn finish(&self, kernel: &str) -> u8 {
        let verdict =
            if self.all_failures == 0 && self.all_checks > 0 { "PASSED" } else { "FAILED" };
        say!("{kernel} {verdict}: {} checks, {} failures", self.all_checks, self.all_failures);
        u8::from(verdict == "FAILED")
    }
}

//! What a kernel says at its end.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

/// The sums in a kernel's last line.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Cases, or single checks.
    pub checks: u64,
    /// What they are called.
    unit: String,
}

impl Verdict {
    /// Finds it in a kernel's output: `NAME PASSED: N cases (...), 0 mismatches, ...`.
    ///
    /// # Errors
    /// The kernel did not come to its end, found a difference, or checked nothing.
    pub fn read(output: &str, kernel: &str) -> Result<Verdict> {
        let mut lines =
            output.lines().filter_map(|line| line.strip_prefix(kernel)?.strip_prefix(' '));
        let verdict = lines.next_back().context("the kernel did not come to its end")?;
        let Some(sums) = verdict.strip_prefix("PASSED: ") else {
            bail!("the kernel says {verdict:?}")
        };
        let mut words = sums.split_ascii_whitespace();
        let checks = words.next().and_then(|word| word.parse().ok());
        let checks = checks.with_context(|| format!("not understood: {verdict:?}"))?;
        let unit = words.next().unwrap_or_default().trim_end_matches(',');
        ensure!(
            sums.contains(", 0 mismatches") || sums.contains(", 0 failures"),
            "passed in spite of differences: {verdict:?}"
        );
        ensure!(checks > 0, "nothing was checked: {verdict:?}");
        Ok(Verdict { checks, unit: unit.into() })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, 0 mismatches", self.checks, self.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let exhaustive = "exhaustive: Cpu { .. }\nexhaustive PASSED: 84 cases (2 faults), 0 mismatches, 0 early A\n";
        assert_eq!(
            Verdict::read(exhaustive, "exhaustive").unwrap().to_string(),
            "84 cases, 0 mismatches"
        );
        let basics = "noise\r\nbasics PASSED: 7 checks, 0 failures\n";
        assert_eq!(Verdict::read(basics, "basics").unwrap().checks, 7);
    }

    #[test]
    fn nothing_else_passes() {
        for text in [
            "",
            "basics: starting",
            "PANIC somewhere",
            "basics FAILED: 7 checks, 1 failures",
            "basics PASSED: 7 checks, 1 failures",
            "basics PASSED: 0 checks, 0 failures",
            "basics PASSED: many",
            "hostile PASSED: 7 checks, 0 failures",
        ] {
            assert!(Verdict::read(text, "basics").is_err(), "{text}");
        }
    }
}

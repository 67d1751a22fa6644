//! What the kernel `exact` prints: lines of `row: name = value`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// The lines by row and name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lines(BTreeMap<String, BTreeMap<String, String>>);

impl Lines {
    /// Reads the kernel's output.
    ///
    /// # Errors
    /// The end is missing, or a line is.
    pub fn read(output: &str) -> Result<Lines> {
        let mut lines = Lines::default();
        let mut count = 0;
        let mut end = None;
        for line in output.lines() {
            if let Some(rest) = line.strip_prefix("exact END: ") {
                end = rest.split_whitespace().next().and_then(|count| count.parse().ok());
            }
            let Some((row, rest)) = line.split_once(": ") else { continue };
            let Some((name, value)) = rest.split_once(" = ") else { continue };
            lines.0.entry(row.into()).or_default().insert(name.into(), value.into());
            count += 1;
        }
        let end: usize = end.context("the kernel did not come to its end")?;
        ensure!(end == count, "{count} of {end} lines of the kernel have come");
        Ok(lines)
    }

    /// The values of a row by name.
    pub fn row(&self, row: &str) -> impl Iterator<Item = (&str, &str)> {
        self.0.get(row).into_iter().flatten().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// A value.
    pub fn get(&self, row: &str, name: &str) -> Option<&str> {
        self.0.get(row)?.get(name).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_a_row_a_name_and_a_value() {
        let lines = Lines::read("noise\nmsrs: 0x10 = counts\na: b c = d = e\nexact END: 2 lines\n")
            .unwrap();
        assert_eq!(lines.get("msrs", "0x10"), Some("counts"));
        assert_eq!(lines.row("a").collect::<Vec<_>>(), [("b c", "d = e")]);
        assert_eq!(lines.get("a", "x"), None);
    }

    #[test]
    fn an_output_that_is_cut_off_is_none() {
        for output in ["", "msrs: 0x10 = counts\n", "msrs: 0x10 = counts\nexact END: 2 lines\n"] {
            assert!(Lines::read(output).is_err(), "{output}");
        }
    }
}

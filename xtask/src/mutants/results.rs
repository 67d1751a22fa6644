//! What became of mutants, in a file that the next run goes on with.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What became of a mutant, and by which test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is none.
    DoesNotCompile,
    /// The stage that noticed it, and the test.
    Noticed(String, String),
    /// No stage noticed it.
    Survives,
}

impl Verdict {
    fn parse(text: &str) -> Option<Verdict> {
        match text.split('\t').collect::<Vec<_>>()[..] {
            ["does not compile"] => Some(Verdict::DoesNotCompile),
            ["noticed", stage, test] => Some(Verdict::Noticed(stage.to_owned(), test.to_owned())),
            ["survives"] => Some(Verdict::Survives),
            _ => None,
        }
    }
}

impl From<Option<(String, String)>> for Verdict {
    fn from(noticed: Option<(String, String)>) -> Verdict {
        noticed.map_or(Verdict::Survives, |(stage, test)| Verdict::Noticed(stage, test))
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::DoesNotCompile => f.write_str("does not compile"),
            Verdict::Noticed(stage, test) => write!(f, "noticed\t{stage}\t{test}"),
            Verdict::Survives => f.write_str("survives"),
        }
    }
}

/// The verdicts, by the names of the mutants.
pub struct Results {
    file: PathBuf,
    verdicts: BTreeMap<String, Verdict>,
}

impl Results {
    /// Reads what a file has; there may be none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(file: &Path) -> Result<Results> {
        let text = match file.exists() {
            true => fs::read_to_string(file).with_context(|| file.display().to_string())?,
            false => String::new(),
        };
        let pairs = text.lines().filter_map(|line| line.split_once('\t'));
        let verdicts =
            pairs.filter_map(|(name, text)| Some((name.to_owned(), Verdict::parse(text)?)));
        Ok(Results { file: file.to_path_buf(), verdicts: verdicts.collect() })
    }

    /// What became of a mutant.
    pub fn get(&self, name: &str) -> Option<&Verdict> {
        self.verdicts.get(name)
    }

    /// Adds a verdict; a later one replaces an earlier one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, name: &str, verdict: Verdict) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.file)?;
        writeln!(file, "{name}\t{verdict}").with_context(|| self.file.display().to_string())?;
        println!("{verdict}\t{name}");
        self.verdicts.insert(name.to_owned(), verdict);
        Ok(())
    }
}

/// How many mutants were noticed.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    /// How many are mutants.
    pub compiled: usize,
    /// Which were not noticed.
    pub survivors: Vec<String>,
    /// How many had each verdict, without the tests.
    pub by_verdict: BTreeMap<String, usize>,
}

impl Summary {
    /// Sums up.
    pub fn of<'a>(verdicts: impl Iterator<Item = (&'a str, &'a Verdict)>) -> Summary {
        let mut summary =
            Summary { compiled: 0, survivors: Vec::new(), by_verdict: BTreeMap::new() };
        for (name, verdict) in verdicts {
            let text = match verdict {
                Verdict::Noticed(stage, _) => format!("noticed by {stage}"),
                other => other.to_string(),
            };
            *summary.by_verdict.entry(text).or_default() += 1;
            summary.compiled += usize::from(*verdict != Verdict::DoesNotCompile);
            if *verdict == Verdict::Survives {
                summary.survivors.push(name.to_owned());
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
    fn verdicts_are_kept_and_summed_up() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("results.tsv");
        let mut results = Results::read(&file).unwrap();
        let noticed = Verdict::Noticed("fixed programs".to_owned(), "fixed a".to_owned());
        results.add("a", Verdict::Survives).unwrap();
        results.add("b", Verdict::Survives).unwrap();
        results.add("b", noticed.clone()).unwrap();
        results.add("c", Verdict::DoesNotCompile).unwrap();
        let results = Results::read(&file).unwrap();
        assert_eq!(results.get("b"), Some(&noticed));
        assert_eq!(results.get("d"), None);
        let summary = Summary::of(
            ["a", "b", "c"].into_iter().filter_map(|name| Some((name, results.get(name)?))),
        );
        assert_eq!((summary.compiled, &summary.survivors[..]), (2, &["a".to_owned()][..]));
        assert_eq!(summary.by_verdict["noticed by fixed programs"], 1);
        assert!(
            summary.to_string().ends_with("1 of 2 mutants that compile are noticed: 50.0 %"),
            "{summary}"
        );
    }
}

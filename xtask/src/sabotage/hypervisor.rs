//! Rules of the hypervisor: each is broken in a build of its own, and a guest kernel must notice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use umbra_sabotage::{Catcher, Edit, Mutation};

use crate::guests::Run;
use crate::setup::{Setup, need_program};
use crate::{paths, woven};

/// Where the rules are, and what they are rules of.
const RULES: &str = "crates/hypervisor/sabotage";
const SOURCE: &str = "crates/hypervisor/src";

/// The rules.
pub fn rules() -> Result<Vec<Mutation>> {
    umbra_sabotage::read(&paths::workspace().join(RULES))
}

/// Breaks these, and says how many were not caught.
pub fn run(mutations: &[&Mutation]) -> Result<usize> {
    need_program("qemu-system-x86_64", "qemu-system-x86")?;
    let kernels = Setup::new()?.small_kernels()?;
    let copy = woven::Copy::fresh("sabotage-hypervisor")?;
    let source = copy.tree.join(SOURCE);
    let mut kept = BTreeMap::new();
    for Edit { file, .. } in mutations.iter().flat_map(|mutation| &mutation.edits) {
        let path = source.join(file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        // Written anew: cargo goes by its time, and may have built it broken since.
        fs::write(&path, &text).with_context(|| format!("writing {}", path.display()))?;
        kept.insert(path, text);
    }
    let broken = Broken { kernels, copy, source, kept };
    let catchers = mutations.iter().flat_map(|mutation| &mutation.caught_by);
    let umbra = broken.build(None)?;
    for catcher in catchers.collect::<BTreeSet<_>>() {
        broken
            .run(&umbra, catcher)?
            .with_context(|| format!("{catcher}: fails with no rule broken"))?;
    }
    let mut survivors = 0;
    for mutation in mutations {
        let since = Instant::now();
        let umbra = broken.build(Some(mutation))?;
        for catcher in &mutation.caught_by {
            let outcome = broken.run(&umbra, catcher)?;
            let caught = outcome.as_ref().err().is_some_and(|error| {
                catcher.says().is_none_or(|text| format!("{error:#}").contains(text))
            });
            survivors += usize::from(!caught);
            let how = if caught { "caught" } else { "NOT caught" };
            let reason = outcome.err().map_or_else(String::new, |error| {
                format!(": {}", error.root_cause().to_string().lines().next().unwrap_or_default())
            });
            println!(
                "{}: {how} by {catcher}{reason} ({:.1} s)",
                mutation.name,
                since.elapsed().as_secs_f64()
            );
        }
    }
    Ok(survivors)
}

/// A copy of the tree, of which `umbra` is built again for each rule.
struct Broken {
    kernels: PathBuf,
    copy: woven::Copy,
    /// The hypervisor's source in the copy.
    source: PathBuf,
    /// The files of it that rules change, as they are.
    kept: BTreeMap<PathBuf, String>,
}

impl Broken {
    /// Builds the tool and the hypervisor in it with this rule broken, and no other.
    fn build(&self, broken: Option<&Mutation>) -> Result<PathBuf> {
        for (file, text) in &self.kept {
            write_changed(file, text)?;
        }
        if let Some(mutation) = broken {
            for (file, text) in umbra_sabotage::apply(&self.source, mutation)? {
                write_changed(&self.source.join(file), &text)?;
            }
        }
        self.copy.umbra()
    }

    /// Runs a guest kernel: what is wrong, if it does not pass.
    fn run(&self, umbra: &Path, catcher: &Catcher) -> Result<Result<String>> {
        let Catcher::Guest { kernel, machine, .. } = catcher else {
            bail!("{catcher} is no guest kernel")
        };
        let folder = self.copy.folder.join("logs");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let run = Run::named(kernel, machine)?;
        Ok(run.run(umbra, &self.kernels, &folder))
    }
}

/// Writes a file that is not so already: cargo looks at its time.
fn write_changed(file: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(file).is_ok_and(|now| now == text) {
        return Ok(());
    }
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_can_still_be_broken_and_names_a_guest_kernel() {
        let source = paths::workspace().join(SOURCE);
        let rules = rules().unwrap();
        assert!(!rules.is_empty());
        for rule in &rules {
            umbra_sabotage::apply(&source, rule).unwrap_or_else(|error| panic!("{error:#}"));
            for catcher in &rule.caught_by {
                let Catcher::Guest { kernel, machine, .. } = catcher else { panic!("{catcher}") };
                Run::named(kernel, machine).unwrap();
            }
        }
    }
}

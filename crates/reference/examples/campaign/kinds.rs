//! What each kind of program has met, and how often.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use umbra_reference::coverage::Coverage;
use umbra_reference::program::Program;
use umbra_reference::recipe::Recipe;

/// Coverage by what programs are mostly made of, and by what they ran on.
#[derive(Default)]
pub struct Kinds(BTreeMap<String, Coverage>);

impl Kinds {
    /// Adds what the program of this recipe has met.
    pub fn add(&mut self, recipe: &Recipe, met: &Coverage) {
        let (program, config) = (recipe.program(), recipe.config());
        let memory =
            if program.has_high_memory() { "memory above 4 GiB" } else { "memory below 4 GiB" };
        let formats = program.formats().to_owned();
        for kind in [
            program.theme().to_owned(),
            formats,
            format!("{} vCPU", config.cpus),
            memory.to_owned(),
        ] {
            let coverage = self.0.entry(kind).or_default();
            coverage.merge(met);
            coverage.add("programs", 1);
        }
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let themes: Vec<&str> = Program::themes().collect();
        let others = self.0.keys().map(String::as_str).filter(|kind| !themes.contains(kind));
        let kinds: Vec<&str> = themes.iter().copied().chain(others).collect();
        let names: BTreeSet<&str> = self.0.values().flat_map(Coverage::names).collect();
        write!(f, "{:60}", "")?;
        kinds.iter().try_for_each(|kind| write!(f, " {:>12.12}", kind.replace("memory ", "")))?;
        for name in names {
            write!(f, "\n{name:60.60}")?;
            for kind in &kinds {
                write!(f, " {:>12}", self.0.get(*kind).map_or(0, |coverage| coverage.get(name)))?;
            }
        }
        Ok(())
    }
}

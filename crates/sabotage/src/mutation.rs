//! Mutations, as the files have them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// One rule, how to break it, and what must notice.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mutation {
    /// Its name, for example `Quarantine`.
    pub name: String,
    /// The rule that is broken, with the invariant it belongs to.
    pub rule: String,
    /// What notices: each of them must.
    pub caught_by: Vec<Catcher>,
    /// The changes of the source that break it.
    #[serde(rename = "edit")]
    pub edits: Vec<Edit>,
}

/// What notices that a rule is broken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum Catcher {
    /// A random program, judged by the reference machine.
    RandomPrograms,
    /// A test that was made for it.
    Test {
        /// The package.
        package: String,
        /// The file in its `tests`.
        target: String,
        /// The test's path in there.
        test: String,
        /// What it must print when it fails, where that matters: the auditor's sentence, for
        /// example.
        says: Option<String>,
    },
    /// A guest kernel of `guest/kernels`.
    Guest {
        /// Its name.
        kernel: String,
        /// The machine that it runs on.
        machine: String,
        /// What is printed when it fails, where that matters.
        says: Option<String>,
    },
}

/// A change of the source.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// The file, from the crate's `src`.
    pub file: PathBuf,
    /// What stands there: whole statements (which end with `;` or `}`), or an expression.
    pub keep: String,
    /// What stands there when the rule is broken.
    #[serde(rename = "break")]
    pub broken: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    mutation: Vec<Mutation>,
}

impl TryFrom<String> for Catcher {
    type Error = String;

    fn try_from(text: String) -> Result<Catcher, String> {
        if text == "random programs" {
            return Ok(Catcher::RandomPrograms);
        }
        let (path, says) = match text.split_once(", saying ") {
            Some((path, says)) => (path, Some(says.to_owned())),
            None => (text.as_str(), None),
        };
        match path.split(' ').collect::<Vec<_>>()[..] {
            [package, target, test] => Ok(Catcher::Test {
                package: package.to_owned(),
                target: target.to_owned(),
                test: test.to_owned(),
                says,
            }),
            ["guest", kernel, "on", machine] => {
                Ok(Catcher::Guest { kernel: kernel.to_owned(), machine: machine.to_owned(), says })
            }
            _ => Err(format!(
                "{text:?} is neither \"random programs\" nor \"PACKAGE TARGET TEST[, saying TEXT]\" nor \"guest \
                 KERNEL on MACHINE[, saying TEXT]\""
            )),
        }
    }
}

impl Catcher {
    /// The file of tests, if it is a test.
    pub fn target(&self) -> Option<&str> {
        match self {
            Catcher::RandomPrograms | Catcher::Guest { .. } => None,
            Catcher::Test { target, .. } => Some(target),
        }
    }

    /// What it must print when it fails, where that matters.
    pub fn says(&self) -> Option<&str> {
        match self {
            Catcher::RandomPrograms => None,
            Catcher::Test { says, .. } | Catcher::Guest { says, .. } => says.as_deref(),
        }
    }
}

impl std::fmt::Display for Catcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Catcher::RandomPrograms => f.write_str("random programs"),
            Catcher::Test { package, target, test, .. } => write!(f, "{package} {target} {test}"),
            Catcher::Guest { kernel, machine, .. } => write!(f, "guest {kernel} on {machine}"),
        }
    }
}

/// Reads the mutations in the TOML files of a folder, in the order of their names. The number of
/// each is one more than its place.
///
/// # Errors
/// A file cannot be read or understood, or two mutations have one name.
pub fn read(folder: &Path) -> Result<Vec<Mutation>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    let (mut mutations, mut names) = (Vec::new(), BTreeSet::new());
    for file in files {
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let group: Group = toml::from_str(&text).with_context(|| file.display().to_string())?;
        for mutation in group.mutation {
            let name = &mutation.name;
            ensure!(
                names.insert(name.clone()),
                "{}: there are two mutations {name}",
                file.display()
            );
            ensure!(!mutation.edits.is_empty(), "{}: {name} changes nothing", file.display());
            ensure!(!mutation.caught_by.is_empty(), "{}: nothing catches {name}", file.display());
            mutations.push(mutation);
        }
    }
    if mutations.is_empty() {
        bail!("{} has no mutations", folder.display());
    }
    Ok(mutations)
}

//! Copies of the tree whose MMU is changed, and the programs that are built from them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::tree::copy_folder;
use crate::{paths, process};

/// A copy of the tree, which stays in the target directory with what was built of it, so that the
/// next one is built sooner.
pub struct Copy {
    /// Holds the copy, its builds and whatever else belongs to it.
    pub folder: PathBuf,
    /// The copy.
    pub tree: PathBuf,
}

impl Copy {
    /// Copies the tree as it is now.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn fresh(name: &str) -> Result<Copy> {
        let folder = paths::target_dir()?.join(name);
        let tree = folder.join("tree");
        if tree.exists() {
            fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
        }
        copy_folder(paths::workspace(), &tree)?;
        Ok(Copy { folder, tree })
    }

    /// The MMU's source in the copy.
    pub fn src(&self) -> PathBuf {
        self.tree.join("crates/mmu/src")
    }

    /// Writes files of the MMU's source.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn write(&self, files: &BTreeMap<PathBuf, String>) -> Result<()> {
        for (file, text) in files {
            let file = self.src().join(file);
            fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }

    /// Builds programs by these arguments of cargo, optimized, but with the MMU's assertions on.
    /// Returns where they are, by the names of their targets.
    ///
    /// # Errors
    /// Cargo fails.
    pub fn build(&self, arguments: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
        let mut cargo = process::cargo();
        cargo.current_dir(&self.tree).args(arguments).args(["--release", "--target-dir"]);
        cargo.arg(self.folder.join("build"));
        cargo.args(["--config", "profile.release.debug-assertions=true"]);
        cargo.args(["--config", "profile.release.debug=false"]);
        cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
        let mut programs = BTreeMap::new();
        for line in process::capture(&mut cargo)?.lines() {
            let message: serde_json::Value =
                serde_json::from_str(line).context("what cargo says")?;
            let (name, executable) = (&message["target"]["name"], &message["executable"]);
            if let (Some(name), Some(executable)) = (name.as_str(), executable.as_str()) {
                programs.insert(name.to_owned(), executable.into());
            }
        }
        Ok(programs)
    }
}

//! Copies of the tree whose MMU is changed, and the programs that are built from them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::tree::copy_folder;
use crate::{paths, process};

/// Where a tree has the MMU's source.
const SRC: &str = "crates/mmu/src";

/// A copy of the tree, which stays in the target directory with what was built of it, so that the
/// next one is built sooner.
pub struct Copy {
    /// Holds the copy, its builds and whatever else belongs to it.
    pub folder: PathBuf,
    /// The copy.
    pub tree: PathBuf,
    /// The one before it.
    previous: PathBuf,
}

impl Copy {
    /// Copies the tree as it is now.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn fresh(name: &str) -> Result<Copy> {
        let folder = paths::target_dir()?.join(name);
        let (tree, previous) = (folder.join("tree"), folder.join("previous"));
        if tree.exists() {
            let _ = fs::remove_dir_all(&previous);
            fs::rename(&tree, &previous).with_context(|| format!("moving {}", tree.display()))?;
        }
        copy_folder(paths::workspace(), &tree)?;
        Ok(Copy { folder, tree, previous })
    }

    /// The MMU's source in the copy.
    pub fn src(&self) -> PathBuf {
        self.tree.join(SRC)
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

    /// Writes files of the MMU's source for the first time. Those that the last copy had keep their
    /// times, so that cargo does not build them again.
    ///
    /// # Errors
    /// As [`Copy::write`].
    pub fn write_first(&self, files: &BTreeMap<PathBuf, String>) -> Result<()> {
        self.write(files)?;
        for (file, text) in files {
            let previous = self.previous.join(SRC).join(file);
            if fs::read_to_string(&previous).is_ok_and(|before| before == *text) {
                let time = previous.metadata()?.modified()?;
                File::options().write(true).open(self.src().join(file))?.set_modified(time)?;
            }
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

    /// Builds the tool as it ships, with the hypervisor in it. Returns where it is.
    ///
    /// # Errors
    /// Cargo fails.
    pub fn umbra(&self) -> Result<PathBuf> {
        let target = self.folder.join("build");
        let mut cargo = process::cargo();
        cargo.current_dir(&self.tree).args(["build", "--release", "--package", "umbra"]);
        process::show(cargo.arg("--target-dir").arg(&target))?;
        Ok(target.join("release/umbra"))
    }
}

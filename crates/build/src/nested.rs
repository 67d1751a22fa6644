//! A cargo inside a cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::environment::inherits;
use crate::{Error, Toolchain};

/// One `cargo build` of one package for one target.
pub(crate) struct Build<'a> {
    pub toolchain: &'a Toolchain,
    /// The root of the workspace.
    pub workspace: &'a Path,
    pub package: &'static str,
    pub target: &'static str,
    /// The profile.
    pub profile: &'static str,
    pub rustflags: &'a [String],
    pub target_dir: &'a Path,
}

impl Build<'_> {
    /// Builds, and says where the program (named as its package) is.
    pub fn run(&self) -> Result<PathBuf, Error> {
        Ok(self.programs()?.join(self.package))
    }

    /// Builds, and says in which folder the package's programs are.
    pub fn programs(&self) -> Result<PathBuf, Error> {
        let program = self.toolchain.cargo();
        let mut cargo = Command::new(&program);
        cargo
            .current_dir(self.workspace)
            .args(["build", "--profile", self.profile, "--package", self.package])
            .args(["--target", self.target, "--target-dir"])
            .arg(self.target_dir)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| inherits(self.toolchain, name)))
            .envs(self.toolchain.variables().iter().copied())
            .env("RUSTUP_AUTO_INSTALL", "0")
            // The encoded form lets paths contain spaces.
            .env("CARGO_ENCODED_RUSTFLAGS", self.rustflags.join("\x1f"))
            .stdin(Stdio::null())
            // A build script's standard output is read by the outer cargo.
            .stdout(Stdio::null());
        let status = cargo.status().map_err(|source| Error::Spawn { program, source })?;
        if !status.success() {
            return Err(Error::Cargo { package: self.package });
        }
        Ok(self.target_dir.join(self.target).join(self.profile))
    }
}

/// A target directory for nested builds that is shared by all profiles of the outer one, so that
/// the bare-metal libraries are built once.
///
/// `out_dir` is a build script's `OUT_DIR`. Cargo marks the target directory above it with a
/// `CACHEDIR.TAG`.
pub fn shared_target_dir(out_dir: &Path) -> PathBuf {
    let marked = out_dir.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    marked.unwrap_or(out_dir).join("bare-metal")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_shared_folder_is_in_the_marked_one() {
        let target =
            std::env::temp_dir().join(format!("umbra-build-{}-shared", std::process::id()));
        let out = target.join("debug/build/umbra-0123/out");
        fs::create_dir_all(&out).unwrap();
        assert_eq!(shared_target_dir(&out), out.join("bare-metal"));
        fs::write(target.join("CACHEDIR.TAG"), "").unwrap();
        assert_eq!(shared_target_dir(&out), target.join("bare-metal"));
        fs::remove_dir_all(target).unwrap();
    }
}

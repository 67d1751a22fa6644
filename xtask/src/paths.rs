//! Where things lie.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the checkout.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Cargo's target directory: the one that this program was built into.
pub fn target_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding the target directory")?;
    // <target>/<profile>/xtask
    program.ancestors().nth(2).map(Path::to_path_buf).context("xtask was not built by cargo")
}

/// What guests boot from: kernel and initramfs.
pub fn guest_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("guest"))
}

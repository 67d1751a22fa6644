//! Where things lie.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, Result};

/// The root of the checkout.
///
/// Cargo says at run time where this package lies. What it said at compile time may be another
/// checkout, from which this one was copied together with its build folder.
pub fn workspace() -> &'static Path {
    static WORKSPACE: LazyLock<PathBuf> = LazyLock::new(|| {
        let package =
            env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&package).parent().expect("xtask lies in the workspace").to_path_buf()
    });
    &WORKSPACE
}

/// Cargo's target directory: the one that this program was built into.
pub fn target_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("finding the target directory")?;
    // <target>/<profile>/xtask
    program.ancestors().nth(2).map(Path::to_path_buf).context("xtask was not built by cargo")
}

/// What guests boot from: kernel and initramfs.
pub fn guest_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("guest"))
}

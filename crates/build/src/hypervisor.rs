//! The hypervisor's ELF.

use std::fs;
use std::path::{Path, PathBuf};

use crate::nested::Build;
use crate::toolchain::BARE_METAL_TARGET;
use crate::{Error, Toolchain, bare_metal, depinfo};

/// A hypervisor that was built.
#[derive(Clone, Debug)]
pub struct Hypervisor {
    /// The ELF.
    pub elf: PathBuf,
    /// Everything it was made from, for `cargo::rerun-if-changed`: sources, manifests, linker
    /// script, lock file.
    pub inputs: Vec<PathBuf>,
}

/// Builds `crates/hypervisor` of the checkout at `workspace` for bare metal.
///
/// The linker script is `crates/hypervisor/link.ld`. The ELF keeps its symbols but no debug
/// information, which GRUB would load, slowly, into the machine.
///
/// # Errors
/// No toolchain can, or cargo fails.
pub fn hypervisor(workspace: &Path, target_dir: &Path) -> Result<Hypervisor, Error> {
    let script = workspace.join("crates/hypervisor/link.ld");
    let elf = Build {
        toolchain: &Toolchain::find()?,
        workspace,
        package: "umbra-hypervisor",
        target: BARE_METAL_TARGET,
        profile: "hypervisor",
        rustflags: &bare_metal::rustflags(&script),
        target_dir,
    }
    .run()?;
    let depinfo = elf.with_extension("d");
    let text =
        fs::read_to_string(&depinfo).map_err(|source| Error::Artifact { path: depinfo, source })?;
    let mut inputs = depinfo::sources(&text);
    inputs.extend(depinfo::manifests(&inputs));
    inputs.extend([script, workspace.join("Cargo.toml"), workspace.join("Cargo.lock")]);
    Ok(Hypervisor { elf, inputs })
}

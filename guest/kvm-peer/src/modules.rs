//! KVM's modules.

use std::ffi::CStr;
use std::fs::File;

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};

/// In the order of their dependencies, with their parameters: no EPT, as on the CPUs that Umbra is
/// for. What the guest reads beyond KVM's model-specific registers reads as zero.
const MODULES: &[(&str, &CStr)] =
    &[("irqbypass", c""), ("kvm", c"ignore_msrs=1 report_ignored_msrs=0"), ("kvm-intel", c"ept=0")];

/// Loads them.
///
/// # Errors
/// One is missing from the initramfs, or the kernel refuses it.
pub fn load() -> Result<()> {
    for (name, parameters) in MODULES {
        let path = format!("/modules/{name}.ko");
        let file = File::open(&path).with_context(|| path.clone())?;
        finit_module(file, parameters, ModuleInitFlags::empty())
            .with_context(|| format!("the kernel refuses {path}"))?;
    }
    Ok(())
}

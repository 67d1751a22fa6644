//! KVM's modules.

use std::ffi::CStr;
use std::fs::File;

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use raw_cpuid::CpuId;

/// In the order of their dependencies, with their parameters. What the guest reads beyond KVM's
/// model-specific registers reads as zero.
const COMMON: [(&str, &CStr); 2] =
    [("irqbypass", c""), ("kvm", c"ignore_msrs=1 report_ignored_msrs=0")];

/// The vendor's: without EPT or NPT, as on the CPUs that Umbra is for.
const INTEL: (&str, &CStr) = ("kvm-intel", c"ept=0");
/// Likewise.
const AMD: (&str, &CStr) = ("kvm-amd", c"npt=0");

/// Loads those for this CPU.
///
/// # Errors
/// One is missing from the initramfs, or the kernel refuses it.
pub fn load() -> Result<()> {
    let extended = CpuId::new().get_extended_processor_and_feature_identifiers();
    let vendor = if extended.is_some_and(|leaf| leaf.has_svm()) { AMD } else { INTEL };
    for (name, parameters) in COMMON.iter().chain([&vendor]) {
        let path = format!("/modules/{name}.ko");
        let file = File::open(&path).with_context(|| path.clone())?;
        finit_module(file, parameters, ModuleInitFlags::empty())
            .with_context(|| format!("the kernel refuses {path}"))?;
    }
    Ok(())
}

//! KVM's modules.

use std::ffi::CString;
use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use nix::kmod::{ModuleInitFlags, finit_module};

/// Names of files and their parameters, a line each, in the order of their dependencies.
const LIST: &str = "/modules/list";

/// Where KVM says whether it has nested paging, for either vendor's CPUs.
const NESTED: [&str; 2] =
    ["/sys/module/kvm_amd/parameters/npt", "/sys/module/kvm_intel/parameters/ept"];

/// Where the kernel says at which address it has put the text of KVM's module.
const TEXT: &str = "/sys/module/kvm/sections/.text";

/// Where the text of KVM's module is, if the kernel tells.
pub fn text() -> Option<u64> {
    let address = fs::read_to_string(TEXT).ok()?;
    u64::from_str_radix(address.trim().trim_start_matches("0x"), 16).ok()
}

/// Loads them.
///
/// # Errors
/// The kernel refuses one, or KVM keeps nested paging on.
pub fn load() -> Result<()> {
    for line in fs::read_to_string(LIST).context(LIST)?.lines() {
        let (name, parameters) = line.split_once(' ').unwrap_or((line, ""));
        let path = format!("/modules/{name}");
        let file = File::open(&path).with_context(|| path.clone())?;
        finit_module(file, &CString::new(parameters)?, ModuleInitFlags::empty())
            .with_context(|| format!("the kernel refuses its module {name} {parameters}"))?;
    }
    let nested = NESTED.iter().find_map(|file| fs::read_to_string(file).ok());
    let nested = nested.context("KVM does not tell whether nested paging is off")?;
    ensure!(
        matches!(nested.trim(), "N" | "0"),
        "KVM keeps nested paging on although it was to be off"
    );
    Ok(())
}

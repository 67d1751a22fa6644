//! `cargo xtask bench`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::run::{MADE, become_umbra, expanded, is_given, values};

/// Set everything up, and measure the workload.
///
/// Does what `cargo xtask build` does, for the peer KVM also its host's initramfs, then calls
/// `umbra bench` with Debian's kernel. The exit status is that of `umbra bench`.
#[derive(clap::Args)]
#[command(after_long_help = "Examples:
  cargo xtask bench --stats umbra.json             Umbra on a CPU without EPT
  cargo xtask bench --against trap                 what the bypass saves
  cargo xtask bench --against kvm                  beside Linux KVM with ept=0
  cargo xtask bench --ablation ablation            what each way around exits is worth
  cargo xtask bench --phase demand --phase pipe --repeat 3 --machine skylake")]
pub struct Arguments {
    /// Options of `umbra bench`; --kernel and --initrd replace what is given otherwise
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTIONS OF umbra bench"
    )]
    options: Vec<OsString>,
}

/// Sets up what the user does not bring and becomes `umbra bench`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let options = &match expanded("bench", &arguments.options) {
        Ok(options) => options,
        Err(status) => return Ok(status),
    };
    become_umbra("bench", options, made_for(options), |setup, umbra| {
        // Before the kernel: both are of one package.
        if names_kvm(options) && !is_given(options, "--host-initrd") {
            let host = setup.kvm_peer()?;
            umbra.arg("--host-initrd").arg(host.initrd);
            if !is_given(options, "--host-kernel") {
                umbra.arg("--host-kernel").arg(host.kernel);
            }
        }
        Ok(())
    })
}

/// The options whose files are made if the user gives none.
pub fn made_for(options: &[OsString]) -> &'static [&'static str] {
    if names_kvm(options) { &["--kernel", "--initrd", "--host-initrd"] } else { &MADE }
}

/// Whether KVM is asked for, by `--hypervisor` or `--against`.
fn names_kvm(options: &[OsString]) -> bool {
    let given = |option| values(options, option).any(|value| value == "kvm");
    given("--hypervisor") || given("--against")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(options: &[&str]) -> Vec<OsString> {
        options.iter().map(OsString::from).collect()
    }

    #[test]
    fn kvm_is_seen_in_both_spellings() {
        let names = |options: &[&str]| names_kvm(&all(options));
        assert!(names(&["--repeat", "2", "--against", "kvm"]));
        assert!(names(&["--hypervisor=kvm"]));
        assert!(!names(&["--against", "trap", "--stats", "kvm"]));
        assert!(!names(&[]));
    }
}

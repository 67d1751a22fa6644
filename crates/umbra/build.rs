//! Builds the hypervisor and puts it where the tool embeds it from.
//!
//! `UMBRA_HYPERVISOR` names an ELF to embed instead. Without the feature `hypervisor` there is
//! nothing to do.
//!
//! A checkout may be copied together with its build folder. So nothing here is an absolute path of
//! the place where this script was compiled: cargo would take the copy for fresh, and embed the
//! hypervisor of the other checkout.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=UMBRA_HYPERVISOR");
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_HYPERVISOR").is_none() {
        return Ok(());
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let elf = match env::var_os("UMBRA_HYPERVISOR") {
        Some(given) => {
            let given = PathBuf::from(given);
            println!("cargo::rerun-if-changed={}", given.display());
            given
        }
        None => {
            let package =
                PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo names no package")?);
            let workspace =
                package.ancestors().nth(2).ok_or("the umbra crate is not in its workspace")?;
            let built =
                umbra_build::hypervisor(workspace, &umbra_build::shared_target_dir(&out_dir));
            let built = built.map_err(|error| error.to_string())?;
            for input in &built.inputs {
                println!(
                    "cargo::rerun-if-changed={}",
                    umbra_build::relative(input, &package).display()
                );
            }
            built.elf
        }
    };
    fs::copy(&elf, out_dir.join("umbra.elf"))
        .map_err(|error| format!("{}: {error}", elf.display()))?;
    Ok(())
}

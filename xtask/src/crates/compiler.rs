//! The oldest compiler that the published crates promise, and what it says of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Published;
use crate::setup::Setup;
use crate::{paths, process};

/// Compiles them with the oldest compiler; says with which.
///
/// # Errors
/// There is no such compiler, or it does not compile them.
pub fn check_oldest_compiler(setup: &mut Setup, published: &Published) -> Result<String> {
    let wanted = published.rust_version();
    let folder = paths::target_dir()?.join("oldest-compiler");
    let compiler = Compiler::unpack(setup, wanted, &folder.join(wanted))?;
    let mut cargo = process::cargo();
    cargo.current_dir(paths::workspace()).args([
        "check",
        "--locked",
        "--all-features",
        "--target-dir",
    ]);
    cargo.arg(folder.join("target")).args(published.names().flat_map(|name| ["--package", name]));
    // The compiler of a toolchain file or override would come before RUSTC.
    cargo.env("RUSTC", &compiler.program).env("LD_LIBRARY_PATH", &compiler.libraries);
    cargo.env_remove("RUSTC_WRAPPER");
    process::show(&mut cargo)?;
    Ok(format!("compiled by {}", compiler.version()?))
}

/// Debian's compiler in a folder: its packages exclude those of another version, so they are not
/// installed.
struct Compiler {
    program: PathBuf,
    libraries: PathBuf,
}

impl Compiler {
    fn unpack(setup: &mut Setup, wanted: &str, folder: &Path) -> Result<Compiler> {
        let libraries = folder.join("usr/lib/x86_64-linux-gnu");
        let compiler = Compiler { program: folder.join("usr/bin/rustc"), libraries };
        if compiler.version().is_ok() {
            return Ok(compiler);
        }
        let version = setup.debian_version("rustc-web", wanted).with_context(|| {
            format!(
                "Debian has no rustc-web {wanted}; elsewhere: cargo +{wanted} check --package ..."
            )
        })?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        for name in ["rustc-web", "libstd-rust-web-dev", &format!("libstd-rust-web-{wanted}")] {
            setup.unpack(&format!("{name}={version}"), folder)?;
        }
        // The package of the LLVM that it is linked to carries the major version in its name.
        let mut ldd = Command::new("ldd");
        ldd.arg(&compiler.program).env("LD_LIBRARY_PATH", &compiler.libraries);
        let needed = process::capture(&mut ldd)?;
        let llvm = llvm_package(&needed).context("rustc-web's LLVM is not known")?;
        setup.unpack(&llvm, folder)?;
        compiler.version()?;
        Ok(compiler)
    }

    fn version(&self) -> Result<String> {
        if !self.program.is_file() {
            bail!("{} is missing", self.program.display());
        }
        let mut rustc = Command::new(&self.program);
        let said =
            process::capture(rustc.arg("--version").env("LD_LIBRARY_PATH", &self.libraries))?;
        Ok(said.trim().to_owned())
    }
}

/// The package of libLLVM, by what the dynamic linker says of a program: `libLLVM.so.19.1 => not
/// found`.
fn llvm_package(needed: &str) -> Option<String> {
    let major = needed.split_once("libLLVM.so.")?.1.split(['.', ' ']).next()?;
    Some(format!("libllvm{major}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_of_a_library() {
        let needed = "\tlinux-vdso.so.1 (0x7f)\n\tlibLLVM.so.19.1 => not found\n";
        assert_eq!(llvm_package(needed).as_deref(), Some("libllvm19"));
        assert_eq!(llvm_package("statically linked"), None);
    }
}

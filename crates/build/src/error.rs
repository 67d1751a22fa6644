//! What can go wrong in a nested build.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::toolchain::DEBIAN_PACKAGES;

/// Why nothing was built. Each prints as one sentence with the way out.
#[derive(Debug)]
pub enum Error {
    /// No toolchain here can build for this target.
    NoToolchain {
        /// The target.
        target: &'static str,
    },
    /// A program could not be started.
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Cargo ran and failed; its own messages are on standard error.
    Cargo {
        /// The package that was being built.
        package: &'static str,
    },
    /// Objcopy ran and failed; its own message is on standard error.
    Objcopy {
        /// The program that was to be converted.
        path: PathBuf,
    },
    /// A file that the build should have left is not there or not readable.
    Artifact {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoToolchain { target } => write!(
                f,
                "no Rust toolchain here builds for {target}: run `rustup target add {target}`, or on Debian `apt-get install {}`",
                DEBIAN_PACKAGES.join(" ")
            ),
            Error::Spawn { program, source } => {
                write!(
                    f,
                    "cannot start {}: {source}; is it installed and in PATH?",
                    program.display()
                )
            }
            Error::Cargo { package } => {
                write!(f, "building {package} failed; cargo's messages above say why")
            }
            Error::Objcopy { path } => {
                write!(
                    f,
                    "converting {} to ELF32 failed; objcopy's message above says why",
                    path.display()
                )
            }
            Error::Artifact { path, source } => {
                write!(f, "the build left no {}: {source}", path.display())
            }
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_toolchain_names_both_ways_out() {
        let text = Error::NoToolchain { target: "x86_64-unknown-none" }.to_string();
        assert!(text.contains("rustup target add x86_64-unknown-none"), "{text}");
        assert!(text.contains("rust-web-src"), "{text}");
    }
}

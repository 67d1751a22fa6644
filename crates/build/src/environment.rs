//! Which variables a nested cargo may inherit.
//!
//! An outer cargo tells its build scripts about itself in variables (The Cargo Book, "Environment
//! Variables"), many of which another cargo would take as orders.

use std::ffi::OsStr;

use crate::Toolchain;

/// Cargo's variables that say how this machine reaches the world.
const KEPT_PREFIXES: &[&str] = &[
    "CARGO_HOME",
    "CARGO_NET_",
    "CARGO_HTTP_",
    "CARGO_REGISTRY",
    "CARGO_REGISTRIES_",
    "CARGO_SOURCE_",
];

/// Set for build scripts, without a prefix of cargo's.
const SCRIPT_VARIABLES: &[&str] =
    &["TARGET", "HOST", "OUT_DIR", "NUM_JOBS", "OPT_LEVEL", "PROFILE", "DEBUG", "RUSTC", "RUSTDOC"];

/// Whether a cargo of `toolchain` may inherit the variable `name`.
pub(crate) fn inherits(toolchain: &Toolchain, name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return true };
    match name {
        "CARGO" => false,
        // Names the toolchain that was looked at; without it, `cargo` could be another one.
        "RUSTUP_TOOLCHAIN" => *toolchain == Toolchain::Active,
        // Points into the outer toolchain, whose libraries are not those of Debian's compiler.
        "LD_LIBRARY_PATH" => *toolchain == Toolchain::Active,
        _ if name.starts_with("CARGO_") => KEPT_PREFIXES.iter().any(|kept| name.starts_with(kept)),
        _ if name.starts_with("RUSTUP_") => true,
        _ if name.starts_with("RUSTC") || name.starts_with("RUSTDOC") || name == "RUSTFLAGS" => {
            false
        }
        _ => !SCRIPT_VARIABLES.contains(&name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_outer_cargo_gets_through() {
        for toolchain in [Toolchain::Active, Toolchain::Debian, Toolchain::DebianStd] {
            for name in [
                "CARGO",
                "CARGO_ENCODED_RUSTFLAGS",
                "CARGO_TARGET_DIR",
                "CARGO_BUILD_TARGET",
                "CARGO_MANIFEST_DIR",
                "CARGO_MAKEFLAGS",
                "CARGO_PROFILE_RELEASE_LTO",
                "RUSTC",
                "RUSTC_WRAPPER",
                "RUSTC_WORKSPACE_WRAPPER",
                "RUSTC_LINKER",
                "RUSTFLAGS",
                "RUSTDOCFLAGS",
                "TARGET",
                "OUT_DIR",
            ] {
                assert!(!inherits(&toolchain, OsStr::new(name)), "{name}");
            }
            for name in
                ["PATH", "HOME", "CARGO_HOME", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "https_proxy"]
            {
                assert!(inherits(&toolchain, OsStr::new(name)), "{name}");
            }
        }
    }

    #[test]
    fn the_toolchain_name_stays_with_its_own_cargo() {
        assert!(inherits(&Toolchain::Active, OsStr::new("RUSTUP_TOOLCHAIN")));
        assert!(!inherits(&Toolchain::Debian, OsStr::new("RUSTUP_TOOLCHAIN")));
    }
}

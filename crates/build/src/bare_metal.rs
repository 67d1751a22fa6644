//! How programs for the bare machine are linked.

use std::path::Path;

/// Flags for a program that `script` lays out. GNU ld is enough, and is there wherever Rust links
/// programs for the host.
pub(crate) fn rustflags(script: &Path) -> Vec<String> {
    let mut flags: Vec<String> =
        ["-Clinker=ld", "-Clinker-flavor=ld", "-Crelocation-model=static", "-Cstrip=debuginfo"]
            .map(String::from)
            .into();
    flags.push(format!("-Clink-arg=-T{}", script.display()));
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_script_is_named_by_its_path() {
        let flags = rustflags(Path::new("/a checkout/crates/hypervisor/link.ld"));
        assert_eq!(flags.last().unwrap(), "-Clink-arg=-T/a checkout/crates/hypervisor/link.ld");
    }
}

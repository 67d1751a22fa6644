//! Paths that stay true when a checkout is copied together with its build folder.

use std::iter;
use std::path::{Component, Path, PathBuf};

/// `path` as it is seen from `folder`, if both are absolute and lie below a common folder; else
/// `path` as it is.
///
/// Cargo takes relative paths of `cargo::rerun-if-changed` from the package's own folder. So they
/// name the sources of the checkout that is built, also in a build folder that was copied from
/// another.
pub fn relative(path: &Path, folder: &Path) -> PathBuf {
    let common =
        path.components().zip(folder.components()).take_while(|(one, other)| one == other).count();
    let is_plain =
        |path: &Path| path.is_absolute() && !path.components().any(|c| c == Component::ParentDir);
    // The root alone is no common folder: what lies elsewhere stays where it is when a checkout is
    // copied.
    if !is_plain(path) || !is_plain(folder) || common < 2 {
        return path.to_path_buf();
    }
    let up = iter::repeat_n(Component::ParentDir, folder.components().count() - common);
    up.chain(path.components().skip(common)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_the_checkout_moves_with_it() {
        let package = Path::new("/work/a checkout/crates/umbra");
        for (path, expected) in [
            ("/work/a checkout/crates/hypervisor/src/main.rs", "../hypervisor/src/main.rs"),
            ("/work/a checkout/Cargo.lock", "../../Cargo.lock"),
            ("/work/a checkout/crates/umbra/build.rs", "build.rs"),
            ("/usr/lib/rustlib/core.rs", "/usr/lib/rustlib/core.rs"),
            ("../hypervisor/link.ld", "../hypervisor/link.ld"),
        ] {
            assert_eq!(relative(Path::new(path), package), Path::new(expected));
        }
    }
}

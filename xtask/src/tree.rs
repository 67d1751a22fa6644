//! Copies of the tree, to be changed and built.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};

/// What may be left over of a tree that is built: it is not copied.
const LEFT_OUT: [&str; 2] = [".git", "target"];

/// Copies what a folder holds. Files keep their times, so that cargo takes them for what they are:
/// the same as in the last copy.
pub fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if kind.is_dir() {
            copy_folder(&path, &copy)?;
        } else if kind.is_file() {
            fs::copy(&path, &copy).with_context(|| format!("copying {}", path.display()))?;
            File::options().write(true).open(&copy)?.set_modified(entry.metadata()?.modified()?)?;
        }
    }
    Ok(())
}

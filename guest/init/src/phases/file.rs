//! A file in memory (tmpfs): its mappings, and reading it.

use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::{Context, Result};

use super::Run;
use super::anonymous::{check, fill, pattern};
use crate::sys::mapping::{FileView, Mapping, PAGE_SIZE};

const PATH: &str = "/tmp/pages";
const PAGES: u32 = 1024;

/// A private mapping, each page written: the file keeps what it had.
pub fn private_write(run: &Run) -> Result<()> {
    let pages = run.count(PAGES);
    let file = create(pages)?;
    let mut memory = Mapping::file(&file, pages as usize, FileView::Private)?;
    run.phase("private_file_write", pages, || {
        fill(&mut memory, changed_pattern);
        Ok(())
    })?;
    check(&memory, "the private copy of a file", changed_pattern)?;
    check(
        &Mapping::file(&file, pages as usize, FileView::SharedReadOnly)?,
        "the file behind it",
        pattern,
    )
}

/// A shared read-only mapping, each page read: the kernel maps pages around a fault together with
/// it.
pub fn fault_around(run: &Run) -> Result<()> {
    let pages = run.count(PAGES);
    let file = create(pages)?;
    let memory = Mapping::file(&file, pages as usize, FileView::SharedReadOnly)?;
    run.phase("fault_around", pages, || check(&memory, "a mapped file", pattern))
}

/// Fresh private memory, filled from the file by one system call: the faults are kernel-mode ones.
pub fn read_fresh(run: &Run) -> Result<()> {
    let pages = run.count(PAGES);
    let file = create(pages)?;
    let mut memory = Mapping::anonymous(pages as usize)?;
    run.phase("read_fresh", pages, || memory.fill_from(&file))?;
    check(&memory, "memory that a file was read into", pattern)
}

/// A shared writable mapping, each page read before (its entry is writable and clean then), each
/// written.
pub fn shared_dirty(run: &Run) -> Result<()> {
    let pages = run.count(PAGES);
    let file = create(pages)?;
    let mut memory = Mapping::file(&file, pages as usize, FileView::Shared)?;
    check(&memory, "a shared mapping", pattern)?;
    run.phase("shared_dirty", pages, || {
        fill(&mut memory, changed_pattern);
        Ok(())
    })?;
    check(
        &Mapping::file(&file, pages as usize, FileView::SharedReadOnly)?,
        "the shared file",
        changed_pattern,
    )
}

/// Makes a file whose pages start with their [`pattern`], all of it in the page cache.
fn create(pages: u32) -> Result<File> {
    let mut file = BufWriter::new(File::create(PATH).context(PATH)?);
    for page in 0..pages as usize {
        file.write_all(&[pattern(page); PAGE_SIZE]).context(PATH)?;
    }
    file.flush().context(PATH)?;
    File::options().read(true).write(true).open(PATH).context(PATH)
}

fn changed_pattern(page: usize) -> u8 {
    pattern(page).wrapping_add(1)
}

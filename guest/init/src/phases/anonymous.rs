//! Private memory that is mapped, touched and given back.

use anyhow::{Result, ensure};

use super::Run;
use crate::sys::mapping::Mapping;

/// Fresh pages, each written once; then all unmapped.
pub fn demand(run: &Run) -> Result<()> {
    let pages = run.count(1024);
    let mut memory = Mapping::anonymous(pages as usize)?;
    run.phase("demand", pages, || {
        fill(&mut memory, pattern);
        Ok(())
    })?;
    check(&memory, "a page written on demand", pattern)?;
    run.phase("munmap_1024", pages, || {
        drop(memory);
        Ok(())
    })
}

/// Fresh pages, each read (the kernel maps its page of zeros), then each written.
pub fn zero_page(run: &Run) -> Result<()> {
    let pages = run.count(512);
    let mut memory = Mapping::anonymous(pages as usize)?;
    run.phase("zero_read", pages, || check(&memory, "a fresh page", |_| 0))?;
    run.phase("zero_write", pages, || {
        fill(&mut memory, pattern);
        Ok(())
    })?;
    check(&memory, "a page that was zero", pattern)
}

pub fn map_1(run: &Run) -> Result<()> {
    map_and_unmap(run, "mmap_1", 200, 1)
}

pub fn map_8(run: &Run) -> Result<()> {
    map_and_unmap(run, "mmap_8", 200, 8)
}

pub fn map_64(run: &Run) -> Result<()> {
    map_and_unmap(run, "mmap_64", 50, 64)
}

/// Short-lived mappings, every page written.
fn map_and_unmap(run: &Run, name: &'static str, rounds: u32, pages: usize) -> Result<()> {
    run.repeated(name, run.count(rounds), || {
        let mut memory = Mapping::anonymous(pages)?;
        fill(&mut memory, pattern);
        Ok(())
    })
}

/// One page that is given back and written again, as allocators do.
pub fn discard(run: &Run) -> Result<()> {
    let mut memory = Mapping::anonymous(1)?;
    run.repeated("dontneed", run.count(500), || {
        memory.discard()?;
        memory.write(0, 1);
        Ok(())
    })?;
    memory.discard()?;
    check(&memory, "a discarded page", |_| 0)
}

/// A byte that differs between neighbouring pages and is never zero.
pub fn pattern(page: usize) -> u8 {
    (page % 255) as u8 + 1
}

/// Writes each page.
pub fn fill(memory: &mut Mapping, value: impl Fn(usize) -> u8) {
    for page in 0..memory.pages() {
        memory.write(page, value(page));
    }
}

/// Reads each page and compares.
pub fn check(memory: &Mapping, what: &str, expected: impl Fn(usize) -> u8) -> Result<()> {
    for page in 0..memory.pages() {
        let (found, expected) = (memory.read(page), expected(page));
        ensure!(found == expected, "{what}: page {page} holds {found:#x} instead of {expected:#x}");
    }
    Ok(())
}

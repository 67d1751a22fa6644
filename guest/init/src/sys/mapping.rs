//! Mappings whose pages are touched one byte at a time.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use libc::c_void;
use nix::errno::Errno;
use nix::sys::mman::{
    MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// How a file is mapped.
#[derive(Clone, Copy)]
pub enum FileView {
    /// Shared and read-only.
    SharedReadOnly,
    /// Shared and writable.
    Shared,
    /// Private and writable: copied on write.
    Private,
}

/// The rights of a mapping.
#[derive(Clone, Copy, Debug)]
pub enum Rights {
    ReadOnly,
    ReadWrite,
}

impl From<Rights> for ProtFlags {
    fn from(rights: Rights) -> ProtFlags {
        match rights {
            Rights::ReadOnly => ProtFlags::PROT_READ,
            Rights::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        }
    }
}

/// A mapping, unmapped on drop.
pub struct Mapping {
    start: NonNull<c_void>,
    pages: usize,
}

impl Mapping {
    /// Maps fresh private memory that is never backed by huge pages.
    pub fn anonymous(pages: usize) -> Result<Mapping> {
        let length = length(pages)?;
        // SAFETY: the kernel chooses an unused address, so no other memory is replaced.
        let start = unsafe {
            mmap_anonymous(None, length, Rights::ReadWrite.into(), MapFlags::MAP_PRIVATE)
        }
        .context("mmap")?;
        let mapping = Mapping { start, pages };
        mapping.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
        Ok(mapping)
    }

    /// Maps the first pages of a file.
    ///
    /// # Errors
    /// The kernel's, and a file that is shorter (touching its missing pages would be SIGBUS).
    pub fn file(file: &File, pages: usize, view: FileView) -> Result<Mapping> {
        let length = length(pages)?;
        ensure!(
            file.metadata()?.len() >= length.get() as u64,
            "the file to map is shorter than {pages} pages"
        );
        let (rights, flags) = match view {
            FileView::SharedReadOnly => (Rights::ReadOnly, MapFlags::MAP_SHARED),
            FileView::Shared => (Rights::ReadWrite, MapFlags::MAP_SHARED),
            FileView::Private => (Rights::ReadWrite, MapFlags::MAP_PRIVATE),
        };
        // SAFETY: the kernel chooses an unused address, so no other memory is replaced.
        let start = unsafe { mmap(None, length, rights.into(), flags, file, 0) }
            .context("mmap of a file")?;
        Ok(Mapping { start, pages })
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The address of its first byte.
    pub fn address(&self) -> usize {
        self.start.addr().get()
    }

    /// Reads the first byte of a page.
    ///
    /// # Panics
    /// If the mapping has no such page.
    pub fn read(&self, page: usize) -> u8 {
        // SAFETY: the byte lies inside the mapping, which is readable whatever its `Rights`.
        // Volatile: the access is the purpose, and other processes may share the page.
        unsafe { self.byte(page).read_volatile() }
    }

    /// Writes the first byte of a page. Where the rights refuse that, SIGSEGV is raised at this
    /// instruction.
    ///
    /// # Panics
    /// If the mapping has no such page.
    pub fn write(&mut self, page: usize, value: u8) {
        // SAFETY: the byte lies inside the mapping, and nothing borrows from it. Volatile: the
        // access is the purpose. A refused write changes nothing; it runs the handler or ends the
        // process.
        unsafe { self.byte(page).write_volatile(value) }
    }

    /// Fills all of it from a file by one read(2): the kernel touches the pages.
    ///
    /// # Errors
    /// The kernel's, and a file that is shorter.
    pub fn fill_from(&mut self, file: &File) -> Result<()> {
        let length = self.pages * PAGE_SIZE;
        // SAFETY: the bytes are this mapping's, which is writable, and nothing borrows from it.
        let read =
            Errno::result(unsafe { libc::read(file.as_raw_fd(), self.start.as_ptr(), length) });
        let read = read.context("read")?;
        ensure!(usize::try_from(read) == Ok(length), "read gave {read} bytes instead of {length}");
        Ok(())
    }

    /// Changes the rights of all pages.
    pub fn protect(&mut self, rights: Rights) -> Result<()> {
        // SAFETY: the range is this mapping, whose bytes are only reached by `read` and `write`.
        unsafe { mprotect(self.start, self.pages * PAGE_SIZE, rights.into()) }.context("mprotect")
    }

    /// Throws the contents of private memory away: the pages read as zero again.
    pub fn discard(&mut self) -> Result<()> {
        self.advise(MmapAdvise::MADV_DONTNEED)
    }

    fn advise(&self, advice: MmapAdvise) -> Result<()> {
        // SAFETY: the range is this mapping, whose bytes are only reached by `read` and `write`.
        unsafe { madvise(self.start, self.pages * PAGE_SIZE, advice) }.context("madvise")
    }

    fn byte(&self, page: usize) -> *mut u8 {
        assert!(page < self.pages, "page {page} of a mapping of {} pages", self.pages);
        // SAFETY: the offset was checked to lie inside the mapping.
        unsafe { self.start.cast::<u8>().as_ptr().add(page * PAGE_SIZE) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and nothing borrows from it.
        unsafe { munmap(self.start, self.pages * PAGE_SIZE) }.expect("munmap of a whole mapping");
    }
}

fn length(pages: usize) -> Result<NonZeroUsize> {
    pages
        .checked_mul(PAGE_SIZE)
        .and_then(NonZeroUsize::new)
        .context("a mapping of no or too many pages")
}

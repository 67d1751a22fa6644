//! A kernel file: what of it goes where, and where it starts.

use alloc::vec::Vec;
use core::ops::Range;

use elf::abi::{EM_386, EM_X86_64, PT_LOAD};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::segment::{ProgramHeader, SegmentTable};

use super::LoadError;
use super::header::{Addresses, Header, SEARCH_SPAN};

/// A file that is read in pieces, because it may be larger than the reader's memory.
pub trait Image {
    /// Its bytes.
    fn size(&self) -> u64;

    /// Copies a piece that lies within [`size`](Image::size).
    fn read(&self, range: Range<u64>) -> Vec<u8>;
}

impl Image for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, range: Range<u64>) -> Vec<u8> {
        self[range.start as usize..range.end as usize].to_vec()
    }
}

/// A part of the kernel: bytes of the file, then zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// This part of the file, which the file has, ...
    pub file: Range<u64>,
    /// ... goes here, in guest-physical addresses below 4 GiB; what is longer than the file's part
    /// is zero.
    pub memory: Range<u64>,
}

/// A kernel that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What goes where: at least one, ascending, apart from each other, none empty.
    pub segments: Vec<Segment>,
    /// The first instruction's guest-physical address, within a segment.
    pub entry: u32,
}

/// Segments of a kernel at most.
const MAX_SEGMENTS: usize = 64;

const END_OF_ADDRESSES: u64 = 1 << 32;

impl Kernel {
    /// Looks at a file; `None` if it has no multiboot header.
    ///
    /// # Errors
    /// It has one, but cannot be loaded.
    pub fn parse<I: Image + ?Sized>(image: &I) -> Result<Option<Kernel>, LoadError> {
        let head = image.read(0..image.size().min(SEARCH_SPAN));
        let Some(header) = Header::find(&head)? else { return Ok(None) };
        let (mut segments, entry) = match header.addresses {
            Some(addresses) => by_addresses(&addresses, header.offset, image.size())?,
            None => by_elf(&head, image)?,
        };
        if segments.is_empty() {
            return Err(LoadError::Damaged("it has no segment to load"));
        }
        segments.sort_by_key(|segment| segment.memory.start);
        if let Some(pair) =
            segments.windows(2).find(|pair| pair[0].memory.end > pair[1].memory.start)
        {
            return Err(LoadError::Overlap(pair[1].memory.start));
        }
        let entry = u32::try_from(entry)
            .ok()
            .filter(|entry| {
                segments.iter().any(|segment| segment.memory.contains(&u64::from(*entry)))
            })
            .ok_or(LoadError::Entry(entry))?;
        Ok(Some(Kernel { segments, entry }))
    }

    /// One past the highest address that it occupies, in bytes.
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.memory.end)
    }
}

/// A segment, if what the headers say of it can be true.
fn segment(
    offset: u64,
    file_size: u64,
    gpa: u64,
    memory_size: u64,
    have: u64,
) -> Result<Segment, LoadError> {
    // Linkers align the offset of a segment without bytes in the file: it may lie behind the file's
    // end.
    let offset = if file_size == 0 { 0 } else { offset };
    let want = offset.saturating_add(file_size);
    if want > have {
        return Err(LoadError::Truncated { have, want });
    }
    if file_size > memory_size {
        return Err(LoadError::Damaged("a segment has more bytes in the file than in memory"));
    }
    let end = gpa.saturating_add(memory_size);
    if end > END_OF_ADDRESSES {
        return Err(LoadError::NoMemory { start: gpa, end });
    }
    Ok(Segment { file: offset..want, memory: gpa..end })
}

fn by_addresses(
    addresses: &Addresses,
    header: u64,
    size: u64,
) -> Result<(Vec<Segment>, u64), LoadError> {
    const CONTRADICTION: LoadError =
        LoadError::Damaged("the address fields of its multiboot header contradict each other");
    let difference = |a: u32, b: u32| a.checked_sub(b).map(u64::from).ok_or(CONTRADICTION);
    let before_header = difference(addresses.header, addresses.load)?;
    let offset = header.checked_sub(before_header).ok_or(CONTRADICTION)?;
    let file_size = match addresses.load_end {
        0 => size - offset,
        end => difference(end, addresses.load)?,
    };
    let memory_size = match addresses.bss_end {
        0 => file_size,
        end => difference(end, addresses.load)?,
    };
    let segment = segment(offset, file_size, addresses.load.into(), memory_size, size)?;
    Ok((alloc::vec![segment], addresses.entry.into()))
}

/// ELF32, or ELF64 with everything below 4 GiB: the kernel starts in 32-bit mode all the same.
fn by_elf<I: Image + ?Sized>(head: &[u8], image: &I) -> Result<(Vec<Segment>, u64), LoadError> {
    const IDENT: usize = 16;
    let ident = parse_ident::<LittleEndian>(head).map_err(|_| LoadError::NotElf)?;
    let class = ident.1;
    let (header_size, entry_size) = match class {
        Class::ELF32 => (52, 32),
        Class::ELF64 => (64, 56),
    };
    let have = image.size();
    let tail = head
        .get(IDENT..header_size)
        .ok_or(LoadError::Truncated { have, want: header_size as u64 })?;
    let header = FileHeader::parse_tail(ident, tail).map_err(|_| LoadError::NotElf)?;
    if !matches!(header.e_machine, EM_386 | EM_X86_64) {
        return Err(LoadError::NotElf);
    }
    let count = usize::from(header.e_phnum);
    if count > MAX_SEGMENTS {
        return Err(LoadError::TooManySegments { have: count, limit: MAX_SEGMENTS });
    }
    if count > 0 && header.e_phentsize != entry_size {
        return Err(LoadError::Damaged("its program headers have an odd size"));
    }
    let want = header.e_phoff.saturating_add(count as u64 * u64::from(entry_size));
    if want > have {
        return Err(LoadError::Truncated { have, want });
    }
    let table = image.read(header.e_phoff..want);
    let loaded: Vec<ProgramHeader> = SegmentTable::new(LittleEndian, class, &table)
        .iter()
        .filter(|entry| entry.p_type == PT_LOAD && entry.p_memsz > 0)
        .collect();
    let segments: Result<Vec<Segment>, LoadError> = loaded
        .iter()
        .map(|entry| segment(entry.p_offset, entry.p_filesz, entry.p_paddr, entry.p_memsz, have))
        .collect();
    // The entry point of a kernel that is linked to virtual addresses is one, too, and paging is
    // off.
    let entry = loaded
        .iter()
        .find(|entry| {
            let offset = header.e_entry.checked_sub(entry.p_vaddr);
            offset.is_some_and(|offset| offset < entry.p_memsz)
        })
        .map_or(header.e_entry, |entry| {
            (header.e_entry - entry.p_vaddr).saturating_add(entry.p_paddr)
        });
    Ok((segments?, entry))
}

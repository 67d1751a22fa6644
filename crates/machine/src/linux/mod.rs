//! Loads a Linux bzImage by the 64-bit or the 32-bit boot protocol (Linux,
//! Documentation/arch/x86/boot.rst).
//!
//! Pure planning: [`plan`] looks at the kernel's setup header and says what goes where and how the
//! guest starts; the caller moves the bytes, in the order that [`order`](crate::move_plan::order)
//! gives.

mod boot_params;
mod environment;

use alloc::vec::Vec;
use core::ops::Range;

use umbra_bzimage::{HeaderError, SetupHeader};
use umbra_paging::{Gpa, PAGE_SIZE};

use umbra_vcpu::entry::Entry;

/// Why a guest cannot be loaded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// No bzImage at all.
    #[error(
        "the kernel is not a Linux bzImage; give --kernel an x86 bzImage such as /boot/vmlinuz-*"
    )]
    NotBzImage,
    /// A bzImage that cannot be booted.
    #[error("the kernel {0}")]
    Header(#[from] HeaderError),
    /// The command line is longer than the kernel takes.
    #[error(
        "the kernel command line has {have} bytes, and this kernel takes {limit}; shorten --append"
    )]
    CommandLineTooLong {
        /// Bytes there are.
        have: usize,
        /// Bytes the kernel takes.
        limit: u32,
    },
    /// Kernel or initrd do not fit into guest memory.
    #[error(
        "kernel and initrd need {need} MiB of guest memory and there are {have}; give --memory {need} or more"
    )]
    TooLittleMemory {
        /// What would do, in MiB.
        need: u64,
        /// Guest memory in MiB.
        have: u64,
    },
    /// The kernel wants its initrd below the place where there is room for it.
    #[error(
        "the kernel takes its initrd below {0:#x} only, where it does not fit; give a smaller --initrd"
    )]
    InitrdTooLarge(u64),
}

/// What goes where.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// This part of the kernel file ...
    pub payload: Range<u64>,
    /// ... goes here.
    pub kernel: Gpa,
    /// What becomes zero behind the payload.
    pub padding: Range<u64>,
    /// Where the initrd goes, if there is one.
    pub initrd: Option<Gpa>,
    /// What else goes into memory; everything below 1 MiB.
    pub writes: Vec<(Gpa, Vec<u8>)>,
    /// How the guest starts.
    pub entry: Entry,
}

/// The guest that [`plan`] is to load.
#[derive(Debug)]
pub struct Guest<'a> {
    /// The first [`HEADER_SPAN`](umbra_bzimage::HEADER_SPAN) bytes of the kernel file, or all of a
    /// shorter one.
    pub kernel_head: &'a [u8],
    /// Bytes of the kernel file.
    pub kernel_size: u64,
    /// Bytes of the initrd; 0 is none.
    pub initrd_size: u64,
    /// The command line.
    pub command_line: &'a str,
    /// RAM as the e820 map reports it: below 1 MiB, and from 1 MiB up.
    pub ram: [Range<u64>; 2],
    /// RAM from 4 GiB up.
    pub above: Range<u64>,
    /// The ACPI root pointer.
    pub rsdp: Gpa,
}

/// Plans the loading of a guest.
///
/// # Errors
/// The kernel is none, or guest memory does not hold it. See [`LoadError`].
pub fn plan(guest: &Guest<'_>) -> Result<Plan, LoadError> {
    let header =
        SetupHeader::parse(guest.kernel_head, guest.kernel_size)?.ok_or(LoadError::NotBzImage)?;
    if guest.command_line.len() > header.command_line_limit as usize {
        return Err(LoadError::CommandLineTooLong {
            have: guest.command_line.len(),
            limit: header.command_line_limit,
        });
    }
    // A relocatable kernel takes lower places too, but moves itself up to the preferred one.
    let kernel_end = header.preferred_address + header.memory_size;
    let initrd_room = guest.initrd_size.next_multiple_of(PAGE_SIZE);
    let ram_end = guest.ram[1].end;
    let need = kernel_end.saturating_add(initrd_room);
    if need > ram_end {
        let mib = 1 << 20;
        return Err(LoadError::TooLittleMemory { need: need.div_ceil(mib), have: ram_end / mib });
    }
    let initrd_limit =
        ram_end.min(header.initrd_address_max.saturating_add(1)) / PAGE_SIZE * PAGE_SIZE;
    let initrd = match guest.initrd_size {
        0 => None,
        _ if initrd_limit < need => return Err(LoadError::InitrdTooLarge(initrd_limit)),
        _ => Some(Gpa::new(initrd_limit - initrd_room)),
    };
    let (mut writes, entry) = environment::build(&header, guest.command_line);
    writes.push((
        Gpa::new(entry.rsi),
        boot_params::build(&header, guest, initrd, environment::COMMAND_LINE),
    ));
    let payload = header.payload_offset..guest.kernel_size;
    let payload_end = header.preferred_address + (payload.end - payload.start);
    let padding = payload_end..payload_end + header.padding;
    Ok(Plan { payload, kernel: Gpa::new(header.preferred_address), padding, initrd, writes, entry })
}

#[cfg(test)]
mod tests;

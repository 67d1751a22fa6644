//! Why a kernel cannot be loaded.

/// A clause about the kernel: it reads on from "the kernel", and ends with the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A flag among those that a loader must know to go on.
    #[error(
        "asks in its multiboot header for what no loader of version 0.6.96 has (flags {0:#x}); give a kernel that does \
         without"
    )]
    UnknownFlags(u32),
    /// A multiboot header in a file that says neither as an ELF nor by address fields what goes
    /// where.
    #[error(
        "has a multiboot header, but neither is it an ELF file for x86 nor does the header say where it goes; give an \
         ELF32 file"
    )]
    NotElf,
    /// Fields that contradict each other.
    #[error("is damaged: {0}; build or copy it again")]
    Damaged(&'static str),
    /// More segments than any small kernel has.
    #[error("has {have} segments, and this loader takes at most {limit}; link it into fewer")]
    TooManySegments {
        /// Segments there are.
        have: usize,
        /// Segments that are taken.
        limit: usize,
    },
    /// The file is shorter than its headers say.
    #[error("is cut off: it has {have} bytes of at least {want}; build or copy it again")]
    Truncated {
        /// Bytes there are.
        have: u64,
        /// Bytes that its headers announce.
        want: u64,
    },
    /// Two segments at one place.
    #[error(
        "has segments that overlap at {0:#x}; link it so that each has its own physical addresses"
    )]
    Overlap(u64),
    /// The entry point is not in a segment.
    #[error(
        "has its entry point at {0:#x}, outside its segments; link it with an entry point that is loaded"
    )]
    Entry(u64),
    /// A segment where there is no memory, whatever its size.
    #[error(
        "wants to be loaded at {start:#x}..{end:#x}, where a PC has no memory; link it to run at 1 MiB or above and \
         below 4 GiB"
    )]
    NoMemory {
        /// First address of the segment.
        start: u64,
        /// One past its last address.
        end: u64,
    },
    /// Kernel and modules do not fit into guest memory.
    #[error(
        "and its modules need {need} MiB of guest memory and there are {have}; give --memory {need} or more"
    )]
    TooLittleMemory {
        /// What would do, in MiB.
        need: u64,
        /// Guest memory in MiB.
        have: u64,
    },
    /// More modules than are taken.
    #[error("gets {have} modules, and this loader takes at most {limit}; give fewer")]
    TooManyModules {
        /// Modules there are.
        have: usize,
        /// Modules that are taken.
        limit: usize,
    },
    /// No place for the boot information.
    #[error(
        "leaves no {need} bytes free between 64 KiB and 636 KiB for its boot information; link it to run at 1 MiB or \
         above, or shorten --append"
    )]
    NoRoomForInformation {
        /// Bytes that the information takes.
        need: u64,
    },
}

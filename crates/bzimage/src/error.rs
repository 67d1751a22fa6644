//! Why an image cannot be booted.

/// A clause about the image: it reads on from "the kernel", and ends with the way out. It takes the
/// image for a Linux kernel; [`is_linux`](crate::is_linux) tells whether that is so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A boot protocol before the flag that tells 64-bit kernels from 32-bit ones.
    #[error(
        "uses Linux boot protocol {}.{:02}, and at least 2.12 is needed; give a kernel of version 3.8 or later",
        .0 >> 8, .0 & 0xff
    )]
    OldProtocol(u16),
    /// The file is shorter than its header says.
    #[error(
        "is a truncated bzImage: it has {have} of at least {want} bytes; fetch or build it again"
    )]
    Truncated {
        /// Bytes there are.
        have: u64,
        /// Bytes that the header announces.
        want: u64,
    },
    /// A place where no image runs here.
    #[error(
        "wants to run at {0:#x}, and images run between 1 MiB and 4 GiB here; give one built for that"
    )]
    Place(u64),
    /// Header fields that contradict each other.
    #[error("has a damaged setup header ({0}); fetch or build it again")]
    Damaged(&'static str),
}

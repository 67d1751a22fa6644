//! Why a Linux kernel cannot be booted.

/// A clause about the kernel: it reads on from "the kernel", and ends with the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A boot protocol without 64-bit entry.
    #[error(
        "uses Linux boot protocol {}.{:02}, and 64-bit entry needs 2.12; give a kernel of version 3.8 or later",
        .0 >> 8, .0 & 0xff
    )]
    OldProtocol(u16),
    /// A kernel without 64-bit entry point.
    #[error("is a 32-bit Linux kernel; give a 64-bit one")]
    Not64Bit,
    /// The file is shorter than its header says.
    #[error("is a truncated bzImage: it has {have} of at least {want} bytes; fetch or build it again")]
    Truncated {
        /// Bytes there are.
        have: u64,
        /// Bytes that the header announces.
        want: u64,
    },
    /// Header fields that contradict each other.
    #[error("has a damaged setup header ({0}); fetch or build it again")]
    Damaged(&'static str),
}

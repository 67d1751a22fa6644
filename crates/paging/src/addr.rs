//! Addresses and frame numbers, one type per kind so that they cannot be mixed.

use core::{fmt, ops};

use crate::Level;

/// Bytes in a page and in a frame.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw value.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw value.
            pub const fn raw(self) -> u64 {
                self.0
            }
        }

        /// So many bytes, or frames, further.
        impl ops::Add<u64> for $name {
            type Output = Self;

            fn add(self, count: u64) -> Self {
                Self(self.0 + count)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

newtype!(
    /// A guest-virtual (linear) address.
    Gva
);
newtype!(
    /// A guest-physical address.
    Gpa
);
newtype!(
    /// A host-physical address.
    Hpa
);
newtype!(
    /// A guest frame number: a guest-physical address divided by [`PAGE_SIZE`].
    Gfn
);
newtype!(
    /// A host frame number: a host-physical address divided by [`PAGE_SIZE`].
    Hfn
);

impl Gva {
    /// The index into the paging structure of `level` (SDM, "4-Level Paging").
    pub const fn index(self, level: Level) -> usize {
        (self.0 >> level.shift()) as usize & 511
    }

    /// The offset in a page that an entry of `level` maps.
    pub const fn offset(self, level: Level) -> u64 {
        self.0 & (level.pages() * PAGE_SIZE - 1)
    }

    /// Whether bits 47..63 are equal (SDM vol. 1, "Canonical Addressing", 48-bit linear addresses).
    pub const fn is_canonical(self) -> bool {
        let top = self.0 as i64 >> 47;
        top == 0 || top == -1
    }
}

impl Gpa {
    /// The frame this address lies in.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 / PAGE_SIZE)
    }

    /// The offset within its page.
    pub const fn page_offset(self) -> u64 {
        self.0 % PAGE_SIZE
    }
}

impl Hpa {
    /// The frame this address lies in.
    pub const fn hfn(self) -> Hfn {
        Hfn(self.0 / PAGE_SIZE)
    }
}

impl Gfn {
    /// The address of the frame's first byte.
    pub const fn base(self) -> Gpa {
        Gpa(self.0 * PAGE_SIZE)
    }

    /// The address of the entry `index` of a paging structure in this frame.
    pub const fn entry(self, index: usize) -> Gpa {
        Gpa(self.0 * PAGE_SIZE + index as u64 * 8)
    }
}

impl Hfn {
    /// The address of the frame's first byte.
    pub const fn base(self) -> Hpa {
        Hpa(self.0 * PAGE_SIZE)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;

    use super::*;

    #[test]
    fn they_are_printed_as_hexadecimal_numbers() {
        assert_eq!(format!("{:?} {:?}", Gfn::new(0x1f), Hpa::new(0)), "Gfn(0x1f) Hpa(0x0)");
        assert_eq!(format!("{:#x} {:x}", Gva::new(0x1f), Gpa::new(0x1f)), "0x1f 1f");
    }

    #[test]
    fn canonical_addresses() {
        for good in [0, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX] {
            assert!(Gva::new(good).is_canonical(), "{good:#x}");
        }
        for bad in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 63] {
            assert!(!Gva::new(bad).is_canonical(), "{bad:#x}");
        }
    }

    #[test]
    fn indexes() {
        let gva = Gva::new(0xffff_ff80_4040_3000);
        assert_eq!(Level::ALL.map(|level| gva.index(level)), [3, 2, 1, 511]);
    }

    #[test]
    fn offsets_and_sums() {
        let gva = Gva::new(0xffff_ff80_4040_3123);
        let sizes = [Level::L1, Level::L2, Level::L3];
        assert_eq!(sizes.map(|level| gva.offset(level)), [0x123, 0x3123, 0x40_3123]);
        assert_eq!(Gfn::new(3) + 2, Gfn::new(5));
        assert_eq!(Gfn::new(1).base() + gva.offset(Level::L1), Gpa::new(0x1123));
    }
}

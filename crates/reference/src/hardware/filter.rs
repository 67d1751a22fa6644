//! Which page faults of a VMX guest exit.

use umbra_paging::Pfec;

/// The three VMCS fields that decide (SDM, "VMX Non-Root Operation", "Exceptions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Bit 14 of the exception bitmap.
    pub bitmap_bit: bool,
    /// The page-fault error-code mask.
    pub mask: Pfec,
    /// The page-fault error-code match.
    pub matched: Pfec,
}

impl Filter {
    /// No page fault exits.
    pub const NONE: Filter =
        Filter { bitmap_bit: false, mask: Pfec::empty(), matched: Pfec::empty() };

    /// Every page fault exits.
    pub const TRAP: Filter =
        Filter { bitmap_bit: true, mask: Pfec::empty(), matched: Pfec::empty() };

    /// Page faults with P = 1 exit.
    pub const PRESENT: Filter =
        Filter { bitmap_bit: true, mask: Pfec::PRESENT, matched: Pfec::PRESENT };

    /// Page faults of user mode without RSVD stay in the guest.
    pub const USER: Filter =
        Filter { bitmap_bit: false, mask: Pfec::USER.union(Pfec::RSVD), matched: Pfec::USER };

    /// Whether a fault with this error code exits.
    pub fn exits(&self, code: Pfec) -> bool {
        (code & self.mask == self.matched) == self.bitmap_bit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_code_of_every_filter() {
        for raw in 0..32 {
            let code = Pfec::from_bits_truncate(raw);
            assert!(Filter::TRAP.exits(code) && !Filter::NONE.exits(code));
            assert_eq!(Filter::PRESENT.exits(code), raw & 1 != 0);
            assert_eq!(Filter::USER.exits(code), raw & 0b1100 != 0b0100);
        }
    }
}

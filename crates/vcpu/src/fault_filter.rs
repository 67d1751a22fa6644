//! Page-fault filters of VMX, by the error code of a fault.

use umbra_mmu::GuestFaults;
use umbra_paging::Pfec;

/// Which page faults exit (SDM, "Exceptions" in "Other Causes of VM Exits").
///
/// Those whose error code, as far as `mask` says, is `matched` exit if `bitmap_bit` is set; if it is
/// clear, all others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultFilter {
    /// Bit 14 of the exception bitmap.
    pub bitmap_bit: bool,
    /// The page-fault error-code mask.
    pub mask: Pfec,
    /// The page-fault error-code match.
    pub matched: Pfec,
}

impl FaultFilter {
    /// The filter that carries out what the MMU asks for. There are no others.
    pub fn of(guest_faults: GuestFaults) -> FaultFilter {
        let none = Pfec::empty();
        match guest_faults {
            GuestFaults::Trap => FaultFilter { bitmap_bit: true, mask: none, matched: none },
            GuestFaults::Present => {
                FaultFilter { bitmap_bit: true, mask: Pfec::PRESENT, matched: Pfec::PRESENT }
            }
            GuestFaults::User => {
                FaultFilter { bitmap_bit: false, mask: Pfec::USER | Pfec::RSVD, matched: Pfec::USER }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Host faults are those on Pending entries (RSVD), on tracked tables and on clean pages (P and W, of a supervisor
    /// or, without I4, of user mode), and those of a supervisor where a walk must tell. All of them exit.
    #[test]
    fn the_filters_for_every_error_code() {
        for raw in 0..64 {
            let code = Pfec::from_bits_truncate(raw);
            let exits = |guest_faults| {
                let FaultFilter { bitmap_bit, mask, matched } = FaultFilter::of(guest_faults);
                (code & mask == matched) == bitmap_bit
            };
            let (present, user) = (code.contains(Pfec::PRESENT), code.contains(Pfec::USER));
            let reserved = code.contains(Pfec::RSVD);
            assert!(exits(GuestFaults::Trap));
            assert_eq!(exits(GuestFaults::Present), present, "{code:?}");
            assert_eq!(exits(GuestFaults::User), !user || reserved, "{code:?}");
            // RSVD comes with P always (SDM, "Page-Fault Exceptions").
            if reserved && present {
                assert!(exits(GuestFaults::Present) && exits(GuestFaults::User), "{code:?}");
            }
        }
    }
}

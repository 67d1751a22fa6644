//! What the access behind a #PF exit was, as far as the exit tells.
#![forbid(unsafe_code)]

use umbra_paging::{Access, AccessKind, Gva, PAGE_SIZE, Paging, Pfec};

/// The longest instruction, in bytes.
const MAX_INSTRUCTION: u64 = 15;

/// What is known about a #PF exit beside its address.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// The exit's error code. Only what describes the access is taken from it: whether it is allowed is the
    /// guest's tables' to say.
    pub pfec: Pfec,
    /// An explicit access would be allowed by RFLAGS.AC: CPL is below 3, AC is set, no event is under way.
    pub alignment_check: bool,
    /// How often this same fault has come before without a break.
    pub repeats: u32,
}

/// The access to `gva`, or the likeliest one; another if that one did not help. `rip`, the linear address of the
/// instruction, is asked for only if it matters.
///
/// - Explicit supervisor accesses may touch user pages under SMAP while RFLAGS.AC is set, implicit ones (to
///   descriptor tables and the like) may not, and the exit does not tell them apart. They are taken as explicit
///   at first.
/// - With EFER.NXE and CR4.SMEP both clear, error codes do not tell fetches from reads (SDM, "Page-Fault
///   Exceptions"). The rights of the two then differ only by SMAP, which holds no fetch back: what can be a
///   fetch is taken for one at first.
///
/// SMAP holds back what is mapped. A fault with a reserved bit ends the walk before the CPU looks at that: it is about an
/// entry that the shadow MMU keeps Pending, however often it comes, and is no sign of a wrong guess.
pub fn classify(exit: &Exit, paging: &Paging, gva: Gva, rip: impl FnOnce() -> Gva) -> Access {
    let user = exit.pfec.contains(Pfec::USER);
    let repeats = if exit.pfec.contains(Pfec::RSVD) { 0 } else { exit.repeats };
    let unreported_fetch = !paging.nxe && !paging.smep && paging.smap && !user && may_be_fetch(rip(), gva);
    let kind = if exit.pfec.contains(Pfec::FETCH) {
        AccessKind::Fetch
    } else if exit.pfec.contains(Pfec::WRITE) {
        AccessKind::Write
    } else if unreported_fetch && repeats == 0 {
        AccessKind::Fetch
    } else {
        AccessKind::Read
    };
    // The repeat that shows a supposed fetch to be a read says nothing about implicit accesses yet.
    let tries_of_explicit = if unreported_fetch { 3 } else { 2 };
    let smap_override = !user && exit.alignment_check && repeats < tries_of_explicit;
    Access { kind, user, smap_override }
}

/// Whether the instruction at `rip` can have faulted at `gva` by being fetched: at its first byte, or at the
/// start of the page that it reaches into.
fn may_be_fetch(rip: Gva, gva: Gva) -> bool {
    let ahead = gva.raw().wrapping_sub(rip.raw());
    ahead == 0 || (ahead < MAX_INSTRUCTION && gva.raw().is_multiple_of(PAGE_SIZE))
}

#[cfg(test)]
mod tests {
    use umbra_paging::{Gfn, Mode};

    use super::*;

    const RIP: Gva = Gva::new(0x5ffa);

    fn paging(nxe: bool, smep: bool, smap: bool) -> Paging {
        Paging { mode: Mode::Long4, root: Gfn::new(1), wp: true, smep, smap, pge: false, nxe }
    }

    fn exit(pfec: Pfec, repeats: u32) -> Exit {
        Exit { pfec, alignment_check: false, repeats }
    }

    #[test]
    fn a_fetch_that_the_cpu_does_not_report_is_not_held_back_by_smap() {
        let paging = paging(false, false, true);
        for gva in [RIP, Gva::new(0x6000)] {
            assert_eq!(classify(&exit(Pfec::PRESENT, 0), &paging, gva, || RIP).kind, AccessKind::Fetch);
            assert_eq!(classify(&exit(Pfec::PRESENT, 1), &paging, gva, || RIP).kind, AccessKind::Read);
        }
        for gva in [0x5ff9, 0x5ffb, 0x6001, 0x7000] {
            assert_eq!(
                classify(&exit(Pfec::PRESENT, 0), &paging, Gva::new(gva), || RIP).kind,
                AccessKind::Read
            );
        }
        assert_eq!(classify(&exit(Pfec::WRITE, 0), &paging, RIP, || RIP).kind, AccessKind::Write);
        assert_eq!(classify(&exit(Pfec::USER, 0), &paging, RIP, || RIP).kind, AccessKind::Read);
    }

    #[test]
    fn where_the_cpu_reports_fetches_its_word_counts() {
        for (nxe, smep) in [(true, false), (false, true), (true, true)] {
            let paging = paging(nxe, smep, true);
            assert_eq!(classify(&exit(Pfec::PRESENT, 0), &paging, RIP, || RIP).kind, AccessKind::Read);
            assert_eq!(classify(&exit(Pfec::FETCH, 0), &paging, RIP, || RIP).kind, AccessKind::Fetch);
        }
    }

    #[test]
    fn an_access_that_persists_under_smap_counts_as_implicit() {
        let paging = paging(true, true, true);
        let explicit = |repeats| {
            let exit = Exit { alignment_check: true, ..exit(Pfec::PRESENT, repeats) };
            classify(&exit, &paging, Gva::new(0x9000), || RIP).smap_override
        };
        assert_eq!([0, 1, 2, 3].map(explicit), [true, true, false, false]);
    }

    /// One access may need many tables, and each that is linked may unlink another (guest kernel `hostile`, `tangle`).
    #[test]
    fn faults_on_pending_entries_are_no_sign_of_a_wrong_guess() {
        let pending = Pfec::PRESENT | Pfec::RSVD;
        for repeats in 0..64 {
            let write = Exit { alignment_check: true, ..exit(pending | Pfec::WRITE, repeats) };
            assert!(classify(&write, &paging(true, true, true), Gva::new(0x9000), || RIP).smap_override);
            let fetch = exit(pending, repeats);
            assert_eq!(classify(&fetch, &paging(false, false, true), RIP, || RIP).kind, AccessKind::Fetch);
        }
    }
}

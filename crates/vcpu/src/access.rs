//! What the access behind a #PF exit was, as far as the exit tells.

use umbra_paging::{Access, AccessKind, Gva, PAGE_SIZE, Paging, Pfec};

/// The longest instruction, in bytes.
const MAX_INSTRUCTION: u64 = 15;

/// What is known about a #PF exit beside its address.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// The exit's error code. Only what describes the access is taken from it: whether it is
    /// allowed is the guest's tables' to say.
    pub pfec: Pfec,
    /// RFLAGS.AC, as it was when the instruction or the event began.
    pub alignment_check: bool,
    /// An event was being delivered.
    pub delivery: bool,
}

/// What decides where the exit does not: asked for only if it matters.
pub trait Instruction {
    /// The linear address of the instruction at RIP.
    fn start(&self) -> Gva;
    /// Whether it names an operand at `gva`.
    fn names(&mut self, gva: Gva) -> bool;
    /// Whether GDT, LDT or TSS lie at `gva`, within their limits.
    fn is_in_system_table(&self, gva: Gva) -> bool;
}

/// The access to `gva`.
///
/// Under SMAP an explicit supervisor access may touch a user page while RFLAGS.AC is set; an
/// implicit one may not (SDM, "Determination of Access Mode"). The exit does not tell them apart.
/// Implicit are the accesses to IDT, GDT, LDT and TSS. The IDT is only read, while an event is
/// delivered, as is all else then but the stack, which is only written: a write during delivery is
/// a push, unless it is the accessed or busy bit of a descriptor. Outside delivery an access to a
/// table is explicit if the instruction names an operand there.
///
/// With EFER.NXE and CR4.SMEP both clear, error codes do not tell fetches from reads (SDM,
/// "Page-Fault Exceptions"). The rights of the two then differ only by SMAP, which holds no fetch
/// back.
pub fn classify(
    exit: &Exit,
    paging: &Paging,
    gva: Gva,
    instruction: &mut impl Instruction,
) -> Access {
    let Access { kind, user, .. } = Access::of_exit(exit.pfec, exit.alignment_check);
    let unreported =
        kind == AccessKind::Read && is_unreported_fetch(exit, paging, gva, instruction);
    let kind = if unreported { AccessKind::Fetch } else { kind };
    let smap_override = paging.smap && !user && exit.alignment_check && {
        let explicit = if exit.delivery { kind == AccessKind::Write } else { true };
        explicit
            && (!instruction.is_in_system_table(gva) || (!exit.delivery && instruction.names(gva)))
    };
    Access { kind, user, smap_override }
}

/// Whether a read is a fetch that the CPU does not report as one: at the instruction's first byte,
/// or at the start of the page that it reaches into, where the instruction names no operand.
fn is_unreported_fetch(
    exit: &Exit,
    paging: &Paging,
    gva: Gva,
    instruction: &mut impl Instruction,
) -> bool {
    let matters = !paging.nxe && !paging.smep && paging.smap && !exit.pfec.contains(Pfec::USER);
    if !matters || exit.delivery {
        return false;
    }
    let ahead = gva.raw().wrapping_sub(instruction.start().raw());
    let possible = ahead == 0 || (ahead < MAX_INSTRUCTION && gva.raw().is_multiple_of(PAGE_SIZE));
    possible && !instruction.names(gva)
}

#[cfg(test)]
mod tests {
    use umbra_paging::{Gfn, Mode};

    use super::*;

    const RIP: Gva = Gva::new(0x5ffa);
    const TABLE: Gva = Gva::new(0x9000);
    const STACK: Gva = Gva::new(0xa000);

    fn paging(nxe: bool, smep: bool, smap: bool) -> Paging {
        Paging { mode: Mode::Long4, root: Gfn::new(1), wp: true, smep, smap, pge: false, nxe }
    }

    fn exit(pfec: Pfec, delivery: bool) -> Exit {
        Exit { pfec, alignment_check: true, delivery }
    }

    /// At [`RIP`], with an operand there or nowhere; the system tables are in the page of
    /// [`TABLE`].
    struct At(Option<Gva>);

    impl Instruction for At {
        fn start(&self) -> Gva {
            RIP
        }
        fn names(&mut self, gva: Gva) -> bool {
            self.0 == Some(gva)
        }
        fn is_in_system_table(&self, gva: Gva) -> bool {
            gva.raw() & !0xfff == TABLE.raw()
        }
    }

    #[test]
    fn a_fetch_that_the_cpu_does_not_report_is_not_held_back_by_smap() {
        let paging = paging(false, false, true);
        let kind =
            |pfec, gva, operand| classify(&exit(pfec, false), &paging, gva, &mut At(operand)).kind;
        for gva in [RIP, Gva::new(0x6000)] {
            assert_eq!(kind(Pfec::PRESENT, gva, None), AccessKind::Fetch);
            assert_eq!(kind(Pfec::PRESENT, gva, Some(gva)), AccessKind::Read);
        }
        for gva in [0x5ff9, 0x5ffb, 0x6001, 0x7000].map(Gva::new) {
            assert_eq!(kind(Pfec::PRESENT, gva, None), AccessKind::Read);
        }
        assert_eq!(kind(Pfec::WRITE, RIP, None), AccessKind::Write);
        assert_eq!(kind(Pfec::USER, RIP, None), AccessKind::Read);
    }

    #[test]
    fn where_the_cpu_reports_fetches_its_word_counts() {
        for (nxe, smep) in [(true, false), (false, true), (true, true)] {
            let paging = paging(nxe, smep, true);
            let kind = |pfec| classify(&exit(pfec, false), &paging, RIP, &mut At(None)).kind;
            assert_eq!(kind(Pfec::PRESENT), AccessKind::Read);
            assert_eq!(kind(Pfec::FETCH), AccessKind::Fetch);
        }
    }

    /// All kinds of supervisor access, and whether RFLAGS.AC lets them touch user pages. It makes
    /// no difference whether the shadow entry is Trapping, and by which encoding.
    #[test]
    fn implicit_accesses() {
        let (read, write) = (Pfec::empty(), Pfec::WRITE);
        let table = [
            // (what, error code, in delivery, address, the instruction's operand, explicit)
            ("load", read, false, STACK, Some(STACK), true),
            ("store or push", write, false, STACK, None, true),
            ("load from a table", read, false, TABLE, Some(TABLE), true),
            ("store to a table", write, false, TABLE, Some(TABLE), true),
            ("descriptor", read, false, TABLE, None, false),
            ("accessed bit", write, false, TABLE, None, false),
            ("push of an event", write, true, STACK, None, true),
            ("gate or stack pointer of an event", read, true, STACK, None, false),
            ("descriptor of an event", read, true, TABLE, Some(TABLE), false),
            ("accessed bit by an event", write, true, TABLE, Some(TABLE), false),
        ];
        for (what, pfec, delivery, gva, operand, explicit) in table {
            for shadow in [Pfec::empty(), Pfec::PRESENT, Pfec::PRESENT | Pfec::RSVD] {
                let paging = paging(true, true, true);
                let mut exit = exit(pfec | shadow, delivery);
                let access = classify(&exit, &paging, gva, &mut At(operand));
                assert_eq!(access.smap_override, explicit, "{what}, {shadow:?}");
                exit.alignment_check = false;
                assert!(!classify(&exit, &paging, gva, &mut At(operand)).smap_override, "{what}");
                exit.alignment_check = true;
                exit.pfec |= Pfec::USER;
                assert!(!classify(&exit, &paging, gva, &mut At(operand)).smap_override, "{what}");
            }
        }
    }
}

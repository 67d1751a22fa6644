//! A refused VMRUN in words (APM, "Canonicalization and Consistency Checks").

use alloc::format;
use alloc::string::String;

use crate::control::efer_more;
use umbra_paging::{cr0, cr4, efer};

use super::segments::{DEFAULT_32, LONG};
use super::vmcb::{Vmcb, intercept2};

/// EFER.SVME.
pub const SVME: u64 = 1 << 12;

/// CR0.NW and CR0.CD.
const NW: u64 = 1 << 29;
const CD: u64 = 1 << 30;

/// Which of the checks fail.
fn reasons(vmcb: &Vmcb) -> impl Iterator<Item = &'static str> {
    let (control, save) = (&vmcb.control, &vmcb.save);
    let long = save.efer & efer_more::LME != 0 && save.cr0 & cr0::PG != 0;
    let code = save.cs.attributes & (LONG | DEFAULT_32) == LONG | DEFAULT_32;
    let checks = [
        (save.efer & SVME == 0, "EFER.SVME is clear"),
        (save.cr0 & (CD | NW) == NW, "CR0.NW without CD"),
        (save.cr0 >> 32 != 0, "CR0 has upper bits"),
        (save.cr4 >> 32 != 0, "CR4 has upper bits"),
        (save.dr6 >> 32 != 0 || save.dr7 >> 32 != 0, "DR6 or DR7 has upper bits"),
        (long && save.cr4 & cr4::PAE == 0, "long mode without CR4.PAE"),
        (long && save.cr0 & cr0::PE == 0, "long mode without CR0.PE"),
        (long && code, "CS has both L and D"),
        (save.efer & efer::LMA != 0 && !long, "EFER.LMA without long mode"),
        (control.intercept2 & intercept2::VMRUN == 0, "VMRUN is not intercepted"),
        (control.asid == 0, "ASID 0"),
    ];
    checks.into_iter().filter(|(fails, _)| *fails).map(|(_, reason)| reason)
}

/// Why VMRUN refused, with the state that it refused.
pub fn describe(vmcb: &Vmcb) -> String {
    let mut why = String::new();
    for reason in reasons(vmcb) {
        if !why.is_empty() {
            why += ", ";
        }
        why += reason;
    }
    if why.is_empty() {
        why += "a reserved bit, or an event that cannot be injected";
    }
    format!("VMRUN refused the guest's state: {why} ({})", state(vmcb))
}

/// The fields that the checks look at.
fn state(vmcb: &Vmcb) -> String {
    let (control, save) = (&vmcb.control, &vmcb.save);
    let fields = [
        ("RIP", save.rip),
        ("RSP", save.rsp),
        ("RFLAGS", save.rflags),
        ("CR0", save.cr0),
        ("CR3", save.cr3),
        ("CR4", save.cr4),
        ("EFER", save.efer),
        ("DR6", save.dr6),
        ("DR7", save.dr7),
        ("CPL", save.cpl.into()),
        ("CS", save.cs.selector.into()),
        ("CS attributes", save.cs.attributes.into()),
        ("CS base", save.cs.base),
        ("CS limit", save.cs.limit.into()),
        ("SS", save.ss.selector.into()),
        ("SS attributes", save.ss.attributes.into()),
        ("DS attributes", save.ds.attributes.into()),
        ("ES attributes", save.es.attributes.into()),
        ("TR attributes", save.tr.attributes.into()),
        ("shadow", control.shadow),
        ("event", control.event),
    ];
    let mut text = String::new();
    for (name, value) in fields {
        let comma = if text.is_empty() { "" } else { ", " };
        text += &format!("{comma}{name} {value:#x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Vmcb {
        let mut vmcb = Vmcb::default();
        vmcb.save.efer = SVME | efer_more::LME | efer::LMA;
        vmcb.save.cr0 = cr0::PE | cr0::PG;
        vmcb.save.cr4 = cr4::PAE;
        vmcb.save.cs.attributes = LONG;
        vmcb.control.intercept2 = intercept2::VMRUN;
        vmcb.control.asid = 1;
        vmcb
    }

    #[test]
    fn each_check_has_its_words() {
        assert_eq!(reasons(&sound()).count(), 0);
        assert!(describe(&sound()).contains("a reserved bit"));
        type Change = fn(&mut Vmcb);
        let cases: [(Change, &str); 10] = [
            (|v| v.save.efer &= !SVME, "EFER.SVME is clear"),
            (|v| v.save.cr0 |= NW, "CR0.NW without CD"),
            (|v| v.save.cr0 |= 1 << 32, "CR0 has upper bits"),
            (|v| v.save.dr7 = 1 << 32, "DR6 or DR7 has upper bits"),
            (|v| v.save.cr4 = 0, "long mode without CR4.PAE"),
            (|v| v.save.cr0 = cr0::PG, "long mode without CR0.PE"),
            (|v| v.save.cs.attributes |= DEFAULT_32, "CS has both L and D"),
            (|v| v.save.cr0 = cr0::PE, "EFER.LMA without long mode"),
            (|v| v.control.intercept2 = 0, "VMRUN is not intercepted"),
            (|v| v.control.asid = 0, "ASID 0"),
        ];
        for (change, expected) in cases {
            let mut vmcb = sound();
            change(&mut vmcb);
            let words = describe(&vmcb);
            assert!(words.contains(expected) && words.contains("CS attributes"), "{words}");
        }
    }
}

//! Failed VM entries in words (SDM, "VM-Entry Failures During or After Loading Guest State").

use alloc::format;
use alloc::string::String;

use umbra_vcpu::backend::Refusal;
use x86::vmx::vmcs::{control, guest, ro};

use super::reason;
use super::vmcs::Vmcs;

/// Why the entry failed, with the state that the CPU refused. `reason` is the basic exit reason.
pub fn describe(vmcs: &Vmcs, reason: u32) -> Refusal {
    let qualification = vmcs.read(ro::EXIT_QUALIFICATION);
    let why = match (reason, qualification) {
        (reason::INVALID_GUEST_STATE, 2) => "invalid guest state: a PDPTE cannot be loaded",
        (reason::INVALID_GUEST_STATE, 3) => {
            "invalid guest state: an NMI cannot be injected while STI blocks events"
        }
        (reason::INVALID_GUEST_STATE, 4) => "invalid guest state: the VMCS link pointer",
        (reason::INVALID_GUEST_STATE, _) => "invalid guest state",
        (reason::MSR_LOADING, _) => "an MSR cannot be loaded",
        (reason::MACHINE_CHECK_DURING_ENTRY, _) => "a machine check",
        _ => "an unknown reason",
    };
    let words = format!(
        "VM entry failed: {why} (reason {reason}, qualification {qualification:#x}; {})",
        state(vmcs)
    );
    match (reason, qualification) {
        // PDPTEs, NMIs and the link pointer are none of the guest's doing.
        (reason::INVALID_GUEST_STATE, 2..=4) => Refusal::Host(words),
        (reason::INVALID_GUEST_STATE, _) => Refusal::Guest(words),
        _ => Refusal::Host(words),
    }
}

/// The fields that the checks look at.
pub fn state(vmcs: &Vmcs) -> String {
    const FIELDS: &[(&str, u32)] = &[
        ("RIP", guest::RIP),
        ("RSP", guest::RSP),
        ("RFLAGS", guest::RFLAGS),
        ("CR0", guest::CR0),
        ("CR3", guest::CR3),
        ("CR4", guest::CR4),
        ("CS", guest::CS_SELECTOR),
        ("CS rights", guest::CS_ACCESS_RIGHTS),
        ("CS base", guest::CS_BASE),
        ("CS limit", guest::CS_LIMIT),
        ("SS", guest::SS_SELECTOR),
        ("SS rights", guest::SS_ACCESS_RIGHTS),
        ("DS rights", guest::DS_ACCESS_RIGHTS),
        ("ES rights", guest::ES_ACCESS_RIGHTS),
        ("FS rights", guest::FS_ACCESS_RIGHTS),
        ("GS rights", guest::GS_ACCESS_RIGHTS),
        ("TR rights", guest::TR_ACCESS_RIGHTS),
        ("LDTR rights", guest::LDTR_ACCESS_RIGHTS),
        ("interruptibility", guest::INTERRUPTIBILITY_STATE),
        ("activity", guest::ACTIVITY_STATE),
        ("pending debug exceptions", guest::PENDING_DBG_EXCEPTIONS),
        ("entry controls", control::VMENTRY_CONTROLS),
        ("event", control::VMENTRY_INTERRUPTION_INFO_FIELD),
    ];
    let mut text = String::new();
    for (name, field) in FIELDS {
        let comma = if text.is_empty() { "" } else { ", " };
        text += &format!("{comma}{name} {:#x}", vmcs.read(*field));
    }
    text
}

//! From the exit code to [`Exit`] (APM, "SVM Intercept Exit Codes").

use crate::backend::Exit;
use crate::event::{DEBUG, Event, EventKind, PAGE_FAULT};
use umbra_emulator::Source;
use umbra_paging::Gva;

use super::events::{interrupted, is_valid};
use super::vmcb::Control;

/// Exit codes that are looked at outside the table, too.
#[allow(missing_docs, reason = "they are named as in the manual")]
pub mod code {
    pub const EXCEPTION: u64 = 0x40;
    pub const VINTR: u64 = 0x64;
    pub const IO: u64 = 0x7b;
    pub const TASK_SWITCH: u64 = 0x7d;
    pub const SHUTDOWN: u64 = 0x7f;
    /// VMRUN refused the VMCB.
    pub const INVALID: u64 = u64::MAX;
}

const MACHINE_CHECK: u8 = 18;

/// EXITINFO1 of MOV CR: it is one, and bits 0 to 3 are the general-purpose register.
const MOV_CR: u64 = 1 << 63;

/// Why the guest left. `assists` says that EXITINFO1 tells the operands of MOV CR and INVLPG.
pub fn decode(control: &Control, assists: bool) -> Exit {
    let information = control.exit_info1;
    match control.exit_code {
        read @ 0x00..=0x0f => match mov_cr(information, assists) {
            Some(gpr) => Exit::MovFromCr { cr: read as u8, gpr },
            // SMSW reads CR0.
            None => Exit::Undecoded,
        },
        write @ 0x10..=0x1f => match mov_cr(information, assists) {
            Some(gpr) => Exit::MovToCr { cr: write as u8 & 0xf, gpr },
            // CLTS and LMSW write CR0.
            None => Exit::Undecoded,
        },
        exception @ 0x40..=0x5f => {
            self::exception((exception - code::EXCEPTION) as u8, information, control.exit_info2)
        }
        // An NMI stays pending, as interrupts do, until STGI.
        0x60 | 0x61 => Exit::Interrupt,
        // SMIs and INIT: signals to the machine, not to the guest.
        0x62 | 0x63 => Exit::Nothing,
        code::VINTR => Exit::InterruptWindow,
        0x6f => Exit::ReadCounter,
        0x72 => Exit::Cpuid,
        // IRET, which ends the blocking of NMIs; INT n and INT1.
        0x74 | 0x75 | 0x88 => Exit::Undecoded,
        // INVD, WBINVD.
        0x76 | 0x89 => Exit::CacheControl,
        0x78 => Exit::Halt,
        0x79 if assists => Exit::Invlpg(Gva::new(information)),
        // INVLPG, INVPCID.
        0x79 | 0xa2 => Exit::Undecoded,
        code::IO => io(information),
        0x7c if information & 1 == 0 => Exit::ReadMsr,
        0x7c => Exit::WriteMsr,
        code::TASK_SWITCH => task_switch(control),
        code::SHUTDOWN => Exit::TripleFault,
        0x8d => Exit::Xsetbv,
        // RSM, INVLPGA, VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, MONITOR, MWAIT, RDPRU,
        // INVLPGB, MCOMMIT, TLBSYNC.
        0x73 | 0x7a | 0x80..=0x86 | 0x8a..=0x8c | 0x8e | 0xa0 | 0xa1 | 0xa3 | 0xa4 => {
            Exit::Undefined
        }
        other => Exit::Unexpected(other),
    }
}

/// The general-purpose register of MOV CR, if the exit tells one.
fn mov_cr(information: u64, assists: bool) -> Option<u8> {
    (assists && information & MOV_CR != 0).then_some((information & 0xf) as u8)
}

/// Whether the exception pushes an error code (APM, "Error Codes").
fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

fn exception(vector: u8, error_code: u64, address: u64) -> Exit {
    match vector {
        PAGE_FAULT => Exit::PageFault { gva: Gva::new(address), error_code: error_code as u32 },
        MACHINE_CHECK => Exit::MachineCheck,
        DEBUG => Exit::Reflect(Event::debug()),
        _ => Exit::Reflect(Event {
            kind: EventKind::Exception,
            vector,
            error_code: has_error_code(vector).then_some(error_code as u32),
        }),
    }
}

/// APM, "EXITINFO1 for IOIO Intercept".
fn io(information: u64) -> Exit {
    if information & 1 << 2 != 0 {
        return Exit::StringIo;
    }
    Exit::Io {
        port: (information >> 16) as u16,
        size: (information >> 4 & 7) as u8,
        input: information & 1 != 0,
    }
}

/// APM, "EXITINFO1 and EXITINFO2 for Task Switch".
fn task_switch(control: &Control) -> Exit {
    const IRET: u64 = 1 << 36;
    const JMP: u64 = 1 << 38;
    let source = if control.exit_info2 & IRET != 0 {
        Source::Iret
    } else if control.exit_info2 & JMP != 0 {
        Source::Jmp
    } else if !is_valid(control.exit_interrupt) {
        Source::Call
    } else if interrupted(control.exit_interrupt).is_none() {
        // INT n and the like, which are carried out anew.
        return Exit::Undecoded;
    } else {
        // Its error code comes with the event.
        Source::Gate { error_code: None }
    };
    Exit::TaskSwitch { selector: control.exit_info1 as u16, source }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use umbra_paging::Pfec;

    use super::*;
    use crate::svm::vmcb::Vmcb;

    fn control(exit_code: u64, exit_info1: u64, exit_info2: u64) -> Control {
        let mut control = Vmcb::default().control;
        (control.exit_code, control.exit_info1, control.exit_info2) =
            (exit_code, exit_info1, exit_info2);
        control
    }

    fn of(code: u64, information1: u64, information2: u64) -> Exit {
        decode(&control(code, information1, information2), true)
    }

    #[test]
    fn control_registers_with_and_without_assists() {
        assert_eq!(of(0x13, MOV_CR | 9, 0), Exit::MovToCr { cr: 3, gpr: 9 });
        assert_eq!(of(0x08, MOV_CR | 15, 0), Exit::MovFromCr { cr: 8, gpr: 15 });
        for code in [0x00, 0x10, 0x13, 0x03, 0x14, 0x18, 0x79, 0xa2] {
            assert_eq!(decode(&control(code, MOV_CR | 1, 0), false), Exit::Undecoded, "{code:#x}");
        }
        // SMSW, CLTS and LMSW tell nothing even with assists.
        assert_eq!((of(0, 0, 0), of(0x10, 0, 0)), (Exit::Undecoded, Exit::Undecoded));
        assert_eq!(of(0x79, 0x7000, 0), Exit::Invlpg(Gva::new(0x7000)));
    }

    #[test]
    fn exceptions() {
        let gva = Gva::new(0xffff_8000_0000_1000);
        assert_eq!(of(0x4e, 6, gva.raw()), Exit::PageFault { gva, error_code: 6 });
        assert_eq!(
            of(0x4d, 0x18, 0),
            Exit::Reflect(Event { error_code: Some(0x18), ..Event::general_protection() })
        );
        assert_eq!(
            (of(0x41, 7, 0), of(0x52, 0, 0)),
            (Exit::Reflect(Event::debug()), Exit::MachineCheck)
        );
        assert_eq!(of(0x46, 7, 0), Exit::Reflect(Event::invalid_opcode()));
        let with_code = |vector| {
            matches!(of(0x40 + vector, 3, 0), Exit::Reflect(Event { error_code: Some(3), .. }))
        };
        let pushing: Vec<u64> = (0..32).filter(|vector| with_code(*vector)).collect();
        assert_eq!(pushing, [8, 10, 11, 12, 13, 17, 21, 29, 30]);
        assert_eq!(Event::page_fault(Pfec::WRITE).vector, 14);
    }

    #[test]
    fn ports_and_registers() {
        assert_eq!(
            of(0x7b, 0x3f8 << 16 | 1 << 4 | 1, 0),
            Exit::Io { port: 0x3f8, size: 1, input: true }
        );
        assert_eq!(
            of(0x7b, 0xcf8 << 16 | 1 << 6, 0),
            Exit::Io { port: 0xcf8, size: 4, input: false }
        );
        assert_eq!(of(0x7b, 0x80 << 16 | 1 << 4 | 1 << 2, 0), Exit::StringIo);
        assert_eq!((of(0x7c, 0, 0), of(0x7c, 1, 0)), (Exit::ReadMsr, Exit::WriteMsr));
    }

    #[test]
    fn every_instruction_of_svm_is_undefined() {
        for code in [0x7a, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0xa0, 0xa1, 0xa4] {
            assert_eq!(of(code, 0, 0), Exit::Undefined, "{code:#x}");
        }
        assert_eq!(of(0x400, 0, 0), Exit::Unexpected(0x400));
    }

    #[test]
    fn task_switches() {
        let of = |information, interrupted| {
            let mut control = control(0x7d, 0x38, information);
            control.exit_interrupt = interrupted;
            decode(&control, false)
        };
        let switch = |source| Exit::TaskSwitch { selector: 0x38, source };
        assert_eq!(of(1 << 36, 0), switch(Source::Iret));
        assert_eq!(of(1 << 38, 0), switch(Source::Jmp));
        assert_eq!(of(0, 0), switch(Source::Call));
        let exception = 1 << 31 | 3 << 8 | 13;
        assert_eq!(of(1 << 44, exception), switch(Source::Gate { error_code: None }));
        // INT 0x80.
        assert_eq!(of(0, 1 << 31 | 4 << 8 | 0x80), Exit::Undecoded);
    }
}

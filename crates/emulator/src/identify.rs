//! What an instruction is, for hypervisors whose processor does not tell.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::decode::decode;
use crate::{Gpr, Mode};

/// An instruction, as far as a hypervisor must know it to answer an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its bytes.
    pub length: u8,
    /// What it does.
    pub operation: Operation,
}

/// What an instruction does that processors intercept without a word on its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// MOV to a control register.
    MovToCr {
        /// Which.
        cr: u8,
        /// The source.
        gpr: Gpr,
    },
    /// MOV from a control register.
    MovFromCr {
        /// Which.
        cr: u8,
        /// The destination.
        gpr: Gpr,
    },
    /// CLTS, LMSW, SMSW: a part of CR0.
    MachineStatusWord,
    /// INVLPG of the address in this register, in 64-bit mode.
    Invlpg {
        /// Which.
        gpr: Gpr,
    },
    /// Another INVLPG, or INVPCID.
    Invalidation,
    /// INT n, INT1, INT3 or INTO.
    SoftwareInterrupt,
    /// An instruction of a virtualization extension that user mode may raise #GP with: VMRUN,
    /// VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, INVLPGA, INVLPGB or TLBSYNC.
    Virtualization,
    /// Anything else.
    Other,
}

impl Operation {
    /// Whether it raises #GP outside ring 0 whatever its operands (SDM volume 3, "Privileged
    /// Instructions"). Of [`Operation::MachineStatusWord`] only a part does.
    pub const fn is_privileged(self) -> bool {
        match self {
            Operation::MovToCr { .. }
            | Operation::MovFromCr { .. }
            | Operation::Invlpg { .. }
            | Operation::Invalidation => true,
            Operation::MachineStatusWord
            | Operation::SoftwareInterrupt
            | Operation::Virtualization
            | Operation::Other => false,
        }
    }
}

/// What the instruction is that starts with `bytes`; none if they are none, or not all of it.
pub fn identify(bytes: &[u8], mode: Mode) -> Option<Identity> {
    if mode == Mode::Bits64 {
        if let Some(identity) = plain(bytes) {
            return Some(identity);
        }
    }
    identify_any(bytes, mode)
}

/// The short way for what kernels execute all the time, in 64-bit mode: MOV to and from a control
/// register, and INVLPG of the address in a register, with a REX prefix at most.
fn plain(bytes: &[u8]) -> Option<Identity> {
    let (rex, opcode) = match bytes {
        [rex @ 0x40..=0x4f, rest @ ..] => (*rex, rest),
        _ => (0, bytes),
    };
    let &[0x0f, second, modrm, ..] = opcode else { return None };
    let reg = modrm >> 3 & 7 | (rex & 4) << 1;
    let rm = modrm & 7 | (rex & 1) << 3;
    let gpr = *Gpr::ALL.get(usize::from(rm))?;
    let is_cr = modrm >= 0xc0 && matches!(reg, 0 | 2 | 3 | 4 | 8);
    let operation = match second {
        0x20 if is_cr => Operation::MovFromCr { cr: reg, gpr },
        0x22 if is_cr => Operation::MovToCr { cr: reg, gpr },
        // With 4 and 5 more bytes follow.
        0x01 if modrm >> 6 == 0 && reg & 7 == 7 && !matches!(rm & 7, 4 | 5) => {
            Operation::Invlpg { gpr }
        }
        _ => return None,
    };
    Some(Identity { length: if rex == 0 { 3 } else { 4 }, operation })
}

fn identify_any(bytes: &[u8], mode: Mode) -> Option<Identity> {
    let instruction = decode::<()>(bytes, mode, 0).ok()?;
    let operation = match instruction.mnemonic() {
        Mnemonic::Mov => control_register_move(&instruction).unwrap_or(Operation::Other),
        Mnemonic::Clts | Mnemonic::Lmsw | Mnemonic::Smsw => Operation::MachineStatusWord,
        Mnemonic::Invlpg | Mnemonic::Invpcid => Operation::Invalidation,
        Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 | Mnemonic::Into => {
            Operation::SoftwareInterrupt
        }
        Mnemonic::Vmrun
        | Mnemonic::Vmmcall
        | Mnemonic::Vmload
        | Mnemonic::Vmsave
        | Mnemonic::Stgi
        | Mnemonic::Clgi
        | Mnemonic::Skinit
        | Mnemonic::Invlpga
        | Mnemonic::Invlpgb
        | Mnemonic::Tlbsync => Operation::Virtualization,
        _ => Operation::Other,
    };
    Some(Identity { length: instruction.len() as u8, operation })
}

fn control_register_move(instruction: &Instruction) -> Option<Operation> {
    if [instruction.op0_kind(), instruction.op1_kind()] != [OpKind::Register; 2] {
        return None;
    }
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    let cr = |register: Register| register.number() as u8;
    let gpr = |register: Register| Gpr::ALL.get(register.number()).copied();
    if to.is_cr() {
        Some(Operation::MovToCr { cr: cr(to), gpr: gpr(from)? })
    } else if from.is_cr() {
        Some(Operation::MovFromCr { cr: cr(from), gpr: gpr(to)? })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// What the short way knows the decoder knows as well, for all bytes that it looks at.
    #[test]
    fn the_short_way_is_the_decoders() {
        let mut known = 0;
        for rex in [None].into_iter().chain((0x40..=0x4f).map(Some)) {
            for (second, modrm) in
                (0..=0xff).flat_map(|second| (0..=0xff).map(move |modrm| (second, modrm)))
            {
                let bytes: Vec<u8> =
                    rex.into_iter().chain([0x0f, second, modrm, 0, 0, 0, 0, 0, 0]).collect();
                let Some(mut identity) = plain(&bytes) else { continue };
                known += 1;
                if let Operation::Invlpg { gpr } = identity.operation {
                    let instruction = decode::<()>(&bytes, Mode::Bits64, 0).unwrap();
                    let base = instruction.memory_base();
                    assert_eq!(
                        (base.is_gpr64(), base.number()),
                        (true, gpr as usize),
                        "{bytes:x?}"
                    );
                    let alone = instruction.memory_index() == Register::None;
                    assert!(alone && instruction.memory_displacement64() == 0, "{bytes:x?}");
                    identity.operation = Operation::Invalidation;
                }
                assert_eq!(Some(identity), identify_any(&bytes, Mode::Bits64), "{bytes:x?}");
            }
        }
        // Five control registers, two directions, 16 registers; and INVLPG of 12.
        assert!(known >= 5 * 2 * 16 + 12, "{known}");
    }
}

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
    /// INVLPG or INVPCID.
    Invalidation,
    /// INT n, INT1, INT3 or INTO.
    SoftwareInterrupt,
    /// An instruction of a virtualization extension that user mode may raise #GP with: VMRUN,
    /// VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, INVLPGA, INVLPGB or TLBSYNC.
    Virtualization,
    /// Anything else.
    Other,
}

/// What the instruction is that starts with `bytes`; none if they are none, or not all of it.
pub fn identify(bytes: &[u8], mode: Mode) -> Option<Identity> {
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

//! The VMX instructions (SDM volume 3, "VMX Instruction Reference").

use core::arch::asm;
use core::fmt;

use umbra_paging::{Gva, Hpa};
use x86::vmx::vmcs::ro;

/// Why a VMX instruction failed (SDM, "Conventions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmFail {
    /// There is no current VMCS, or the operand is bad before there is one.
    Invalid,
    /// The VM-instruction error of the current VMCS.
    Valid(u32),
}

impl fmt::Display for VmFail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VmFail::Invalid => f.write_str("VMfailInvalid (bad operand or no current VMCS)"),
            VmFail::Valid(number) => {
                write!(f, "VM-instruction error {number} ({})", instruction_error(*number))
            }
        }
    }
}

/// The words of SDM, "VM-Instruction Error Numbers", as far as they can meet this hypervisor.
fn instruction_error(number: u32) -> &'static str {
    match number {
        2 => "VMCLEAR with an invalid physical address",
        3 => "VMCLEAR with the VMXON pointer",
        4 => "VMLAUNCH with a VMCS that is not clear",
        5 => "VMRESUME with a VMCS that is not launched",
        7 => "VM entry with invalid control fields",
        8 => "VM entry with invalid host-state fields",
        9 => "VMPTRLD with an invalid physical address",
        10 => "VMPTRLD with the VMXON pointer",
        11 => "VMPTRLD with another VMCS revision",
        12 => "VMREAD or VMWRITE of a field that does not exist",
        13 => "VMWRITE to a read-only field",
        15 => "VMXON in VMX root operation",
        26 => "VM entry while MOV SS blocks events",
        28 => "invalid operand of INVEPT or INVVPID",
        _ => "see SDM, VM-Instruction Error Numbers",
    }
}

/// The outcome that CF and ZF tell.
fn outcome(carry: bool, zero: bool) -> Result<(), VmFail> {
    match (carry, zero) {
        (true, _) => Err(VmFail::Invalid),
        (_, true) => Err(VmFail::Valid(last_error())),
        _ => Ok(()),
    }
}

/// Runs one instruction with a memory operand that holds a physical address.
macro_rules! with_address {
    ($instruction:literal, $address:expr) => {{
        let address: u64 = $address.raw();
        let (carry, zero): (u8, u8);
        asm!(
            concat!($instruction, " [{address}]"),
            "setc {carry}",
            "setz {zero}",
            address = in(reg) &raw const address,
            carry = lateout(reg_byte) carry,
            zero = lateout(reg_byte) zero,
            options(nostack),
        );
        outcome(carry != 0, zero != 0)
    }};
}

/// VMXON.
///
/// # Safety
/// CR4.VMXE is set and `region` is a VMXON region that nothing else uses from now on.
pub unsafe fn vmxon(region: Hpa) -> Result<(), VmFail> {
    // SAFETY: the caller's.
    unsafe { with_address!("vmxon", region) }
}

/// VMCLEAR.
///
/// # Safety
/// In VMX root operation; `region` is a VMCS region that nothing else uses from now on.
pub unsafe fn vmclear(region: Hpa) -> Result<(), VmFail> {
    // SAFETY: the caller's.
    unsafe { with_address!("vmclear", region) }
}

/// VMPTRLD.
///
/// # Safety
/// In VMX root operation; `region` is a VMCS region that nothing else uses from now on.
pub unsafe fn vmptrld(region: Hpa) -> Result<(), VmFail> {
    // SAFETY: the caller's.
    unsafe { with_address!("vmptrld", region) }
}

/// What INVVPID forgets (SDM, "INVVPID"): of one VPID, of all its PCIDs, global or not.
#[derive(Clone, Copy)]
pub enum Invvpid {
    /// Type 0: what would be used to translate one address.
    Address(u16, Gva),
    /// Type 1: everything.
    SingleContext(u16),
}

/// INVVPID.
///
/// # Safety
/// In VMX root operation on a CPU that has it.
pub unsafe fn invvpid(what: Invvpid) -> Result<(), VmFail> {
    let (kind, descriptor) = match what {
        Invvpid::Address(vpid, gva) => (0u64, [u64::from(vpid), gva.raw()]),
        Invvpid::SingleContext(vpid) => (1, [u64::from(vpid), 0]),
    };
    let (carry, zero): (u8, u8);
    // SAFETY: the caller's; it forgets translations, which is always allowed.
    unsafe {
        asm!(
            "invvpid {kind}, [{descriptor}]",
            "setc {carry}",
            "setz {zero}",
            kind = in(reg) kind,
            descriptor = in(reg) &raw const descriptor,
            carry = lateout(reg_byte) carry,
            zero = lateout(reg_byte) zero,
            options(nostack),
        );
    }
    outcome(carry != 0, zero != 0)
}

/// The VM-instruction error of the last instruction that failed with VMfailValid.
fn last_error() -> u32 {
    // SAFETY: such a failure tells that there is a current VMCS.
    unsafe { vmread(ro::VM_INSTRUCTION_ERROR) as u32 }
}

/// VMREAD of a field of the current VMCS.
///
/// # Panics
/// The field does not exist on this CPU, or there is no current VMCS: #UD, with the field in RDI
/// (`hw/interrupts.rs`).
///
/// # Safety
/// In VMX root operation.
#[inline]
pub unsafe fn vmread(field: u32) -> u64 {
    let value;
    // SAFETY: the caller's; reading a field changes no memory.
    unsafe {
        asm!(
            "vmread {value}, rdi",
            "ja 2f",
            "ud2",
            "2:",
            value = lateout(reg) value,
            in("rdi") u64::from(field),
            options(nomem, nostack),
        );
    }
    value
}

/// VMWRITE to a field of the current VMCS.
///
/// # Panics
/// As [`vmread`].
///
/// # Safety
/// In VMX root operation; the value must not make a VM entry or VM exit break the hypervisor.
#[inline]
pub unsafe fn vmwrite(field: u32, value: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "vmwrite rdi, {value}",
            "ja 2f",
            "ud2",
            "2:",
            in("rdi") u64::from(field),
            value = in(reg) value,
            options(nostack),
        );
    }
}

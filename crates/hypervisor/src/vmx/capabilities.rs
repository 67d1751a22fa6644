//! What this CPU's VMX can do (SDM, "VMX Capability Reporting Facility").

use x86::msr;
use x86::vmx::vmcs::control::{
    EntryControls, ExitControls, PinbasedControls, PrimaryControls, SecondaryControls,
};

use crate::hw::cpu;

/// CPUID.1:ECX.VMX.
const CPUID_1_ECX_VMX: u32 = 1 << 5;
const FEATURE_CONTROL_LOCK: u64 = 1 << 0;
const FEATURE_CONTROL_VMX_OUTSIDE_SMX: u64 = 1 << 2;
const BASIC_TRUE_CONTROLS: u64 = 1 << 55;
/// IA32_VMX_EPT_VPID_CAP: INVVPID, and its single-context type.
const INVVPID_SINGLE_CONTEXT: u64 = 1 << 32 | 1 << 41;
/// IA32_VMX_EPT_VPID_CAP: INVVPID's individual-address type.
const INVVPID_ADDRESS: u64 = 1 << 40;

/// CR3-target values that are made use of: CPUs have no more (SDM, "CR3-Target Controls").
pub const MAX_CR3_TARGETS: usize = 4;

/// The capabilities and the VMCS controls chosen from them.
pub struct Capabilities {
    /// The VMCS revision identifier.
    pub revision: u32,
    /// Whether INVVPID takes a single address.
    pub invvpid_by_address: bool,
    /// CR3-target values; zero if exits of CR3 reads cannot be switched off.
    pub cr3_targets: usize,
    /// Reads of CR3 need not exit.
    pub cr3_reads: bool,
    /// Pin-based controls.
    pub pin: u32,
    /// Primary processor-based controls.
    pub primary: u32,
    /// Secondary processor-based controls; zero if there are none.
    pub secondary: SecondaryControls,
    /// VM-exit controls.
    pub exit: u32,
    /// VM-entry controls.
    pub entry: u32,
}

impl Capabilities {
    /// Looks at the CPU and chooses.
    ///
    /// # Errors
    /// A sentence: VMX is missing, off, or lacks something that there is no way around.
    pub fn read() -> Result<Capabilities, &'static str> {
        if cpu::cpuid(1, 0).ecx & CPUID_1_ECX_VMX == 0 {
            return Err(
                "this CPU has no VMX; choose a machine model with Intel VT-x, such as penryn",
            );
        }
        let lock = cpu::read_msr(msr::IA32_FEATURE_CONTROL);
        let on = FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX;
        if lock & FEATURE_CONTROL_LOCK != 0 && lock & on != on {
            return Err("the firmware has switched VMX off; turn VT-x on in its setup");
        }
        if lock & FEATURE_CONTROL_LOCK == 0 {
            // SAFETY: enables VMXON and nothing else.
            unsafe { cpu::write_msr(msr::IA32_FEATURE_CONTROL, lock | on) };
        }
        let basic = cpu::read_msr(msr::IA32_VMX_BASIC);
        // TRUE controls let the default1 bits be cleared; none of those that we want clear is
        // vital.
        let true_or =
            |true_msr, plain| if basic & BASIC_TRUE_CONTROLS != 0 { true_msr } else { plain };
        let pin = (PinbasedControls::EXTERNAL_INTERRUPT_EXITING
            | PinbasedControls::NMI_EXITING
            | PinbasedControls::VIRTUAL_NMIS)
            .bits();
        let primary = PrimaryControls::USE_TSC_OFFSETTING
            | PrimaryControls::HLT_EXITING
            | PrimaryControls::INVLPG_EXITING
            | PrimaryControls::MWAIT_EXITING
            | PrimaryControls::RDPMC_EXITING
            | PrimaryControls::CR3_LOAD_EXITING
            | PrimaryControls::CR3_STORE_EXITING
            | PrimaryControls::CR8_LOAD_EXITING
            | PrimaryControls::CR8_STORE_EXITING
            | PrimaryControls::UNCOND_IO_EXITING
            | PrimaryControls::USE_MSR_BITMAPS
            | PrimaryControls::MONITOR_EXITING;
        let pin =
            require(true_or(msr::IA32_VMX_TRUE_PINBASED_CTLS, msr::IA32_VMX_PINBASED_CTLS), pin)
                .ok_or("this CPU's VMX has no virtual NMIs; choose a newer machine model")?;
        let primary_msr = true_or(msr::IA32_VMX_TRUE_PROCBASED_CTLS, msr::IA32_VMX_PROCBASED_CTLS);
        let mut primary = require(primary_msr, primary.bits()).ok_or(
            "this CPU's VMX lacks an intercept that shadow paging needs; choose a newer machine model",
        )?;
        let reads_exit =
            cpu::read_msr(primary_msr) as u32 & PrimaryControls::CR3_STORE_EXITING.bits() != 0;
        let cr3_targets = (cpu::read_msr(msr::IA32_VMX_MISC) >> 16 & 0x1ff) as usize;
        let mut secondary = SecondaryControls::empty();
        let mut invvpid_by_address = false;
        if let Some(with) =
            require(primary_msr, primary | PrimaryControls::SECONDARY_CONTROLS.bits())
        {
            let allowed = (cpu::read_msr(msr::IA32_VMX_PROCBASED_CTLS2) >> 32) as u32;
            let mut wanted = SecondaryControls::ENABLE_RDTSCP | SecondaryControls::ENABLE_INVPCID;
            if allowed & SecondaryControls::ENABLE_VPID.bits() != 0 {
                let invvpid = cpu::read_msr(msr::IA32_VMX_EPT_VPID_CAP);
                if invvpid & INVVPID_SINGLE_CONTEXT == INVVPID_SINGLE_CONTEXT {
                    wanted |= SecondaryControls::ENABLE_VPID;
                }
                invvpid_by_address = invvpid & INVVPID_ADDRESS != 0;
            }
            secondary = SecondaryControls::from_bits_truncate(allowed) & wanted;
            if !secondary.is_empty() {
                primary = with;
            }
        }
        let exit = require(
            true_or(msr::IA32_VMX_TRUE_EXIT_CTLS, msr::IA32_VMX_EXIT_CTLS),
            (ExitControls::HOST_ADDRESS_SPACE_SIZE | ExitControls::SAVE_DEBUG_CONTROLS).bits(),
        )
        .ok_or("this CPU's VMX knows no 64-bit hosts; choose a 64-bit machine model")?;
        let entry_msr = true_or(msr::IA32_VMX_TRUE_ENTRY_CTLS, msr::IA32_VMX_ENTRY_CTLS);
        let entry = EntryControls::LOAD_DEBUG_CONTROLS.bits();
        require(entry_msr, entry | EntryControls::IA32E_MODE_GUEST.bits())
            .and_then(|_| require(entry_msr, entry))
            .map(|entry| Capabilities {
                revision: basic as u32 & 0x7fff_ffff,
                invvpid_by_address,
                cr3_targets: if reads_exit { 0 } else { cr3_targets.min(MAX_CR3_TARGETS) },
                cr3_reads: !reads_exit,
                pin,
                primary,
                secondary,
                exit,
                entry,
            })
            .ok_or("this CPU's VMX knows no 64-bit guests; choose a 64-bit machine model")
    }
}

/// The value of a control field with at least the bits `wanted`; `None` if one of them must be
/// clear (SDM, "VM-Execution Controls": the low half of the MSR must be set, the high half may be).
fn require(capability_msr: u32, wanted: u32) -> Option<u32> {
    let capability = cpu::read_msr(capability_msr);
    let (must, may) = (capability as u32, (capability >> 32) as u32);
    (wanted & !may == 0).then_some(wanted | must)
}

/// The bits of a control register that VMX operation fixes: (must be set, may be set).
pub fn fixed_bits(fixed0: u32, fixed1: u32) -> (u64, u64) {
    (cpu::read_msr(fixed0), cpu::read_msr(fixed1))
}

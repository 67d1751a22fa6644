//! What the CPU can do, from CPUID and MSRs. Sections are those of the Intel SDM, volume 3, unless
//! APM is named.

use raw_cpuid::{CpuId, CpuIdReader, CpuIdReaderNative, Hypervisor};
use serde::Serialize;

use super::msr::Msrs;

/// One past the highest bit of an address field (SDM, "Paging").
const ADDRESS_END: u8 = 52;

/// Numbers of MSRs, and bits in them (SDM, "Architectural MSRs" and appendix "VMX Capability
/// Reporting Facility").
mod bits {
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const LOCKED: u64 = 1 << 0;
    pub const VMX_OUTSIDE_SMX: u64 = 1 << 2;
    pub const VMX_BASIC: u32 = 0x480;
    pub const TRUE_CONTROLS: u64 = 1 << 55;
    pub const PRIMARY: u32 = 0x482;
    pub const VMX_MISC: u32 = 0x485;
    pub const SECONDARY: u32 = 0x48b;
    /// In the half of a control MSR that says what may be 1.
    pub const MAY_BE_ONE: u32 = 32;
    pub const ACTIVATE_SECONDARY: u32 = 31;
    pub const EPT: u32 = 1;
    pub const VPID: u32 = 5;
    pub const UNRESTRICTED_GUEST: u32 = 7;
    /// APM volume 2, "VM_CR MSR".
    pub const VM_CR: u32 = 0xc001_0114;
    pub const SVM_DISABLED: u64 = 1 << 4;
}

/// A CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// As CPUID names it: `GenuineIntel`.
    pub vendor: String,
    /// The brand string.
    pub model: String,
    /// Display family, model and stepping.
    pub signature: [u8; 3],
    /// MAXPHYADDR: bits of a physical address.
    pub maxphyaddr: u8,
    /// The first and the last address bit that is reserved in every page-table entry, if there are
    /// any.
    pub reserved_address_bits: Option<[u8; 2]>,
    /// The hypervisor that this program runs under, as CPUID tells.
    pub hypervisor: Option<String>,
    /// Intel's virtualization.
    pub vmx: Option<Vmx>,
    /// AMD's virtualization.
    pub svm: Option<Svm>,
}

/// VMX.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vmx {
    /// What the capability MSRs say.
    pub msrs: Option<VmxMsrs>,
    /// Why they are not known, and what to do about it.
    pub unreadable: Option<String>,
    /// Whether the kernel lists EPT: known without MSRs.
    pub kernel_lists_ept: Option<bool>,
}

/// What the VMX capability MSRs say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VmxMsrs {
    /// Whether the firmware lets VMX be used.
    pub enabled: bool,
    /// Whether the TRUE controls exist, which let MOV CR3 go without an exit.
    pub true_controls: bool,
    /// CR3-target values.
    pub cr3_targets: u16,
    /// Extended page tables.
    pub ept: bool,
    /// TLB entries tagged by a virtual-processor identifier.
    pub vpid: bool,
    /// Guests with paging off.
    pub unrestricted_guest: bool,
}

/// SVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Svm {
    /// Nested page tables.
    pub nested_paging: bool,
    /// The exit tells the next instruction's address.
    pub next_rip: bool,
    /// Address-space identifiers.
    pub asids: u32,
    /// Whether the firmware has disabled it, if that could be read.
    pub disabled: Option<bool>,
}

impl Cpu {
    /// The CPU that this program runs on.
    pub fn of_this_host() -> Cpu {
        let msrs = Msrs::open();
        let read =
            |register| msrs.as_ref().map_err(Clone::clone).and_then(|msrs| msrs.read(register));
        let kernel = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Cpu::new(CpuIdReaderNative, read, &kernel)
    }

    /// The same without the MSRs: no device is opened. `kernel` is what Linux has in
    /// `/proc/cpuinfo`.
    pub fn by_cpuid_only(kernel: &str) -> Cpu {
        Cpu::new(CpuIdReaderNative, |_| Err(String::from("no MSR was read")), kernel)
    }

    /// Why Umbra's hypervisor does not start on this CPU, in a clause, if it has no VMX.
    pub fn no_vmx(&self) -> Option<&'static str> {
        let why = match self.hypervisor {
            Some(_) => {
                "the hypervisor below does not offer it, or the CPU has none, so Umbra's hypervisor runs here in an \
                 emulator only"
            }
            None => "Umbra's hypervisor runs here in an emulator only",
        };
        self.vmx.is_none().then_some(why)
    }

    /// The CPU that answers so. `kernel` is what Linux has in `/proc/cpuinfo`.
    pub(super) fn new(
        reader: impl CpuIdReader,
        msr: impl Fn(u32) -> Result<u64, String>,
        kernel: &str,
    ) -> Cpu {
        let cpuid = CpuId::with_cpuid_reader(reader);
        let features = cpuid.get_feature_info();
        // SDM, "Enumeration of Paging Features by CPUID": 36 where the leaf is missing and PAE is
        // there.
        let maxphyaddr =
            cpuid.get_processor_capacity_feature_info().map_or(36, |it| it.physical_address_bits());
        let has =
            |feature: fn(&raw_cpuid::FeatureInfo) -> bool| features.as_ref().is_some_and(feature);
        Cpu {
            vendor: cpuid
                .get_vendor_info()
                .map_or_else(String::new, |vendor| String::from(vendor.as_str())),
            model: cpuid
                .get_processor_brand_string()
                .map_or_else(String::new, |brand| String::from(brand.as_str().trim())),
            signature: features
                .as_ref()
                .map_or([0; 3], |it| [it.family_id(), it.model_id(), it.stepping_id()]),
            maxphyaddr,
            reserved_address_bits: (maxphyaddr < ADDRESS_END)
                .then_some([maxphyaddr, ADDRESS_END - 1]),
            hypervisor: has(|it| it.has_hypervisor()).then(|| {
                let named = cpuid.get_hypervisor_info().map(|info| info.identify());
                named.map_or_else(|| String::from("one without a name"), name_of)
            }),
            vmx: has(|it| it.has_vmx()).then(|| {
                let (msrs, unreadable) = match vmx(&msr) {
                    Ok(msrs) => (Some(msrs), None),
                    Err(why) => (None, Some(why)),
                };
                Vmx { msrs, unreadable, kernel_lists_ept: kernel_lists_ept(kernel) }
            }),
            svm: cpuid.get_svm_info().map(|info| Svm {
                nested_paging: info.has_nested_paging(),
                next_rip: info.has_nrip(),
                asids: info.supported_asids(),
                disabled: msr(bits::VM_CR).ok().map(|value| value & bits::SVM_DISABLED != 0),
            }),
        }
    }
}

fn name_of(hypervisor: Hypervisor) -> String {
    match hypervisor {
        Hypervisor::Unknown(ebx, ecx, edx) => {
            let bytes = [ebx, ecx, edx].map(u32::to_le_bytes).concat();
            String::from_utf8_lossy(&bytes).trim_end_matches('\0').escape_default().to_string()
        }
        known => format!("{known:?}"),
    }
}

fn vmx(msr: impl Fn(u32) -> Result<u64, String>) -> Result<VmxMsrs, String> {
    let may = |controls: u64, bit: u32| controls >> (bits::MAY_BE_ONE + bit) & 1 != 0;
    let feature_control = msr(bits::FEATURE_CONTROL)?;
    let secondary = match may(msr(bits::PRIMARY)?, bits::ACTIVATE_SECONDARY) {
        true => msr(bits::SECONDARY)?,
        false => 0,
    };
    Ok(VmxMsrs {
        // Left unlocked, it is for the operating system to say.
        enabled: feature_control & bits::LOCKED == 0
            || feature_control & bits::VMX_OUTSIDE_SMX != 0,
        true_controls: msr(bits::VMX_BASIC)? & bits::TRUE_CONTROLS != 0,
        // Bits 24:16.
        cr3_targets: (msr(bits::VMX_MISC)? >> 16 & 0x1ff) as u16,
        ept: may(secondary, bits::EPT),
        vpid: may(secondary, bits::VPID),
        unrestricted_guest: may(secondary, bits::UNRESTRICTED_GUEST),
    })
}

/// Linux lists VMX features that it may use on a line of their own.
fn kernel_lists_ept(cpuinfo: &str) -> Option<bool> {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("vmx flags")?.split_once(':'))?.1;
    Some(line.split_whitespace().any(|flag| flag == "ept"))
}

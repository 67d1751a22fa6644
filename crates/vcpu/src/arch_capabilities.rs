//! IA32_ARCH_CAPABILITIES as the guest reads it: what the real CPU is immune to.
//!
//! A guest that sees a hypervisor believes in no immunity that it is not told of, and pays for a
//! cure: Linux, for one, has all its functions return through a thunk for fear of ITS.

use core::arch::x86_64::CpuidResult;

use raw_cpuid::{CpuId, CpuIdReader, CpuIdResult};

/// The register's number.
pub const IA32_ARCH_CAPABILITIES: u32 = 0x10a;

/// Bits of the register (SDM, "IA32_ARCH_CAPABILITIES MSR", and Intel's pages on the
/// vulnerabilities).
mod bit {
    pub const RDCL_NO: u64 = 1 << 0;
    pub const RSBA: u64 = 1 << 2;
    pub const SSB_NO: u64 = 1 << 4;
    pub const MDS_NO: u64 = 1 << 5;
    pub const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
    pub const TAA_NO: u64 = 1 << 8;
    pub const SBDR_SSDP_NO: u64 = 1 << 13;
    pub const FBSDP_NO: u64 = 1 << 14;
    pub const PSDP_NO: u64 = 1 << 15;
    pub const RRSBA: u64 = 1 << 19;
    pub const BHI_NO: u64 = 1 << 20;
    pub const PBRSB_NO: u64 = 1 << 24;
    pub const GDS_NO: u64 = 1 << 26;
    pub const RFDS_NO: u64 = 1 << 27;
    pub const ITS_NO: u64 = 1 << 62;
}

use bit::ITS_NO;

/// What holds for a guest as for the machine: immunities, and two that say that something is worse
/// (RSBA, RRSBA). Not what speaks of registers that are hidden.
const SHOWN: u64 = bit::RDCL_NO
    | bit::RSBA
    | bit::SSB_NO
    | bit::MDS_NO
    | bit::IF_PSCHANGE_MC_NO
    | bit::TAA_NO
    | bit::SBDR_SSDP_NO
    | bit::FBSDP_NO
    | bit::PSDP_NO
    | bit::RRSBA
    | bit::BHI_NO
    | bit::PBRSB_NO
    | bit::GDS_NO
    | bit::RFDS_NO
    | ITS_NO;

/// What the guest reads on a machine whose own register is `real` (0 if it has none), and whose
/// CPUID is `query`.
pub fn shown(real: u64, query: impl Fn(u32, u32) -> CpuidResult + Clone) -> u64 {
    let cpu = CpuId::with_cpuid_fn(move |leaf, subleaf| {
        let CpuidResult { eax, ebx, ecx, edx } = query(leaf, subleaf);
        CpuIdResult { eax, ebx, ecx, edx }
    });
    real & SHOWN | if is_immune_to_its(&cpu) { ITS_NO } else { 0 }
}

/// Whether it is known that this CPU does not mistake the targets of indirect branches in the lower
/// half of a cache line (INTEL-SA-01153).
fn is_immune_to_its(cpu: &CpuId<impl CpuIdReader>) -> bool {
    let (Some(vendor), Some(version)) = (cpu.get_vendor_info(), cpu.get_feature_info()) else {
        return false;
    };
    // A hypervisor below may say one CPU and run on another. Other vendors have neither the
    // vulnerability nor the register, and nobody asks their CPUs.
    if version.has_hypervisor() || vendor.as_str() != "GenuineIntel" {
        return false;
    }
    let stepping = version.stepping_id();
    version.family_id() != 6
        || match version.model_id() {
            // Skylake-X with Cascade Lake and Cooper Lake; Kaby Lake with its successors.
            0x55 => stepping <= 5,
            0x8e => stepping <= 0xb,
            0x9e => stepping <= 0xc,
            // Ice Lake, Tiger Lake, Comet Lake, Rocket Lake.
            0x6a | 0x6c | 0x7d | 0x7e | 0x8c | 0x8d | 0xa5 | 0xa6 | 0xa7 => false,
            _ => true,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEL: CpuidResult =
        CpuidResult { eax: 0xd, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69 };
    const PENRYN: u32 = 0x1_067a;
    /// CPUID leaf 1, ECX.
    const HYPERVISOR: u32 = 1 << 31;

    fn cpu(vendor: CpuidResult, eax: u32, ecx: u32) -> impl Fn(u32, u32) -> CpuidResult + Clone {
        move |leaf, _| if leaf == 0 { vendor } else { CpuidResult { eax, ebx: 0, ecx, edx: 0 } }
    }

    #[test]
    fn old_cpus_are_immune_to_its_and_other_vendors_say_nothing() {
        for version in [PENRYN, 0x5_0654, 0x8_06eb, 0x9_06ec] {
            assert_eq!(shown(0, cpu(INTEL, version, 0)), ITS_NO, "{version:#x}");
        }
        let amd = CpuidResult { ebx: 0x6874_7541, ecx: 0x444d_4163, edx: 0x6974_6e65, ..INTEL };
        for version in [0x5_0657, 0x8_06ec, 0x9_06ed, 0x6_06a6, 0x7_06e5, 0xa_0671] {
            assert_eq!(shown(0, cpu(INTEL, version, 0)), 0, "{version:#x}");
            assert_eq!(shown(0, cpu(amd, version, 0)), 0, "{version:#x}");
        }
    }

    #[test]
    fn nothing_is_concluded_from_another_hypervisor_s_cpu() {
        assert_eq!(shown(0, cpu(INTEL, PENRYN, 0)), ITS_NO);
        assert_eq!(shown(0, cpu(INTEL, PENRYN, HYPERVISOR)), 0);
        assert_eq!(shown(ITS_NO, cpu(INTEL, 0xa_0671, HYPERVISOR)), ITS_NO);
    }

    #[test]
    fn what_speaks_of_hidden_registers_is_hidden() {
        // IBRS_ALL, SKIP_L1DFL_VMENTRY, TSX_CTRL, FB_CLEAR_CTRL, XAPIC_DISABLE, RFDS_CLEAR.
        let hidden = 1 << 1 | 1 << 3 | 1 << 7 | 1 << 18 | 1 << 21 | 1 << 28;
        assert_eq!(shown(u64::MAX, cpu(INTEL, PENRYN, 0)) & hidden, 0);
    }
}

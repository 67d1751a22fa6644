//! What this CPU's SVM can do (APM, "Determining Support for SVM" and "Enabling SVM").

use core::arch::x86_64::CpuidResult;

/// CPUID.8000_0001H:ECX.SVM.
const CPUID_SVM: u32 = 1 << 2;
/// The leaf of SVM's own features.
const LEAF: u32 = 0x8000_000a;

/// CPUID.8000_000AH:EDX.
mod feature {
    pub const NRIP_SAVE: u32 = 1 << 3;
    pub const VMCB_CLEAN: u32 = 1 << 5;
    pub const FLUSH_BY_ASID: u32 = 1 << 6;
    pub const DECODE_ASSISTS: u32 = 1 << 7;
}

/// VM_CR, which says whether the firmware lets SVM be switched on.
pub const VM_CR: u32 = 0xc001_0114;
/// VM_CR.LOCK: SVMDIS stays as it is.
const VM_CR_LOCK: u64 = 1 << 3;
/// VM_CR.SVMDIS: EFER.SVME cannot be set.
const VM_CR_SVMDIS: u64 = 1 << 4;

/// The optional parts of SVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Address-space identifiers, the host's 0 among them.
    pub asids: u32,
    /// An exit tells where the next instruction starts.
    pub next_rip: bool,
    /// Unchanged parts of the VMCB need not be read again.
    pub clean_bits: bool,
    /// Translations of one ASID can be flushed alone.
    pub flush_by_asid: bool,
    /// An exit tells the operands of MOV CR and INVLPG.
    pub decode_assists: bool,
}

/// Whether the CPU has SVM at all.
fn is_present(cpuid: impl Fn(u32) -> CpuidResult) -> bool {
    cpuid(0x8000_0000).eax > 0x8000_0000 && cpuid(0x8000_0001).ecx & CPUID_SVM != 0
}

/// Whether the CPU has SVM, or is of a vendor that has no other extension.
pub fn is_candidate(cpuid: impl Fn(u32) -> CpuidResult) -> bool {
    /// The first letters of AuthenticAMD and HygonGenuine, in EBX.
    const VENDORS: [[u8; 4]; 2] = [*b"Auth", *b"Hygo"];
    VENDORS.contains(&cpuid(0).ebx.to_le_bytes()) || is_present(cpuid)
}

impl Capabilities {
    /// Looks at the CPU. `vm_cr` is VM_CR, or nothing if reading it raises #GP: a CPU without the
    /// register has no lock.
    ///
    /// # Errors
    /// A sentence: SVM is missing, off, or lacks something that there is no way around.
    pub fn find(
        cpuid: impl Fn(u32) -> CpuidResult + Copy,
        vm_cr: impl FnOnce() -> Option<u64>,
    ) -> Result<Capabilities, &'static str> {
        if !is_present(cpuid) {
            return Err("this CPU has no SVM; choose a machine model with AMD-V, such as ryzen");
        }
        let vm_cr = vm_cr().unwrap_or(0);
        if vm_cr & VM_CR_SVMDIS != 0 {
            return Err(match vm_cr & VM_CR_LOCK {
                0 => "SVM is off (VM_CR.SVMDIS); turn SVM (AMD-V) on in the firmware's setup",
                _ => {
                    "the firmware has switched SVM off and locked it; turn SVM (AMD-V) on in its setup"
                }
            });
        }
        if cpuid(0x8000_0000).eax < LEAF {
            return Err("this CPU's SVM does not say what it can do; choose a newer machine model");
        }
        let CpuidResult { ebx: asids, edx, .. } = cpuid(LEAF);
        if asids < 2 {
            return Err(
                "this CPU's SVM has no address-space identifier for a guest; choose another machine model",
            );
        }
        let has = |bit| edx & bit != 0;
        Ok(Capabilities {
            asids,
            next_rip: has(feature::NRIP_SAVE),
            clean_bits: has(feature::VMCB_CLEAN),
            flush_by_asid: has(feature::FLUSH_BY_ASID),
            decode_assists: has(feature::DECODE_ASSISTS),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };

    /// A CPU by its highest extended leaf, CPUID.8000_0001H:ECX, and ASIDs and features of SVM.
    fn cpu(highest: u32, ecx: u32, asids: u32, edx: u32) -> impl Fn(u32) -> CpuidResult + Copy {
        move |leaf| match leaf {
            0x8000_0000 => CpuidResult { eax: highest, ..NOTHING },
            0x8000_0001 => CpuidResult { ecx, ..NOTHING },
            LEAF => CpuidResult { ebx: asids, edx, ..NOTHING },
            _ => NOTHING,
        }
    }

    /// What Bochs's `ryzen` and QEMU 7.2 with `-cpu EPYC,+svm` have.
    #[test]
    fn emulated_machines() {
        const RYZEN: u32 = feature::NRIP_SAVE | feature::FLUSH_BY_ASID;
        let ryzen =
            Capabilities::find(cpu(0x8000_001f, CPUID_SVM, 0x8000, RYZEN), || None).unwrap();
        assert!(
            ryzen.next_rip && ryzen.flush_by_asid && !ryzen.decode_assists && ryzen.asids == 0x8000
        );
        let qemu = Capabilities::find(cpu(0x8000_001f, CPUID_SVM, 16, 1), || Some(0)).unwrap();
        let plain = Capabilities {
            asids: 16,
            next_rip: false,
            clean_bits: false,
            flush_by_asid: false,
            decode_assists: false,
        };
        assert_eq!(qemu, plain);
    }

    #[test]
    fn the_vendor_counts_where_svm_is_missing() {
        let of = |name: &[u8; 4], ecx| {
            let ebx = u32::from_le_bytes(*name);
            is_candidate(move |leaf| match leaf {
                0 => CpuidResult { ebx, ..NOTHING },
                leaf => cpu(0x8000_0008, ecx, 0, 0)(leaf),
            })
        };
        assert!(
            of(b"Auth", 0) && of(b"Hygo", 0) && of(b"Auth", CPUID_SVM) && of(b"Othe", CPUID_SVM)
        );
        assert!(!of(b"Genu", 0));
    }

    #[test]
    fn what_is_missing_has_its_sentence() {
        let whole = cpu(0x8000_001f, CPUID_SVM, 16, 0);
        let cases = [
            (Capabilities::find(cpu(0x8000_0008, 0, 16, 0), || None), "no SVM"),
            (Capabilities::find(cpu(0, CPUID_SVM, 16, 0), || None), "no SVM"),
            (Capabilities::find(whole, || Some(VM_CR_SVMDIS | VM_CR_LOCK)), "locked it"),
            (Capabilities::find(whole, || Some(VM_CR_SVMDIS)), "SVM is off"),
            (
                Capabilities::find(cpu(0x8000_0008, CPUID_SVM, 16, 0), || None),
                "newer machine model",
            ),
            (
                Capabilities::find(cpu(0x8000_001f, CPUID_SVM, 1, 0), || None),
                "no address-space identifier",
            ),
            (
                Capabilities::find(cpu(0x8000_001f, CPUID_SVM, 0, 0), || None),
                "no address-space identifier",
            ),
        ];
        for (found, expected) in cases {
            let sentence = found.unwrap_err();
            assert!(
                sentence.contains(expected) && sentence.contains("; "),
                "{expected}: {sentence}"
            );
        }
    }

    /// A lock alone keeps SVM on, and a machine without VM_CR has no lock.
    #[test]
    fn a_lock_alone_forbids_nothing() {
        let whole = cpu(0x8000_001f, CPUID_SVM, 16, 0);
        for vm_cr in [None, Some(0), Some(VM_CR_LOCK)] {
            assert!(Capabilities::find(whole, || vm_cr).is_ok(), "{vm_cr:?}");
        }
    }
}

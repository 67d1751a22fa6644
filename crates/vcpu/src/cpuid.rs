//! The CPU that the guest sees: the real one without what is not virtualized.

use core::arch::x86_64::CpuidResult;

use umbra_paging::{Features, cr4, efer};

use crate::arch_capabilities;
use crate::control::{Known, cr4_more, efer_more};

/// Answers CPUID for the real CPU.
type Query = fn(u32, u32) -> CpuidResult;

/// Whose CPU it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel.
    Intel,
    /// AMD, and Hygon.
    Amd,
    /// Another.
    Other,
}

impl Vendor {
    fn of(query: Query) -> Vendor {
        let CpuidResult { ebx, ecx, edx, .. } = query(0, 0);
        let mut name = [0; 12];
        for (part, word) in name.chunks_exact_mut(4).zip([ebx, edx, ecx]) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        match &name {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        }
    }
}

/// What backend and platform have for the guest, whatever the CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// RDTSCP and IA32_TSC_AUX.
    pub rdtscp: bool,
    /// INVPCID.
    pub invpcid: bool,
    /// The platform's local APIC has a TSC-deadline timer.
    pub tsc_deadline: bool,
}

/// State of the guest that CPUID shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dynamic {
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
    /// The local APIC is on.
    pub apic: bool,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
}

impl Dynamic {
    /// All off.
    pub const AT_RESET: Dynamic =
        Dynamic { osxsave: false, xcr0: xcr0::X87, apic: false, misc_enable: 0 };

    fn has(self, misc_enable: u64) -> bool {
        self.misc_enable & misc_enable != 0
    }
}

/// Bits of IA32_MISC_ENABLE that show in CPUID (SDM, "IA32_MISC_ENABLE").
mod misc_enable {
    /// The highest basic leaf is 2.
    pub const LIMIT_CPUID: u64 = 1 << 22;
    /// There is no NX.
    pub const XD_DISABLE: u64 = 1 << 34;
}

/// The highest leaves that are shown.
const MAX_BASIC: u32 = 0xd;
const MAX_EXTENDED: u32 = 0x8000_0008;
/// Leaves of hypervisors (SDM, "CPUID": never used by Intel CPUs).
const HYPERVISOR: u32 = 0x4000_0000;
/// The last leaf that hypervisors may define.
const HYPERVISOR_END: u32 = 0x4fff_ffff;
const SIGNATURE: &[u8; 12] = b"UmbraUmbra\0\0";

/// Feature bits by leaf and register; the names are those of SDM, "CPUID - CPU Identification".
mod bit {
    /// Leaf 1, ECX.
    pub mod f1c {
        pub const SSE3: u32 = 1 << 0;
        pub const PCLMULQDQ: u32 = 1 << 1;
        pub const SSSE3: u32 = 1 << 9;
        pub const FMA: u32 = 1 << 12;
        pub const CMPXCHG16B: u32 = 1 << 13;
        pub const PCID: u32 = 1 << 17;
        pub const SSE4_1: u32 = 1 << 19;
        pub const SSE4_2: u32 = 1 << 20;
        pub const MOVBE: u32 = 1 << 22;
        pub const POPCNT: u32 = 1 << 23;
        pub const TSC_DEADLINE: u32 = 1 << 24;
        pub const AES: u32 = 1 << 25;
        pub const XSAVE: u32 = 1 << 26;
        pub const OSXSAVE: u32 = 1 << 27;
        pub const AVX: u32 = 1 << 28;
        pub const F16C: u32 = 1 << 29;
        pub const RDRAND: u32 = 1 << 30;
        pub const HYPERVISOR: u32 = 1 << 31;
        /// Those that the guest finds, where the CPU has them.
        pub const SHOWN: u32 = SSE3
            | PCLMULQDQ
            | SSSE3
            | FMA
            | CMPXCHG16B
            | PCID
            | SSE4_1
            | SSE4_2
            | MOVBE
            | POPCNT
            | AES
            | XSAVE
            | AVX
            | F16C
            | RDRAND;
    }
    /// Leaf 1, EDX.
    pub mod f1d {
        pub const FPU: u32 = 1 << 0;
        pub const VME: u32 = 1 << 1;
        pub const DE: u32 = 1 << 2;
        pub const PSE: u32 = 1 << 3;
        pub const TSC: u32 = 1 << 4;
        pub const MSR: u32 = 1 << 5;
        pub const PAE: u32 = 1 << 6;
        pub const MCE: u32 = 1 << 7;
        pub const CX8: u32 = 1 << 8;
        pub const APIC: u32 = 1 << 9;
        pub const SEP: u32 = 1 << 11;
        pub const MTRR: u32 = 1 << 12;
        pub const PGE: u32 = 1 << 13;
        pub const MCA: u32 = 1 << 14;
        pub const CMOV: u32 = 1 << 15;
        pub const PAT: u32 = 1 << 16;
        pub const PSE_36: u32 = 1 << 17;
        pub const CLFLUSH: u32 = 1 << 19;
        pub const MMX: u32 = 1 << 23;
        pub const FXSR: u32 = 1 << 24;
        pub const SSE: u32 = 1 << 25;
        pub const SSE2: u32 = 1 << 26;
        /// Those that the guest finds, where the CPU has them. There are no banks of machine
        /// checks, and MTRRs have no effect: guest memory is write-back always.
        pub const SHOWN: u32 = FPU
            | VME
            | DE
            | PSE
            | TSC
            | MSR
            | PAE
            | MCE
            | CX8
            | SEP
            | MTRR
            | PGE
            | MCA
            | CMOV
            | PAT
            | PSE_36
            | CLFLUSH
            | MMX
            | FXSR
            | SSE
            | SSE2;
    }
    /// Leaf 7, EBX.
    pub mod f7b {
        pub const FSGSBASE: u32 = 1 << 0;
        pub const BMI1: u32 = 1 << 3;
        pub const AVX2: u32 = 1 << 5;
        pub const SMEP: u32 = 1 << 7;
        pub const BMI2: u32 = 1 << 8;
        pub const ERMS: u32 = 1 << 9;
        pub const INVPCID: u32 = 1 << 10;
        pub const AVX512F: u32 = 1 << 16;
        pub const AVX512DQ: u32 = 1 << 17;
        pub const RDSEED: u32 = 1 << 18;
        pub const ADX: u32 = 1 << 19;
        pub const SMAP: u32 = 1 << 20;
        pub const AVX512IFMA: u32 = 1 << 21;
        pub const CLFLUSHOPT: u32 = 1 << 23;
        pub const CLWB: u32 = 1 << 24;
        pub const AVX512CD: u32 = 1 << 28;
        pub const SHA: u32 = 1 << 29;
        pub const AVX512BW: u32 = 1 << 30;
        pub const AVX512VL: u32 = 1 << 31;
        /// Those that the guest finds, where the CPU has them.
        pub const SHOWN: u32 = FSGSBASE
            | BMI1
            | AVX2
            | SMEP
            | BMI2
            | ERMS
            | INVPCID
            | AVX512F
            | AVX512DQ
            | RDSEED
            | ADX
            | SMAP
            | AVX512IFMA
            | CLFLUSHOPT
            | CLWB
            | AVX512CD
            | SHA
            | AVX512BW
            | AVX512VL;
    }
    /// Leaf 7, ECX.
    pub mod f7c {
        pub const AVX512_VBMI: u32 = 1 << 1;
        pub const UMIP: u32 = 1 << 2;
        pub const AVX512_VBMI2: u32 = 1 << 6;
        pub const GFNI: u32 = 1 << 8;
        pub const VAES: u32 = 1 << 9;
        pub const VPCLMULQDQ: u32 = 1 << 10;
        pub const AVX512_VNNI: u32 = 1 << 11;
        pub const AVX512_BITALG: u32 = 1 << 12;
        pub const AVX512_VPOPCNTDQ: u32 = 1 << 14;
        pub const RDPID: u32 = 1 << 22;
        /// Those that the guest finds, where the CPU has them.
        pub const SHOWN: u32 = AVX512_VBMI
            | UMIP
            | AVX512_VBMI2
            | GFNI
            | VAES
            | VPCLMULQDQ
            | AVX512_VNNI
            | AVX512_BITALG
            | AVX512_VPOPCNTDQ
            | RDPID;
    }
    /// Leaf 7, EDX.
    pub mod f7d {
        pub const AVX512_4VNNIW: u32 = 1 << 2;
        pub const AVX512_4FMAPS: u32 = 1 << 3;
        pub const FSRM: u32 = 1 << 4;
        pub const MD_CLEAR: u32 = 1 << 10;
        pub const ARCH_CAPABILITIES: u32 = 1 << 29;
        /// Those that the guest finds, where the CPU has them.
        pub const SHOWN: u32 = AVX512_4VNNIW | AVX512_4FMAPS | FSRM | MD_CLEAR;
    }
    /// Leaf 0xd, subleaf 1, EAX: XSAVEOPT, XSAVEC, XGETBV with ECX = 1. Not XSAVES.
    pub const FD1A_SHOWN: u32 = 0b111;
    /// Leaf 80000001, ECX: LAHF in 64-bit mode, LZCNT, PREFETCHW; of AMD, SSE4A and SSE on
    /// misaligned operands, too. Not SVM and SKINIT.
    pub const X1C_SHOWN: u32 = 1 << 0 | 1 << 5 | 1 << 8;
    pub const X1C_AMD: u32 = 1 << 6 | 1 << 7;
    /// Leaf 80000001, EDX.
    pub mod x1d {
        pub const SYSCALL: u32 = 1 << 11;
        pub const NX: u32 = 1 << 20;
        pub const PAGE_1GB: u32 = 1 << 26;
        pub const RDTSCP: u32 = 1 << 27;
        /// What AMD repeats of leaf 1.
        pub const REPEATED: u32 = 0x0183_f3ff;
        /// AMD: extensions of MMX.
        pub const MMXEXT: u32 = 1 << 22;
        /// All of them, and long mode.
        pub const SHOWN: u32 = SYSCALL | NX | PAGE_1GB | RDTSCP | 1 << 29;
    }
    /// Leaf 80000008, EBX, of AMD: XSAVE keeps the error pointers; SSB_NO; BTC_NO.
    pub const X8B_AMD: u32 = 1 << 2 | 1 << 26 | 1 << 29;
    /// Leaf 80000007, EDX: invariant TSC.
    pub const X7D_SHOWN: u32 = 1 << 8;
    /// Leaf 6, EAX: the local APIC's timer never stops.
    pub const F6A_ARAT: u32 = 1 << 2;
}

/// State components in XCR0 (SDM, "Extended Control Registers").
pub mod xcr0 {
    /// x87: the value at reset.
    pub const X87: u64 = 1 << 0;
    /// SSE: the XMM registers.
    pub const SSE: u64 = 1 << 1;
    /// AVX: the upper halves of the YMM registers.
    pub const AVX: u64 = 1 << 2;
    /// The three parts of AVX-512.
    pub const AVX512: u64 = 7 << 5;
    /// Those that the guest can have.
    pub const SHOWN: u64 = X87 | SSE | AVX | AVX512;
}

/// The parts of `states` that have a place of their own behind the legacy region.
fn components(states: u64) -> impl Iterator<Item = u32> {
    (2..63).filter(move |i| states & 1 << i != 0)
}

const NOTHING: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/// The guest's CPUID.
#[derive(Clone, Copy, Debug)]
pub struct Cpuid {
    query: Query,
    vendor: Vendor,
    backing: Backing,
    max_basic: u32,
    max_extended: u32,
    xcr0: u64,
    arch_capabilities: u64,
}

impl Cpuid {
    /// Looks at the CPU; `read_arch_capabilities` reads IA32_ARCH_CAPABILITIES, if it is there.
    pub fn new(
        query: Query,
        backing: Backing,
        read_arch_capabilities: impl FnOnce() -> u64,
    ) -> Cpuid {
        let max_basic = query(0, 0).eax.min(MAX_BASIC);
        let has_xsave = query(1, 0).ecx & bit::f1c::XSAVE != 0 && max_basic >= 0xd;
        let xcr0 = if has_xsave {
            let states = query(0xd, 0);
            (u64::from(states.edx) << 32 | u64::from(states.eax)) & xcr0::SHOWN
        } else {
            0
        };
        let max_extended = query(0x8000_0000, 0).eax.min(MAX_EXTENDED);
        let arch_capabilities = if max_basic >= 7 {
            let has_register = query(7, 0).edx & bit::f7d::ARCH_CAPABILITIES != 0;
            let real = if has_register { read_arch_capabilities() } else { 0 };
            arch_capabilities::shown(real, query)
        } else {
            0
        };
        Cpuid {
            query,
            vendor: Vendor::of(query),
            backing,
            max_basic,
            max_extended,
            xcr0,
            arch_capabilities,
        }
    }

    /// What CPUID gives for `leaf` and `subleaf`.
    pub fn read(&self, leaf: u32, subleaf: u32, dynamic: Dynamic) -> CpuidResult {
        let real = || (self.query)(leaf, subleaf);
        match leaf {
            0 => CpuidResult { eax: self.highest(dynamic), ..real() },
            HYPERVISOR => {
                let word =
                    |i: usize| u32::from_le_bytes([0, 1, 2, 3].map(|b| SIGNATURE[4 * i + b]));
                CpuidResult { eax: HYPERVISOR, ebx: word(0), ecx: word(1), edx: word(2) }
            }
            0x8000_0000 => CpuidResult { eax: self.max_extended, ..real() },
            0x8000_0001..=MAX_EXTENDED if leaf <= self.max_extended => self.extended(leaf, dynamic),
            1..=MAX_BASIC if leaf <= self.highest(dynamic) => self.basic(leaf, subleaf, dynamic),
            // Leaves in the hypervisor's range are this one's to define: there are none but the
            // first.
            0x4000_0001..=HYPERVISOR_END => NOTHING,
            // SDM, "CPUID": beyond the highest leaves Intel's CPUs give the data of the highest
            // basic one, AMD's zeros.
            _ if self.vendor == Vendor::Intel => {
                self.basic(self.highest(dynamic), subleaf, dynamic)
            }
            _ => NOTHING,
        }
    }

    /// Whose CPU the guest finds.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// The highest basic leaf that is shown.
    fn highest(&self, dynamic: Dynamic) -> u32 {
        if dynamic.has(misc_enable::LIMIT_CPUID) { self.max_basic.min(2) } else { self.max_basic }
    }

    /// The CPU as its model-specific registers depend on it. Its time-stamp counter has `tsc_hz`.
    pub fn model(&self, tsc_hz: u64) -> umbra_msrs::Cpu {
        const UNIT: u64 = 100_000_000;
        let signature = (self.query)(1, 0).eax;
        let field = |shift: u32, bits: u32| signature >> shift & ((1 << bits) - 1);
        // SDM, "CPUID", leaf 1: the extended fields count for some families only.
        let family = if field(8, 4) == 0xf { field(20, 8) + 0xf } else { field(8, 4) };
        let extended = if matches!(field(8, 4), 6 | 0xf) { field(16, 4) << 4 } else { 0 };
        umbra_msrs::Cpu {
            vendor: match self.vendor {
                Vendor::Amd => umbra_msrs::Vendor::Amd,
                // Those that are neither follow Intel.
                Vendor::Intel | Vendor::Other => umbra_msrs::Vendor::Intel,
            },
            family,
            model: extended | field(4, 4),
            maxphyaddr: self.features().maxphyaddr,
            ratio: ((tsc_hz + UNIT / 2) / UNIT).clamp(1, 0xff) as u8,
        }
    }

    fn basic(&self, leaf: u32, subleaf: u32, dynamic: Dynamic) -> CpuidResult {
        let real = || (self.query)(leaf, subleaf);
        match leaf {
            1 => {
                let mut real = real();
                // Initial APIC ID 0, one logical processor; the rest are brand and CLFLUSH size.
                real.ebx = real.ebx & 0xffff | 1 << 16;
                real.ecx = real.ecx & bit::f1c::SHOWN | bit::f1c::HYPERVISOR;
                if self.backing.tsc_deadline {
                    real.ecx |= bit::f1c::TSC_DEADLINE;
                }
                if self.xcr0 == 0 {
                    real.ecx &= !bit::f1c::XSAVE;
                } else if dynamic.osxsave {
                    real.ecx |= bit::f1c::OSXSAVE;
                }
                real.edx &= bit::f1d::SHOWN;
                if dynamic.apic {
                    real.edx |= bit::f1d::APIC;
                }
                real
            }
            2 => real(),
            // Caches, shared by one thread of one core.
            4 => {
                let real = real();
                CpuidResult { eax: real.eax & 0x3fff, ..real }
            }
            6 => CpuidResult { eax: bit::F6A_ARAT, ..NOTHING },
            7 if subleaf == 0 => {
                let real = real();
                let mut ebx = real.ebx & bit::f7b::SHOWN;
                let mut ecx = real.ecx & bit::f7c::SHOWN;
                if !self.backing.invpcid {
                    ebx &= !bit::f7b::INVPCID;
                }
                if !self.backing.rdtscp {
                    ecx &= !bit::f7c::RDPID;
                }
                let mut edx = real.edx & bit::f7d::SHOWN;
                if self.arch_capabilities != 0 {
                    edx |= bit::f7d::ARCH_CAPABILITIES;
                }
                CpuidResult { eax: 0, ebx, ecx, edx }
            }
            // One thread, in one core (SDM, "CPUID", leaf 0BH).
            0xb => match subleaf {
                0 => CpuidResult { eax: 0, ebx: 1, ecx: 1 << 8, edx: 0 },
                1 => CpuidResult { eax: 0, ebx: 1, ecx: 2 << 8 | 1, edx: 0 },
                _ => CpuidResult { ecx: subleaf & 0xff, ..NOTHING },
            },
            0xd if self.xcr0 != 0 => self.extended_state(subleaf, dynamic.xcr0),
            _ => NOTHING,
        }
    }

    /// Bytes of XSAVE's area with all components of `xcr0`; zero where there is no XSAVE.
    pub fn xsave_area(&self, xcr0: u64) -> usize {
        if self.xcr0 == 0 { 0 } else { self.extended_state(0, xcr0).ebx as usize }
    }

    /// Leaf 0xd. The sizes are computed: emulators are known to give wrong ones.
    fn extended_state(&self, subleaf: u32, xcr0: u64) -> CpuidResult {
        let component = |i: u32| (self.query)(0xd, i);
        /// The legacy region and the header.
        const LEAST: u32 = 576;
        /// ECX of a component: it starts at a multiple of 64 in the compacted format.
        const ALIGNED: u32 = 1 << 1;
        let standard = |states: u64| {
            components(states).map(|i| component(i).eax + component(i).ebx).fold(LEAST, u32::max)
        };
        let compacted = |states: u64| {
            components(states).map(component).fold(LEAST, |end, part| {
                let start = if part.ecx & ALIGNED != 0 { end.next_multiple_of(64) } else { end };
                start + part.eax
            })
        };
        match subleaf {
            0 => CpuidResult {
                eax: self.xcr0 as u32,
                ebx: standard(xcr0),
                ecx: standard(self.xcr0),
                edx: (self.xcr0 >> 32) as u32,
            },
            1 => CpuidResult {
                eax: component(1).eax & bit::FD1A_SHOWN,
                ebx: compacted(xcr0),
                ..NOTHING
            },
            2..63 if self.xcr0 & 1 << subleaf != 0 => component(subleaf),
            _ => NOTHING,
        }
    }

    fn extended(&self, leaf: u32, dynamic: Dynamic) -> CpuidResult {
        let real = (self.query)(leaf, 0);
        match leaf {
            0x8000_0001 => {
                let mut edx = real.edx & bit::x1d::SHOWN;
                if !self.backing.rdtscp {
                    edx &= !bit::x1d::RDTSCP;
                }
                if dynamic.has(misc_enable::XD_DISABLE) {
                    edx &= !bit::x1d::NX;
                }
                let mut ecx = bit::X1C_SHOWN;
                if self.vendor == Vendor::Amd {
                    ecx |= bit::X1C_AMD;
                    edx |= real.edx & bit::x1d::MMXEXT;
                    edx |= self.basic(1, 0, dynamic).edx & bit::x1d::REPEATED;
                }
                CpuidResult { ecx: real.ecx & ecx, edx, ..NOTHING }
            }
            0x8000_0002..=0x8000_0006 => real,
            0x8000_0007 => CpuidResult { edx: real.edx & bit::X7D_SHOWN, ..NOTHING },
            0x8000_0008 => {
                let ebx = if self.vendor == Vendor::Amd { real.ebx & bit::X8B_AMD } else { 0 };
                CpuidResult { eax: real.eax & 0xffff, ebx, ..NOTHING }
            }
            _ => NOTHING,
        }
    }

    /// What shapes the guest's paging.
    pub fn features(&self) -> Features {
        const DEFAULT_MAXPHYADDR: u32 = 36;
        let width = if self.max_extended >= 0x8000_0008 {
            (self.query)(0x8000_0008, 0).eax & 0xff
        } else {
            DEFAULT_MAXPHYADDR
        };
        Features::new(
            width.clamp(32, 52) as u8,
            self.extended(0x8000_0001, Dynamic::AT_RESET).edx & bit::x1d::PAGE_1GB != 0,
        )
    }

    /// The control-register bits that exist for the guest.
    pub fn known(&self, dynamic: Dynamic) -> Known {
        // Leaves that the guest has hidden from itself say nothing about CR4.
        let off = Dynamic::AT_RESET;
        let (f1, f7) = (self.read(1, 0, off), self.read(7, 0, off));
        let x1 = self.read(0x8000_0001, 0, dynamic);
        /// TSD, PCE, OSFXSR, OSXMMEXCPT: in every CPU with long mode.
        const ALWAYS: u64 = 1 << 2 | 1 << 8 | 1 << 9 | 1 << 10;
        /// VME and PVI; DE; UMIP; FSGSBASE.
        const VME_PVI: u64 = 0b11;
        const DE: u64 = 1 << 3;
        const MCE: u64 = 1 << 6;
        const UMIP: u64 = 1 << 11;
        const FSGSBASE: u64 = 1 << 16;
        let cr4 = [
            (f1.edx & bit::f1d::VME, VME_PVI),
            (f1.edx & bit::f1d::DE, DE),
            (f1.edx & bit::f1d::PSE, cr4_more::PSE),
            (f1.edx & bit::f1d::MCE, MCE),
            (f1.edx & bit::f1d::PGE, cr4::PGE),
            (f1.ecx & bit::f1c::PCID, cr4::PCIDE),
            (f1.ecx & bit::f1c::XSAVE, cr4_more::OSXSAVE),
            (f7.ebx & bit::f7b::FSGSBASE, FSGSBASE),
            (f7.ebx & bit::f7b::SMEP, cr4::SMEP),
            (f7.ebx & bit::f7b::SMAP, cr4::SMAP),
            (f7.ecx & bit::f7c::UMIP, UMIP),
        ];
        let cr4 = cr4
            .into_iter()
            .filter(|(shown, _)| *shown != 0)
            .fold(ALWAYS | cr4::PAE, |all, (_, b)| all | b);
        let nxe = if x1.edx & bit::x1d::NX != 0 { efer::NXE } else { 0 };
        Known {
            cr4,
            efer: efer_more::SCE | efer_more::LME | nxe,
            maxphyaddr: self.features().maxphyaddr,
        }
    }

    /// IA32_ARCH_CAPABILITIES, if there is one.
    pub fn arch_capabilities(&self) -> Option<u64> {
        (self.arch_capabilities != 0).then_some(self.arch_capabilities)
    }

    /// Whether there is XCR0.
    pub fn has_xcr0(&self) -> bool {
        self.xcr0 != 0
    }

    /// Whether XSETBV may load `value` into XCR0 (SDM, "XSETBV - Set Extended Control Register").
    pub fn allows_xcr0(&self, value: u64) -> bool {
        value & !self.xcr0 == 0
            && value & xcr0::X87 != 0
            && (value & xcr0::AVX == 0 || value & xcr0::SSE != 0)
            && (value & xcr0::AVX512 == 0
                || (value & xcr0::AVX512 == xcr0::AVX512 && value & xcr0::AVX != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CPU that has every feature bit set.
    fn everything(leaf: u32, subleaf: u32) -> CpuidResult {
        match (leaf, subleaf) {
            (0, _) => CpuidResult { eax: 0x1f, ebx: 1, ecx: 2, edx: 3 },
            (0x8000_0000, _) => CpuidResult { eax: 0x8000_0020, ..NOTHING },
            (0x8000_0008, _) => CpuidResult { eax: 0x392e, ..NOTHING },
            (0xd, 2) => CpuidResult { eax: 256, ebx: 576, ..NOTHING },
            (0xd, 5) => CpuidResult { eax: 8, ebx: 1024, ..NOTHING },
            (0xd, 6) => CpuidResult { eax: 512, ebx: 1088, ecx: 2, ..NOTHING },
            (0xd, 7) => CpuidResult { eax: 1024, ebx: 1664, ..NOTHING },
            _ => CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 },
        }
    }

    const OFF: Dynamic = Dynamic::AT_RESET;

    fn all() -> Cpuid {
        Cpuid::new(everything, Backing { rdtscp: true, invpcid: true, tsc_deadline: true }, || {
            u64::MAX
        })
    }

    #[test]
    fn what_is_not_virtualized_is_hidden() {
        let (f1, f7) = (all().read(1, 0, OFF), all().read(7, 0, OFF));
        // MONITOR, VMX, SMX, x2APIC, OSXSAVE; APIC, DS; TSX, SGX, MPX; PKU, OSPKE, LA57; SPEC_CTRL.
        assert_eq!(f1.ecx & (1 << 3 | 1 << 5 | 1 << 6 | 1 << 21 | 1 << 27), 0);
        assert_eq!(f1.edx & (1 << 9 | 1 << 21 | 1 << 28), 0);
        assert_eq!(f7.ebx & (1 << 2 | 1 << 4 | 1 << 11 | 1 << 14), 0);
        assert_eq!(f7.ecx & (1 << 3 | 1 << 4 | 1 << 16), 0);
        assert_eq!(f7.edx & 1 << 26, 0);
        assert_eq!(all().read(0xa, 0, OFF).eax, 0);
        assert_eq!(all().read(0, 0, OFF).eax, 0xd);
        assert_eq!(all().known(OFF).cr4 & (1 << 13 | 1 << 22 | cr4::LA57), 0);
    }

    #[test]
    fn leaves_beyond_the_highest() {
        let intel = |leaf, subleaf| match leaf {
            0 => {
                let [ebx, edx, ecx] =
                    [b"Genu", b"ineI", b"ntel"].map(|part| u32::from_le_bytes(*part));
                CpuidResult { ebx, ecx, edx, ..everything(leaf, subleaf) }
            }
            _ => everything(leaf, subleaf),
        };
        let backing = Backing { rdtscp: true, invpcid: true, tsc_deadline: true };
        for (cpuid, highest) in [(Cpuid::new(intel, backing, || 0), true), (all(), false)] {
            for leaf in [0xe, 0x14, 0x3fff_ffff, 0x5000_0000, 0x8000_0009, u32::MAX] {
                let expected = if highest { cpuid.read(0xd, 1, OFF) } else { NOTHING };
                assert_eq!(cpuid.read(leaf, 1, OFF), expected, "{leaf:#x}");
            }
            assert_eq!(cpuid.read(0x4000_0001, 0, OFF), NOTHING);
        }
    }

    #[test]
    fn what_amd_has_beside() {
        fn amd(leaf: u32, subleaf: u32) -> CpuidResult {
            match leaf {
                0 => CpuidResult { eax: 0xd, ebx: 0x6874_7541, edx: 0x6974_6e65, ecx: 0x444d_4163 },
                0x8000_0008 => CpuidResult { ebx: !0, ..everything(leaf, subleaf) },
                _ => everything(leaf, subleaf),
            }
        }
        let backing = Backing { rdtscp: true, invpcid: true, tsc_deadline: true };
        let amd = Cpuid::new(amd, backing, || 0);
        let (x1, f1) = (amd.read(0x8000_0001, 0, OFF), amd.read(1, 0, OFF));
        // SVM, EXTAPIC, CR8 by LOCK, OSVW, SKINIT, TOPOEXT; FFXSR.
        assert_eq!(x1.ecx & (1 << 2 | 1 << 3 | 1 << 4 | 1 << 9 | 1 << 12 | 1 << 22), 0);
        assert_eq!(x1.edx & 1 << 25, 0);
        assert_eq!(
            (x1.ecx & bit::X1C_AMD, x1.edx & bit::x1d::MMXEXT),
            (bit::X1C_AMD, bit::x1d::MMXEXT)
        );
        // What leaf 1 hides, or shows by the guest's state, is no different there.
        assert_eq!(x1.edx & bit::x1d::REPEATED, f1.edx & bit::x1d::REPEATED);
        assert_eq!(amd.read(0x8000_0008, 0, OFF).ebx, bit::X8B_AMD);
        assert_eq!(amd.read(0x8000_000a, 0, OFF), NOTHING);
        assert_eq!((all().read(0x8000_0008, 0, OFF).ebx, amd.known(OFF).efer & 1 << 12), (0, 0));
    }

    #[test]
    fn vendors_by_their_names() {
        fn named<const INDEX: usize>(_: u32, _: u32) -> CpuidResult {
            let name = [b"GenuineIntel", b"AuthenticAMD", b"HygonGenuine", b"CentaurHauls"][INDEX];
            let word = |n: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| name[4 * n + byte]));
            CpuidResult { eax: 1, ebx: word(0), edx: word(1), ecx: word(2) }
        }
        let vendors =
            [named::<0>, named::<1>, named::<2>, named::<3>].map(|query: Query| Vendor::of(query));
        assert_eq!(vendors, [Vendor::Intel, Vendor::Amd, Vendor::Amd, Vendor::Other]);
    }

    #[test]
    fn the_guest_s_own_state_shows() {
        let f1 = all().read(1, 0, Dynamic { osxsave: true, apic: true, ..OFF });
        assert_eq!((f1.ecx & 1 << 27, f1.edx & 1 << 9), (1 << 27, 1 << 9));
        assert_eq!(f1.ecx >> 31, 1);
        assert_eq!(all().read(HYPERVISOR, 0, OFF).ebx.to_le_bytes(), *b"Umbr");
    }

    #[test]
    fn a_backend_without_rdtscp_and_invpcid() {
        let cpuid = Cpuid::new(
            everything,
            Backing { rdtscp: false, invpcid: false, tsc_deadline: false },
            || 0,
        );
        assert_eq!(cpuid.read(0x8000_0001, 0, OFF).edx & bit::x1d::RDTSCP, 0);
        assert_eq!(cpuid.read(7, 0, OFF).ebx & bit::f7b::INVPCID, 0);
        assert_eq!(cpuid.read(7, 0, OFF).ecx & bit::f7c::RDPID, 0);
    }

    #[test]
    fn immunities_show_if_there_are_any() {
        let shows = |cpuid: Cpuid| cpuid.read(7, 0, OFF).edx & bit::f7d::ARCH_CAPABILITIES != 0;
        assert!(shows(all()) && all().arch_capabilities().is_some());
        // `everything` is a hypervisor's, so that nothing is concluded from its model.
        let none = Cpuid::new(
            everything,
            Backing { rdtscp: true, invpcid: true, tsc_deadline: true },
            || 0,
        );
        assert!(!shows(none) && none.arch_capabilities().is_none());
    }

    /// What CPUID does not show has no registers, and what it shows has.
    #[test]
    fn cpuid_and_the_table_of_registers_agree() {
        let (f1, f7) = (all().read(1, 0, OFF), all().read(7, 0, OFF));
        let (f6, x1) = (all().read(6, 0, OFF), all().read(0x8000_0001, 0, OFF));
        let features = [
            (f1.edx & 1 << 5, 0x10),
            (f1.edx & 1 << 11, 0x174),
            (f1.edx & 1 << 12, 0xfe),
            (f1.edx & 1 << 12, 0x2ff),
            (f1.edx & 1 << 14, 0x179),
            (f1.edx & 1 << 16, 0x277),
            (f1.edx & 1 << 21, 0x600),
            (f1.ecx & 1 << 5, 0x480),
            (f1.ecx & 1 << 11, 0xc80),
            (f1.ecx & 1 << 15, 0x345),
            (f1.ecx & 1 << 21, 0x802),
            (f1.ecx & 1 << 24, 0x6e0),
            (f6.eax & 1 << 7, 0x770),
            (f6.ecx & 1 << 3, 0x1b0),
            (f7.ebx & 1 << 1, 0x3b),
            (f7.ebx & 1 << 14, 0xd90),
            (f7.ebx & 1 << 25, 0x570),
            (f7.edx & 1 << 26, 0x48),
            (f7.edx & 1 << 29, 0x10a),
            (all().read(0xa, 0, OFF).eax & 0xff, 0xc1),
            (all().read(0xd, 1, OFF).eax & 1 << 3, 0xda0),
            (x1.edx & 1 << 11, 0xc000_0082),
            (x1.edx & 1 << 20, 0xc000_0080),
            (x1.edx & 1 << 27, 0xc000_0103),
        ];
        let model =
            umbra_msrs::Cpu { vendor: umbra_msrs::Vendor::Intel, ..all().model(1_000_000_000) };
        for (shown, msr) in features {
            let row = umbra_msrs::row(msr, &model);
            assert_eq!(row.is_some_and(|row| row.is_shown()), shown != 0, "{msr:#x}: {row:?}");
        }
    }

    #[test]
    fn the_guest_hides_leaves_and_nx_from_itself() {
        let hiding = Dynamic { misc_enable: 1 << 22 | 1 << 34, ..OFF };
        assert_eq!(all().read(0, 0, hiding).eax, 2);
        assert_eq!(all().read(7, 0, hiding), NOTHING, "beyond the highest");
        assert_eq!(all().read(0x8000_0001, 0, hiding).edx & bit::x1d::NX, 0);
        assert_eq!(all().known(hiding).efer & efer::NXE, 0);
        assert_eq!(all().known(hiding).cr4, all().known(OFF).cr4);
    }

    #[test]
    fn models_are_read_as_the_manual_says() {
        let query = |leaf, subleaf| match leaf {
            0 => CpuidResult { ebx: u32::from_le_bytes(*b"Genu"), ..everything(leaf, subleaf) },
            1 => CpuidResult { eax: 0x5_0654, ..everything(leaf, subleaf) },
            _ => everything(leaf, subleaf),
        };
        let backing = Backing { rdtscp: true, invpcid: true, tsc_deadline: true };
        let model = Cpuid::new(query, backing, || 0).model(2_049_000_000);
        assert_eq!((model.family, model.model, model.ratio, model.maxphyaddr), (6, 0x55, 20, 46));
        assert_eq!(model.vendor, umbra_msrs::Vendor::Intel);
    }

    #[test]
    fn extended_states() {
        assert_eq!(all().read(0xd, 0, OFF).eax, 0xe7);
        let sizes = |xcr0| {
            let dynamic = Dynamic { xcr0, ..OFF };
            [
                all().read(0xd, 0, dynamic).ebx,
                all().read(0xd, 0, dynamic).ecx,
                all().read(0xd, 1, dynamic).ebx,
            ]
        };
        assert_eq!(sizes(1), [576, 2688, 576]);
        assert_eq!(sizes(7), [832, 2688, 832]);
        assert_eq!(sizes(0xe7), [2688, 2688, 896 + 512 + 1024]);
        assert_eq!(all().read(0xd, 9, OFF).eax, 0, "PKRU is hidden");
        for (value, allowed) in [
            (0, false),
            (1, true),
            (3, true),
            (5, false),
            (7, true),
            (0x27, false),
            (0xe7, true),
            (0x207, false),
        ] {
            assert_eq!(all().allows_xcr0(value), allowed, "{value:#x}");
        }
    }

    #[test]
    fn maxphyaddr_is_real() {
        assert_eq!(all().features(), Features::new(46, true));
    }
}

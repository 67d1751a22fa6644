//! The table (SDM vol. 4, "Model-Specific Registers (MSRs)"; APM vol. 2, "MSR Cross-Reference").

use crate::row::{Bits, Check, Models, Row, Source, Treatment, Value};
use Models::{All, Amd, Core2, Intel, Later};
use Treatment::{Hidden, Ignored};

/// Bits 47 to 0 and their sign: an address that must be canonical, which the CPU checks.
const ADDRESS: Bits = Bits::ALL;

/// One register.
const fn one(
    msr: u32,
    name: &'static str,
    models: Models,
    treatment: Treatment,
    writable: Bits,
    why: &'static str,
) -> Row {
    Row { first: msr, last: msr, step: 1, name, models, treatment, writable, why }
}

impl Row {
    /// The same for the registers up to `last`, each `step`-th of them.
    const fn to(self, last: u32, step: u32) -> Row {
        Row { last, step, ..self }
    }
}

const fn hidden(msr: u32, name: &'static str, models: Models, why: &'static str) -> Row {
    one(msr, name, models, Hidden, Bits::NONE, why)
}

const fn shown(
    msr: u32,
    name: &'static str,
    models: Models,
    source: Source,
    writable: u64,
    why: &'static str,
) -> Row {
    one(msr, name, models, Treatment::Shown(source), Bits::Are(writable), why)
}

const fn constant(
    msr: u32,
    name: &'static str,
    models: Models,
    value: u64,
    why: &'static str,
) -> Row {
    one(msr, name, models, Treatment::Constant(Value::Is(value)), Bits::NONE, why)
}

const fn stored(
    msr: u32,
    name: &'static str,
    models: Models,
    reset: u64,
    writable: u64,
    why: &'static str,
) -> Row {
    let treatment = Treatment::Stored { reset: Value::Is(reset), check: Check::Any, dropped: 0 };
    one(msr, name, models, treatment, Bits::Are(writable), why)
}

const fn checked(
    msr: u32,
    name: &'static str,
    reset: u64,
    writable: Bits,
    check: Check,
    why: &'static str,
) -> Row {
    one(
        msr,
        name,
        All,
        Treatment::Stored { reset: Value::Is(reset), check, dropped: 0 },
        writable,
        why,
    )
}

const MTRR: &str = "memory is write-back whatever they say";
const PMU: &str = "CPUID.0AH shows no performance counters: their counts would be those of Umbra and guest together";
const LBR: &str = "no branch is recorded: Umbra's own would be among them";
const RAPL: &str = "power is the machine's";
const VMX: &str = "CPUID.1:ECX.VMX is clear: no nested guests";
const SYSCALL: &str = "Umbra does not use it";
const ONE_CORE: &str = "the ratio of a CPU whose frequency is that of the time-stamp counter";

/// IA32_MISC_ENABLE at reset: fast strings; no branch trace storage, no PEBS.
const MISC_ENABLE: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// Fast strings, thermal control, prefetchers, TM2, SpeedStep, MONITOR, the limit of CPUID, xTPR,
/// XD, turbo.
const MISC_ENABLE_WRITABLE: u64 = 1 << 0
    | 1 << 3
    | 1 << 9
    | 1 << 13
    | 1 << 16
    | 1 << 18
    | 1 << 19
    | 1 << 22
    | 1 << 23
    | 1 << 34
    | 1 << 37
    | 1 << 38
    | 1 << 39;
/// Performance counters, and the two that are not there: read-only.
const MISC_ENABLE_READ_ONLY: u64 = 1 << 7 | 1 << 11 | 1 << 12;

/// The registers by number; those of one CPU do not overlap.
pub const TABLE: &[Row] = &[
    constant(0x0, "IA32_P5_MC_ADDR", Intel, 0, "no machine check is reported to the guest"),
    constant(0x1, "IA32_P5_MC_TYPE", Intel, 0, "no machine check is reported to the guest"),
    shown(
        0x10,
        "IA32_TIME_STAMP_COUNTER",
        All,
        Source::Tsc,
        u64::MAX,
        "the machine's plus an offset",
    ),
    constant(0x17, "IA32_PLATFORM_ID", Intel, 0, "microcode is the machine's business"),
    shown(
        0x1b,
        "IA32_APIC_BASE",
        All,
        Source::Apic,
        0xf_ffff_f800,
        "the local APIC's: base and enable",
    ),
    constant(
        0x3a,
        "IA32_FEATURE_CONTROL",
        Intel,
        1,
        "locked without VMX, as firmware does without it",
    ),
    hidden(
        0x3b,
        "IA32_TSC_ADJUST",
        Intel,
        "CPUID.7:EBX[1] is clear: one CPU has nothing to adjust to",
    ),
    constant(0x40, "MSR_LASTBRANCH_n_FROM_IP", Core2, 0, LBR).to(0x43, 1),
    hidden(
        0x48,
        "IA32_SPEC_CTRL",
        All,
        "CPUID.7:EDX[26] is clear: speculation is the machine's business",
    ),
    hidden(0x49, "IA32_PRED_CMD", All, "CPUID.7:EDX[26] is clear"),
    constant(0x60, "MSR_LASTBRANCH_n_TO_IP", Core2, 0, LBR).to(0x63, 1),
    one(
        0x79,
        "IA32_BIOS_UPDT_TRIG",
        Intel,
        Ignored,
        Bits::ALL,
        "microcode is the machine's business",
    ),
    one(
        0x8b,
        "IA32_BIOS_SIGN_ID",
        Intel,
        Treatment::Constant(Value::Is(1 << 32)),
        Bits::ALL,
        "a revision that no list of bad ones has; reading it begins with a write of zero",
    ),
    one(
        0x8b,
        "PATCH_LEVEL",
        Amd,
        Treatment::Constant(Value::Is(0x0100_0065)),
        Bits::NONE,
        "a revision that no list of bad ones has",
    ),
    hidden(0xc1, "IA32_PMCn", Intel, PMU).to(0xc8, 1),
    one(
        0xcd,
        "MSR_FSB_FREQ",
        Core2,
        Treatment::Constant(Value::Is(0b101)),
        Bits::NONE,
        "100 MHz, which the ratios count in",
    ),
    one(
        0xce,
        "MSR_PLATFORM_INFO",
        Intel,
        Treatment::Constant(Value::Ratio(&[8, 40])),
        Bits::NONE,
        ONE_CORE,
    ),
    shown(
        0xe7,
        "IA32_MPERF",
        Intel,
        Source::Frequency,
        0,
        "counts as the TSC does; CPUID.6:ECX[0] is clear, as Linux would read it at each tick",
    ),
    shown(
        0xe8,
        "IA32_APERF",
        Intel,
        Source::Frequency,
        0,
        "counts as the TSC does; CPUID.6:ECX[0] is clear, as Linux would read it at each tick",
    ),
    constant(0xfe, "IA32_MTRRCAP", All, 0x508, "8 variable ranges, fixed ranges, write combining"),
    shown(
        0x10a,
        "IA32_ARCH_CAPABILITIES",
        Intel,
        Source::ArchCapabilities,
        0,
        "what the CPU is immune to, if anything",
    ),
    hidden(0x10b, "IA32_FLUSH_CMD", All, "CPUID.7:EDX[28] is clear"),
    shown(
        0x174,
        "IA32_SYSENTER_CS",
        All,
        Source::Hardware,
        0xffff_ffff,
        "the CPU keeps it for the guest",
    ),
    one(
        0x175,
        "IA32_SYSENTER_ESP",
        All,
        Treatment::Shown(Source::Hardware),
        ADDRESS,
        "the CPU keeps it for the guest",
    ),
    one(
        0x176,
        "IA32_SYSENTER_EIP",
        All,
        Treatment::Shown(Source::Hardware),
        ADDRESS,
        "the CPU keeps it for the guest",
    ),
    constant(0x179, "IA32_MCG_CAP", All, 0, "no banks: machine checks are Umbra's"),
    stored(0x17a, "IA32_MCG_STATUS", All, 0, 0b111, "no machine check is reported to the guest"),
    hidden(0x17b, "IA32_MCG_CTL", All, "IA32_MCG_CAP.MCG_CTL_P is clear"),
    hidden(0x186, "IA32_PERFEVTSELn", Intel, PMU).to(0x18d, 1),
    one(
        0x198,
        "IA32_PERF_STATUS",
        Intel,
        Treatment::Constant(Value::Ratio(&[8, 40])),
        Bits::NONE,
        ONE_CORE,
    ),
    one(
        0x199,
        "IA32_PERF_CTL",
        Intel,
        Treatment::Stored { reset: Value::Ratio(&[8]), check: Check::Any, dropped: 0 },
        Bits::Are(0x1_0000_ffff),
        "the frequency is the machine's business",
    ),
    stored(0x19a, "IA32_CLOCK_MODULATION", Intel, 0, 0x1f, "the clock is the machine's business"),
    stored(0x19b, "IA32_THERM_INTERRUPT", Intel, 0, 0x1ff_ff1f, "it is never too hot"),
    one(
        0x19c,
        "IA32_THERM_STATUS",
        Intel,
        Treatment::Constant(Value::Is(0)),
        Bits::Are(0xaaa),
        "it is never too hot; the log bits may be cleared",
    ),
    one(
        0x1a0,
        "IA32_MISC_ENABLE",
        Intel,
        Treatment::Stored {
            reset: Value::Is(MISC_ENABLE),
            check: Check::Any,
            dropped: MISC_ENABLE_READ_ONLY,
        },
        Bits::Are(MISC_ENABLE_WRITABLE),
        "bit 22 limits CPUID's leaves, bit 34 hides NX; no PEBS, no branch trace storage",
    ),
    constant(0x1a2, "MSR_TEMPERATURE_TARGET", Later, 100 << 16, "100 degrees"),
    one(
        0x1ad,
        "MSR_TURBO_RATIO_LIMIT",
        Later,
        Treatment::Constant(Value::Ratio(&[0, 8, 16, 24])),
        Bits::NONE,
        ONE_CORE,
    ),
    hidden(0x1b0, "IA32_ENERGY_PERF_BIAS", Intel, "CPUID.6:ECX[3] is clear"),
    constant(0x1c9, "MSR_LASTBRANCH_TOS", Intel, 0, LBR),
    shown(
        0x1d9,
        "IA32_DEBUGCTL",
        All,
        Source::Hardware,
        0b11,
        "LBR (kept, to no effect) and BTF; no branch trace storage",
    ),
    constant(0x1dd, "MSR_LER_FROM_LIP", Intel, 0, LBR),
    constant(0x1de, "MSR_LER_TO_LIP", Intel, 0, LBR),
    hidden(0x1fc, "MSR_POWER_CTL", Intel, RAPL),
    checked(
        0x200,
        "IA32_MTRR_PHYSBASE0",
        HOLE,
        Bits::Physical(0xff),
        Check::MtrrType,
        HOLE_IS_UNCACHEABLE,
    ),
    Row {
        treatment: Treatment::Stored {
            reset: Value::RangeMask(HOLE_SIZE),
            check: Check::Any,
            dropped: 0,
        },
        ..checked(
            0x201,
            "IA32_MTRR_PHYSMASK0",
            0,
            Bits::Physical(VALID),
            Check::Any,
            HOLE_IS_UNCACHEABLE,
        )
    },
    checked(0x202, "IA32_MTRR_PHYSBASEn", 0, Bits::Physical(0xff), Check::MtrrType, MTRR)
        .to(0x20e, 2),
    checked(0x203, "IA32_MTRR_PHYSMASKn", 0, Bits::Physical(VALID), Check::Any, MTRR).to(0x20f, 2),
    checked(0x250, "IA32_MTRR_FIX64K_00000", WRITE_BACK, Bits::ALL, Check::MtrrTypes, MTRR),
    checked(0x258, "IA32_MTRR_FIX16K_80000", WRITE_BACK, Bits::ALL, Check::MtrrTypes, MTRR),
    checked(
        0x259,
        "IA32_MTRR_FIX16K_A0000",
        0,
        Bits::ALL,
        Check::MtrrTypes,
        "the video memory is uncacheable",
    ),
    checked(0x268, "IA32_MTRR_FIX4K_n", 0, Bits::ALL, Check::MtrrTypes, MTRR).to(0x26f, 1),
    checked(0x277, "IA32_PAT", 0x0007_0406_0007_0406, Bits::ALL, Check::PatTypes, MTRR),
    hidden(0x280, "IA32_MCi_CTL2", Intel, "IA32_MCG_CAP says that there are no banks").to(0x29f, 1),
    checked(0x2ff, "IA32_MTRR_DEF_TYPE", 0xc06, Bits::Are(0xcff), Check::MtrrType, MTRR),
    hidden(0x309, "IA32_FIXED_CTRn", Intel, PMU).to(0x30b, 1),
    hidden(0x345, "IA32_PERF_CAPABILITIES", Intel, "CPUID.1:ECX.PDCM is clear"),
    hidden(0x38d, "IA32_FIXED_CTR_CTRL and its like", Intel, PMU).to(0x390, 1),
    hidden(0x3f1, "MSR_PEBS_ENABLE", Intel, PMU),
    hidden(
        0x400,
        "IA32_MCi_CTL, STATUS, ADDR, MISC",
        All,
        "IA32_MCG_CAP says that there are no banks",
    )
    .to(0x47f, 1),
    hidden(0x480, "IA32_VMX_BASIC and its like", Intel, VMX).to(0x491, 1),
    hidden(0x4c1, "IA32_A_PMCn", Intel, PMU).to(0x4c8, 1),
    hidden(0x570, "IA32_RTIT_CTL and its like", Intel, "CPUID.7:EBX[25] is clear").to(0x587, 1),
    hidden(0x600, "IA32_DS_AREA", Intel, "CPUID.1:EDX.DS is clear"),
    hidden(0x606, "MSR_RAPL_POWER_UNIT", Intel, RAPL),
    hidden(0x610, "MSR_PKG_POWER_LIMIT and its like", Intel, RAPL).to(0x641, 1),
    constant(0x680, "MSR_LASTBRANCH_n_FROM_IP", Later, 0, LBR).to(0x69f, 1),
    hidden(0x6a0, "IA32_U_CET and its like", Intel, "CPUID.7 shows neither shadow stacks nor IBT")
        .to(0x6a8, 1),
    constant(0x6c0, "MSR_LASTBRANCH_n_TO_IP", Later, 0, LBR).to(0x6df, 1),
    shown(
        0x6e0,
        "IA32_TSC_DEADLINE",
        All,
        Source::Apic,
        u64::MAX,
        "the local APIC's, if CPUID.1:ECX[24] is set",
    ),
    hidden(0x770, "IA32_PM_ENABLE and its like", Intel, "CPUID.6:EAX[7] is clear").to(0x777, 1),
    hidden(0x800, "the x2APIC's", All, "CPUID.1:ECX[21] is clear").to(0x8ff, 1),
    hidden(0xc80, "IA32_DEBUG_INTERFACE", Intel, "CPUID.1:ECX[11] is clear"),
    hidden(0xd90, "IA32_BNDCFGS", Intel, "CPUID.7:EBX[14] is clear"),
    hidden(0xda0, "IA32_XSS", All, "CPUID.0DH.1:EAX[3] is clear: XSAVES is hidden"),
    hidden(
        0x4000_0000,
        "hypervisors' own",
        All,
        "Umbra has none: leaf 0x40000000 says that it is the last",
    )
    .to(0x4000_00ff, 1),
    shown(
        0xc000_0080,
        "IA32_EFER",
        All,
        Source::Efer,
        0xd01,
        "SCE, LME, LMA (not written), NXE where CPUID shows it",
    ),
    shown(0xc000_0081, "IA32_STAR", All, Source::Hardware, u64::MAX, SYSCALL),
    shown(0xc000_0082, "IA32_LSTAR", All, Source::Hardware, u64::MAX, SYSCALL),
    shown(0xc000_0083, "IA32_CSTAR", All, Source::Hardware, u64::MAX, SYSCALL),
    shown(0xc000_0084, "IA32_FMASK", All, Source::Hardware, 0xffff_ffff, SYSCALL),
    shown(
        0xc000_0100,
        "IA32_FS_BASE",
        All,
        Source::Hardware,
        u64::MAX,
        "the CPU keeps it for the guest",
    ),
    shown(
        0xc000_0101,
        "IA32_GS_BASE",
        All,
        Source::Hardware,
        u64::MAX,
        "the CPU keeps it for the guest",
    ),
    shown(
        0xc000_0102,
        "IA32_KERNEL_GS_BASE",
        All,
        Source::Hardware,
        u64::MAX,
        "Umbra does not use SWAPGS",
    ),
    shown(
        0xc000_0103,
        "IA32_TSC_AUX",
        All,
        Source::Hardware,
        0xffff_ffff,
        "Umbra does not use it; if CPUID shows RDTSCP or RDPID",
    ),
    hidden(
        0xc001_0000,
        "PerfEvtSeln, PerfCtrn",
        Amd,
        "their counts would be those of Umbra and guest together",
    )
    .to(0xc001_0007, 1),
    stored(0xc001_0010, "SYSCFG", Amd, 0, 0x7c_0000, MTRR),
    stored(0xc001_0015, "HWCR", Amd, 1 << 24, 0x104_0158, "bit 24: the TSC has one frequency"),
    stored(
        0xc001_001f,
        "NB_CFG",
        Amd,
        0,
        1 << 46 | 1 << 54,
        "there is no northbridge to configure",
    ),
    one(
        0xc001_0020,
        "PATCH_LOADER",
        Amd,
        Ignored,
        Bits::ALL,
        "microcode is the machine's business",
    ),
    constant(0xc001_0058, "MMIO_CFG_BASE", Amd, 0, "no configuration space in memory"),
    hidden(0xc001_0061, "PStateCurLim and its like", Amd, "CPUID.80000007H:EDX[7] is clear")
        .to(0xc001_006b, 1),
    hidden(0xc001_0112, "SMMAddr, SMMMask", Amd, "system management is the machine's business")
        .to(0xc001_0113, 1),
    hidden(0xc001_0114, "VM_CR", Amd, "CPUID.80000001H:ECX.SVM is clear: no nested guests"),
    hidden(0xc001_0117, "VM_HSAVE_PA", Amd, "CPUID.80000001H:ECX.SVM is clear"),
    hidden(0xc001_0140, "OSVW_ID_Length, OSVW_Status", Amd, "CPUID.80000001H:ECX[9] is clear")
        .to(0xc001_0141, 1),
    hidden(
        0xc001_0200,
        "PerfEvtSeln, PerfCtrn of extended counters",
        Amd,
        "CPUID.80000001H:ECX[23] is clear",
    )
    .to(0xc001_020b, 1),
    stored(0xc001_1029, "DE_CFG", Amd, 1 << 1, 1 << 1, "LFENCE waits for what is before it"),
];

/// Write-back in each byte.
const WRITE_BACK: u64 = 0x0606_0606_0606_0606;

/// IA32_MTRR_PHYSMASKn.V.
const VALID: u64 = 1 << 11;
/// The hole for devices below 4 GiB, as firmware leaves it.
const HOLE: u64 = 0xc000_0000;
const HOLE_SIZE: u64 = 1 << 30;
const HOLE_IS_UNCACHEABLE: &str =
    "the hole for devices below 4 GiB is uncacheable, as firmware leaves it";

//! What is said about a register.

use core::fmt;
use core::ops::RangeInclusive;

/// Who makes the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel.
    Intel,
    /// AMD.
    Amd,
}

/// The CPU that the guest sees, as far as its registers depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Who makes it.
    pub vendor: Vendor,
    /// Family and model, as software adds them up (SDM, "CPUID", leaf 1).
    pub family: u32,
    /// The model.
    pub model: u32,
    /// MAXPHYADDR.
    pub maxphyaddr: u8,
    /// The frequency of the time-stamp counter in units of 100 MHz.
    pub ratio: u8,
}

/// On which CPUs a row's registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Models {
    /// Both vendors'.
    All,
    /// Intel's.
    Intel,
    /// Intel's with the Core microarchitecture (Core 2).
    Core2,
    /// Intel's after those.
    Later,
    /// AMD's.
    Amd,
}

impl Models {
    fn include(self, cpu: &Cpu) -> bool {
        // SDM vol. 4, "Model-Specific Registers (MSRs)", table of DisplayFamily_DisplayModel.
        let core2 = cpu.family == 6 && matches!(cpu.model, 0x0f | 0x16 | 0x17 | 0x1d);
        match self {
            Models::All => true,
            Models::Intel => cpu.vendor == Vendor::Intel,
            Models::Core2 => cpu.vendor == Vendor::Intel && core2,
            Models::Later => cpu.vendor == Vendor::Intel && !core2,
            Models::Amd => cpu.vendor == Vendor::Amd,
        }
    }

    /// The word for it in the book.
    pub const fn name(self) -> &'static str {
        match self {
            Models::All => "all",
            Models::Intel => "Intel",
            Models::Core2 => "Core 2",
            Models::Later => "Intel after Core 2",
            Models::Amd => "AMD",
        }
    }
}

/// Registers that are more than a stored value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// IA32_TIME_STAMP_COUNTER.
    Tsc,
    /// IA32_MPERF and IA32_APERF: count as the time-stamp counter does.
    Frequency,
    /// IA32_APIC_BASE and IA32_TSC_DEADLINE: the local APIC's.
    Apic,
    /// IA32_EFER.
    Efer,
    /// IA32_ARCH_CAPABILITIES, if the CPU is immune to something.
    ArchCapabilities,
    /// Kept by the CPU for the guest: the vendor's backend knows where.
    Hardware,
}

/// A value that may depend on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// This one.
    Is(u64),
    /// The ratio of the time-stamp counter's frequency to 100 MHz, shifted to these bits.
    Ratio(&'static [u32]),
    /// IA32_MTRR_PHYSMASKn of a range of this size, valid.
    RangeMask(u64),
}

impl Value {
    /// The value on a CPU.
    pub fn on(self, cpu: &Cpu) -> u64 {
        match self {
            Value::Is(value) => value,
            Value::RangeMask(size) => ((1 << cpu.maxphyaddr) - 1) & !(size - 1) | 1 << 11,
            Value::Ratio(shifts) => {
                shifts.iter().fold(0, |value, shift| value | u64::from(cpu.ratio) << shift)
            }
        }
    }
}

/// Bits of a register that may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// These.
    Are(u64),
    /// These, and those of a page-aligned physical address.
    Physical(u64),
}

impl Bits {
    /// No bits.
    pub const NONE: Bits = Bits::Are(0);
    /// All bits.
    pub const ALL: Bits = Bits::Are(u64::MAX);

    /// The bits on a CPU.
    pub fn on(self, cpu: &Cpu) -> u64 {
        match self {
            Bits::Are(bits) => bits,
            Bits::Physical(bits) => bits | ((1 << cpu.maxphyaddr) - 1) & !0xfff,
        }
    }
}

/// Values of writable bits that raise #GP all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// None.
    Any,
    /// Each byte is a memory type of IA32_PAT (SDM, "IA32_PAT MSR").
    PatTypes,
    /// Each byte is a memory type of MTRRs (SDM, "Memory Types That Can Be Encoded in MTRRs").
    MtrrTypes,
    /// The lowest byte is.
    MtrrType,
}

impl Check {
    /// Whether the value passes.
    pub fn allows(self, value: u64) -> bool {
        let is_mtrr_type = |memory_type: u8| matches!(memory_type, 0 | 1 | 4..=6);
        let bytes = value.to_le_bytes();
        match self {
            Check::Any => true,
            Check::PatTypes => bytes.iter().all(|&byte| is_mtrr_type(byte) || byte == 7),
            Check::MtrrTypes => bytes.iter().all(|&byte| is_mtrr_type(byte)),
            Check::MtrrType => is_mtrr_type(bytes[0]),
        }
    }
}

/// What reading and writing does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// The register works.
    Shown(Source),
    /// It holds what is written, and that has no effect beyond what the row says.
    Stored {
        /// At reset.
        reset: Value,
        /// What must hold.
        check: Check,
        /// Bits that may be written, to no effect.
        dropped: u64,
    },
    /// It always reads so. Writable bits may be written, to no effect.
    Constant(Value),
    /// It takes any write, to no effect, and cannot be read.
    Ignored,
    /// #GP, as on a CPU without it.
    Hidden,
}

/// A register, or several in a row that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The number, or the first.
    pub first: u32,
    /// The last, often the same.
    pub last: u32,
    /// Only each `step`-th of them.
    pub step: u32,
    /// The manual's name.
    pub name: &'static str,
    /// Where it is.
    pub models: Models,
    /// What it does.
    pub treatment: Treatment,
    /// Which bits a guest may write.
    pub writable: Bits,
    /// Why so.
    pub why: &'static str,
}

impl Row {
    /// Whether a number is one of its registers.
    pub fn contains(&self, msr: u32) -> bool {
        (self.first..=self.last).contains(&msr) && (msr - self.first).is_multiple_of(self.step)
    }

    /// The numbers.
    pub fn registers(&self) -> core::iter::StepBy<RangeInclusive<u32>> {
        (self.first..=self.last).step_by(self.step as usize)
    }

    /// Whether it is on this CPU.
    pub fn is_on(&self, cpu: &Cpu) -> bool {
        self.models.include(cpu)
    }

    /// Whether a guest has it.
    pub fn is_shown(&self) -> bool {
        self.treatment != Treatment::Hidden
    }
}

impl fmt::Display for Row {
    /// The numbers and the name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.first)?;
        match (self.first == self.last, self.step) {
            (true, _) => (),
            (false, 1) => write!(f, " to {:#x}", self.last)?,
            (false, step) => write!(f, " to {:#x} in steps of {step}", self.last)?,
        }
        write!(f, " {}", self.name)
    }
}

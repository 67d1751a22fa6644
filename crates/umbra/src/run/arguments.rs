//! The options of `umbra run`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::value_parser;
use umbra_telemetry::GuestFaults;
use umbra_telemetry::memory::MIN_SHADOW_FRAMES;

use crate::machine::Machine;

/// Boot a guest and end with it.
///
/// The guest's COM1 is this terminal: its output, and that of its debug console (port 0xe9), goes to standard
/// output; messages and the table of exits go to standard error. On a terminal every key goes to the guest, except
/// after Ctrl-A: X ends the machine, Ctrl-A sends one, H shows help.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 the guest powered off (ACPI S5, `Shutdown` to port 0x8900, or 0 to port \
    0x501 or 0xf4); 1 the guest ended in another way; 2 wrong input or a missing program; 3 the emulator or the \
    hypervisor failed, memory outside the guest was changed, or a result could not be written; 124 time-out; 130 ended \
    by Ctrl-A X, or 128 + the number of the signal that ended it (Ctrl-C: 130)."
)]
pub struct Arguments {
    /// Linux kernel (bzImage), or a small kernel with a multiboot header (version 0.6.96, such as an ELF32 file)
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,

    /// Linux's initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// A multiboot kernel's module, and what it is told about it; more than one may be given
    #[arg(long = "module", value_name = "FILE [TEXT]")]
    pub modules: Vec<String>,

    /// The kernel's command line [default: `console=ttyS0` for Linux]; a multiboot kernel gets its name before it
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub append: Option<String>,

    /// Guest memory in MiB, or with a suffix M or G
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "192",
        value_parser = parse_memory,
        allow_negative_numbers = true
    )]
    pub memory: u32,

    /// The CPU that is emulated: `penryn` (Intel Core 2 T9600: no EPT, no VPID, open to Meltdown), `skylake` (Intel
    /// Skylake-X: VPID, PCID, SMEP, SMAP; its EPT is not used), or `bochs:MODEL` for another 64-bit Intel CPU with VMX
    /// (`bochs --help cpu` lists the models)
    #[arg(long, value_name = "NAME", default_value = "penryn", value_parser = str::parse::<Machine>)]
    pub machine: Machine,

    /// What runs the guest
    #[arg(long, value_enum, default_value_t = Hypervisor::Umbra)]
    pub hypervisor: Hypervisor,

    /// With --hypervisor kvm: the host's kernel (bzImage) [default: the guest's]
    #[arg(long, value_name = "FILE")]
    pub host_kernel: Option<PathBuf>,

    /// With --hypervisor kvm: the host's initramfs, which `cargo xtask bench` builds
    #[arg(long, value_name = "FILE")]
    pub host_initrd: Option<PathBuf>,

    /// What happens on the guest's own not-present page faults
    #[arg(long, value_enum, default_value_t = Policy::Bypass)]
    pub guest_faults: Policy,

    /// Frames for shadow page tables, 4 KiB each [default: 4096]
    #[arg(
        long,
        value_name = "N",
        value_parser = value_parser!(u32).range(i64::from(MIN_SHADOW_FRAMES)..),
        allow_negative_numbers = true
    )]
    pub shadow_frames: Option<u32>,

    /// End the guest after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, allow_negative_numbers = true)]
    pub timeout: Option<Duration>,

    /// Write the statistics as JSON
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,

    /// Record every exit and what the shadow MMU did in answer, for `umbra trace`
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// Check the shadow MMU's invariants: at each exit what it changed, and everything every N exits
    #[arg(
        long,
        value_name = "N",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = DEFAULT_AUDIT
    )]
    pub audit: Option<NonZeroU32>,

    /// Keep the emulator's own log
    #[arg(long, value_name = "FILE")]
    pub emulator_log: Option<PathBuf>,
}

/// A full check of a booted Linux costs some ten thousand exits' time.
const DEFAULT_AUDIT: &str = "10000";

/// A year: what is longer is a slip, and the clock must not overflow.
const MAX_SECONDS: u64 = 365 * 86_400;
/// `--hypervisor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Hypervisor {
    /// this one
    Umbra,
    /// Linux KVM without EPT, on a host Linux in the same machine
    Kvm,
    /// nothing: Linux on the bare machine
    None,
}

impl Hypervisor {
    /// Its name in options and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Hypervisor::Umbra => "umbra",
            Hypervisor::Kvm => "kvm",
            Hypervisor::None => "none",
        }
    }
}

/// `--guest-faults`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Policy {
    /// they go straight to the guest, if the CPU allows it
    Bypass,
    /// every page fault exits to the hypervisor
    Trap,
}

impl From<Policy> for GuestFaults {
    fn from(policy: Policy) -> GuestFaults {
        match policy {
            Policy::Bypass => GuestFaults::Bypass,
            Policy::Trap => GuestFaults::Trap,
        }
    }
}

/// MiB, `NM` or `NG`.
///
/// # Errors
/// Anything else.
pub fn parse_memory(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let number: Option<u32> = digits.parse().ok();
    number
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| String::from("give a number of MiB, or one with M or G, such as 192, 192M or 1G"))
}

/// Seconds, at least one.
///
/// # Errors
/// Anything else.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=MAX_SECONDS) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("give a whole number of seconds, from 1 to {MAX_SECONDS}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Test {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(options: &[&str]) -> Result<Arguments, clap::Error> {
        let all = ["umbra", "--kernel", "k"].iter().chain(options);
        Test::try_parse_from(all).map(|test| test.arguments)
    }

    #[test]
    fn defaults() {
        let arguments = parse(&[]).unwrap();
        assert_eq!(arguments.machine, Machine::Penryn);
        assert_eq!(arguments.memory, 192);
        assert_eq!(arguments.guest_faults, Policy::Bypass);
        assert_eq!((arguments.audit, arguments.timeout, arguments.shadow_frames), (None, None, None));
    }

    #[test]
    fn memory_has_suffixes() {
        for (text, mib) in [("64", 64), ("64M", 64), ("1G", 1024), ("2g", 2048)] {
            assert_eq!(parse_memory(text), Ok(mib));
        }
        for text in ["", "M", "-1", "1T", "1.5G", "4194304G"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn audit_takes_its_number_only_with_an_equals_sign() {
        assert_eq!(parse(&["--audit"]).unwrap().audit, NonZeroU32::new(10_000));
        assert_eq!(parse(&["--audit=7"]).unwrap().audit, NonZeroU32::new(7));
        assert_eq!(parse(&["--audit", "--timeout", "5"]).unwrap().timeout, Some(Duration::from_secs(5)));
        assert!(parse(&["--audit=0"]).is_err());
        assert!(parse(&["--timeout", "0"]).is_err());
        assert!(parse(&["--timeout", "18446744073709551615"]).is_err());
        for frames in ["0", "47", "-1", "4294967296", "many"] {
            assert!(parse(&["--shadow-frames", frames]).is_err(), "{frames}");
        }
        assert_eq!(parse(&["--shadow-frames", "48"]).unwrap().shadow_frames, Some(48));
    }

    #[test]
    fn an_append_may_start_with_a_hyphen() {
        assert_eq!(parse(&["--append", "-- sh"]).unwrap().append.as_deref(), Some("-- sh"));
    }
}

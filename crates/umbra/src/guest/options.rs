//! The options that say what is to boot, and how.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use serde::{Deserialize, Deserializer};
use umbra_telemetry::memory::MIN_SHADOW_FRAMES;
use umbra_telemetry::{GuestFaults, Mechanism};

use super::read::module_file;
use super::{check_append, check_file, check_machine_memory, read_module};
use crate::error::Error;
use crate::number::whole;
use crate::untrusted::Untrusted;

/// Options of each command that boots a guest, or makes what boots it.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Linux (bzImage), or a small multiboot kernel
    ///
    /// A multiboot kernel has a header of version 0.6.96, as an ELF32 file may.
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,

    /// Linux's initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// A multiboot kernel's module, and what it is told about it; more than one may be given
    #[arg(long = "module", value_name = "FILE [TEXT]", hide_short_help = true)]
    pub modules: Vec<String>,

    /// The kernel's command line
    ///
    /// For Linux it is `console=ttyS0` without this option. A multiboot kernel gets its name before
    /// it.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub append: Option<String>,

    /// Show the text on the guest's screen (VGA)
    ///
    /// The screen has 80 columns and 25 rows. It is shown at the guest's end, and before that
    /// whenever it has changed and then rested for a second of the machine's time; every two
    /// seconds if it never rests. For kernels and memory testers that write there only.
    #[arg(long)]
    pub screen: bool,

    /// Guest memory in MiB, or with M, G or T
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "192",
        value_parser = parse_memory,
        allow_negative_numbers = true
    )]
    pub memory: u32,

    /// Guest faults without an exit
    ///
    /// Which of the guest's own page faults go straight to the guest, if the CPU allows it.
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Policy::Auto)]
    pub guest_faults: Policy,

    /// Switch off ways around exits, to see what they are worth
    #[arg(
        long,
        value_name = "NAME[,NAME]",
        value_delimiter = ',',
        value_parser = mechanisms(),
        hide_short_help = true
    )]
    pub without: Vec<Mechanism>,

    /// Frames for shadow page tables, 4 KiB each [default: 4096]
    #[arg(
        long,
        value_name = "N",
        value_parser = whole::<u32>(MIN_SHADOW_FRAMES.into()..=u32::MAX.into()),
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    pub shadow_frames: Option<u32>,

    /// Check the shadow MMU's invariants
    ///
    /// The auditor looks at each exit at what it changed, and every N exits at everything.
    #[arg(
        long,
        value_name = "N",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = DEFAULT_AUDIT,
        value_parser = whole::<u32>(1..=u32::MAX.into())
    )]
    pub audit: Option<u32>,
}

impl Options {
    /// The files that are read.
    pub fn inputs(&self) -> impl Iterator<Item = &Path> {
        let modules = self.modules.iter().map(|module| module_file(module));
        std::iter::once(self.kernel.as_path()).chain(self.initrd.as_deref()).chain(modules)
    }

    /// Finds out what is wrong before all files are there ([`TO_BE_MADE`](super::TO_BE_MADE)).
    ///
    /// # Errors
    /// A file that cannot be read, or what no guest can have.
    pub fn check_ahead(&self) -> Result<(), Error> {
        check_append(self.append.as_deref())?;
        check_file("kernel", &self.kernel)?;
        self.initrd.iter().try_for_each(|initrd| check_file("initrd", initrd))?;
        self.modules.iter().try_for_each(|text| read_module(text).map(drop))?;
        check_machine_memory(self.memory, self.shadow_frames)
    }
}

/// A full check of a booted Linux costs some ten thousand exits' time.
const DEFAULT_AUDIT: &str = "10000";

/// `--guest-faults`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Policy {
    /// none: every page fault exits to the hypervisor
    Trap,
    /// those on entries that are not present
    Present,
    /// those of user mode
    User,
    /// what saves most by the faults that are seen; `bypass` is another name for it
    #[value(alias = "bypass")]
    Auto,
}

impl From<Policy> for GuestFaults {
    fn from(policy: Policy) -> GuestFaults {
        match policy {
            Policy::Trap => GuestFaults::Trap,
            Policy::Present => GuestFaults::Present,
            Policy::User => GuestFaults::User,
            Policy::Auto => GuestFaults::Auto,
        }
    }
}

/// Takes one name of `--without`.
pub fn mechanisms() -> impl TypedValueParser<Value = Mechanism> {
    let values = Mechanism::ALL.iter().map(|&mechanism| {
        let about = match mechanism {
            Mechanism::Detach => {
                "bursts of writes to a guest table detach it instead of being emulated"
            }
            Mechanism::Cr3 => "address-space switches to known roots make no exit",
            Mechanism::Invlpg => "INVLPG and INVPCID make no exit",
            Mechanism::Eager => "tables are filled whole when they are linked",
            Mechanism::FastEmulation => "a fast path emulates plain instructions that write tables",
            Mechanism::PrefetchTables => {
                "tables of an address space that comes into use are linked before they are used"
            }
            Mechanism::PrefetchAccessed => {
                "where write faults come entry after entry, A is set in the next entries"
            }
            Mechanism::ShadowWalk => "an exit is told from the shadow alone where it can be",
        };
        PossibleValue::new(mechanism.name()).help(about).aliases(mechanism.alias())
    });
    PossibleValuesParser::new(values)
        .map(|name| Mechanism::from_name(&name).expect("only names of mechanisms are let through"))
}

/// Each mechanism once, in the order of [`Mechanism::ALL`].
pub fn in_order(given: &[Mechanism]) -> Vec<Mechanism> {
    Mechanism::ALL.iter().copied().filter(|mechanism| given.contains(mechanism)).collect()
}

/// The names of mechanisms in results.
pub fn names(given: &[Mechanism]) -> Vec<Untrusted> {
    in_order(given).into_iter().map(|mechanism| mechanism.name().into()).collect()
}

/// Reads such names; those that mechanisms had before are replaced.
///
/// # Errors
/// It is no list of texts.
pub fn read_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Untrusted>, D::Error> {
    let mut names = Vec::<Untrusted>::deserialize(deserializer)?;
    for name in &mut names {
        if let Some(mechanism) = Mechanism::from_name(name.as_str()) {
            *name = mechanism.name().into();
        }
    }
    Ok(names)
}

/// MiB, `NM`, `NG` or `NT`.
///
/// # Errors
/// Anything else.
pub fn parse_memory(text: &str) -> Result<u32, String> {
    const UNITS: [([char; 2], u32); 3] =
        [(['M', 'm'], 1), (['G', 'g'], 1 << 10), (['T', 't'], 1 << 20)];
    let (digits, unit) = UNITS
        .into_iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))
        .unwrap_or((text, 1));
    let number: Option<u32> = digits.parse().ok();
    number.and_then(|number| number.checked_mul(unit)).ok_or_else(|| {
        String::from("give a number of MiB, or one with M, G or T, such as 192, 192M or 1G")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Test {
        #[command(flatten)]
        options: Options,
    }

    fn parse(given: &[&str]) -> Result<Options, clap::Error> {
        let all = ["umbra", "--kernel", "k"].iter().chain(given);
        Test::try_parse_from(all).map(|test| test.options)
    }

    #[test]
    fn defaults() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.memory, 192);
        assert_eq!(options.guest_faults, Policy::Auto);
        assert!(options.without.is_empty() && !options.screen);
        assert_eq!((options.audit, options.shadow_frames), (None, None));
    }

    #[test]
    fn memory_has_suffixes() {
        for (text, mib) in [("64", 64), ("64M", 64), ("1G", 1024), ("2g", 2048), ("1T", 1 << 20)] {
            assert_eq!(parse_memory(text), Ok(mib));
        }
        for text in ["", "M", "-1", "1P", "1.5G", "4194304G", "4096T"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn audit_takes_its_number_only_with_an_equals_sign() {
        assert_eq!(parse(&["--audit"]).unwrap().audit, Some(10_000));
        assert_eq!(parse(&["--audit=7"]).unwrap().audit, Some(7));
        assert_eq!(parse(&["--audit", "--memory", "5"]).unwrap().memory, 5);
        assert!(parse(&["--audit=0"]).is_err());
        for frames in ["0", "47", "-1", "4294967296", "many"] {
            assert!(parse(&["--shadow-frames", frames]).is_err(), "{frames}");
        }
        assert_eq!(parse(&["--shadow-frames", "48"]).unwrap().shadow_frames, Some(48));
    }

    #[test]
    fn bypass_is_another_name_for_auto() {
        for (name, policy) in [
            ("bypass", Policy::Auto),
            ("auto", Policy::Auto),
            ("user", Policy::User),
            ("trap", Policy::Trap),
        ] {
            assert_eq!(parse(&["--guest-faults", name]).unwrap().guest_faults, policy);
        }
        assert_eq!(GuestFaults::from(Policy::Auto).name(), "bypass");
    }

    #[test]
    fn mechanisms_are_named_once_and_in_order() {
        let without = |given: &[&str]| parse(given).map(|options| names(&options.without));
        assert_eq!(
            without(&["--without", "quick,cr3", "--without", "cr3"]).unwrap(),
            ["cr3", "fast_emulation"]
        );
        for wrong in ["", "CR3", "cr3,", "all", "cr3 quick"] {
            assert!(without(&["--without", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_append_may_start_with_a_hyphen() {
        assert_eq!(parse(&["--append", "-- sh"]).unwrap().append.as_deref(), Some("-- sh"));
    }
}

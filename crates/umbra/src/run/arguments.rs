//! The options of `umbra run`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::ConfigOptions;
use crate::error::Error;
use crate::guest;
use crate::machine::Machine;

/// Boot a guest and end with it.
///
/// The guest's COM1 is this terminal: its output, and that of its debug console (port 0xe9), goes
/// to standard output; messages and the table of exits go to standard error. On a terminal every
/// key goes to the guest, except after Ctrl-A: X ends the machine, Ctrl-A sends one, H shows help.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Exit status: 0 the guest powered off (ACPI S5, `Shutdown` to port 0x8900, or 0 to port \
    0x501 or 0xf4); 1 the guest ended in another way; 2 wrong input or a missing program; 3 the emulator or the \
    hypervisor failed, memory outside the guest was changed, or a result could not be written; 124 time-out; 130 ended \
    by Ctrl-A X, or 128 + the number of the signal that ended it (Ctrl-C: 130)."
)]
pub struct Arguments {
    /// What is to boot, and how.
    #[command(flatten)]
    pub guest: guest::Options,

    /// The machine: penryn, skylake, ryzen, qemu-svm, bochs:MODEL or kvm
    ///
    /// The CPU that is emulated: `penryn` (Intel Core 2 T9600: no EPT, no VPID, open to Meltdown),
    /// `skylake` (Intel Skylake-X: VPID, PCID, SMEP, SMAP; its EPT is not used), `ryzen` (AMD Ryzen
    /// 1700: SVM, of which nested paging is not used), `bochs:MODEL` for another 64-bit CPU with
    /// VMX or SVM (`bochs --help cpu` lists the models), `qemu-svm` (AMD EPYC with SVM in QEMU:
    /// several times as fast as Bochs, and less exact), or `kvm`: this host's own CPU, in QEMU with
    /// KVM and nested VMX (experimental: only its start has been tested)
    #[arg(long, value_name = "NAME", default_value = "penryn", value_parser = str::parse::<Machine>)]
    pub machine: Machine,

    /// What runs the guest
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Hypervisor::Umbra)]
    pub hypervisor: Hypervisor,

    /// With --hypervisor kvm: the host's kernel (bzImage) [default: the guest's]
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub host_kernel: Option<PathBuf>,

    /// With --hypervisor kvm: the host's initramfs, which `cargo xtask bench` builds
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub host_initrd: Option<PathBuf>,

    /// End the guest after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, allow_negative_numbers = true)]
    pub timeout: Option<Duration>,

    /// Write the statistics as JSON
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,

    /// Record every exit, for `umbra trace`
    ///
    /// With every exit is what the shadow MMU did in answer.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// Show exits by cause while the guest runs
    ///
    /// The view is on standard error; on a terminal it stays in place below the guest's output.
    /// Once a second the hypervisor is asked for its counts, which costs an exit for an interrupt:
    /// so runs differ a little, with --fixed-time, too.
    #[arg(long, hide_short_help = true)]
    pub watch: bool,

    /// Start the machine's clock at the same time in every run: then the same guest does the same
    /// each time
    #[arg(long, hide_short_help = true)]
    pub fixed_time: bool,

    /// Keep the emulator's own log
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub emulator_log: Option<PathBuf>,

    /// Options in a file.
    #[command(flatten)]
    pub config: ConfigOptions,
}

impl Arguments {
    /// The files that are read.
    pub fn inputs(&self) -> impl Iterator<Item = &Path> {
        let host =
            [&self.host_kernel, &self.host_initrd].into_iter().flatten().map(PathBuf::as_path);
        self.guest.inputs().chain(host)
    }

    /// Checks what a machine cannot do.
    ///
    /// # Errors
    /// An option that only emulated machines have, for another one.
    pub fn check(&self) -> Result<(), Error> {
        if self.fixed_time && !self.machine.is_emulated() {
            return Err(Error::Input(format!(
                "--fixed-time is for emulated machines, and --machine {} is none; leave it out",
                self.machine.name()
            )));
        }
        Ok(())
    }
}

/// A year: what is longer is a slip, and the clock must not overflow.
const MAX_SECONDS: u64 = 365 * 86_400;
/// `--hypervisor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Hypervisor {
    /// this one
    Umbra,
    /// Linux KVM without EPT, on a host Linux in the same machine
    Kvm,
    /// nothing: the guest on the bare machine
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
        assert_eq!((arguments.machine, arguments.timeout), (Machine::Penryn, None));
    }

    #[test]
    fn a_clock_that_cannot_be_set_is_refused() {
        let check = |machine| parse(&["--fixed-time", "--machine", machine]).unwrap().check();
        check("penryn").unwrap();
        check("bochs:core3").unwrap();
        check("qemu-svm").unwrap();
        assert!(
            check("kvm").unwrap_err().to_string().contains("--fixed-time is for emulated machines")
        );
    }

    #[test]
    fn a_time_out_is_whole_seconds_of_a_year() {
        assert_eq!(
            parse(&["--audit", "--timeout", "5"]).unwrap().timeout,
            Some(Duration::from_secs(5))
        );
        assert!(parse(&["--timeout", "0"]).is_err());
        assert!(parse(&["--timeout", "18446744073709551615"]).is_err());
    }
}

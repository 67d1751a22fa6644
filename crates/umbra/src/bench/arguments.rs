//! The options of `umbra bench`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use umbra_telemetry::{Mechanism, PHASE_NAMES};

use crate::cli::ConfigOptions;
use crate::error::Error;
use crate::guest::{Policy, mechanisms, parse_memory};
use crate::machine::Machine;
use crate::number::whole;
use crate::report::Statistics;
use crate::run::{Hypervisor, parse_seconds};

/// Run the workload and show what each operation costs.
///
/// Boots the given kernel with Umbra's own initramfs, always with the same command line. Prints the
/// exits of each phase's operations by cause, and their instructions. `cargo xtask bench` builds
/// and gives all the files.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Exit status: 0 all runs ended well; 2 wrong input or a missing program; else that of the run which \
    failed (as for `umbra run`)."
)]
pub struct Arguments {
    /// The guest's kernel (bzImage)
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,

    /// The guest's initramfs with the workload
    #[arg(long, value_name = "FILE")]
    pub initrd: PathBuf,

    /// What runs the guest
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Hypervisor::Umbra)]
    pub hypervisor: Hypervisor,

    /// Which page faults go straight to the guest, as for `umbra run`
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Policy::Auto, hide_short_help = true)]
    pub guest_faults: Policy,

    /// Switch off ways around exits of Umbra, to see what they are worth
    #[arg(
        long,
        value_name = "NAME[,NAME]",
        value_delimiter = ',',
        value_parser = mechanisms(),
        hide_short_help = true
    )]
    pub without: Vec<Mechanism>,

    /// Run the same against a peer, too, and compare
    #[arg(long, value_name = "PEER", value_enum)]
    pub against: Option<Against>,

    /// Measure what each way around exits is worth
    ///
    /// Runs Umbra whole, then once without each of the ways around exits; writes the results as
    /// JSON into this folder, and compares.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["against", "stats", "without", "hypervisor"])]
    pub ablation: Option<PathBuf>,

    /// The machine, as for `umbra run`
    #[arg(long, value_name = "NAME", default_value = "penryn", value_parser = str::parse::<Machine>)]
    pub machine: Machine,

    /// Guest memory in MiB, or with M, G or T
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "192",
        value_parser = parse_memory,
        allow_negative_numbers = true
    )]
    pub memory: u32,

    /// Show only this phase; more than one may be given
    ///
    /// The workload ends with the last of them: all phases before it run, too, for they change what
    /// it costs.
    #[arg(long = "phase", value_name = "NAME", value_delimiter = ',')]
    pub phases: Vec<String>,

    /// Run it so often, and take medians
    ///
    /// Each phase is that of the run with the median of instructions; the result tells how far
    /// apart the runs were.
    #[arg(long, value_name = "N", default_value = "1", value_parser = whole::<u32>(1..=10_000), allow_negative_numbers = true)]
    pub repeat: u32,

    /// A tenth of every count
    #[arg(long)]
    pub quick: bool,

    /// Beside so many other processes
    #[arg(long, value_name = "N", default_value = "0", value_parser = whole::<u32>(0..=1000), allow_negative_numbers = true)]
    pub alive: u32,

    /// End a guest after this many seconds
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "7200",
        value_parser = parse_seconds,
        allow_negative_numbers = true
    )]
    pub timeout: Duration,

    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,

    /// Write the peer's result as JSON
    #[arg(long, value_name = "FILE", requires = "against", hide_short_help = true)]
    pub against_stats: Option<PathBuf>,

    /// For KVM: the host's kernel (bzImage) [default: the guest's]
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub host_kernel: Option<PathBuf>,

    /// For KVM: the host's initramfs
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub host_initrd: Option<PathBuf>,

    /// Options in a file.
    #[command(flatten)]
    pub config: ConfigOptions,
}

/// `--against`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Against {
    /// Umbra with every page fault trapped
    Trap,
    /// Linux KVM without EPT
    Kvm,
    /// the bare machine
    None,
}

/// One thing that is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contestant {
    /// What runs the guest.
    pub hypervisor: Hypervisor,
    /// For Umbra.
    pub guest_faults: Policy,
    /// What Umbra does without.
    pub without: Vec<Mechanism>,
}

/// The phase from guest entry to the guest's first mark.
const BOOT: u32 = 0;

/// The guest's command line: the conditions of every measurement. A 250 Hz tick is rare against the
/// work (`ips` of the machine), and nothing is random.
const COMMAND_LINE: &str = "console=ttyS0 printk.time=0 nokaslr quiet panic=-1";

impl Arguments {
    /// What is measured, and where its result is written: what was asked for, and its peer; or all
    /// of an ablation.
    pub fn contestants(&self) -> Vec<(Contestant, Option<PathBuf>)> {
        if let Some(folder) = &self.ablation {
            let ways = Mechanism::ALL.iter().map(|&mechanism| vec![mechanism]);
            let contestant = |without: Vec<Mechanism>| {
                let name = without
                    .first()
                    .map_or("whole".into(), |mechanism| format!("without-{}", mechanism.name()));
                let (hypervisor, guest_faults) = (Hypervisor::Umbra, self.guest_faults);
                let contestant = Contestant { hypervisor, guest_faults, without };
                (contestant, Some(folder.join(format!("{name}.json"))))
            };
            return std::iter::once(Vec::new()).chain(ways).map(contestant).collect();
        }
        let contestant = |hypervisor, guest_faults| {
            let without =
                if hypervisor == Hypervisor::Umbra { self.without.clone() } else { Vec::new() };
            Contestant { hypervisor, guest_faults, without }
        };
        let second = self.against.map(|against| match against {
            Against::Trap => contestant(Hypervisor::Umbra, Policy::Trap),
            Against::Kvm => contestant(Hypervisor::Kvm, self.guest_faults),
            Against::None => contestant(Hypervisor::None, self.guest_faults),
        });
        let first = (contestant(self.hypervisor, self.guest_faults), self.stats.clone());
        std::iter::once(first)
            .chain(second.map(|second| (second, self.against_stats.clone())))
            .collect()
    }

    /// Checks that no option is for something that is not measured.
    ///
    /// # Errors
    /// One is.
    pub fn check(&self) -> Result<(), Error> {
        let measured =
            |hypervisor| self.contestants().iter().any(|(one, _)| one.hypervisor == hypervisor);
        if let (Some(against), [(one, _), (other, _)]) = (self.against, &self.contestants()[..])
            && one == other
        {
            let name =
                against.to_possible_value().map_or_else(String::new, |v| v.get_name().into());
            return Err(Error::Input(format!(
                "--against {name} is what is measured already; give another peer, or --repeat 2"
            )));
        }
        if self.guest_faults != Policy::Auto && !measured(Hypervisor::Umbra) {
            return Err(Error::Input(
                "--guest-faults is for Umbra, which is not measured here; leave it out".into(),
            ));
        }
        if !self.without.is_empty() && !measured(Hypervisor::Umbra) {
            return Err(Error::Input(
                "--without is for Umbra, which is not measured here; leave it out".into(),
            ));
        }
        if (self.host_kernel.is_some() || self.host_initrd.is_some()) && !measured(Hypervisor::Kvm)
        {
            return Err(Error::Input(
                "--host-kernel and --host-initrd are for KVM, which is not measured here; leave them out"
                    .into(),
            ));
        }
        Ok(())
    }

    /// The files that are read.
    pub fn inputs(&self) -> impl Iterator<Item = &Path> {
        let host = [&self.host_kernel, &self.host_initrd].into_iter().flatten();
        [&self.kernel, &self.initrd].into_iter().chain(host).map(PathBuf::as_path)
    }

    /// The guest's command line.
    ///
    /// # Errors
    /// A phase that does not exist, or has no workload of its own.
    pub fn command_line(&self) -> Result<String, Error> {
        let mut line = String::from(COMMAND_LINE);
        if self.quick {
            line += " umbra.quick";
        }
        if self.alive > 0 {
            line += &format!(" umbra.alive={}", self.alive);
        }
        // `boot` runs always.
        let known = &PHASE_NAMES[1..];
        if let Some(unknown) = self.phases.iter().find(|phase| !known.contains(&phase.as_str())) {
            return Err(Error::Input(format!(
                "phase {unknown} is unknown; --phase takes one of {}",
                known.join(", ")
            )));
        }
        if !self.phases.is_empty() {
            line += " umbra.phases=";
            line += &self.phases.join(",");
        }
        Ok(line)
    }

    /// Keeps the phases that were asked for, and `boot`, of a result that has those before them,
    /// too.
    pub fn select(&self, result: &mut Statistics) {
        if !self.phases.is_empty() {
            result.phases.retain(|phase| {
                phase.id == BOOT || self.phases.iter().any(|name| phase.name == name.as_str())
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::report::tests::statistics;

    #[derive(Parser)]
    struct Test {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(options: &[&str]) -> Arguments {
        let all = ["umbra", "--kernel", "k", "--initrd", "i"].iter().chain(options);
        Test::parse_from(all).arguments
    }

    #[test]
    fn a_peer_comes_second() {
        let names = |options: &[&str]| {
            let contestants = parse(options).contestants();
            contestants
                .iter()
                .map(|(c, _)| (c.hypervisor.name(), c.guest_faults))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), [("umbra", Policy::Auto)]);
        assert_eq!(
            names(&["--against", "trap"]),
            [("umbra", Policy::Auto), ("umbra", Policy::Trap)]
        );
        assert_eq!(names(&["--against", "kvm"])[1].0, "kvm");
        assert_eq!(names(&["--hypervisor", "kvm", "--against", "none"])[1].0, "none");
        let contestants = parse(&["--without", "eager", "--against", "kvm"]).contestants();
        assert_eq!(contestants[0].0.without, [Mechanism::Eager]);
        assert!(contestants[1].0.without.is_empty());
    }

    #[test]
    fn an_ablation_is_the_whole_and_all_but_one() {
        let contestants = parse(&["--ablation", "d", "--guest-faults", "present"]).contestants();
        assert_eq!(contestants.len(), 1 + Mechanism::ALL.len());
        let (whole, path) = &contestants[0];
        assert_eq!((whole.without.len(), whole.guest_faults), (0, Policy::Present));
        assert_eq!(path.as_deref(), Some(Path::new("d/whole.json")));
        assert_eq!(contestants[2].0.without, [Mechanism::Cr3]);
        assert_eq!(contestants[2].1.as_deref(), Some(Path::new("d/without-cr3.json")));
        let all = |more: &[&'static str]| {
            let given = ["umbra", "--kernel", "k", "--initrd", "i", "--ablation", "d"];
            Test::try_parse_from(given.iter().chain(more)).is_ok()
        };
        assert!(all(&["--repeat", "3"]));
        for other in
            [["--against", "kvm"], ["--without", "cr3"], ["--stats", "s"], ["--hypervisor", "kvm"]]
        {
            assert!(!all(&other), "{other:?}");
        }
    }

    #[test]
    fn options_for_nobody_are_refused() {
        for (options, well) in [
            (&["--without", "cr3"][..], true),
            (&["--without", "cr3", "--hypervisor", "none"], false),
            (&["--without", "cr3", "--hypervisor", "none", "--against", "trap"], true),
            (&["--guest-faults", "trap", "--hypervisor", "kvm"], false),
            (&["--guest-faults", "trap", "--against", "none"], true),
            (&["--host-initrd", "x"], false),
            (&["--host-initrd", "x", "--against", "kvm"], true),
            (&["--hypervisor", "none", "--against", "none"], false),
            (&["--guest-faults", "trap", "--against", "trap"], false),
            (&["--guest-faults", "trap", "--against", "kvm"], true),
        ] {
            assert_eq!(parse(options).check().is_ok(), well, "{options:?}");
        }
    }

    #[test]
    fn only_the_phases_that_were_asked_for_are_shown() {
        let phases = |options: &[&str]| {
            let mut result = statistics();
            let mut boot = result.phases[0].clone();
            (boot.id, boot.name) = (BOOT, PHASE_NAMES[0].into());
            result.phases.insert(0, boot);
            parse(options).select(&mut result);
            result.phases.into_iter().map(|phase| phase.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(phases(&[]), ["boot", "demand", "phase-99"]);
        assert_eq!(phases(&["--phase", "pipe,demand"]), ["boot", "demand"]);
    }

    #[test]
    fn phases_go_to_the_guest() {
        let line =
            parse(&["--phase", "demand", "--phase", "pipe", "--quick"]).command_line().unwrap();
        assert!(line.ends_with(" umbra.quick umbra.phases=demand,pipe"), "{line}");
        assert!(parse(&["--alive", "200"]).command_line().unwrap().ends_with(" umbra.alive=200"));
        assert_eq!(parse(&[]).command_line().unwrap(), COMMAND_LINE);
        let document = include_str!("../../../../docs/measurements.md");
        assert!(
            document.contains(&format!("`{COMMAND_LINE}`")),
            "docs/measurements.md names another line"
        );
        for wrong in ["nap", "boot", ""] {
            let sentence = parse(&["--phase", wrong]).command_line().unwrap_err().to_string();
            assert!(sentence.contains("is unknown") && sentence.contains("getppid"), "{sentence}");
        }
    }
}

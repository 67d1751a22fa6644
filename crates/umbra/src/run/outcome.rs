//! How a run ended, and what that means for the user.

use umbra_telemetry::{BootConfig, GuestExit, Stats};

use super::{Hypervisor, peer};
use crate::error::status;
use crate::guest;
use crate::report::{self, Audits, EmulatorUse, Mmu, Phase, SCHEMA, Statistics};

/// Why a run is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest ended by itself.
    Guest,
    /// These seconds of `--timeout` passed.
    Timeout(u64),
    /// The user ended it; this is the exit status.
    User(u8),
    /// The hypervisor could not go on, in its words.
    HypervisorFailed(String),
    /// The emulator ended without a report; why, in words.
    EmulatorDied(String),
    /// The guest ended by itself on the bare machine, where nobody reports.
    Bare(GuestExit),
    /// A capture ends before the guest.
    CutOff,
}

/// All that is known after a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it is over.
    pub end: End,
    /// The hypervisor's report. Always there if the guest ended by itself.
    pub stats: Option<Stats>,
    /// What the emulator cost, if that is known.
    pub emulator: Option<EmulatorUse>,
    /// The page faults that the guest has counted itself, if it has said so.
    pub guest_faults: Option<u64>,
}

/// What was run, and on what.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// What ran the guest.
    pub hypervisor: Hypervisor,
    /// The machine's name.
    pub machine: &'a str,
    /// Whether the machine counts one tick for each instruction.
    pub ticks_are_instructions: bool,
    /// What the hypervisor was told.
    pub config: &'a BootConfig,
}

impl Outcome {
    /// The exit status of the command.
    pub fn status(&self) -> u8 {
        match (&self.end, &self.stats) {
            (End::Guest, Some(stats)) if stats.guest_exit.is_success() => 0,
            (End::Bare(exit), _) if exit.is_success() => 0,
            // No guest may be able to do that.
            (End::Guest, Some(Stats { guest_exit: GuestExit::CanaryBroken { .. }, .. })) => {
                status::MACHINE_FAILED
            }
            (End::Guest | End::Bare(_), _) => status::GUEST_FAILED,
            (End::Timeout(_), _) => status::TIMEOUT,
            (End::User(status), _) => *status,
            (End::HypervisorFailed(_) | End::EmulatorDied(_) | End::CutOff, _) => {
                status::MACHINE_FAILED
            }
        }
    }

    /// The end for the user.
    pub fn sentence(&self) -> String {
        match (&self.end, &self.stats) {
            (End::Guest, Some(stats)) => report::describe_exit(&stats.guest_exit),
            (End::Guest, None) => "the guest ended".into(),
            (End::Bare(exit), _) => report::describe_exit(exit),
            (End::Timeout(seconds), stats) => {
                let report = if stats.is_some() { "" } else { ", and its exits are not known" };
                format!(
                    "time-out: the guest did not end within {seconds} s{report}; \
                     --timeout can give it more"
                )
            }
            (End::User(_), _) => "ended by the user".into(),
            (End::HypervisorFailed(why), _) => format!("the hypervisor cannot go on: {why}"),
            (End::EmulatorDied(why), _) => why.clone(),
            (End::CutOff, _) => {
                "the capture ends, or the machine starts again, before the guest has ended: there is no \
                                 report of its exits"
                    .into()
            }
        }
    }

    /// `guest_exit` in the statistics.
    fn key(&self) -> String {
        match (&self.end, &self.stats) {
            (End::Guest, Some(stats)) => report::exit_key(&stats.guest_exit),
            (End::Bare(exit), _) => report::exit_key(exit),
            (End::Guest | End::EmulatorDied(_), _) => "emulator_died".into(),
            (End::CutOff, _) => "cut_off".into(),
            (End::Timeout(_), _) => "timeout".into(),
            (End::User(_), _) => "stopped".into(),
            (End::HypervisorFailed(why), _) => format!("hypervisor_failed: {why}"),
        }
    }

    /// The statistics of the run.
    pub fn statistics(&self, subject: &Subject<'_>) -> Statistics {
        let &Subject { hypervisor, machine, ticks_are_instructions, config } = subject;
        let stats = self.stats.as_ref();
        let guest_faults = match hypervisor {
            // Nothing is there that could trap them.
            Hypervisor::None => "none",
            _ => stats.map_or(config.guest_faults, |stats| stats.guest_faults).name(),
        };
        let tsc = stats.map(|stats| stats.tsc).filter(|_| hypervisor != Hypervisor::None);
        let own = hypervisor == Hypervisor::Umbra;
        let (exits, kvm) = stats
            .map_or((None, None), |stats| peer::exits(hypervisor, &stats.exits, &stats.counters));
        let audits = stats.map(|stats| stats.audits).filter(|_| config.audit.is_some());
        Statistics {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").into(),
            hypervisor: hypervisor.name().into(),
            machine: machine.into(),
            kernel: config.kernel.clone().into(),
            cmdline: config.append.clone().into(),
            memory: config.memory_mib,
            guest_faults: guest_faults.into(),
            without: guest::names(&config.without),
            filter: stats.map(|stats| stats.filter.clone().into()).filter(|_| own),
            guest_exit: self.key().into(),
            memory_exits: exits.as_ref().and_then(|exits| exits.memory(kvm.as_ref())),
            exits,
            kvm,
            mmu: stats.map(|stats| Mmu::from(stats.mmu)).filter(|_| own),
            instructions: tsc.filter(|_| ticks_are_instructions),
            tsc,
            phases: stats.map_or_else(Vec::new, |stats| {
                let phases = stats.phases.iter().map(|phase| {
                    let (exits, kvm) = peer::exits(hypervisor, &phase.exits, &phase.counters);
                    Phase::new(phase, exits, kvm, own, ticks_are_instructions)
                });
                phases.collect()
            }),
            canary: stats.and_then(|stats| stats.canary),
            audits: audits.map(|(per_exit, full)| Audits { per_exit, full }),
            emulator: self.emulator,
        }
    }
}

#[cfg(test)]
mod tests {
    use umbra_telemetry::{GuestFaults, Mechanism, PROTOCOL};

    use super::*;

    fn outcome(end: End, guest_exit: Option<GuestExit>) -> Outcome {
        let stats = guest_exit.map(|guest_exit| Stats {
            guest_exit,
            guest_faults: GuestFaults::Trap,
            filter: "trap".into(),
            exits: Default::default(),
            mmu: Default::default(),
            tsc: 9,
            counters: Vec::new(),
            phases: Vec::new(),
            audits: (0, 0),
            canary: Some(4096),
        });
        let emulator = EmulatorUse { seconds: 1.5, peak_memory: 2.0 };
        Outcome { end, stats, emulator: Some(emulator), guest_faults: None }
    }

    #[test]
    fn the_exit_status_follows_the_end() {
        let port = |value| Some(GuestExit::ExitPort { port: 0x501, value });
        for (end, exit, status, key) in [
            (End::Guest, Some(GuestExit::AcpiOff), 0, "acpi_off"),
            (End::Guest, Some(GuestExit::Shutdown), 0, "shutdown"),
            (End::Guest, port(0), 0, "exit_port:0x501=0"),
            (End::Guest, port(1), 1, "exit_port:0x501=1"),
            (End::Guest, Some(GuestExit::Reset), 1, "reset"),
            (End::Guest, Some(GuestExit::TripleFault), 1, "triple_fault"),
            (End::Guest, Some(GuestExit::Halted), 1, "halted"),
            (End::Guest, Some(GuestExit::Unsupported("LA57".into())), 1, "unsupported: LA57"),
            (End::Guest, Some(GuestExit::CanaryBroken { hpa: 0x1000 }), 3, "canary_broken: 0x1000"),
            (End::Timeout(5), Some(GuestExit::Stopped), 124, "timeout"),
            (End::Timeout(5), None, 124, "timeout"),
            (End::User(130), Some(GuestExit::Stopped), 130, "stopped"),
            (End::EmulatorDied("why".into()), None, 3, "emulator_died"),
            (End::HypervisorFailed("why".into()), None, 3, "hypervisor_failed: why"),
            (End::CutOff, None, 3, "cut_off"),
            (End::Bare(GuestExit::Shutdown), None, 0, "shutdown"),
            (End::Bare(GuestExit::TripleFault), None, 1, "triple_fault"),
        ] {
            let outcome = outcome(end, exit);
            assert_eq!((outcome.status(), outcome.key().as_str()), (status, key));
        }
    }

    #[test]
    fn statistics_say_what_was_in_force() {
        let config = BootConfig {
            protocol: PROTOCOL,
            memory_mib: 192,
            guest_faults: GuestFaults::Auto,
            without: vec![Mechanism::Cr3],
            shadow_frames: None,
            audit: None,
            trace: false,
            screen: false,
            kernel: "6.1".into(),
            append: "quiet".into(),
            modules: Vec::new(),
        };
        let subject = Subject {
            hypervisor: Hypervisor::Umbra,
            machine: "penryn",
            ticks_are_instructions: true,
            config: &config,
        };
        let reported = outcome(End::Guest, Some(GuestExit::AcpiOff)).statistics(&subject);
        assert_eq!((reported.guest_faults.as_str(), reported.instructions), ("trap", Some(9)));
        assert_eq!(reported.without, ["cr3"]);
        let silent = outcome(End::Timeout(5), None).statistics(&subject);
        assert_eq!((silent.guest_faults.as_str(), silent.exits), ("bypass", None));
        // Without a hypervisor nobody decides where faults go.
        let bare = Subject { hypervisor: Hypervisor::None, ..subject };
        for outcome in
            [outcome(End::Guest, Some(GuestExit::Shutdown)), outcome(End::Timeout(5), None)]
        {
            assert_eq!(outcome.statistics(&bare).guest_faults.as_str(), "none");
        }
        // A real CPU's time-stamp counter counts no instructions.
        let real = Subject { machine: "kvm", ticks_are_instructions: false, ..subject };
        let real = outcome(End::Guest, Some(GuestExit::AcpiOff)).statistics(&real);
        assert_eq!((real.instructions, real.tsc), (None, Some(9)));
    }
}

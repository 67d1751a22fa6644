//! Which exits of a trace are wanted.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use clap::builder::PossibleValuesParser;
use umbra_telemetry::trace::{Exit, MmuEvent, Record};
use umbra_telemetry::{ExitCause, phase_name};

/// What an exit must have to be shown: all of it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Filter {
    /// Only exits with one of these causes
    ///
    /// They are the keys of the exit table; one that ends in `*` stands for all that start so.
    #[arg(long = "cause", value_name = "CAUSE", value_delimiter = ',', value_parser = parse_causes)]
    causes: Vec<Causes>,

    /// Only exits in answer to which the shadow MMU did one of these
    #[arg(long = "event", value_name = "EVENT", value_delimiter = ',', value_parser = kinds(), hide_short_help = true)]
    events: Vec<String>,

    /// Only exits during one of these phases
    #[arg(long = "phase", value_name = "NAME", value_delimiter = ',')]
    phases: Vec<String>,

    /// Only exits of instructions in this range
    #[arg(long, value_name = "A[..B]", value_parser = parse_range, allow_negative_numbers = true)]
    rip: Option<RangeInclusive<u64>>,

    /// Only exits about this gva, port, MSR or leaf
    #[arg(long, value_name = "A[..B]", value_parser = parse_range, allow_negative_numbers = true)]
    address: Option<RangeInclusive<u64>>,

    /// Only exits about this gpa
    ///
    /// That is a table that is written, or a device.
    #[arg(long, value_name = "A[..B]", value_parser = parse_range, allow_negative_numbers = true)]
    gpa: Option<RangeInclusive<u64>>,

    /// Only exits with this value in the guest's CR3
    #[arg(long, value_name = "A[..B]", value_parser = parse_range, allow_negative_numbers = true)]
    cr3: Option<RangeInclusive<u64>>,

    /// Only exits at this time, in ticks since guest entry
    #[arg(long, value_name = "A[..B]", value_parser = parse_range, allow_negative_numbers = true)]
    time: Option<RangeInclusive<u64>>,
}

/// The causes behind one word of `--cause`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Causes(Vec<ExitCause>);

/// The phases that run at some place of a trace.
#[derive(Clone, Debug)]
pub struct Running(BTreeSet<u32>);

impl Default for Running {
    /// At guest entry, `boot` runs.
    fn default() -> Running {
        Running(BTreeSet::from([0]))
    }
}

impl Running {
    /// Follows the trace.
    pub fn follow(&mut self, record: &Record) {
        match record {
            Record::PhaseStart(id) => {
                self.0.insert(*id);
            }
            Record::PhaseEnd(id) => {
                self.0.remove(id);
            }
            Record::Exit(_) | Record::Mmu(_) | Record::Dropped(_) => (),
        }
    }
}

impl Filter {
    /// Whether an exit is wanted, in answer to which the MMU did `events`.
    pub fn wants(&self, exit: &Exit, events: &[MmuEvent], running: &Running) -> bool {
        let within = |range: &Option<RangeInclusive<u64>>, value: Option<u64>| {
            range.as_ref().is_none_or(|range| value.is_some_and(|value| range.contains(&value)))
        };
        let cause = |causes: &Causes| exit.cause.is_some_and(|cause| causes.0.contains(&cause));
        let event = |event: &MmuEvent| self.events.iter().any(|wanted| wanted == event.kind());
        (self.causes.is_empty() || self.causes.iter().any(cause))
            && (self.events.is_empty() || events.iter().any(event))
            && (self.phases.is_empty() || running.0.iter().any(|&id| self.wants_phase(id)))
            && within(&self.rip, Some(exit.rip))
            && within(&self.address, exit.address)
            && within(&self.gpa, exit.gpa)
            && within(&self.cr3, Some(exit.cr3))
            && within(&self.time, Some(exit.time))
    }

    /// Whether a phase is among those that are asked for.
    pub fn wants_phase(&self, id: u32) -> bool {
        self.phases.is_empty() || self.phases.contains(&phase_name(id))
    }

    /// The phases that are asked for.
    pub fn phases(&self) -> &[String] {
        &self.phases
    }
}

fn kinds() -> PossibleValuesParser {
    PossibleValuesParser::new(MmuEvent::KINDS)
}

fn parse_causes(text: &str) -> Result<Causes, String> {
    let causes: Vec<_> = match text.strip_suffix('*') {
        Some(stem) => {
            ExitCause::ALL.iter().copied().filter(|cause| cause.name().starts_with(stem)).collect()
        }
        None => ExitCause::from_name(text).into_iter().collect(),
    };
    if causes.is_empty() {
        let names: Vec<_> = ExitCause::ALL.iter().map(|cause| cause.name()).collect();
        return Err(format!("there is no such cause; there are {}", names.join(", ")));
    }
    Ok(Causes(causes))
}

/// `A` or `A..B` with B included; numbers are decimal, or hexadecimal with 0x.
fn parse_range(text: &str) -> Result<RangeInclusive<u64>, String> {
    let number = |text: &str| {
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        }
        .map_err(|_| format!("give a number such as 4096 or 0x1000, or a range A..B, not {text:?}"))
    };
    let (start, end) = text.split_once("..").unwrap_or((text, text));
    let (start, end) = (number(start)?, number(end)?);
    if start > end {
        return Err(format!("the range ends before it starts: {start:#x}..{end:#x}"));
    }
    Ok(start..=end)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Test {
        #[command(flatten)]
        filter: Filter,
    }

    fn filter(options: &[&str]) -> Filter {
        Test::try_parse_from(["test"].iter().chain(options)).unwrap().filter
    }

    fn exit() -> Exit {
        Exit {
            time: 100,
            ticks: 5,
            vcpu: 0,
            rip: 0x1000,
            cr3: 0x2000,
            cause: Some(ExitCause::HostFaultInstall),
            address: Some(0x3000),
            value: None,
            gpa: None,
            delivers: None,
        }
    }

    #[test]
    fn all_that_is_asked_for_must_hold() {
        let running = Running::default();
        for (options, wanted) in [
            (&[][..], true),
            (&["--cause", "host_fault_install"], true),
            (&["--cause", "io,host_*"], true),
            (&["--cause", "io"], false),
            (&["--phase", "boot"], true),
            (&["--phase", "demand"], false),
            (&["--rip", "4096"], true),
            (&["--rip", "0x1001..0x2000"], false),
            (&["--address", "0x2fff..0x3000", "--cr3", "0x2000"], true),
            (&["--address", "0x3000", "--cr3", "0x2001"], false),
            (&["--gpa", "0..0xffffffffffffffff"], false),
            (&["--time", "100..200"], true),
            (&["--event", "attached,detached"], true),
            (&["--event", "attached"], false),
        ] {
            let events = [MmuEvent::Flushed, MmuEvent::Detached(3)];
            assert_eq!(filter(options).wants(&exit(), &events, &running), wanted, "{options:?}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for options in [
            ["--cause", "iox"],
            ["--event", "attach"],
            ["--rip", "x"],
            ["--rip", "5..4"],
            ["--time", "1-2"],
        ] {
            assert!(Test::try_parse_from(["test"].iter().chain(&options)).is_err(), "{options:?}");
        }
    }

    #[test]
    fn phases_are_followed() {
        let mut running = Running::default();
        [Record::PhaseEnd(0), Record::PhaseStart(2), Record::PhaseStart(40)]
            .iter()
            .for_each(|r| running.follow(r));
        for (phase, runs) in
            [("boot", false), ("demand", true), ("phase-40", true), ("pipe", false)]
        {
            assert_eq!(filter(&["--phase", phase]).wants(&exit(), &[], &running), runs, "{phase}");
        }
    }
}

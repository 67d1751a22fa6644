//! `--watch`: the exits by cause while the guest runs.

use std::time::{Duration, Instant};

use umbra_telemetry::{ExitCause, ExitCounts};

use crate::console::{Live, Table};

/// How often it is asked for.
const EVERY: Duration = Duration::from_secs(1);

/// Causes that are shown.
const SHOWN: usize = 8;

/// What was counted at some moment.
struct Sample {
    at: Instant,
    exits: ExitCounts,
    tsc: u64,
}

/// The view, and what it was made of last.
pub struct Watch {
    asked: Option<Instant>,
    last: Option<Sample>,
    live: Live,
}

impl Watch {
    /// Nothing is known yet.
    pub fn start() -> Watch {
        Watch { asked: None, last: None, live: Live::start() }
    }

    /// Whether it is time to ask the hypervisor.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= EVERY);
        if due {
            self.asked = Some(now);
        }
        due
    }

    /// The hypervisor's answer; the first one has nothing to be compared with. On a terminal it is
    /// shown only where the guest has ended its line.
    pub fn answer(&mut self, now: Instant, exits: ExitCounts, tsc: u64, at_line_start: bool) {
        let sample = Sample { at: now, exits, tsc };
        if let Some(last) = self.last.replace(sample)
            && let Some(sample) = &self.last
            && at_line_start
        {
            self.live.show(&view(&last, sample));
        }
    }

    /// Takes the view away, so that something else can be printed.
    pub fn clear(&mut self) {
        self.live.clear();
    }
}

/// The causes that there were most exits of between two samples.
fn view(last: &Sample, now: &Sample) -> String {
    let seconds = now.at.saturating_duration_since(last.at).as_secs_f64().max(1e-3);
    let ticks = now.tsc.saturating_sub(last.tsc).max(1) as f64;
    // What comes from a machine may be anything, and less than before.
    let since =
        |(cause, count): (ExitCause, u64)| (cause, count.saturating_sub(last.exits.get(cause)));
    let mut causes: Vec<(ExitCause, u64)> =
        now.exits.iter().map(since).filter(|&(_, count)| count > 0).collect();
    let total = causes.iter().fold(0_u64, |sum, &(_, count)| sum.saturating_add(count));
    let mut table =
        Table::new(1, ["exits now", "per second", "%", "per million ticks", "so far"]).indent(30);
    let mut row = |name: &str, count: u64, so_far: u64| {
        table.row([
            name.into(),
            format!("{:.0}", count as f64 / seconds),
            format!("{:.1}", count as f64 * 100.0 / total.max(1) as f64),
            format!("{:.2}", count as f64 * 1e6 / ticks),
            so_far.to_string(),
        ]);
    };
    causes.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    for &(cause, count) in causes.iter().take(SHOWN) {
        row(cause.name(), count, now.exits.get(cause));
    }
    row("total", total, now.exits.total());
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_exits_stand_first_and_are_rates() {
        let start = Instant::now();
        let sample = |seconds: u64, counts: &[(ExitCause, u64)], tsc| Sample {
            at: start + Duration::from_secs(seconds),
            exits: counts.iter().copied().collect(),
            tsc,
        };
        let last = sample(0, &[(ExitCause::Io, 100), (ExitCause::Hlt, 7)], 0);
        let now = sample(
            2,
            &[(ExitCause::Io, 110), (ExitCause::Hlt, 7), (ExitCause::Cpuid, 90)],
            4_000_000,
        );
        let text = view(&last, &now);
        let rows: Vec<Vec<&str>> =
            text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            rows,
            [
                ["cpuid", "45", "90.0", "22.50", "90"],
                ["io", "5", "10.0", "2.50", "110"],
                ["total", "50", "100.0", "25.00", "207"],
            ]
        );
        // Nothing since is no division by zero.
        assert!(view(&now, &sample(2, &[(ExitCause::Io, 110)], 4_000_000)).contains("total"));
    }

    #[test]
    fn it_asks_once_a_second() {
        let (mut watch, now) = (Watch::start(), Instant::now());
        assert!(watch.is_due(now) && !watch.is_due(now + Duration::from_millis(999)));
        assert!(watch.is_due(now + EVERY));
    }
}

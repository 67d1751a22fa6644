//! A trace in the figures that a page shows: exits through the boot, host faults by region over the
//! whole run.

use std::collections::BTreeMap;
use std::path::Path;

use umbra_telemetry::ExitCause;
use umbra_telemetry::trace::{Exit, Record};

use super::bins::{self, Clock};
use super::groups::{ByGroup, GROUPS, group_of};
use super::regions::{self, Region};
use crate::error::Error;
use crate::report::name_of;
use crate::trace::{Head, Line, Reader, Tail};
use crate::untrusted::Untrusted;

/// Slices of time in a picture, at most.
const SLICES: usize = 64;

/// Rows of the heat map, at most.
const ROWS: usize = 24;

/// The phase from guest entry to the guest's first mark.
const BOOT: u32 = 0;

/// A trace.
#[derive(Debug)]
pub struct History {
    /// What the user calls the file.
    pub file: Untrusted,
    /// What was traced.
    pub head: Head,
    /// How it ended.
    pub tail: Tail,
    /// Records that were lost or dropped.
    pub lost: u64,
    /// Exits in the trace.
    pub exits: u64,
    /// When the boot ended; `None` if the guest made no mark.
    pub boot_end: Option<u64>,
    /// Exits by group, through the boot.
    pub boot: Slices<ByGroup>,
    /// Host faults.
    pub heat: Heat,
}

/// Equal slices of time from guest entry on.
#[derive(Debug)]
pub struct Slices<T> {
    /// Ticks of a slice; the last one may be cut off.
    pub width: u64,
    /// When the last one ends.
    pub end: u64,
    /// What each slice has.
    pub slices: Vec<T>,
}

impl<T> Slices<T> {
    /// When a slice starts, and ends.
    pub fn times(&self, slice: usize) -> (u64, u64) {
        let start = self.width.saturating_mul(slice as u64).min(self.end);
        (start, start.saturating_add(self.width).min(self.end))
    }
}

/// Host faults by region and time.
#[derive(Debug)]
pub struct Heat {
    /// Ascending.
    pub regions: Vec<Region>,
    /// For each slice, the host faults of each region.
    pub over_time: Slices<Vec<u64>>,
    /// For each region, host faults by [`HOST_FAULTS`].
    pub by_cause: Vec<[u64; HOST_FAULTS.len()]>,
}

/// The causes that are host faults.
pub const HOST_FAULTS: &[ExitCause] = &[
    ExitCause::HostFaultLink,
    ExitCause::HostFaultInstall,
    ExitCause::HostFaultDirty,
    ExitCause::HostFaultAccessed,
    ExitCause::HostFaultTableWrite,
    ExitCause::HostFaultMmio,
];

/// Reads a trace to its end.
///
/// # Errors
/// It cannot be read, is cut off, or is no trace.
pub fn read(path: &Path) -> Result<History, Error> {
    let (head, mut reader) = Reader::open(path)?;
    let mut collected = Collected::default();
    for line in &mut reader {
        match line? {
            Line::Lost(records) => collected.lose(records),
            Line::Record(record) => collected.add(&record),
        }
    }
    let tail = reader.tail().cloned().unwrap_or_default();
    Ok(collected.history(name_of(path).into(), head, tail))
}

/// What is known in the middle of a trace.
#[derive(Default)]
struct Collected {
    lost: u64,
    exits: u64,
    end: u64,
    boot_end: Option<u64>,
    boot_clock: Clock,
    boot: Vec<ByGroup>,
    heat_clock: Clock,
    heat: BTreeMap<u64, Vec<u32>>,
    by_cause: BTreeMap<u64, [u64; HOST_FAULTS.len()]>,
}

impl Collected {
    fn add(&mut self, record: &Record) {
        match record {
            Record::Exit(exit) => self.exit(exit),
            Record::Dropped(records) => self.lose(*records),
            Record::PhaseEnd(BOOT) => {
                self.boot_end.get_or_insert(self.end);
            }
            Record::Mmu(_) | Record::PhaseStart(_) | Record::PhaseEnd(_) => (),
        }
    }

    fn lose(&mut self, records: u64) {
        self.lost = self.lost.saturating_add(records);
    }

    fn exit(&mut self, exit: &Exit) {
        self.end = self.end.max(exit.time);
        let Some(cause) = exit.cause else { return };
        self.exits += 1;
        if self.boot_end.is_none() {
            let (place, folds) = self.boot_clock.place(exit.time);
            bins::fold(&mut self.boot, folds, |a, b| std::array::from_fn(|n| a[n] + b[n]));
            if self.boot.len() <= place {
                self.boot.resize(place + 1, [0; GROUPS.len()]);
            }
            self.boot[place][group_of(cause)] += 1;
        }
        let kind = HOST_FAULTS.iter().position(|&fault| fault == cause);
        let (Some(kind), Some(gva)) = (kind, exit.address) else { return };
        let (place, folds) = self.heat_clock.place(exit.time);
        if folds > 0 {
            for bins in self.heat.values_mut() {
                bins::fold(bins, folds, u32::saturating_add);
            }
        }
        let bins = self.heat.entry(Region::smallest(gva)).or_default();
        if bins.len() <= place {
            bins.resize(place + 1, 0);
        }
        bins[place] = bins[place].saturating_add(1);
        self.by_cause.entry(Region::smallest(gva)).or_default()[kind] += 1;
    }

    fn history(self, file: Untrusted, head: Head, tail: Tail) -> History {
        let per = bins::per_slice(self.boot.len(), SLICES);
        let join = |bins: &[ByGroup]| std::array::from_fn(|n| bins.iter().map(|bin| bin[n]).sum());
        let boot = Slices {
            width: self.boot_clock.width() * per as u64,
            end: self.boot_end.unwrap_or(self.end),
            slices: self.boot.chunks(per).map(join).collect(),
        };
        let heat = heat(&self.heat, &self.by_cause, self.heat_clock, self.end);
        let (lost, exits, boot_end) = (self.lost, self.exits, self.boot_end);
        History { file, head, tail, lost, exits, boot_end, boot, heat }
    }
}

fn heat(
    places: &BTreeMap<u64, Vec<u32>>,
    kinds: &BTreeMap<u64, [u64; HOST_FAULTS.len()]>,
    clock: Clock,
    end: u64,
) -> Heat {
    let totals = kinds.iter().map(|(&place, kinds)| (place, kinds.iter().sum())).collect();
    let regions = regions::regions(&totals, ROWS);
    let bins = places.values().map(Vec::len).max().unwrap_or(0);
    let per = bins::per_slice(bins, SLICES);
    let mut slices = vec![vec![0; regions.len()]; bins.div_ceil(per)];
    let mut by_cause = vec![[0; HOST_FAULTS.len()]; regions.len()];
    for (&place, bins) in places {
        let row = regions::row_of(&regions, place).expect("every place is in a region");
        for (n, &count) in bins.iter().enumerate() {
            slices[n / per][row] += u64::from(count);
        }
        by_cause[row].iter_mut().zip(kinds[&place]).for_each(|(sum, count)| *sum += count);
    }
    Heat { regions, over_time: Slices { width: clock.width() * per as u64, end, slices }, by_cause }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn exit(time: u64, cause: ExitCause, address: u64) -> Record {
        Record::Exit(Exit {
            time,
            ticks: 1,
            cause: Some(cause),
            address: Some(address),
            ..Exit::default()
        })
    }

    /// A history with a boot of a million ticks.
    pub(in crate::html) fn history() -> History {
        let mut collected = Collected::default();
        for n in 0..1000 {
            collected.add(&exit(
                n * 1000,
                ExitCause::HostFaultInstall,
                0xffff_8880_0000_0000 + n * 0x10_0000,
            ));
            collected.add(&exit(n * 1000 + 7, ExitCause::Io, 0x3f8));
        }
        collected.add(&Record::PhaseEnd(BOOT));
        collected.add(&exit(3_000_000, ExitCause::HostFaultTableWrite, 0x40_0000));
        collected.add(&Record::Dropped(3));
        collected.history(
            "boot.trace".into(),
            Head { machine: "penryn".into(), ..Head::default() },
            Tail::default(),
        )
    }

    #[test]
    fn every_exit_is_in_its_place() {
        let history = history();
        assert_eq!((history.exits, history.lost, history.boot_end), (2001, 3, Some(999_007)));
        let boot = &history.boot;
        assert!(boot.slices.len() <= SLICES && boot.slices.len() > SLICES / 2);
        assert_eq!(boot.slices.iter().flatten().sum::<u64>(), 2000);
        assert_eq!(boot.times(boot.slices.len() - 1).1, 999_007);
        for (n, slice) in boot.slices.iter().enumerate() {
            let (start, end) = boot.times(n);
            let installs = (0..1000).filter(|n| (start..end).contains(&(n * 1000))).count();
            assert_eq!(slice[group_of(ExitCause::HostFaultInstall)], installs as u64);
        }
        let heat = &history.heat;
        assert_eq!(heat.over_time.slices.iter().flatten().sum::<u64>(), 1001);
        assert_eq!(heat.regions[0], Region { start: 0x40_0000, bits: 21 });
        assert_eq!(heat.by_cause[0], [0, 0, 0, 0, 1, 0]);
        assert_eq!(heat.over_time.slices.last().unwrap()[0], 1);
        assert_eq!(heat.by_cause.iter().flatten().sum::<u64>(), 1001);
    }

    #[test]
    fn host_faults_are_what_is_called_so() {
        let named = ExitCause::ALL.iter().filter(|cause| cause.name().starts_with("host_fault_"));
        assert!(named.clone().all(|cause| HOST_FAULTS.contains(cause)));
        assert_eq!(named.count(), HOST_FAULTS.len());
    }

    #[test]
    fn an_empty_trace_has_nothing() {
        let history =
            Collected::default().history(Untrusted::default(), Head::default(), Tail::default());
        assert!(history.boot.slices.is_empty() && history.heat.regions.is_empty());
    }
}

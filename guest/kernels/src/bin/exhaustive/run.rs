//! The loops.

use guest_kernels::cases::{LEVELS, PAIRS, Pair, Selection};
use guest_kernels::kit::boot::Boot;
use guest_kernels::kit::cpu::{self, Cpu};
use guest_kernels::kit::frames::Pool;
use guest_kernels::kit::oracle::Quirks;
use guest_kernels::kit::space::Space;
use guest_kernels::options::{BadValue, Options};
use guest_kernels::say;
use umbra_paging::{Access, AccessKind, Level, Mode, Paging};

use crate::bench::{Bench, Mismatch, Passed};

/// So many mismatches are shown in words.
const SHOWN: u64 = 10;

struct Settings {
    spare: u64,
    seed: u64,
    stride: u64,
    offset: u64,
    strict: bool,
}

impl Settings {
    fn read(options: &Options<'static>) -> Result<Settings, BadValue<'static>> {
        let spare = if options.has("full") { 1 } else { 64 };
        let stride = if options.has("quick") { 61 } else { 1 };
        Ok(Settings {
            spare: options.number("spare")?.unwrap_or(spare).max(1),
            seed: options.number("seed")?.unwrap_or(1),
            stride: options.number("stride")?.unwrap_or(stride).max(1),
            offset: options.number("offset")?.unwrap_or(0),
            strict: options.has("strict"),
        })
    }
}

#[derive(Default)]
struct Counts {
    cases: u64,
    faults: u64,
    unflushed: u64,
    early: u64,
    mismatches: u64,
}

/// The kernel.
pub fn main(mut boot: Boot) -> u8 {
    let settings = match Settings::read(&boot.options) {
        Ok(settings) => settings,
        Err(BadValue { name, value }) => {
            say!("exhaustive: {name}={value} is not a number");
            return 2;
        }
    };
    let cpu = Cpu::detect();
    let space = Space::new(&mut boot.pool);
    space.activate();
    cpu::set_paging_bits(true, false, false, false);
    let quirks = Quirks::probe(&mut boot.pool, &space, &cpu);
    say!("exhaustive: {cpu:?} {quirks:?}");

    let start = cpu::tsc();
    let mut counts = Counts::default();
    for (upper, lower) in LEVELS {
        let name = ["21", "32", "43"][upper as usize - 2];
        if !boot.options.lists("levels", name) {
            continue;
        }
        let (cases, ticks) = (counts.cases, cpu::tsc());
        let mut bench = Bench::new(&mut boot.pool, &space, &cpu, upper, quirks);
        for paging in all_settings(&cpu, &space) {
            cpu::set_paging_bits(paging.wp, paging.smep, paging.smap, paging.nxe);
            all_pairs(&boot.pool, &mut bench, &cpu, upper, &paging, &settings, &mut counts);
        }
        let (cases, ticks) = (counts.cases - cases, cpu::tsc().wrapping_sub(ticks));
        say!(
            "levels {upper:?} and {lower:?}: {cases} cases, {} ticks a case",
            ticks / cases.max(1)
        );
    }
    cpu::set_paging_bits(true, false, false, false);

    let ticks = cpu::tsc().wrapping_sub(start);
    let mut failures = counts.mismatches;
    if settings.strict {
        failures += counts.early;
    }
    let verdict = if failures == 0 && counts.cases > 0 { "PASSED" } else { "FAILED" };
    say!(
        "exhaustive {verdict}: {} cases ({} faults, {} of them made present without a flush), {} mismatches, {} early A, \
         {ticks} ticks, {} ticks a case",
        counts.cases,
        counts.faults,
        counts.unflushed,
        counts.mismatches,
        counts.early,
        ticks / counts.cases.max(1)
    );
    u8::from(verdict == "FAILED")
}

/// Every setting of the control bits that this CPU has.
fn all_settings(cpu: &Cpu, space: &Space) -> impl Iterator<Item = Paging> {
    let (cpu, root) = (*cpu, space.root().gfn());
    (0..16u32).filter_map(move |n| {
        let bit = |index: u32| n >> index & 1 != 0;
        let (wp, nxe, smep, smap) = (bit(0), bit(1), bit(2), bit(3));
        let exists = (cpu.nx || !nxe) && (cpu.smep || !smep) && (cpu.smap || !smap);
        exists.then_some(Paging { mode: Mode::Long4, root, wp, smep, smap, pge: true, nxe })
    })
}

/// Every kind of access: RFLAGS.AC makes a difference where there is SMAP, in ring 0.
fn accesses(cpu: &Cpu) -> impl Iterator<Item = Access> {
    let smap = cpu.smap;
    (0..9usize).filter_map(move |n| {
        let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch][n % 3];
        let (user, smap_override) = [(true, false), (false, false), (false, true)][n / 3];
        (smap || !smap_override).then_some(Access { kind, user, smap_override })
    })
}

fn all_pairs(
    pool: &Pool,
    bench: &mut Bench,
    cpu: &Cpu,
    upper: Level,
    paging: &Paging,
    settings: &Settings,
    counts: &mut Counts,
) {
    let selection = Selection::new(upper, paging.nxe, &cpu.features, settings.spare, settings.seed);
    let mut nth = settings.offset;
    for number in (0..PAIRS).filter(|&number| selection.takes(number)) {
        let entries = bench.compose(Pair::new(number), number);
        for access in accesses(cpu) {
            nth += 1;
            if !nth.is_multiple_of(settings.stride) {
                continue;
            }
            let outcome = bench.case(pool, paging, entries, access);
            let not_present = matches!(outcome, Ok(Passed { not_present: true, .. }));
            count(counts, outcome, entries, paging, access, "");
            if not_present {
                counts.unflushed += 1;
                let outcome = bench.made_present(pool, paging, access);
                count(counts, outcome, entries, paging, access, ", then P set without a flush");
            }
        }
    }
}

fn count(
    counts: &mut Counts,
    outcome: Result<Passed, Mismatch>,
    entries: [u64; 2],
    paging: &Paging,
    access: Access,
    how: &str,
) {
    counts.cases += 1;
    let mismatch = match outcome {
        Ok(passed) => {
            counts.faults += u64::from(passed.faulted);
            counts.early += passed.early;
            return;
        }
        Err(mismatch) => mismatch,
    };
    counts.mismatches += 1;
    if counts.mismatches > SHOWN {
        return;
    }
    let Paging { wp, smep, smap, nxe, .. } = paging;
    say!(
        "mismatch: entries {:#x} and {:#x}{how}, wp {wp} smep {smep} smap {smap} nxe {nxe}, {access:?}",
        entries[0],
        entries[1]
    );
    match mismatch {
        Mismatch::Outcome { expected, found } => {
            say!("  expected {expected:x?}, the CPU gave {found:x?}")
        }
        Mismatch::Entry { level, expected, found } => {
            say!("  the entry of {level:?} must be {expected:#x} afterwards and is {found:#x}");
        }
        Mismatch::Memory { expected, found } => {
            say!("  the page must hold {expected:#x} and holds {found:#x}")
        }
    }
}

//! All tests.

use guest_kernels::base::report::Report;
use guest_kernels::say;

use crate::kit::Boot;
use crate::random::Random;
use crate::space::{Mode, Space};
use crate::{formats, pdptes, segments};

/// Random steps, and rounds through the modes.
const STEPS: u32 = 40_000;
const ROUNDS: u32 = 400;

/// Runs them and returns the value for the exit port.
pub fn run(boot: &Boot) -> u8 {
    let options = &boot.options;
    let seed = options.number("seed").unwrap_or_default().unwrap_or(1);
    let part = if options.has("quick") { 10 } else { 1 };
    let mut report = Report::default();
    let mut space = Space::new();
    say!("legacy: {:x?}", space.controls);
    for (name, test) in [
        ("limits", segments::limits as fn(&mut Report, Mode)),
        ("code-16", segments::code_16),
        ("v86", segments::v86),
        ("sysenter", segments::sysenter),
    ] {
        report.test(options, name, |report| segments::in_all_modes(&mut space, report, test));
    }
    report.test(options, "descriptors-in-tables", |report| segments::in_tables(&mut space, report));
    report.test(options, "pdptes-sampled", |report| pdptes::sampled(&mut space, report));
    report.test(options, "pdptes-reserved", |report| pdptes::reserved(&mut space, report));
    report.test(options, "pdptes-loaded", |report| pdptes::control_registers(&mut space, report));
    report.test(options, "pdptes-in-turn", |report| pdptes::in_turn(&mut space, report));
    report.test(options, "large-pages", |report| pdptes::large_pages(&mut space, report));
    report.test(options, "modes", |report| pdptes::modes(&mut space, report, ROUNDS / part));
    for (name, widths) in [("formats", 3), ("formats-wide", 4)] {
        report.test(options, name, |report| {
            formats::run(&mut space, &mut Random::new(seed), report, STEPS / part, widths);
        });
    }
    report.finish("legacy")
}

//! `cargo xtask test`.

mod book;
mod boots;
mod console;
mod embedders;
mod host;
mod stats;

use std::process::ExitCode;

use anyhow::Result;

use crate::crates::{Published, check_oldest_compiler};
use crate::exact;
use crate::forms;
use crate::guests::{self, Amount};
use crate::machine_fuzz;
use crate::report::Report;
use crate::setup::{Setup, need_program};
use crate::trial;

/// Set everything up, and pass all tests.
///
/// Formatting, lints, unit and differential tests, documentation; the embedder in `examples` and
/// the book's links; the oldest compiler of the published crates; the small guest kernels (as
/// `cargo xtask guests` runs them, also with a small shadow pool and audited); a sample of the
/// memory forms of instructions (`cargo xtask forms`), of random programs (`cargo xtask
/// machine-fuzz`) and of the trial (its controls, and Umbra); then Linux with
/// the quick exercise on the emulated machines, with the bypass and without, with a small shadow
/// pool, and audited, and 32-bit kernels with it. Ends with the line `N passed, N failed`. What
/// guests leave (console, exit table) is kept in `target/guest/test`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Runs all tests.
pub fn run(Arguments {}: &Arguments) -> Result<ExitCode> {
    // The machine `qemu-svm`, and the trial's control.
    need_program("qemu-system-x86_64", "qemu-system-x86")?;
    let mut setup = Setup::new()?;
    let kernels = setup.small_kernels()?;
    let built = setup.everything()?;
    let mut report = Report::new();
    host::run(&mut report);
    embedders::run(&mut report);
    report.step("published crates: the oldest compiler", || {
        check_oldest_compiler(&mut setup, &Published::find()?)
    });
    book::run(&mut report);
    guests::all(&mut report, &built.umbra, &kernels, Amount::Quick)?;
    forms::sample(&mut report, &built.umbra, &kernels)?;
    exact::sample(&mut report, &built.umbra, &kernels)?;
    machine_fuzz::sample(&mut report, &built.umbra, &kernels)?;
    trial::sample(&mut report, &built.umbra)?;
    boots::run(&mut report, &mut setup, &built)?;
    Ok(report.finish())
}

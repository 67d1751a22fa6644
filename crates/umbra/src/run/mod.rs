//! `umbra run`.

mod arguments;
mod outcome;
mod peer;
mod recording;
mod session;

use std::path::PathBuf;
use std::process::ExitCode;

pub use arguments::{Arguments, Hypervisor, parse_seconds};
use outcome::Outcome;
use recording::Recording;

use crate::console::message;
use crate::error::Error;
use crate::guest::{self, Guest, names};
use crate::machine::{self, Emulator, Programs, System};
use crate::report;
use crate::signals::Signals;
use crate::trace;

/// Boots a guest, ends with it, and says what it did.
///
/// Call it on the main thread ([`Emulator::start`]).
///
/// # Errors
/// Wrong input, a missing program, or a failure on this host.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let mut guest = Guest::read(&arguments.guest, arguments.trace.is_some())?;
    peer::check(arguments, &guest.image)?;
    let host = peer::read_host(arguments)?;
    guest.config.append = peer::command_line(arguments.hypervisor, guest.config.append)?;
    guest::check_configuration(&guest.config)?;
    let machine_mib = peer::machine_memory(arguments, guest.machine_mib);
    // From here on a signal must not leave anything behind.
    let signals = Signals::catch()?;
    check_outputs(arguments)?;
    let programs = Programs::find(&arguments.machine)?;
    programs.check_machine(&arguments.machine)?;

    let system = match (arguments.hypervisor, &host) {
        (Hypervisor::Umbra, _) => System::Umbra,
        (Hypervisor::Kvm, Some(host)) => {
            System::Kvm { kernel: host.kernel.as_deref().unwrap_or(&guest.kernel), initrd: &host.initrd }
        }
        (Hypervisor::Kvm | Hypervisor::None, _) => System::Bare,
    };
    let files = guest.files(system);
    let folder = machine::temporary_folder(&signals)?;
    machine::build_boot_image(programs.image_tools(), folder.path(), &files, &signals)?;
    let size_mib = files.size().div_ceil(1 << 20);
    let Guest { kernel, initrd, modules, config, .. } = guest;
    drop((kernel, initrd, modules, host));

    let head = trace::Head {
        version: env!("CARGO_PKG_VERSION").into(),
        machine: arguments.machine.name(),
        kernel: config.kernel.clone(),
        cmdline: config.append.clone(),
        memory: config.memory_mib,
        guest_faults: config.guest_faults.name().into(),
        without: names(&config.without),
    };
    let mut recording = arguments.trace.as_deref().map(|path| Recording::start(path, &head)).transpose()?;
    if let Some(timeout) = arguments.timeout {
        signals.limit(timeout);
    }
    let bare = arguments.hypervisor == Hypervisor::None;
    let peer = arguments.hypervisor != Hypervisor::Umbra;
    let (mut emulator, outputs) = Emulator::start(&programs, folder.path(), machine_mib, peer, &signals)?;
    let progress = format!(
        "loading {size_mib} MiB into {} ({}), which takes seconds",
        programs.emulator_name(),
        arguments.machine.name()
    );
    let outcome =
        session::run(&mut emulator, outputs, &signals, arguments.timeout, progress, recording.as_mut(), bare);
    emulator.kill();
    let log = match &arguments.emulator_log {
        Some(path) => report::write_output("the emulator's log", path, emulator.log()),
        None => Ok(()),
    };
    let status = conclude(arguments, &config.kernel, &config.append, &outcome?, recording)?;
    log.map(|()| status)
}

/// Finds out before a long run that its results could not be written.
fn check_outputs(arguments: &Arguments) -> Result<(), Error> {
    let outputs: Vec<_> = [
        ("the statistics", &arguments.stats),
        ("the trace", &arguments.trace),
        ("the emulator's log", &arguments.emulator_log),
    ]
    .into_iter()
    .filter_map(|(what, path)| Some((what, path.as_deref()?)))
    .collect();
    let host = [&arguments.host_kernel, &arguments.host_initrd].into_iter().flatten().map(PathBuf::as_path);
    report::check_apart(&outputs, arguments.guest.inputs().chain(host))?;
    outputs.iter().try_for_each(|(what, path)| report::check_output(what, path))
}

fn conclude(
    arguments: &Arguments,
    kernel: &str,
    command_line: &str,
    outcome: &Outcome,
    recording: Option<Recording>,
) -> Result<ExitCode, Error> {
    let statistics = outcome.statistics(arguments, kernel, command_line);
    message(format_args!("umbra: {}\n", outcome.sentence()));
    let table = report::table(&statistics);
    if !table.is_empty() {
        message(format_args!("\n{table}\n"));
    }
    if let Some(bytes) = statistics.canary {
        let kib = bytes >> 10;
        message(format_args!(
            "canary: {kib} KiB of host memory outside guest and hypervisor are unchanged\n"
        ));
    }
    if let Some(emulator) = statistics.emulator {
        message(format_args!(
            "emulator: {:.1} s, peak memory {:.0} MiB\n",
            emulator.seconds, emulator.peak_memory
        ));
    }
    if let Some(path) = &arguments.stats {
        report::write_statistics("the statistics", path, &statistics)?;
    }
    if let Some(recording) = recording {
        message(format_args!("{}\n", recording.finish(statistics.guest_exit)?));
    }
    Ok(ExitCode::from(outcome.status()))
}

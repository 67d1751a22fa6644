//! `umbra run`.

mod arguments;
mod outcome;
mod peer;
mod recording;
mod session;

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use umbra_telemetry::{Audit, BootConfig, PROTOCOL};

pub use arguments::{Arguments, Hypervisor, Policy, parse_memory, parse_seconds};
use outcome::Outcome;
use recording::Recording;

use crate::console::message;
use crate::error::Error;
use crate::guest::{self, Image};
use crate::machine::{self, BootFiles, Emulator, Programs, System};
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
    let (kernel, image) = guest::read_kernel(&arguments.kernel)?;
    let initrd = arguments.initrd.as_deref().map(guest::read_initrd).transpose()?;
    let modules =
        arguments.modules.iter().map(|text| guest::read_module(text)).collect::<Result<Vec<_>, _>>()?;
    guest::check_files(&image, initrd.as_deref(), &modules)?;
    peer::check(arguments, &image)?;
    let host = peer::read_host(arguments)?;
    let initrd_bytes = initrd.as_ref().map_or(0, |file| file.len() as u64);
    let shadow_frames = arguments.shadow_frames;
    let command_line = guest::command_line(&arguments.kernel, &image, arguments.append.as_deref())?;
    let command_line = peer::command_line(arguments.hypervisor, command_line)?;
    let umbra_mib = guest::check_memory(arguments.memory, shadow_frames, &image, initrd_bytes, &modules)?;
    let machine_mib = peer::machine_memory(arguments, umbra_mib);
    // From here on a signal must not leave anything behind.
    let signals = Signals::catch()?;
    check_outputs(arguments)?;
    let programs = Programs::find()?;
    programs.check_machine(&arguments.machine)?;

    let config = BootConfig {
        protocol: PROTOCOL,
        memory_mib: arguments.memory,
        guest_faults: arguments.guest_faults.into(),
        shadow_frames,
        audit: arguments.audit.map(|every| Audit { every: every.get() }),
        trace: arguments.trace.is_some(),
        append: command_line,
        modules: modules.iter().map(|module| module.string.clone()).collect(),
    };
    guest::check_configuration(&config)?;
    let system = match (arguments.hypervisor, &host) {
        (Hypervisor::Umbra, _) => System::Umbra,
        (Hypervisor::Kvm, Some(host)) => {
            System::Kvm { kernel: host.kernel.as_deref().unwrap_or(&kernel), initrd: &host.initrd }
        }
        (Hypervisor::Kvm | Hypervisor::None, _) => System::Bare,
    };
    let files =
        BootFiles { system, config: &config, kernel: &kernel, initrd: initrd.as_deref(), modules: &modules };
    let folder = tempfile::Builder::new().prefix("umbra-").tempdir().map_err(|error| {
        Error::Machine(format!(
            "cannot make a temporary folder in {}: {error}; TMPDIR can name another one",
            std::env::temp_dir().display()
        ))
    })?;
    signals.set_folder(folder.path());
    machine::build_boot_image(&programs, folder.path(), &files, &signals)?;
    let size_mib = files.size().div_ceil(1 << 20);
    drop((kernel, initrd, modules, host));

    let head = trace::Head {
        version: env!("CARGO_PKG_VERSION").into(),
        machine: arguments.machine.name(),
        kernel: kernel_name(&arguments.kernel, &image),
        cmdline: config.append.clone(),
        memory: arguments.memory,
        guest_faults: outcome::policy_name(config.guest_faults).into(),
    };
    let mut recording = arguments.trace.as_deref().map(|path| Recording::start(path, &head)).transpose()?;
    if let Some(timeout) = arguments.timeout {
        signals.limit(timeout);
    }
    let bare = arguments.hypervisor == Hypervisor::None;
    let peer = arguments.hypervisor != Hypervisor::Umbra;
    let (mut emulator, outputs) =
        Emulator::start(&programs, folder.path(), &arguments.machine, machine_mib, peer, &signals)?;
    let progress =
        format!("loading {size_mib} MiB into Bochs ({}), which takes seconds", arguments.machine.name());
    let outcome =
        session::run(&mut emulator, outputs, &signals, arguments.timeout, progress, recording.as_mut(), bare);
    emulator.kill();
    let log = match &arguments.emulator_log {
        Some(path) => write("the emulator's log", path, emulator.log()),
        None => Ok(()),
    };
    let status = conclude(arguments, &image, &config.append, &outcome?, recording)?;
    log.map(|()| status)
}

/// Finds out before a long run that its results could not be written.
fn check_outputs(arguments: &Arguments) -> Result<(), Error> {
    let outputs = [
        ("the statistics", &arguments.stats),
        ("the trace", &arguments.trace),
        ("the emulator's log", &arguments.emulator_log),
    ];
    for (what, path) in outputs {
        if let Some(path) = path {
            report::check_writable(path).map_err(|error| {
                Error::Input(format!(
                    "cannot write {what} to {}: {error}; give a file in a folder that exists and is writable",
                    path.display()
                ))
            })?;
        }
    }
    Ok(())
}

fn conclude(
    arguments: &Arguments,
    image: &Image,
    command_line: &str,
    outcome: &Outcome,
    recording: Option<Recording>,
) -> Result<ExitCode, Error> {
    let statistics = outcome.statistics(arguments, &kernel_name(&arguments.kernel, image), command_line);
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
        let mut json = serde_json::to_vec_pretty(&statistics).expect("statistics have text keys only");
        json.push(b'\n');
        write("the statistics", path, Ok(json.as_slice()))?;
    }
    if let Some(recording) = recording {
        message(format_args!("{}\n", recording.finish(statistics.guest_exit)?));
    }
    Ok(ExitCode::from(outcome.status()))
}

fn write(what: &str, path: &Path, contents: io::Result<impl Read>) -> Result<(), Error> {
    contents
        .and_then(|contents| report::write_atomically(path, contents))
        .map_err(|error| cannot_write(what, path, &error))
}

fn cannot_write(what: &str, path: &Path, error: &io::Error) -> Error {
    let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    Error::Machine(format!(
        "cannot write {what} to {}: {error}; make room there, or give a file elsewhere",
        place.display()
    ))
}

/// What the kernel calls itself, or else its file's name.
fn kernel_name(path: &Path, image: &Image) -> String {
    let version = match image {
        Image::Linux(linux) => linux.version.clone(),
        Image::Multiboot(_) => None,
    };
    version.unwrap_or_else(|| path.display().to_string())
}

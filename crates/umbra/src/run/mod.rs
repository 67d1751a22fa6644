//! `umbra run`.

mod arguments;
mod fault_count;
mod outcome;
mod peer;
mod recording;
mod session;
mod stream;
mod watch;

use std::path::Path;
use std::process::ExitCode;

pub use arguments::{Arguments, Hypervisor, parse_seconds};
pub use fault_count::FaultCount;
pub use outcome::{End, Outcome, Subject};
pub use recording::Recording;
pub use stream::{Noise, Part, read as read_stream};

use session::{Observers, Speaker};
use watch::Watch;

use crate::console::message;
use crate::error::Error;
use crate::guest::{self, Guest, Image};
use crate::machine::{self, Emulator, Programs, Settings, System};
use crate::report;
use crate::signals::Signals;
use crate::untrusted::lines;

/// What a run boots, looked at before anything is started.
struct Prepared {
    guest: Guest,
    host: Option<peer::Host>,
    machine_mib: u32,
}

impl Prepared {
    /// Reads the files and checks that they and the options fit each other.
    fn read(arguments: &Arguments) -> Result<Prepared, Error> {
        let mut guest = Guest::read(&arguments.guest, arguments.trace.is_some())?;
        arguments.check()?;
        peer::check(arguments)?;
        peer::check_image(arguments, &guest.image)?;
        let host = peer::read_host(arguments)?;
        guest.config.append =
            peer::command_line(arguments.hypervisor, &guest.image, &guest.config)?;
        guest::check_configuration(&guest.config)?;
        let machine_mib = peer::machine_memory(arguments, guest.machine_mib);
        Ok(Prepared { guest, host, machine_mib })
    }
}

fn find_programs(arguments: &Arguments) -> Result<Programs, Error> {
    let programs = Programs::find(&arguments.machine)?;
    programs.check_machine(&arguments.machine)?;
    Ok(programs)
}

/// Finds out what would keep a run from starting, and starts nothing.
///
/// # Errors
/// Wrong input, or a missing program.
pub fn check(arguments: &Arguments) -> Result<(), Error> {
    Prepared::read(arguments)?;
    find_programs(arguments).map(drop)
}

/// Finds out what would keep a run from starting, before all of its files are there
/// ([`guest::TO_BE_MADE`]) and the programs are installed.
///
/// # Errors
/// Wrong input.
pub fn check_ahead(arguments: &Arguments) -> Result<(), Error> {
    arguments.check()?;
    peer::check(arguments)?;
    arguments.guest.check_ahead()?;
    peer::check_host(arguments)?;
    report::check_outputs(&outputs(arguments), arguments.inputs())
}

/// What a run writes, for the user.
fn outputs(arguments: &Arguments) -> [(&'static str, Option<&Path>); 3] {
    [
        (STATISTICS, arguments.stats.as_deref()),
        (TRACE, arguments.trace.as_deref()),
        (LOG, arguments.emulator_log.as_deref()),
    ]
}

/// Boots a guest, ends with it, and says what it did.
///
/// Call it on the main thread ([`Emulator::start`]).
///
/// # Errors
/// Wrong input, a missing program, or a failure on this host.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let Prepared { guest, host, machine_mib } = Prepared::read(arguments)?;
    // From here on a signal must not leave anything behind.
    let signals = Signals::catch()?;
    report::check_outputs(&outputs(arguments), arguments.inputs())?;
    let programs = find_programs(arguments)?;

    let system = match (arguments.hypervisor, &host) {
        (Hypervisor::Umbra, _) => System::Umbra,
        (Hypervisor::Kvm, Some(host)) => System::Kvm {
            kernel: host.kernel.as_deref().unwrap_or(&guest.kernel),
            initrd: &host.initrd,
        },
        (Hypervisor::Kvm | Hypervisor::None, _) => match guest.image {
            Image::Linux(_) => System::Bare,
            Image::Multiboot(_) => System::BareMultiboot,
        },
    };
    let files = guest.files(system);
    let folder = machine::temporary_folder(&signals)?;
    machine::build_boot_image(programs.image_tools(), folder.path(), &files, &signals)?;
    let size_mib = files.size().div_ceil(1 << 20);
    let speaker = peer::speaker(arguments.hypervisor, &guest.image);
    let Guest { kernel, initrd, modules, config, .. } = guest;
    drop((kernel, initrd, modules, host));

    let machine = arguments.machine.name();
    let subject = Subject {
        hypervisor: arguments.hypervisor,
        machine: &machine,
        ticks_are_instructions: arguments.machine.ticks_are_instructions(),
        config: &config,
    };
    let start = |path| Recording::start(path, &subject);
    let mut recording = arguments.trace.as_deref().map(start).transpose()?;
    if let Some(timeout) = arguments.timeout {
        signals.limit(timeout);
    }
    let settings = Settings {
        memory_mib: machine_mib,
        ignore_bad_msrs: arguments.hypervisor != Hypervisor::Umbra
            && speaker != Speaker::SmallKernel,
        fixed_time: arguments.fixed_time,
    };
    let (mut emulator, outputs) = Emulator::start(&programs, folder.path(), &settings, &signals)?;
    let progress = format!(
        "loading {size_mib} MiB into {} ({}), which takes seconds",
        programs.emulator_name(),
        arguments.machine.name()
    );
    let observers =
        Observers { recording: recording.as_mut(), watch: arguments.watch.then(Watch::start) };
    let outcome = session::run(
        &mut emulator,
        outputs,
        &signals,
        arguments.timeout,
        progress,
        observers,
        speaker,
    );
    emulator.kill();
    let log = match &arguments.emulator_log {
        Some(path) => report::write_output(LOG, path, emulator.log()),
        None => Ok(()),
    };
    let status = conclude(&subject, &outcome?, arguments.stats.as_deref(), recording)?;
    log.map(|()| status)
}

/// What is written, for the user.
pub const STATISTICS: &str = "the statistics";
/// Likewise.
pub const TRACE: &str = "the trace";
/// Likewise.
const LOG: &str = "the emulator's log";

/// Says how a run ended, and writes its results. Returns the status that goes with it.
///
/// # Errors
/// A result cannot be written.
pub fn conclude(
    subject: &Subject<'_>,
    outcome: &Outcome,
    stats: Option<&Path>,
    recording: Option<Recording>,
) -> Result<ExitCode, Error> {
    let statistics = outcome.statistics(subject);
    let sentence: Vec<String> = lines(&outcome.sentence()).collect();
    message(format_args!("umbra: {}\n", sentence.join("\n")));
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
    let saved = report::saved(&statistics, outcome.guest_faults);
    if !saved.is_empty() {
        message(format_args!("{saved}\n"));
    }
    if let Some(path) = stats {
        report::write_statistics(STATISTICS, path, &statistics)?;
    }
    if let Some(recording) = recording {
        message(format_args!("{}\n", recording.finish(statistics.guest_exit.as_str().into())?));
    }
    Ok(ExitCode::from(outcome.status()))
}

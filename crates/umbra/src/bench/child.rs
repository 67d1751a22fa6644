//! One measurement: an `umbra run` of its own, with a machine, signals and an end of its own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use clap::Parser as _;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use umbra_telemetry::GuestFaults;

use super::{Arguments, Contestant};
use crate::console::message;
use crate::error::{Error, status};
use crate::machine;
use crate::report::{self, Statistics};
use crate::run::{self, Hypervisor};
use crate::tail::tail;
use crate::temporary::TemporaryFolder;
use crate::untrusted::shown;

const POLL: Duration = Duration::from_millis(50);

/// Lines of a failed guest's output that are shown.
const SHOWN: usize = 15;

/// Bytes that these lines are looked for in.
const TAIL: u64 = 64 << 10;

/// What a run may print. The workload prints some KiB; a guest that prints without end would fill
/// the disk before its time is over.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// How a measurement ended.
pub enum Ended {
    /// With a result.
    Well(Box<Statistics>),
    /// With this status; the user has been told.
    Badly(u8),
}

/// The options of `umbra run` for a measurement, without its result.
fn options(arguments: &Arguments, contestant: &Contestant, command_line: &str) -> Vec<OsString> {
    let mut options: Vec<OsString> = Vec::new();
    let mut add =
        |option: &str, value: &OsStr| options.extend([OsString::from(option), value.into()]);
    add("--kernel", arguments.kernel.as_os_str());
    add("--initrd", arguments.initrd.as_os_str());
    add("--append", command_line.as_ref());
    add("--machine", arguments.machine.name().as_ref());
    add("--memory", arguments.memory.to_string().as_ref());
    add("--hypervisor", contestant.hypervisor.name().as_ref());
    if contestant.hypervisor == Hypervisor::Umbra {
        add("--guest-faults", GuestFaults::from(contestant.guest_faults).name().as_ref());
    }
    for mechanism in &contestant.without {
        add("--without", mechanism.name().as_ref());
    }
    if contestant.hypervisor == Hypervisor::Kvm {
        let files =
            [("--host-kernel", &arguments.host_kernel), ("--host-initrd", &arguments.host_initrd)];
        files.into_iter().for_each(|(option, file)| {
            if let Some(file) = file {
                add(option, file.as_os_str());
            }
        });
    }
    add("--timeout", arguments.timeout.as_secs().to_string().as_ref());
    if arguments.machine.is_emulated() {
        options.push("--fixed-time".into());
    }
    options
}

/// The options of a measurement, as `umbra run` takes them.
#[derive(clap::Parser)]
struct RunOptions {
    #[command(flatten)]
    run: run::Arguments,
}

/// Finds out by `check` whether a measurement could start: what its run would be refused for,
/// before one of the others is over.
///
/// # Errors
/// It could not.
pub fn check(
    arguments: &Arguments,
    contestant: &Contestant,
    command_line: &str,
    check: fn(&run::Arguments) -> Result<(), Error>,
) -> Result<(), Error> {
    let options = options(arguments, contestant, command_line);
    let options = RunOptions::try_parse_from(std::iter::once(OsString::from("run")).chain(options))
        .map_err(|error| Error::Input(error.to_string()))?;
    check(&options.run)
}

/// Why a run is over.
#[derive(Debug)]
enum Why {
    /// By itself.
    Own(ExitStatus),
    /// This signal came for this program.
    Signal(usize),
    /// It printed too much.
    Endless,
}

/// Starts the runs.
pub struct Child {
    /// For what they leave.
    folder: TemporaryFolder,
    /// Makes a run end when this program is killed; absent on a system without util-linux.
    setpriv: Option<PathBuf>,
    /// The last signal that came.
    signal: Arc<AtomicUsize>,
}

impl Child {
    /// Catches signals from now on: they end the run that is going on.
    ///
    /// # Errors
    /// There is no room for temporary files, or the system refuses.
    pub fn new() -> Result<Child, Error> {
        let folder = machine::new_folder()?;
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize)
                .map_err(|error| Error::Machine(format!("cannot catch signals: {error}")))?;
        }
        Ok(Child { folder, setpriv: which::which("setpriv").ok(), signal })
    }

    /// A command that starts this program, to end as by a signal when this process is killed.
    fn command(&self, program: &Path) -> Command {
        let Some(setpriv) = &self.setpriv else { return Command::new(program) };
        let mut command = Command::new(setpriv);
        command.args(["--pdeathsig", "TERM", "--"]).arg(program);
        command
    }

    /// Waits for the end of a run. A signal ends it, and so does output of more than `limit` bytes.
    fn wait(&self, run: &mut Process, outputs: &[&Path], limit: u64) -> io::Result<Why> {
        let is_longer =
            |path: &&Path| fs::metadata(path).is_ok_and(|metadata| metadata.len() > limit);
        let mut told = 0;
        let mut is_endless = false;
        let ended = loop {
            if let Some(ended) = run.try_wait()? {
                break ended;
            }
            let signal = self.signal.load(Ordering::Relaxed);
            let endless_now = !is_endless && outputs.iter().any(is_longer);
            if signal != told || endless_now {
                is_endless |= endless_now;
                told = signal;
                // It may have ended in this moment.
                let _ = kill_process(Pid::from_child(run), Signal::TERM);
            }
            thread::sleep(POLL);
        };
        Ok(match (told, is_endless) {
            (0, false) => Why::Own(ended),
            (0, true) => Why::Endless,
            (signal, _) => Why::Signal(signal),
        })
    }

    /// Runs the workload once.
    ///
    /// # Errors
    /// The run cannot be started, or leaves no result.
    pub fn measure(
        &self,
        arguments: &Arguments,
        contestant: &Contestant,
        command_line: &str,
    ) -> Result<Ended, Error> {
        let [stats, stdout, stderr] =
            ["stats", "stdout", "stderr"].map(|name| self.folder.path().join(name));
        let cannot = |error: io::Error| Error::Machine(format!("cannot start a run: {error}"));
        let mut command = self.command(&std::env::current_exe().map_err(cannot)?);
        command
            .arg("run")
            .args(options(arguments, contestant, command_line))
            .arg("--stats")
            .arg(&stats);
        command.stdin(Stdio::null());
        command
            .stdout(File::create(&stdout).map_err(cannot)?)
            .stderr(File::create(&stderr).map_err(cannot)?);
        // A Ctrl-C in the terminal is for this program, which then ends the run.
        let mut child = command.process_group(0).spawn().map_err(cannot)?;
        let why = self.wait(&mut child, &[&stdout, &stderr], OUTPUT_LIMIT).map_err(cannot)?;
        if let Why::Signal(signal) = why {
            message(format_args!("umbra: ended by the user\n"));
            return Ok(Ended::Badly(128 + signal as u8));
        }
        if !matches!(why, Why::Own(ended) if ended.success()) {
            let output = tail(&stdout, TAIL);
            let lines: Vec<&str> = output.lines().collect();
            for line in &lines[lines.len().saturating_sub(SHOWN)..] {
                message(format_args!("  {}\n", shown(line)));
            }
            let Why::Own(ended) = why else {
                let limit = OUTPUT_LIMIT >> 20;
                message(format_args!(
                    "umbra: the guest printed more than {limit} MiB, and was ended; \
                     `umbra run` with the same files shows all that it says\n"
                ));
                return Ok(Ended::Badly(status::GUEST_FAILED));
            };
            message(format_args!("{}", tail(&stderr, TAIL)));
            let failed = ended.code().and_then(|code| u8::try_from(code).ok());
            return Ok(Ended::Badly(failed.unwrap_or(status::MACHINE_FAILED)));
        }
        Ok(Ended::Well(Box::new(report::read(&stats)?.statistics)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_by_itself_or_by_a_signal_or_by_what_it_prints() {
        let child = Child {
            folder: TemporaryFolder::new().unwrap(),
            setpriv: None,
            signal: Arc::new(AtomicUsize::new(0)),
        };
        let output = child.folder.path().join("output");
        let wait = |program: &str| {
            let mut command = Command::new(program);
            command.args(["1000"].iter().filter(|_| program == "sleep"));
            let mut run = command.stdout(File::create(&output).unwrap()).spawn().unwrap();
            child.wait(&mut run, &[&output], 1 << 20).unwrap()
        };
        assert!(matches!(wait("true"), Why::Own(ended) if ended.success()));
        assert!(matches!(wait("yes"), Why::Endless));
        child.signal.store(SIGHUP as usize, Ordering::Relaxed);
        assert!(matches!(wait("sleep"), Why::Signal(1)));
    }
}

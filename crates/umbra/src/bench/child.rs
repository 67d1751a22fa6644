//! One measurement: an `umbra run` of its own, with a machine, signals and an end of its own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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
use crate::temporary::TemporaryFolder;
use crate::untrusted::shown;

const POLL: Duration = Duration::from_millis(50);

/// Lines of a failed guest's output that are shown.
const SHOWN: usize = 15;

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
    if let Some(timeout) = arguments.timeout {
        add("--timeout", timeout.as_secs().to_string().as_ref());
    }
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
        let mut told = 0;
        let ended = loop {
            if let Some(ended) = child.try_wait().map_err(cannot)? {
                break ended;
            }
            let signal = self.signal.load(Ordering::Relaxed);
            if signal != told {
                told = signal;
                // It may have ended in this moment.
                let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            }
            thread::sleep(POLL);
        };
        if told != 0 {
            message(format_args!("umbra: ended by the user\n"));
            return Ok(Ended::Badly(128 + told as u8));
        }
        if !ended.success() {
            let said =
                |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
            let output = said(stdout);
            let lines: Vec<&str> = output.lines().collect();
            for line in &lines[lines.len().saturating_sub(SHOWN)..] {
                message(format_args!("  {}\n", shown(line)));
            }
            message(format_args!("{}", said(stderr)));
            let failed = ended.code().and_then(|code| u8::try_from(code).ok());
            return Ok(Ended::Badly(failed.unwrap_or(status::MACHINE_FAILED)));
        }
        Ok(Ended::Well(Box::new(report::read(&stats)?.statistics)))
    }
}

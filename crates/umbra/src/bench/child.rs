//! One measurement: an `umbra run` of its own, with a machine, signals and an end of its own.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use tempfile::TempDir;
use umbra_telemetry::GuestFaults;

use super::{Arguments, Contestant};
use crate::console::message;
use crate::error::{Error, status};
use crate::machine;
use crate::report::{self, Statistics};
use crate::run::Hypervisor;

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

/// Starts the runs.
pub struct Child {
    /// For what they leave.
    folder: TempDir,
    /// The last signal that came.
    signal: Arc<AtomicUsize>,
}

impl Child {
    /// Catches signals from now on: they end the run that is going on.
    ///
    /// # Errors
    /// There is no room for temporary files, or the system refuses.
    pub fn new() -> Result<Child, Error> {
        let folder = machine::new_folder("umbra-bench-")?;
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            signal_hook::flag::register_usize(number, Arc::clone(&signal), number as usize)
                .map_err(|error| Error::Machine(format!("cannot catch signals: {error}")))?;
        }
        Ok(Child { folder, signal })
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
        let [stats, stdout, stderr] = ["stats", "stdout", "stderr"].map(|name| self.folder.path().join(name));
        let cannot = |error: io::Error| Error::Machine(format!("cannot start a run: {error}"));
        let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
        command.arg("run").arg("--fixed-time").arg("--stats").arg(&stats);
        command.arg("--kernel").arg(&arguments.kernel).arg("--initrd").arg(&arguments.initrd);
        command.args(["--append", command_line, "--machine", &arguments.machine.name()]);
        command.args(["--memory", &arguments.memory.to_string()]);
        command.args(["--hypervisor", contestant.hypervisor.name()]);
        command.args(["--guest-faults", GuestFaults::from(contestant.guest_faults).name()]);
        for mechanism in &contestant.without {
            command.args(["--without", mechanism.name()]);
        }
        if contestant.hypervisor == Hypervisor::Kvm {
            let files =
                [("--host-kernel", &arguments.host_kernel), ("--host-initrd", &arguments.host_initrd)];
            for (option, file) in files {
                if let Some(file) = file {
                    command.arg(option).arg(file);
                }
            }
        }
        if let Some(timeout) = arguments.timeout {
            command.args(["--timeout", &timeout.as_secs().to_string()]);
        }
        command.stdin(Stdio::null());
        command.stdout(File::create(&stdout).map_err(cannot)?).stderr(File::create(&stderr).map_err(cannot)?);
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
            let said = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
            let output = said(stdout);
            let lines: Vec<&str> = output.lines().collect();
            for line in &lines[lines.len().saturating_sub(SHOWN)..] {
                message(format_args!("  {line}\n"));
            }
            message(format_args!("{}", said(stderr)));
            let failed = ended.code().and_then(|code| u8::try_from(code).ok());
            return Ok(Ended::Badly(failed.unwrap_or(status::MACHINE_FAILED)));
        }
        Ok(Ended::Well(Box::new(report::read(&stats)?.statistics)))
    }
}

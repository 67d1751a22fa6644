//! The emulator as a process.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::Programs;
use super::bochsrc::HOST_MEMORY_LIMIT_MIB;
use super::programs::STDERR;
use super::settings::Settings;
use crate::error::Error;
use crate::signals::Signals;
use crate::tail::tail;

/// How long an emulator with little memory may take to start; it has connected COM1 by then.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long an emulator may take to start. Memory that Bochs does not take from the host makes it
/// slow: 3 GiB of it took 20 s of CPU time.
fn start_limit(memory_mib: u32) -> Duration {
    const MIB_IN_A_SECOND: u32 = 10;
    let beyond = memory_mib.saturating_sub(HOST_MEMORY_LIMIT_MIB);
    START_LIMIT + Duration::from_secs(u64::from(beyond / MIB_IN_A_SECOND))
}

const POLL: Duration = Duration::from_millis(10);

/// Bytes of the log's end that are looked at.
const LOG_TAIL: u64 = 16 << 10;

/// A log that is longer comes from an emulator that says the same for ever, and fills the disk.
const LOG_LIMIT: u64 = 256 << 20;

/// How often the length of the log is looked at.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// A running emulator. It is killed and reaped when this is dropped, and by the kernel if this
/// process is killed.
#[derive(Debug)]
pub struct Emulator<'a> {
    child: Child,
    signals: &'a Signals,
    log: PathBuf,
    log_seen: Instant,
    started: Instant,
    peak_memory_kib: u64,
}

/// The machine's ends of its two channels.
#[derive(Debug)]
pub struct Outputs {
    /// The machine's port 0xe9: the hypervisor's messages, with the emulator's own text between
    /// them.
    pub messages: ChildStdout,
    /// The machine's COM1: bytes for the hypervisor.
    pub console: TcpStream,
}

impl<'a> Emulator<'a> {
    /// Starts the emulator in `folder`, from the boot image there.
    ///
    /// Call it on the main thread: the kernel kills the emulator when the thread ends that started
    /// it.
    ///
    /// # Errors
    /// It cannot be started, or ends at once, or a signal came.
    pub fn start(
        programs: &Programs,
        folder: &Path,
        settings: &Settings,
        signals: &'a Signals,
    ) -> Result<(Emulator<'a>, Outputs), Error> {
        let name = programs.emulator_name();
        let cannot = |error: io::Error| {
            let folder = folder.display();
            Error::Machine(format!(
                "cannot start {name} in {folder}: {error}; TMPDIR can name another folder"
            ))
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let console_port = listener.local_addr().map_err(cannot)?.port();
        let stderr = File::create(folder.join(STDERR)).map_err(cannot)?;
        let (mut command, log) =
            programs.emulator_command(folder, settings, console_port).map_err(cannot)?;

        let started = Instant::now();
        let mut child = command
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            // A Ctrl-C in the terminal is for this program, which then ends the emulator.
            .process_group(0)
            .spawn()
            .map_err(cannot)?;
        let messages = child.stdout.take().expect("standard output is piped");
        signals.set_child(Some(child.id()));
        let mut emulator = Emulator {
            child,
            signals,
            log: folder.join(log),
            log_seen: started,
            started,
            peak_memory_kib: 0,
        };
        let console = emulator.accept(&listener, start_limit(settings.memory_mib));
        signals.check()?;
        let console = console.map_err(|error| {
            let stderr = fs::read_to_string(folder.join(STDERR)).unwrap_or_default();
            Error::Machine(match programs.reason_in(&stderr) {
                Some(line) => format!("{name} did not start: {line}"),
                None => format!("{name} did not start: {error}"),
            })
        })?;
        Ok((emulator, Outputs { messages, console }))
    }

    /// Waits until COM1 is connected.
    fn accept(&mut self, listener: &TcpListener, limit: Duration) -> io::Result<TcpStream> {
        while self.started.elapsed() < limit && self.signals.status().is_none() {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Err(error),
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("it ended at once ({status})")));
            }
            thread::sleep(POLL);
        }
        Err(io::Error::other("it did not connect its serial port"))
    }

    /// How long it has run.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The most memory that it has used until now, in KiB. Zero if it was never seen running.
    pub fn peak_memory_kib(&mut self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        self.peak_memory_kib = self.peak_memory_kib.max(peak_in(&status).unwrap_or(0));
        self.peak_memory_kib
    }

    /// Waits for its end, which is due; kills it if that takes longer than `limit`. Returns the
    /// signal that it died of if somebody else sent it.
    pub fn finish(&mut self, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        let mut ended = None;
        while ended.is_none() && Instant::now() < deadline {
            ended = self.child.try_wait().ok().flatten();
            thread::sleep(POLL);
        }
        self.kill();
        ended.and_then(|status| status.signal())
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // With what a wrapper script may have started. Both fail only if it has just ended.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
        self.signals.set_child(None);
    }

    /// Its log.
    ///
    /// # Errors
    /// What the system says.
    pub fn log(&self) -> io::Result<File> {
        File::open(&self.log)
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log, LOG_TAIL)
    }

    /// Says so if its log has no end. The file is looked at once a second.
    pub fn endless_log(&mut self) -> Option<String> {
        if self.log_seen.elapsed() < LOG_EVERY {
            return None;
        }
        self.log_seen = Instant::now();
        endless(&self.log, LOG_LIMIT)
    }
}

impl Drop for Emulator<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Says that a log is longer than `limit`, and with what it ends.
fn endless(log: &Path, limit: u64) -> Option<String> {
    let is_longer = fs::metadata(log).is_ok_and(|metadata| metadata.len() > limit);
    is_longer.then(|| {
        let end = tail(log, LOG_TAIL);
        let last = end.lines().next_back().unwrap_or_default();
        format!(
            "the emulator's log grows beyond {} MiB, so the machine was ended; \
             its last line is: {last}",
            limit >> 20
        )
    })
}

/// `VmHWM` of proc_pid_status(5).
fn peak_in(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_without_end_is_told_by_its_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        assert_eq!(endless(&log, 1 << 20), None);
        fs::write(&log, "a line\n".repeat(200_000)).unwrap();
        assert_eq!(endless(&log, 2 << 20), None);
        let sentence = endless(&log, 1 << 20).unwrap();
        assert!(
            sentence.contains("beyond 1 MiB") && sentence.ends_with("is: a line"),
            "{sentence}"
        );
    }

    #[test]
    fn the_peak_is_read_from_the_kernels_table() {
        assert_eq!(peak_in("Name:\tbochs\nVmHWM:\t  123456 kB\nVmRSS:\t 1 kB\n"), Some(123_456));
        assert_eq!(peak_in("Name:\tbochs\n"), None);
        let own = fs::read_to_string("/proc/self/status").unwrap();
        assert!(peak_in(&own).unwrap() > 0);
    }
}

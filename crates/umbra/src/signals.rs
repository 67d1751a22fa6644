//! Signals end the machine, not this program: it still has a report to write and a terminal to
//! restore.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, process, thread};

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpid};
use rustix::termios::Termios;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator;

use crate::console::{RawMode, message};
use crate::error::{Error, status};
use crate::report;

/// After a signal everything must be over in this time, even if nobody reads standard output.
const LIMIT: Duration = Duration::from_secs(20);

/// What an abrupt end must not leave behind.
#[derive(Debug, Default)]
struct Leftovers {
    folder: PathBuf,
    /// Another program that runs now, the leader of its process group.
    child: Option<Pid>,
    terminal: Option<Termios>,
}

impl Leftovers {
    fn remove(&self) {
        // Whatever fails here, the rest must still be tried, and there is nobody to tell.
        if let Some(child) = self.child {
            let _ = kill_process_group(child, Signal::KILL);
            let _ = waitpid(Some(child), WaitOptions::empty());
        }
        if let Some(terminal) = &self.terminal {
            RawMode::restore(terminal);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The signals that end the machine. A second one, or one that finds the session stuck, ends this
/// program at once, with nothing left behind.
#[derive(Debug)]
pub struct Signals {
    received: Arc<AtomicI32>,
    leftovers: Arc<Mutex<Leftovers>>,
}

impl Signals {
    /// Catches signals from now on, but for those that whoever started this program has it ignore:
    /// `nohup` means SIGHUP, and a shell's background job is not for Ctrl-C.
    ///
    /// # Errors
    /// The system refuses.
    pub fn catch() -> Result<Signals, Error> {
        let mut caught = caught()?;
        let signals = Signals { received: Arc::default(), leftovers: Arc::default() };
        let (received, leftovers) = (Arc::clone(&signals.received), Arc::clone(&signals.leftovers));
        thread::spawn(move || {
            for signal in caught.forever() {
                if received.swap(signal, Ordering::Relaxed) != 0 {
                    abort(&leftovers, user_end(signal));
                }
                abort_after(&leftovers, LIMIT, user_end(signal));
            }
        });
        Ok(signals)
    }

    /// The exit status that a signal asks for, if one came: as a shell shows it.
    pub fn status(&self) -> Option<u8> {
        match self.received.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(user_end(signal)),
        }
    }

    /// For work that has no result to show yet.
    ///
    /// # Errors
    /// A signal came.
    pub fn check(&self) -> Result<(), Error> {
        self.status().map_or(Ok(()), |status| Err(Error::User(status)))
    }

    /// Ends this program if it has not ended by itself a while after `timeout`: a guest's output
    /// that nobody reads must not keep the guest alive.
    pub fn limit(&self, timeout: Duration) {
        abort_after(&self.leftovers, timeout.saturating_add(LIMIT), status::TIMEOUT);
    }

    /// Names the temporary folder.
    pub fn set_folder(&self, folder: &Path) {
        self.update(|leftovers| leftovers.folder = folder.into());
    }

    /// Names another program that has started, the leader of a process group of its own; `None`
    /// once it has been reaped, for its number may become another process's.
    pub fn set_child(&self, child: Option<u32>) {
        let child = child.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        self.update(|leftovers| leftovers.child = child);
    }

    /// Ends that program and what it has started, whoever reaps them.
    pub fn kill_child(&self) {
        self.update(|leftovers| {
            if let Some(child) = leftovers.child {
                // Fails only if it has just ended.
                let _ = kill_process_group(child, Signal::KILL);
            }
        });
    }

    /// Names the terminal's state to go back to.
    pub fn set_terminal(&self, terminal: Option<Termios>) {
        self.update(|leftovers| leftovers.terminal = terminal);
    }

    fn update(&self, change: impl FnOnce(&mut Leftovers)) {
        change(&mut self.leftovers.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// For commands that start nothing: from now on the first signal ends this program at once, and
/// files that are not whole go with it.
///
/// # Errors
/// The system refuses.
pub fn end_at_the_first() -> Result<(), Error> {
    let mut caught = caught()?;
    thread::spawn(move || {
        if let Some(signal) = caught.forever().next() {
            report::abandon_unfinished();
            let end = Error::User(user_end(signal));
            message(format_args!("umbra: {end}\n"));
            process::exit(i32::from(end.status()));
        }
    });
    Ok(())
}

/// The signals that end a program, but for those that it was started to ignore.
fn caught() -> Result<iterator::Signals, Error> {
    let own = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored_in(&own);
    let wanted =
        [SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().filter(|s| ignored & 1 << (s - 1) == 0);
    iterator::Signals::new(wanted)
        .map_err(|error| Error::Machine(format!("cannot catch signals: {error}")))
}

/// `SigIgn` of proc_pid_status(5): bit n-1 is signal n.
fn ignored_in(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn user_end(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

fn abort_after(leftovers: &Arc<Mutex<Leftovers>>, limit: Duration, status: u8) {
    let leftovers = Arc::clone(leftovers);
    thread::spawn(move || {
        thread::sleep(limit);
        abort(&leftovers, status);
    });
}

fn abort(leftovers: &Mutex<Leftovers>, status: u8) -> ! {
    leftovers.lock().unwrap_or_else(PoisonError::into_inner).remove();
    report::abandon_unfinished();
    process::exit(i32::from(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_kernels_table() {
        assert_eq!(ignored_in("SigBlk:\t0\nSigIgn:\t0000000000001001\n"), 1 << 12 | 1);
        assert_eq!(ignored_in("SigCgt:\t1\n"), 0);
        // Rust's runtime ignores SIGPIPE, which is 13.
        let own = fs::read_to_string("/proc/self/status").unwrap();
        assert_ne!(ignored_in(&own) & 1 << 12, 0);
    }
}

//! Signals end the machine, not this program: it still has a report to write and a terminal to restore.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, process, thread};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::termios::Termios;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator;

use crate::console::RawMode;
use crate::error::Error;

/// After a signal everything must be over in this time, even if nobody reads standard output.
const LIMIT: Duration = Duration::from_secs(20);

/// What an abrupt end must not leave behind.
#[derive(Debug, Default)]
struct Leftovers {
    folder: PathBuf,
    emulator: Option<Pid>,
    terminal: Option<Termios>,
}

impl Leftovers {
    fn remove(&self) {
        // Whatever fails here, the rest must still be tried, and there is nobody to tell.
        if let Some(emulator) = self.emulator {
            let _ = kill_process(emulator, Signal::KILL);
            let _ = waitpid(Some(emulator), WaitOptions::empty());
        }
        if let Some(terminal) = &self.terminal {
            RawMode::restore(terminal);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The signals that end the machine. A second one, or one that finds the session stuck, ends this program at
/// once, with nothing left behind.
#[derive(Debug)]
pub struct Signals {
    received: Arc<AtomicI32>,
    leftovers: Arc<Mutex<Leftovers>>,
}

impl Signals {
    /// Catches signals from now on; `folder` is the temporary folder.
    ///
    /// # Errors
    /// The system refuses.
    pub fn catch(folder: &Path) -> Result<Signals, Error> {
        let mut caught = iterator::Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])
            .map_err(|error| Error::Machine(format!("cannot catch signals: {error}")))?;
        let received = Arc::new(AtomicI32::new(0));
        let leftovers = Arc::new(Mutex::new(Leftovers { folder: folder.into(), ..Leftovers::default() }));
        let signals = Signals { received: Arc::clone(&received), leftovers: Arc::clone(&leftovers) };
        thread::spawn(move || {
            for signal in caught.forever() {
                if received.swap(signal, Ordering::Relaxed) != 0 {
                    abort(&leftovers, signal);
                }
                let leftovers = Arc::clone(&leftovers);
                thread::spawn(move || {
                    thread::sleep(LIMIT);
                    abort(&leftovers, signal);
                });
            }
        });
        Ok(signals)
    }

    /// The exit status that a signal asks for, if one came: as a shell shows it.
    pub fn status(&self) -> Option<u8> {
        match self.received.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(status(signal)),
        }
    }

    /// Says what else must not be left behind.
    pub fn watch(&self, emulator: u32, terminal: Option<Termios>) {
        let mut leftovers = self.leftovers.lock().unwrap_or_else(PoisonError::into_inner);
        leftovers.emulator = i32::try_from(emulator).ok().and_then(Pid::from_raw);
        leftovers.terminal = terminal;
    }
}

impl Drop for Signals {
    /// The session is over: the emulator has been reaped, and its number may become another process's.
    fn drop(&mut self) {
        self.watch(0, None);
    }
}

fn status(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

fn abort(leftovers: &Mutex<Leftovers>, signal: i32) -> ! {
    leftovers.lock().unwrap_or_else(PoisonError::into_inner).remove();
    process::exit(i32::from(status(signal)))
}

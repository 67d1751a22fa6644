//! The trace of a run.

use std::io;
use std::path::{Path, PathBuf};

use umbra_telemetry::trace::Chunk;

use super::{Subject, TRACE};
use crate::error::Error;
use crate::guest;
use crate::report::cannot_write;
use crate::trace::{Head, Recorder};

/// A trace file in the making. If it cannot be written, the guest goes on without it.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    recorder: io::Result<Recorder>,
}

impl Recording {
    /// Starts a trace.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn start(path: &Path, subject: &Subject<'_>) -> Result<Recording, Error> {
        let config = subject.config;
        let head = Head {
            version: env!("CARGO_PKG_VERSION").into(),
            machine: subject.machine.into(),
            kernel: config.kernel.clone().into(),
            cmdline: config.append.clone().into(),
            memory: config.memory_mib,
            guest_faults: config.guest_faults.name().into(),
            without: guest::names(&config.without),
        };
        let recorder =
            Recorder::create(path, &head).map_err(|error| cannot_write(TRACE, path, &error))?;
        Ok(Recording { path: path.into(), recorder: Ok(recorder) })
    }

    /// Adds a stretch.
    pub fn add(&mut self, chunk: Chunk) {
        if let Ok(recorder) = &mut self.recorder
            && let Err(error) = recorder.add(chunk)
        {
            self.recorder = Err(error);
        }
    }

    /// Ends the trace; returns a sentence about it.
    ///
    /// # Errors
    /// It could not be written.
    pub fn finish(self, guest_exit: String) -> Result<String, Error> {
        let path = self.path;
        let finished = self.recorder.and_then(|recorder| recorder.finish(guest_exit));
        let (records, lost) = finished.map_err(|error| cannot_write(TRACE, &path, &error))?;
        let lost = if lost == 0 { String::new() } else { format!("; {lost} were lost on the way") };
        Ok(format!("trace: {records} records in {}{lost}", path.display()))
    }
}

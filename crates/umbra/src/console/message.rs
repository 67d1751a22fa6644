//! Text for the user.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

use crate::error::Error;

/// Writes to standard error. Nobody can be told if that is gone, and what is going on must still be brought to its
/// end: `eprintln` would panic.
pub fn message(text: Arguments<'_>) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_fmt(text).and_then(|()| stderr.flush());
}

/// Writes a result to standard output. Whoever reads may have had enough, as `head` has.
///
/// # Errors
/// It cannot be written: `print` would panic.
pub fn output(text: impl AsRef<[u8]>) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Machine(format!("cannot write to standard output: {error}; make room there")))
        }
        _ => Ok(()),
    }
}

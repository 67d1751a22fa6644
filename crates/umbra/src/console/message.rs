//! Text for the user.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

use crate::error::Error;
use crate::untrusted::escape;

/// Writes lines to standard error. Whatever they quote of files and machines does nothing to a
/// terminal.
pub fn message(text: Arguments<'_>) {
    control(format_args!("{}", escape(&text.to_string())));
}

/// Writes to standard error what a terminal is to obey. Nobody can be told if that is gone, and
/// what is going on must still be brought to its end: `eprintln` would panic.
pub(super) fn control(text: Arguments<'_>) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_fmt(text).and_then(|()| stderr.flush());
}

/// Writes a result to standard output, escaped as a [`message`] is. Whoever reads may have had
/// enough, as `head` has.
///
/// # Errors
/// It cannot be written: `print` would panic.
pub fn output(text: impl AsRef<str>) -> Result<(), Error> {
    output_bytes(escape(text.as_ref()).as_bytes())
}

/// Writes a guest's own output, byte for byte.
///
/// # Errors
/// As [`output`].
pub fn output_bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    output_failure(written).map_or(Ok(()), Err)
}

/// What is said if standard output could not be written; nothing if its reader has had enough.
pub fn output_failure(written: io::Result<()>) -> Option<Error> {
    let error = written.err().filter(|error| error.kind() != ErrorKind::BrokenPipe)?;
    Some(Error::Machine(format!("cannot write to standard output: {error}; make room there")))
}

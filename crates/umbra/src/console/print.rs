//! What a command was asked to show, on standard output.

use std::io::{self, ErrorKind, Write};

use crate::error::Error;

/// Writes to standard output. If whoever reads has had enough, as `head` does, that is no error.
///
/// # Errors
/// It cannot be written.
pub fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::Machine(format!(
            "cannot write to standard output: {error}; make room there, or send it elsewhere"
        ))),
        _ => Ok(()),
    }
}

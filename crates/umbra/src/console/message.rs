//! Text for the user on standard error.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Writes to standard error. Nobody can be told if that is gone, and what is going on must still be brought to its
/// end: `eprintln` would panic.
pub fn message(text: Arguments<'_>) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_fmt(text).and_then(|()| stderr.flush());
}

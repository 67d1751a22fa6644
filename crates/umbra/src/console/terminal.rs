//! The terminal's raw mode.

use std::io;

use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};

/// Gives every key to this program as it is typed, until it is dropped.
#[derive(Debug)]
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Switches the terminal of standard input; `None` if that is no terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn enter() -> io::Result<Option<RawMode>> {
        let stdin = io::stdin();
        if !rustix::termios::isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Output stays as it was: this program writes lines of its own to the same terminal.
        raw.output_modes = before.output_modes | OutputModes::OPOST;
        tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        Ok(Some(RawMode { before }))
    }

    /// The state to go back to.
    pub fn before(&self) -> &Termios {
        &self.before
    }

    /// Goes back to a state.
    pub fn restore(before: &Termios) {
        // Fails only if the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, before);
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        RawMode::restore(&self.before);
    }
}

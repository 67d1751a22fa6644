//! What the user sees until the guest speaks.

use std::io::{self, IsTerminal};
use std::time::Duration;

use super::message;
use super::message::control;

const SPINNER: &[char] = &['|', '/', '-', '\\'];

/// One line on standard error that says what is being waited for; animated on a terminal.
#[derive(Debug)]
pub struct Progress {
    animated: bool,
    text: String,
    frame: usize,
    shown: bool,
}

impl Progress {
    /// Says what is being waited for.
    pub fn start(text: String) -> Progress {
        let animated = io::stderr().is_terminal();
        if !animated {
            message(format_args!("umbra: {text}\n"));
        }
        Progress { animated, text, frame: 0, shown: false }
    }

    /// Shows that it still goes on.
    pub fn tick(&mut self, elapsed: Duration) {
        if self.animated {
            self.frame = (self.frame + 1) % SPINNER.len();
            self.shown = true;
            let (spinner, seconds) = (SPINNER[self.frame], elapsed.as_secs());
            control(format_args!("\r\x1b[K{spinner} {} ({seconds} s)", self.text));
        }
    }

    /// Takes the line away, so that something else can be printed.
    pub fn clear(&mut self) {
        if std::mem::replace(&mut self.shown, false) {
            control(format_args!("\r\x1b[K"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

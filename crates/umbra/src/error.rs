//! What ends a command without a result.

use std::fmt;
use std::process::ExitCode;

/// Exit statuses of the tool, beside that of success.
pub mod status {
    /// The guest failed.
    pub const GUEST_FAILED: u8 = 1;
    /// The input is wrong, or a program is missing.
    pub const BAD_INPUT: u8 = 2;
    /// The emulator or the hypervisor failed, or a result could not be written.
    pub const MACHINE_FAILED: u8 = 3;
    /// The guest did not end in time. As `timeout` has it.
    pub const TIMEOUT: u8 = 124;
    /// The user ended the machine. As a shell has it for Ctrl-C.
    pub const USER_END: u8 = 130;
}

/// Why a command ends, in one sentence with the way out.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// The user must give something else, or install something.
    Input(String),
    /// The machine failed, or this host.
    Machine(String),
    /// The user ended it before there was anything to report; this is the exit status.
    User(u8),
}

impl Error {
    /// The exit status that goes with it.
    pub fn status(&self) -> u8 {
        match self {
            Error::Input(_) => status::BAD_INPUT,
            Error::Machine(_) => status::MACHINE_FAILED,
            Error::User(status) => *status,
        }
    }
}

impl From<&Error> for ExitCode {
    fn from(error: &Error) -> ExitCode {
        ExitCode::from(error.status())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Input(sentence) | Error::Machine(sentence) => f.write_str(sentence),
            Error::User(_) => f.write_str("ended by the user"),
        }
    }
}

impl std::error::Error for Error {}

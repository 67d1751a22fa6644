//! Frames to the host, through the machine's port 0xe9.

use core::fmt::{self, Arguments, Display};

use umbra_telemetry::{LogLevel, Message, Stats, frame};

use crate::hw::{port, power};

/// What Bochs calls `port_e9_hack`.
const PORT: u16 = 0xe9;

/// Sends a message.
pub fn send(message: &Message) {
    port::write_bytes(PORT, &frame::encode(message));
}

/// Text as noise beside the frames, without the heap: for panics that cannot have it.
pub struct Raw;

impl fmt::Write for Raw {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        port::write_bytes(PORT, text.as_bytes());
        Ok(())
    }
}

/// A line for the user.
pub fn log(level: LogLevel, text: Arguments<'_>) {
    send(&Message::Log { level, text: alloc::fmt::format(text) });
}

/// Sends the final report and ends the machine.
pub fn end(stats: Stats) -> ! {
    send(&Message::End(stats));
    power::off()
}

/// Sends one sentence on why the hypervisor cannot go on and ends the machine.
pub fn fail(sentence: impl Display) -> ! {
    send(&Message::Failure(alloc::format!("{sentence}")));
    power::off()
}

/// Tells the user what was found or chosen: arguments as for `format!`.
macro_rules! info {
    ($($arg:tt)*) => {
        $crate::telemetry::log(::umbra_telemetry::LogLevel::Info, ::core::format_args!($($arg)*))
    };
}

/// Tells the user something that must be seen: arguments as for `format!`.
macro_rules! warning {
    ($($arg:tt)*) => {
        $crate::telemetry::log(::umbra_telemetry::LogLevel::Warning, ::core::format_args!($($arg)*))
    };
}

pub(crate) use {info, warning};

//! The user's side: keyboard and terminal, progress, and the way of bytes into the machine.

mod input;
mod keys;
mod message;
mod progress;
mod screen;
mod table;
mod terminal;

pub use input::{Input, MachineInput, read_standard_input};
pub use keys::{Action, HELP, Keys};
pub use message::{message, output, output_bytes, output_failure};
pub use progress::{Live, Progress};
pub use screen::screen_text;
pub use table::Table;
pub use terminal::RawMode;

//! Commands to the hypervisor inside the console input (the machine's COM1).
//!
//! Console bytes go as they are, except [`ESCAPE`], which is doubled. `ESCAPE FINISH` asks the
//! hypervisor to end the guest and report, `ESCAPE COUNT` what it has counted so far.

/// Starts a command; doubled, it is the console byte itself.
pub const ESCAPE: u8 = 0xff;

/// End the guest now and send the final report ([`GuestExit::Stopped`](crate::GuestExit::Stopped)).
pub const FINISH: u8 = 0x01;

/// Send what was counted so far ([`Message::Counts`](crate::Message::Counts)).
pub const COUNT: u8 = 0x02;

/// What one byte of input comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A byte for the guest.
    Console(u8),
    /// The host wants the guest to end.
    Finish,
    /// The host wants to know what was counted so far.
    Count,
    /// Nothing yet, or a command that does not exist.
    Nothing,
}

/// Takes the commands out of the input.
#[derive(Debug, Default)]
pub struct Commands {
    escaped: bool,
}

impl Commands {
    /// Nothing read yet.
    pub const fn new() -> Commands {
        Commands { escaped: false }
    }

    /// Takes the next byte.
    pub fn push(&mut self, byte: u8) -> Input {
        match (core::mem::replace(&mut self.escaped, false), byte) {
            (false, ESCAPE) => {
                self.escaped = true;
                Input::Nothing
            }
            (false, byte) | (true, byte @ ESCAPE) => Input::Console(byte),
            (true, FINISH) => Input::Finish,
            (true, COUNT) => Input::Count,
            (true, _) => Input::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_doubled_escapes() {
        let mut commands = Commands::default();
        let input =
            [b'a', ESCAPE, ESCAPE, FINISH, ESCAPE, FINISH, ESCAPE, b'?', ESCAPE, COUNT, b'b'];
        let seen: alloc::vec::Vec<Input> =
            input.into_iter().map(|b| commands.push(b)).filter(|i| *i != Input::Nothing).collect();
        use Input::{Console, Count, Finish};
        assert_eq!(
            seen,
            [Console(b'a'), Console(ESCAPE), Console(FINISH), Finish, Count, Console(b'b')]
        );
    }
}

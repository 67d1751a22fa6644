//! Which keys are for this program: what follows a Ctrl-A, as in QEMU's `-nographic` and minicom.

/// Shown on Ctrl-A H.
pub const HELP: &str =
    "Ctrl-A X  end the machine\nCtrl-A Ctrl-A  send Ctrl-A to the guest\nCtrl-A H  this help";

const CTRL_A: u8 = 0x01;

/// What the user wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give these bytes to the guest.
    Send(Vec<u8>),
    /// End the machine.
    End,
    /// Show [`HELP`].
    Help,
}

/// Tells keys for the guest from keys for this program.
#[derive(Debug, Default)]
pub struct Keys {
    after_ctrl_a: bool,
}

impl Keys {
    /// What these bytes of a terminal ask for, in their order.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut send = Vec::new();
        for &byte in bytes {
            let action = match (std::mem::replace(&mut self.after_ctrl_a, false), byte) {
                (false, CTRL_A) => {
                    self.after_ctrl_a = true;
                    continue;
                }
                (true, b'x' | b'X') => Action::End,
                (true, b'h' | b'H' | b'?') => Action::Help,
                (true, CTRL_A) | (false, _) => {
                    send.push(byte);
                    continue;
                }
                // Not a command: as if it had not been typed, so that a slip sends nothing strange.
                (true, _) => continue,
            };
            if !send.is_empty() {
                actions.push(Action::Send(std::mem::take(&mut send)));
            }
            actions.push(action);
        }
        if !send.is_empty() {
            actions.push(Action::Send(send));
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(parts: &[&[u8]]) -> Vec<Action> {
        let mut keys = Keys::default();
        parts.iter().flat_map(|part| keys.push(part)).collect()
    }

    #[test]
    fn ctrl_c_is_the_guests() {
        assert_eq!(all(&[b"ls\x03"]), [Action::Send(b"ls\x03".into())]);
    }

    #[test]
    fn commands_follow_ctrl_a_even_in_another_read() {
        assert_eq!(all(&[b"a\x01", b"x"]), [Action::Send(b"a".into()), Action::End]);
        assert_eq!(all(&[b"\x01hb"]), [Action::Help, Action::Send(b"b".into())]);
        assert_eq!(all(&[b"\x01\x01x"]), [Action::Send(b"\x01x".into())]);
        assert_eq!(all(&[b"\x01qx"]), [Action::Send(b"x".into())]);
    }
}

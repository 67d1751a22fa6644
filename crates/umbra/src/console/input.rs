//! The way of bytes from standard input into the machine's COM1.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use umbra_telemetry::command::{COUNT, ESCAPE, FINISH};

/// What goes into the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for the guest's console.
    Console(Vec<u8>),
    /// The command to end the guest and report.
    Finish,
    /// The command to say what was counted so far.
    Count,
}

impl Input {
    /// Its bytes on the line ([`umbra_telemetry::command`]).
    fn to_wire(&self) -> Vec<u8> {
        match self {
            Input::Finish => vec![ESCAPE, FINISH],
            Input::Count => vec![ESCAPE, COUNT],
            Input::Console(bytes) => {
                let doubled =
                    |&byte: &u8| if byte == ESCAPE { vec![byte, byte] } else { vec![byte] };
                bytes.iter().flat_map(doubled).collect()
            }
        }
    }
}

/// Pieces of input that may wait for a guest which does not read.
const QUEUE: usize = 16;

/// The machine's COM1. A thread writes to it, so that a guest which does not read blocks nothing
/// else.
#[derive(Clone, Debug)]
pub struct MachineInput {
    queue: SyncSender<Input>,
}

impl MachineInput {
    /// Writes to `line` what is sent, as soon as `ready` has been told that somebody reads it: what
    /// came before the hypervisor has set up its UART would be lost.
    pub fn start(line: impl Write + Send + 'static, ready: Receiver<()>) -> MachineInput {
        let (queue, inputs) = sync_channel(QUEUE);
        thread::spawn(move || {
            if ready.recv().is_ok() {
                write_all(&inputs, line);
            }
        });
        MachineInput { queue }
    }

    /// Sends, and waits while the guest does not read. `false` if the machine is gone.
    pub fn send(&self, input: Input) -> bool {
        self.queue.send(input).is_ok()
    }

    /// Sends if that needs no waiting. `false` if it does, or if the machine is gone.
    pub fn try_send(&self, input: Input) -> bool {
        !matches!(
            self.queue.try_send(input),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_))
        )
    }
}

fn write_all(inputs: &Receiver<Input>, mut line: impl Write) {
    for input in inputs {
        if line.write_all(&input.to_wire()).is_err() {
            // The machine is gone; whoever waits for its messages finds out.
            return;
        }
    }
}

/// Calls `bytes` with what comes from standard input until that ends or `bytes` returns `false`.
pub fn read_standard_input(mut bytes: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 1024];
    let mut stdin = io::stdin().lock();
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if !bytes(&buffer[..length]) {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_byte_is_doubled() {
        assert_eq!(Input::Console(vec![1, ESCAPE, 2]).to_wire(), [1, ESCAPE, ESCAPE, 2]);
        assert_eq!(Input::Finish.to_wire(), [ESCAPE, FINISH]);
        assert_eq!(Input::Count.to_wire(), [ESCAPE, COUNT]);
    }

    #[test]
    fn a_line_that_is_gone_is_noticed() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (tell, ready) = sync_channel(1);
        tell.send(()).unwrap();
        let input = MachineInput::start(Gone, ready);
        while input.send(Input::Finish) {
            thread::yield_now();
        }
        assert!(!input.try_send(Input::Finish));
    }
}

//! Messages from and to the tool.

use std::time::Duration;

use umbra_trial::wire::{Damaged, Reply, Request, encode, take};

use crate::ports::Ports;

/// How often an idle line is looked at.
const PAUSE: Duration = Duration::from_millis(1);
/// For so many looks the line is looked at without a pause.
const BUSY: u32 = 2000;

/// The line to the tool.
pub struct Wire {
    ports: Ports,
    received: Vec<u8>,
}

impl Wire {
    /// The line by these ports.
    pub fn new(ports: Ports) -> Wire {
        Wire { ports, received: Vec::new() }
    }

    /// Waits for a request.
    ///
    /// # Errors
    /// It is damaged.
    pub fn receive(&mut self) -> Result<Request, Damaged> {
        let mut idle = 0;
        loop {
            match self.ports.receive() {
                Some(byte) => {
                    idle = 0;
                    let empty = byte == 0 && self.received.is_empty();
                    if !empty {
                        self.received.push(byte);
                    }
                    if byte == 0
                        && let Some(request) = take(&mut self.received)
                    {
                        return request;
                    }
                }
                None if idle < BUSY => idle += 1,
                None => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Sends a message.
    pub fn send(&mut self, message: &Reply) {
        encode(message).into_iter().for_each(|byte| self.ports.send(byte));
    }
}

//! Messages from and to the tool.

use std::fs;
use std::time::Duration;

use umbra_telemetry::{Message, frame as telemetry};
use umbra_trial::wire::{Damaged, Reply, Request, encode, shield, take};

use crate::ports::Ports;

/// How often an idle line is looked at.
const PAUSE: Duration = Duration::from_millis(1);
/// For so many looks the line is looked at without a pause.
const BUSY: u32 = 2000;

/// The programs of a machine that no line leads into, as [`Request`]s.
const BATCH: &str = "/programs";

/// The line to the tool.
pub struct Wire {
    ports: Ports,
    received: Vec<u8>,
    /// All requests were there from the start. Replies are printed, beside the kernel's console.
    batch: bool,
}

impl Wire {
    /// The line by these ports: COM2, unless the initramfs has a batch.
    pub fn new(ports: Ports) -> Wire {
        let batch = fs::read(BATCH).ok();
        Wire { ports, batch: batch.is_some(), received: batch.unwrap_or_default() }
    }

    /// Waits for a request. There is none behind a batch.
    ///
    /// # Errors
    /// It is damaged.
    pub fn receive(&mut self) -> Result<Option<Request>, Damaged> {
        if self.batch {
            return take(&mut self.received).transpose();
        }
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
                        return request.map(Some);
                    }
                }
                None if idle < BUSY => idle += 1,
                None => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Sends a message.
    pub fn send(&mut self, message: &Reply) {
        let frame = encode(message);
        if self.batch {
            // What `umbra run` shows beside the console.
            let shown = Message::DebugConsole(shield(&frame).collect());
            telemetry::encode(&shown).into_iter().for_each(|byte| self.ports.print(byte));
        } else {
            frame.into_iter().for_each(|byte| self.ports.send(byte));
        }
    }

    /// Says that no message comes any more.
    pub fn close(&mut self) {
        if self.batch {
            self.ports.end_machine();
        }
    }
}

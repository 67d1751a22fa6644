//! Messages to the tool.

use umbra_telemetry::{Message, frame};

use crate::sys::Ports;

/// The line to the tool: the machine's port 0xe9.
pub struct Wire(Ports);

impl Wire {
    /// The line by these ports.
    pub fn new(ports: Ports) -> Wire {
        Wire(ports)
    }

    /// Sends a message.
    pub fn send(&mut self, message: &Message) {
        frame::encode(message).into_iter().for_each(|byte| self.0.debug_console(byte));
    }

    /// Ends the machine.
    pub fn end_machine(self) -> ! {
        b"Shutdown".iter().for_each(|&byte| self.0.shutdown(byte));
        // Not in Bochs, then; process 1 must not return.
        loop {
            std::thread::park();
        }
    }
}

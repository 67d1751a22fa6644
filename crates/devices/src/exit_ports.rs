//! Bochs' shutdown port 0x8900: the guest spells `Shutdown`, one byte a write.

use umbra_telemetry::GuestExit;

const TEXT: &[u8] = b"Shutdown";

/// How much of the text has been seen.
#[derive(Default)]
pub(crate) struct ExitPorts {
    matched: usize,
}

impl ExitPorts {
    /// A byte written to port 0x8900.
    pub(crate) fn shutdown_byte(&mut self, byte: u8) -> Option<GuestExit> {
        self.matched = match byte {
            _ if byte == TEXT[self.matched] => self.matched + 1,
            // Only its first letter can start the text anew: `S` stands nowhere else in it.
            _ => usize::from(byte == TEXT[0]),
        };
        if self.matched == TEXT.len() {
            self.matched = 0;
            return Some(GuestExit::Shutdown);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_text_shuts_down() {
        let mut ports = ExitPorts::default();
        let ends = |ports: &mut ExitPorts, text: &[u8]| {
            text.iter().filter_map(|&byte| ports.shutdown_byte(byte)).count()
        };
        assert_eq!(ends(&mut ports, b"Shutdow"), 0);
        assert_eq!(ends(&mut ports, b"xShut"), 0);
        assert_eq!(ends(&mut ports, b"ShutSShutdown"), 1);
        assert_eq!(ends(&mut ports, b"own"), 0);
        assert_eq!(ends(&mut ports, b"ShutdownShutdown"), 2);
    }
}

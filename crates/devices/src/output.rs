//! Text that waits for the embedder to take it.

use alloc::vec::Vec;
use core::mem;

/// What a guest can make the platform keep.
const CAPACITY: usize = 64 * 1024;

/// So many bytes are worth taking even without a line end.
const BLOCK: usize = 512;

/// A bounded buffer of output bytes.
#[derive(Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    line_complete: bool,
}

impl Output {
    /// Adds a byte; a full buffer loses it.
    pub(crate) fn push(&mut self, byte: u8) {
        if self.bytes.len() < CAPACITY {
            self.bytes.push(byte);
            self.line_complete |= byte == b'\n';
        }
    }

    /// Whether the bytes should be taken now.
    pub(crate) fn due(&self) -> bool {
        self.line_complete || self.bytes.len() >= BLOCK
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.line_complete = false;
        mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_blocks_are_due_and_memory_is_bounded() {
        let mut output = Output::default();
        output.push(b'a');
        assert!(!output.due() && !output.is_empty());
        output.push(b'\n');
        assert!(output.due());
        assert_eq!(output.take(), b"a\n");
        assert!(!output.due());
        (0..2 * CAPACITY).for_each(|_| output.push(b'x'));
        assert!(output.due());
        assert_eq!(output.take().len(), CAPACITY);
    }
}

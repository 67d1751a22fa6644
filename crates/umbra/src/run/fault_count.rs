//! The guest's own count of its page faults, from what it prints.

/// How the line starts by which Umbra's `/init` says what Linux has counted in `/proc/vmstat`.
const LINE: &[u8] = b"vmstat: pgfault ";

/// Bytes of a line that are looked at: the start, and a number of 64 bits.
const KEPT: usize = LINE.len() + 20;

/// Looks for that line in a guest's output, piece by piece.
#[derive(Debug, Default)]
pub struct FaultCount {
    line: Vec<u8>,
    found: Option<u64>,
}

impl FaultCount {
    /// More of the guest's output.
    pub fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() <= KEPT {
                    self.line.push(byte);
                }
                continue;
            }
            let number =
                self.line.strip_prefix(LINE).and_then(|rest| std::str::from_utf8(rest).ok());
            self.found = number.and_then(|number| number.trim_end().parse().ok()).or(self.found);
            self.line.clear();
        }
    }

    /// The page faults that the guest has counted, if it has said so.
    pub fn faults(&self) -> Option<u64> {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_line_is_found_in_pieces_of_any_size() {
        let output = b"boot\r\nvmstat: pgfault 24310\r\nvmstat: pgmajfault 3\r\nno vmstat: pgfault 7\nvmstat: pgfault x\n";
        for size in 1..output.len() {
            let mut count = FaultCount::default();
            output.chunks(size).for_each(|piece| count.push(piece));
            assert_eq!(count.faults(), Some(24_310));
        }
        let mut count = FaultCount::default();
        count.push(b"vmstat: pgfault 1");
        assert_eq!(count.faults(), None, "the line has not ended");
        count.push(&[b'1'; 1 << 20]);
        count.push(b"\n");
        assert_eq!((count.faults(), count.line.capacity() < 1024), (None, true));
    }
}

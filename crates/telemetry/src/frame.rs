//! Frames: `00`, COBS of (postcard message, CRC-32 in little endian), `00`.
//!
//! The stream that carries them also carries text of the emulator; the leading zero ends such text,
//! the CRC rejects what merely looks like a frame.

use alloc::vec::Vec;

use crc::{CRC_32_ISO_HDLC, Crc};

use crate::Message;

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Frames longer than this are noise.
const MAX_FRAME: usize = 1 << 20;

/// The bytes of `message` on the wire.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut plain =
        postcard::to_allocvec(message).expect("a Message always serializes into a growing vector");
    let crc = CRC.checksum(&plain);
    plain.extend_from_slice(&crc.to_le_bytes());
    let mut wire = alloc::vec![0];
    wire.extend(cobs::encode_vec(&plain));
    wire.push(0);
    wire
}

/// Finds messages in a stream of bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Vec<u8>,
}

impl Decoder {
    /// Takes the next bytes of the stream; calls `message` for each whole message and `noise` for
    /// each stretch of bytes that is none.
    pub fn push(
        &mut self,
        bytes: &[u8],
        mut message: impl FnMut(Message),
        mut noise: impl FnMut(&[u8]),
    ) {
        for &byte in bytes {
            if byte != 0 {
                if self.partial.len() == MAX_FRAME {
                    noise(&self.partial);
                    self.partial.clear();
                }
                self.partial.push(byte);
                continue;
            }
            if self.partial.is_empty() {
                continue;
            }
            match decode(&self.partial) {
                Some(found) => message(found),
                None => noise(&self.partial),
            }
            self.partial.clear();
        }
    }

    /// The bytes since the last zero: noise, if nothing follows.
    pub fn rest(&self) -> &[u8] {
        &self.partial
    }
}

fn decode(wire: &[u8]) -> Option<Message> {
    let plain = cobs::decode_vec(wire).ok()?;
    let (body, crc) = plain.split_last_chunk::<4>()?;
    if CRC.checksum(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    postcard::from_bytes(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LogLevel;

    #[test]
    fn messages_survive_noise_and_fragments() {
        let messages = [
            Message::Hello { protocol: crate::PROTOCOL },
            Message::Console(alloc::vec![0, 1, 0, 255]),
            Message::Log { level: LogLevel::Info, text: "penryn".into() },
        ];
        let mut wire = b"Bochs x86 Emulator\n".to_vec();
        for message in &messages {
            wire.extend(encode(message));
            wire.extend(b"(0) breakpoint?\n");
        }
        for chunk in 1..40 {
            let (mut decoder, mut seen, mut noise) = (Decoder::default(), Vec::new(), Vec::new());
            for part in wire.chunks(chunk) {
                decoder.push(part, |m| seen.push(m), |n| noise.extend_from_slice(n));
            }
            assert_eq!(seen, messages);
            assert!(noise.starts_with(b"Bochs"));
            assert_eq!(decoder.rest(), b"(0) breakpoint?\n");
        }
    }

    /// Tool and hypervisor are built apart. Whoever changes these bytes, by a message or by a new
    /// version of a crate, numbers the protocol anew.
    #[test]
    fn the_wire_format_is_that_of_the_protocol() {
        let log = Message::Log { level: LogLevel::Info, text: "a".into() };
        assert_eq!(encode(&log), [0, 9, 2, 1, 1, b'a', 0x2f, 0x1d, 0x21, 0xa9, 0]);
        let hello = Message::Hello { protocol: 261 };
        assert_eq!(encode(&hello), [0, 1, 7, 0x85, 2, 0x30, 0xd4, 0xbb, 0x57, 0]);
    }

    #[test]
    fn a_damaged_frame_is_noise() {
        let good = encode(&Message::Console(b"hello".to_vec()));
        for at in 1..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let mut seen = 0;
            Decoder::default().push(&bad, |_| seen += 1, |_| ());
            assert_eq!(seen, 0, "byte {at}");
        }
    }
}

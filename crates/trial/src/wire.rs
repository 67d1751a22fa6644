//! What the tool and the driver say to each other: frames that end with a zero byte.

use serde::{Deserialize, Serialize};

use crate::program::Program;
use crate::record::Record;

/// From the tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Run this.
    Run(Program),
}

/// From the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It can run programs on this kernel.
    Ready {
        /// The kernel's version.
        release: String,
        /// Where the text of the hypervisor's module is, if it has one.
        text: Option<u64>,
    },
    /// It cannot, and why.
    Refused(String),
    /// A program has run.
    Ran(Record),
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message is damaged")]
pub struct Damaged;

/// A message as a frame.
///
/// # Panics
/// Never: all messages can be written.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let bytes = postcard::to_allocvec(message).expect("messages are plain data");
    let mut frame = cobs::encode_vec(&bytes);
    frame.push(0);
    frame
}

/// Takes the first frame out of `bytes`, if it is complete.
///
/// # Errors
/// What stands there is no message.
pub fn take<M: for<'a> Deserialize<'a>>(bytes: &mut Vec<u8>) -> Option<Result<M, Damaged>> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    let frame: Vec<u8> = bytes.drain(..=end).collect();
    let decoded = cobs::decode_vec(&frame[..end]).map_err(|_| Damaged);
    Some(decoded.and_then(|bytes| postcard::from_bytes(&bytes).map_err(|_| Damaged)))
}

/// A frame on a line that text goes over, too: in bytes that no text in ASCII has.
pub fn shield(frame: &[u8]) -> impl Iterator<Item = u8> {
    frame.iter().flat_map(|byte| [0x80 | byte >> 4, 0x80 | byte & 0xf])
}

/// What has come over a line with [`shield`]ed frames: these, and the text.
pub fn unshield(line: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (halves, text): (Vec<u8>, Vec<u8>) = line.iter().partition(|&&byte| byte >= 0x80);
    let whole = halves.chunks_exact(2).map(|half| half[0] << 4 | half[1] & 0xf);
    (whole.collect(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let ready = Reply::Ready { release: "6.1".into(), text: Some(1 << 63) };
        let messages = [ready, Reply::Refused(String::new())];
        let mut bytes: Vec<u8> = messages.iter().flat_map(encode).collect();
        bytes.extend([7, 7]);
        assert_eq!(take(&mut bytes), Some(Ok(messages[0].clone())));
        assert_eq!(take(&mut bytes), Some(Ok(messages[1].clone())));
        assert_eq!(take::<Reply>(&mut bytes), None);
        bytes.push(0);
        assert_eq!(take::<Reply>(&mut bytes), Some(Err(Damaged)));
    }

    #[test]
    fn text_may_come_between_any_two_bytes() {
        let frame: Vec<u8> = (0..=255).collect();
        let shielded: Vec<u8> = shield(&frame).collect();
        let line: Vec<u8> = shielded.iter().flat_map(|&byte| [b'[', byte, b'\n']).collect();
        let text = b"[\n".repeat(shielded.len());
        assert_eq!(unshield(&line), (frame.clone(), text));
        // The last byte is only half there.
        assert_eq!(unshield(&shielded[..shielded.len() - 1]).0, frame[..255]);
    }
}

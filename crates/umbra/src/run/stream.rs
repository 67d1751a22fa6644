//! What comes out of the machine's port 0xe9: messages, and noise between them.

use std::cell::{Cell, RefCell};
use std::io::{self, Read};

use umbra_telemetry::Message;
use umbra_telemetry::frame::Decoder;

/// Bytes of text between messages that are kept in case there is no report.
const NOISE_KEPT: usize = 4 << 10;

/// A part of the stream.
#[derive(Debug)]
pub enum Part {
    /// A message of the hypervisor.
    Message(Box<Message>),
    /// Text between messages: Bochs's own, or a dying hypervisor's.
    Noise(Vec<u8>),
    /// There is no more; or it could not be read.
    End(io::Result<()>),
}

/// Hands on all parts of a stream, until nobody wants more.
pub fn read(stream: impl Read, hand_on: impl FnMut(Part) -> bool) {
    read_parts(stream, false, hand_on);
}

/// As [`read`], until a message says that the guest starts: what follows is the guest's text, as
/// from a debug console.
pub fn read_bare(stream: impl Read, hand_on: impl FnMut(Part) -> bool) {
    read_parts(stream, true, hand_on);
}

fn read_parts(mut stream: impl Read, bare: bool, mut hand_on: impl FnMut(Part) -> bool) {
    let entered = Cell::new(false);
    let mut held = Vec::new();
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 64 << 10];
    let end = loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => break Err(error),
        };
        let found = RefCell::new(Vec::new());
        // A byte at a time, as the guest's text begins right behind the message.
        let until_entered = if bare { 1 } else { length };
        let mut rest = &buffer[..length];
        while !(rest.is_empty() || bare && entered.get()) {
            let (bytes, more) = rest.split_at(until_entered);
            rest = more;
            decoder.push(
                bytes,
                |message| {
                    entered.set(entered.get() || message == Message::GuestEntered);
                    found.borrow_mut().push(Part::Message(Box::new(message)));
                },
                |noise| found.borrow_mut().push(Part::Noise(noise.to_vec())),
            );
        }
        let mut found = found.into_inner();
        if !rest.is_empty() {
            held.extend_from_slice(rest);
            let text = held.drain(..last_words_start(&held)).collect();
            found.push(Part::Message(Box::new(Message::DebugConsole(text))));
        }
        if !found.into_iter().all(&mut hand_on) {
            return;
        }
    };
    let rest = if held.is_empty() || held.starts_with(LAST_WORDS) {
        Part::Noise(held)
    } else {
        Part::Message(Box::new(Message::DebugConsole(held)))
    };
    let _ =
        hand_on(Part::Noise(decoder.rest().to_vec())) && hand_on(rest) && hand_on(Part::End(end));
}

/// With these bytes begins the line in which Bochs's debugger says where the machine has stopped.
const LAST_WORDS: &[u8] = b"(0).[";

/// Where a line at the end of `text` starts that may be the debugger's; else the length of `text`.
fn last_words_start(text: &[u8]) -> usize {
    let may_be = |&at: &usize| {
        let rest = &text[at..];
        let line = rest.strip_suffix(b"\n").unwrap_or(rest);
        (rest.starts_with(LAST_WORDS) && !line.contains(&b'\n')) || LAST_WORDS.starts_with(rest)
    };
    (0..text.len()).find(may_be).unwrap_or(text.len())
}

/// The last of the noise.
#[derive(Debug, Default)]
pub struct Noise(Vec<u8>);

impl Noise {
    /// More of it.
    pub fn keep(&mut self, noise: &[u8]) {
        self.0.extend_from_slice(noise);
        let excess = self.0.len().saturating_sub(NOISE_KEPT);
        self.0.drain(..excess);
    }

    /// As text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// What the hypervisor says when it cannot send a message.
    pub fn last_words(&self) -> Option<String> {
        self.text().lines().find_map(|line| line.strip_prefix("umbra: ").map(String::from))
    }
}

#[cfg(test)]
mod tests {
    use umbra_telemetry::frame;

    use super::*;

    #[test]
    fn a_bare_guests_text_begins_behind_the_message() {
        let stream =
            [b"Bochs\n", &frame::encode(&Message::GuestEntered)[..], b"a \0 is text\n"].concat();
        assert_eq!(heard(&stream), (b"Bochs\n".to_vec(), b"a \0 is text\n".to_vec(), 1));
    }

    #[test]
    fn the_debuggers_last_line_is_not_the_guests() {
        let entered = frame::encode(&Message::GuestEntered);
        let stream = |text: &[u8]| [&entered, text].concat();
        let line = b"(0).[17] [0x8048129] 0008:8048129 (unk. ctxt): rep outsb\n".to_vec();
        let text = |bytes: &[u8]| heard(&stream(bytes)).1;
        assert_eq!(
            heard(&stream(&[b"end", &line[..]].concat())),
            (line.clone(), b"end".to_vec(), 1)
        );
        assert_eq!(text(&[&line[..], b"more\n(0)"].concat()), [&line[..], b"more\n(0)"].concat());
    }

    /// Noise, text, and how often the guest was said to start.
    fn heard(stream: &[u8]) -> (Vec<u8>, Vec<u8>, u32) {
        let (mut noise, mut text, mut entered) = (Vec::new(), Vec::new(), 0);
        read_bare(stream, |part| {
            match part {
                Part::Noise(bytes) => noise.extend(bytes),
                Part::Message(message) => match *message {
                    Message::DebugConsole(bytes) => text.extend(bytes),
                    Message::GuestEntered => entered += 1,
                    other => panic!("{other:?}"),
                },
                Part::End(end) => end.unwrap(),
            }
            true
        });
        (noise, text, entered)
    }
}

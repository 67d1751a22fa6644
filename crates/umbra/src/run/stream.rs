//! What comes out of the machine's port 0xe9: messages, and noise between them.

use std::cell::RefCell;
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
pub fn read(mut stream: impl Read, mut hand_on: impl FnMut(Part) -> bool) {
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
        decoder.push(
            &buffer[..length],
            |message| found.borrow_mut().push(Part::Message(Box::new(message))),
            |noise| found.borrow_mut().push(Part::Noise(noise.to_vec())),
        );
        if !found.into_inner().into_iter().all(&mut hand_on) {
            return;
        }
    };
    let _ = hand_on(Part::Noise(decoder.rest().to_vec())) && hand_on(Part::End(end));
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

//! What the host tool decodes: a stream of frames with foreign text between them.

use umbra_telemetry::frame::{Decoder, encode};
use umbra_telemetry::{BootConfig, ExitCounts, Message};

use crate::input::Input;

/// Bytes are chunks of a stream: as they are, or put into a frame that is whole but for its
/// contents. The chunks that the stream is cut into make no difference, nothing gets lost, and what
/// is decoded is what would be encoded.
///
/// # Panics
/// One of that is not so.
pub fn telemetry(data: &[u8]) {
    let mut input = Input::new(data);
    let mut stream = Vec::new();
    let mut cuts = Vec::new();
    while !input.is_empty() {
        let kind = input.u8();
        let length = usize::from(kind >> 1);
        let bytes = input.take(length);
        if kind & 1 == 0 {
            stream.extend(bytes)
        } else {
            stream.extend(frame(bytes))
        }
        cuts.push(stream.len());
    }
    let whole = decode([&stream[..]].into_iter());
    let mut start = 0;
    let parts = cuts.into_iter().map(|end| &stream[std::mem::replace(&mut start, end)..end]);
    assert_eq!(decode(parts), whole);
    assert_eq!(decode(stream.chunks(1)), whole);

    let (messages, noise) = whole;
    assert!(noise.len() <= stream.len());
    let mut again = Vec::new();
    for message in &messages {
        again.extend(encode(message));
        if let Message::End(stats) = message {
            // Whatever the counts: they can be shown.
            let _: u64 = stats.exits.total();
            assert_eq!(stats.exits.iter().collect::<ExitCounts>(), stats.exits);
        }
    }
    assert_eq!(decode([&again[..]].into_iter()), (messages, Vec::new()));

    if let Ok(config) = BootConfig::from_bytes(data) {
        assert_eq!(BootConfig::from_bytes(&config.to_bytes()), Ok(config));
    }
}

/// A frame around any bytes.
fn frame(body: &[u8]) -> Vec<u8> {
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(body);
    let plain = [body, &crc.to_le_bytes()].concat();
    [&[0], &cobs::encode_vec(&plain)[..], &[0]].concat()
}

/// The messages of a stream, and its noise.
fn decode<'a>(parts: impl Iterator<Item = &'a [u8]>) -> (Vec<Message>, Vec<u8>) {
    let (mut decoder, mut messages, mut noise) = (Decoder::default(), Vec::new(), Vec::new());
    for part in parts {
        decoder.push(
            part,
            |message| messages.push(message),
            |bytes| noise.extend_from_slice(bytes),
        );
    }
    noise.extend_from_slice(decoder.rest());
    (messages, noise)
}

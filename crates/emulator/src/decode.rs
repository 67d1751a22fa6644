//! From bytes to an instruction, and what to make of bytes that are none.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use crate::{Error, Exception, Mode};

/// The longest instruction that the processor takes (SDM volume 2, "Instruction Format").
const MAX_LENGTH: usize = 15;

pub(crate) fn decode<F>(bytes: &[u8], mode: Mode, rip: u64) -> Result<Instruction, Error<F>> {
    let bitness = match mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    };
    let bytes = &bytes[..bytes.len().min(MAX_LENGTH)];
    let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    decoder.decode_out(&mut instruction);
    match decoder.last_error() {
        DecoderError::None => Ok(instruction),
        DecoderError::NoMoreBytes => Err(Error::Truncated),
        // The decoder ran into the limit: #GP, before any #UD.
        _ if decoder.position() == MAX_LENGTH => Err(Error::Exception(Exception::GENERAL_PROTECTION)),
        _ if is_vector(bytes, mode) => Err(Error::Unsupported),
        _ => Err(Error::Exception(Exception::INVALID_OPCODE)),
    }
}

/// Whether this is a VEX or EVEX instruction. The decoder is built without them and calls them invalid.
fn is_vector(bytes: &[u8], mode: Mode) -> bool {
    let is_prefix = |byte: &&u8| match **byte {
        0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => true,
        0x40..=0x4f => mode == Mode::Bits64,
        _ => false,
    };
    matches!(bytes.iter().find(|byte| !is_prefix(byte)), Some(0xc4 | 0xc5 | 0x62))
}

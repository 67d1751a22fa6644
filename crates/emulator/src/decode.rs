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
        _ if decoder.position() == MAX_LENGTH => {
            Err(Error::Exception(Exception::GENERAL_PROTECTION))
        }
        _ => Err(Error::Exception(Exception::INVALID_OPCODE)),
    }
}

//! The MMU embedded in a small machine.

mod common;
mod flushes;
mod shadow;

//! The MMU embedded in a small machine.

mod bound;
mod common;
mod flushes;
mod order;
mod shadow;
mod terminal_fault;

//! The MMU embedded in a small machine.

mod audit;
mod bound;
mod common;
mod embedding;
mod flushes;
mod narrow;
mod order;
mod shadow;
mod terminal_fault;

//! The MMU embedded in a small machine.

mod ahead;
mod audit;
mod bound;
mod common;
mod copies;
mod detach;
mod embedding;
mod filter;
mod flushes;
mod formats;
mod narrow;
mod order;
mod predict;
mod quick;
mod roots;
mod several_vcpus;
mod shadow;
mod space;
mod survivors;
mod terminal_fault;
mod unsync;

//! The MMU embedded in a small machine.

mod address_space;
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
mod pae_roots;
mod prefetch;
mod roots;
mod several_vcpus;
mod shadow;
mod shadow_walk;
mod survivors;
mod terminal_fault;
mod unsync;
mod write_predictor;

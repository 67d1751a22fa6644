//! What a run leaves: the table of exits and the statistics file.

mod exit;
mod output;
mod schema;
mod table;
mod write;

pub use exit::{describe as describe_exit, key as exit_key};
pub use output::{cannot_write, check_output, write_output};
pub use schema::{Audits, EmulatorUse, Exits, Mmu, Phase, SCHEMA, Statistics};
pub use table::table;
pub use write::{AtomicFile, check_writable, write_atomically};

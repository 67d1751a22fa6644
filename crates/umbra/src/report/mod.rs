//! What a run leaves: the table of exits and the statistics file.

mod exit;
mod exits;
mod input;
mod kvm;
mod output;
mod read;
mod saved;
mod schema;
mod spread;
mod table;
mod write;

pub use exit::{describe as describe_exit, key as exit_key};
pub use exits::{Exits, is_memory};
pub use input::{check_inputs, is_stdin, name_of, open as open_input};
pub use kvm::Kvm;
pub use output::{cannot_write, check_outputs, make_folder, write_output, write_statistics};
pub use read::{Named, read};
pub use saved::saved;
pub use schema::{Audits, EmulatorUse, Mmu, Phase, SCHEMA, Statistics};
pub use spread::{Range, Spread};
pub use table::{per_operation, short, spread, table};
pub use write::{AtomicFile, abandon_unfinished};

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::schema::tests::statistics;
}

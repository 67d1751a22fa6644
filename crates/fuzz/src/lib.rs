//! What the fuzz targets in `fuzz/` do with their bytes. A target panics if it finds something.
//!
//! The bodies are here, in the workspace, so that every build checks them and `cargo test` runs
//! each on bytes of its own; `fuzz/` has only what binds them to libFuzzer. `cargo xtask fuzz` runs
//! them.
#![forbid(unsafe_code)]

mod devices;
mod input;
mod instruction;
mod loaders;
mod mmu;
mod telemetry;
pub mod twins;
mod walk;

pub use devices::devices;
pub use instruction::instruction;
pub use loaders::loaders;
pub use mmu::mmu;
pub use telemetry::telemetry;
pub use walk::walk;

/// A target: it takes any bytes, and panics if it finds something.
pub type Target = fn(&[u8]);

/// All targets, by the names that they have in `fuzz/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("walk", walk),
    ("mmu", mmu),
    ("instruction", instruction),
    ("loaders", loaders),
    ("telemetry", telemetry),
    ("devices", devices),
];

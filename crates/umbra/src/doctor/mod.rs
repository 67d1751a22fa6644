//! `umbra doctor`: what this host can do.
//!
//! `cpu` and `tools` gather facts, `sentences` says what they mean. Nothing is changed, and no
//! device is opened but the reading end of the kernel module `msr`.

mod cpu;
mod msr;
#[cfg(test)]
mod recorded;
mod sentences;
mod tools;

use std::process::ExitCode;

use serde::Serialize;

pub use cpu::{Cpu, Svm, Vmx, VmxMsrs};
pub use tools::{Program, Toolchains, Tools, needed_packages};

use crate::console::{output, output_bytes};
use crate::error::Error;
use crate::machine::{KvmFacts, Machine, Programs};

/// Say what this host can do, and what is missing.
///
/// That is the CPU, virtualization, what is left for Trapping entries, emulators and toolchains.
///
/// The exit status is 0 if `umbra run` can work here, and 1 if something is missing, which is named
/// with the command that brings it.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print the facts as JSON.
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// Names this format: `umbra.doctor`.
    schema: &'static str,
    /// Its version.
    version: u32,
    /// The CPU that this program runs on.
    pub cpu: Cpu,
    /// Emulators, programs and toolchains.
    pub tools: Tools,
    /// Why `umbra run` cannot work here: one sentence with the way out.
    pub obstacle: Option<String>,
    /// The same of `umbra run --machine kvm`, as far as it can be known without opening KVM.
    pub kvm_obstacle: Option<String>,
}

/// Looks, and prints.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let facts = Facts {
        schema: "umbra.doctor",
        version: 1,
        cpu: Cpu::of_this_host(),
        tools: Tools::of_this_host(),
        obstacle: Programs::find(&Machine::Penryn).err().map(|error| error.to_string()),
        kvm_obstacle: KvmFacts::of_this_host().check().err().map(|error| error.to_string()),
    };
    if arguments.json {
        // Its texts are escaped as JSON wants it.
        let json = serde_json::to_string_pretty(&facts).expect("facts are plain values") + "\n";
        output_bytes(json.as_bytes())?;
    } else {
        output(sentences::report(&facts))?;
    }
    Ok(if facts.obstacle.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

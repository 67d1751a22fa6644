//! `/init` of Umbra's guests: the work that shows what memory costs under a hypervisor.
//!
//! As process 1 of an initramfs it mounts what Linux expects, and sets the mark that ends the phase
//! `boot`. It runs the [phases] between marks (see [marks]), and checks everything that they leave
//! behind. Then it prints the guest's own counters and powers off. A failed check ends the machine
//! by its failure port.
//!
//! What it prints holds no times, addresses or process ids, so that two runs can be compared line
//! by line (the guest's counters excepted: they depend on what the timer interrupted).
//!
//! Options on the kernel's command line: see [options].

mod bare;
mod console;
mod high;
mod marks;
mod options;
mod phase_id;
mod phases;
mod power;
mod shell;
mod sys;
mod vmstat;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::marks::Marks;
use crate::options::{Mode, Options};
use crate::sys::ports::Ports;
use crate::sys::process;

fn main() {
    if std::process::id() != 1 {
        eprintln!(
            "umbra-init is the /init of Umbra's guests and powers its machine off: it runs as process 1 only."
        );
        std::process::exit(2);
    }
    std::panic::set_hook(Box::new(|panic| power::fail(&format!("{panic}"))));
    match run() {
        Ok(()) => power::off(),
        Err(error) => power::fail(&format!("{error:#}")),
    }
}

fn run() -> Result<()> {
    mount_all()?;
    let ports = Ports::acquire()?;
    let marks = Marks::new(ports);
    marks.end_boot();
    console::quieten_kernel()?;

    let command_line = std::fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?;
    let options = Options::parse(&command_line)?;
    if options.bare {
        bare::start(ports)?;
    }
    if options.high {
        high::touch()?;
    }
    match options.mode {
        Mode::Shell => shell::run(),
        Mode::Exercise { scale, wanted, alive } => {
            // In a child: process 1 is a special case for signals (Linux logs each SIGSEGV that it
            // handles), and a phase that crashes must not take the machine down without a word.
            let exercise = process::fork(|| phases::run(marks, scale, wanted.as_deref(), alive))?;
            process::wait_success(exercise)?;
            vmstat::print()?;
            println!("umbra-init: all phases passed");
            Ok(())
        }
    }
}

/// Mounts the file systems that the phases and a shell use.
fn mount_all() -> Result<()> {
    for (file_system, target) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")]
    {
        mount(Some(file_system), target, Some(file_system), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {target}"))?;
    }
    Ok(())
}

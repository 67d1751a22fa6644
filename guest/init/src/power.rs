//! How the machine ends.

use std::convert::Infallible;

use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;
use umbra_telemetry::GuestExit;

use crate::sys::ports::{Port, Ports};
use crate::{bare, console};

/// Powers the machine off (ACPI S5, but on the bare machine the emulator's own end): the end of a
/// guest that has done its work.
pub fn off() -> ! {
    console::drain();
    sync();
    if let Some(journal) = bare::journal() {
        journal.finish(GuestExit::Shutdown);
    }
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(error) => fail(&format!("power-off: {error}")),
    }
}

/// Says what failed and ends the machine by its failure port. May be called in a child too.
pub fn fail(what: &str) -> ! {
    println!("FAIL {what}");
    console::drain();
    sync();
    if let Some(journal) = bare::journal() {
        journal.finish(GuestExit::ExitPort { port: Port::EXIT.number(), value: 1 });
    }
    if let Ok(ports) = Ports::acquire() {
        ports.write(Port::EXIT, 1);
    }
    // Still here: a machine without that port. A reset counts as a failure everywhere.
    let refused: Result<Infallible, _> = reboot(RebootMode::RB_AUTOBOOT);
    match refused {
        Ok(never) => match never {},
        Err(_) => std::process::abort(),
    }
}

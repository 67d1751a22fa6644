//! The configuration of Bochs.

use std::path::Path;
use std::process::Command;
use std::{fs, io};

use super::settings::{Bochs, IMAGE, Settings};

/// Bochs backs this much of the machine with host memory, and the rest with a file.
pub(super) const HOST_MEMORY_LIMIT_MIB: u32 = 2048;

/// Bochs's log, in the folder that it runs in.
pub(super) const LOG: &str = "bochs.log";

/// The time at which the machine starts if it is to be the same in every run: 2026-01-01 00:00 UTC.
const FIXED_TIME: u32 = 1_767_225_600;
/// Bochs's name for this host's time.
const HOST_TIME: u32 = 1;

/// Writes the files that Bochs reads into `folder`, and adds arguments and environment to the
/// command that starts it there.
pub(super) fn prepare(
    command: &mut Command,
    folder: &Path,
    bochs: &Bochs,
    settings: &Settings,
    console_port: u16,
) -> io::Result<()> {
    fs::write(folder.join("bochsrc"), text(bochs, settings, console_port))?;
    // Debian's Bochs has its debugger compiled in, which waits for this command.
    fs::write(folder.join("rc"), "c\n")?;
    command.args(["-q", "-f", "bochsrc", "-rc", "rc"]);
    // No window: port_e9_hack needs a display library that leaves standard output alone.
    command.env("SDL_VIDEODRIVER", "dummy").env("SDL_AUDIODRIVER", "dummy");
    Ok(())
}

/// The text of a bochsrc for the folder with the boot image.
///
/// `clock: sync=none` with `ips` at one per nanosecond makes runs repeatable, and a guest's timer
/// tick rare against its work. COM1 is the console's *input*: as a socket client Bochs does not
/// wait for anyone, and takes a byte only when the hypervisor has read the one before. Output takes
/// port 0xe9, which costs the machine no time.
fn text(bochs: &Bochs, settings: &Settings, console_port: u16) -> String {
    format!(
        "display_library: sdl2
romimage: file=\"{bios}\", options=fastboot
vgaromimage: file=\"{vga_bios}\"
memory: guest={guest}, host={host}
cpu: model={model}, count=1, ips=1000000000, reset_on_triple_fault=0, ignore_bad_msrs={bad_msrs}
clock: sync=none, time0={time}
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, mode=flat, path=\"{IMAGE}\"
boot: disk
com1: enabled=1, mode=socket-client, dev=127.0.0.1:{port}
port_e9_hack: enabled=1
speaker: enabled=0
log: \"{LOG}\"
panic: action=fatal
",
        bios = bochs.bios.display(),
        vga_bios = bochs.vga_bios.display(),
        guest = settings.memory_mib,
        host = settings.memory_mib.min(HOST_MEMORY_LIMIT_MIB),
        model = bochs.model,
        bad_msrs = u8::from(settings.ignore_bad_msrs),
        time = if settings.fixed_time { FIXED_TIME } else { HOST_TIME },
        port = console_port,
    )
}

//! Running the guest without Umbra: under KVM, or on the bare machine.

use std::path::Path;

use umbra_telemetry::{BootConfig, ExitCounts};

use super::session::Speaker;
use super::{Arguments, Hypervisor};
use crate::error::Error;
use crate::guest::{self, Image, Policy};
use crate::machine::Machine;
use crate::report::{Exits, Kvm};

/// What the host of the KVM peer needs beside the guest's memory: its kernel, and twice the
/// initramfs with the guest's files.
const HOST_MIB: u32 = 320;

/// What the guest's `/init` is told on the bare machine: to keep the time of its phases itself, and
/// to report. The reset after a panic is one that the emulator stops at. Linux waits by MWAITX
/// where there is one, and Bochs's never comes back.
const BARE_OPTIONS: &str = "umbra.bare reboot=triple clearcpuid=mwaitx";

/// What the KVM peer's host boots from.
pub struct Host {
    /// Its kernel, if it is not the guest's.
    pub kernel: Option<Vec<u8>>,
    /// Its initramfs.
    pub initrd: Vec<u8>,
}

/// Checks what a peer cannot boot.
///
/// # Errors
/// A kernel that is not Linux, or a 32-bit one without another for the host. On the bare machine,
/// one whose end the emulator does not tell.
pub fn check_image(arguments: &Arguments, image: &Image) -> Result<(), Error> {
    if arguments.hypervisor == Hypervisor::None
        && matches!(image, Image::Multiboot(_))
        && arguments.machine.bochs_model().is_none()
    {
        return Err(Error::Input(format!(
            "--hypervisor none boots multiboot kernels in Bochs only, whose log tells how they end; give \
             another --machine than {}",
            arguments.machine.name()
        )));
    }
    if arguments.hypervisor != Hypervisor::Kvm {
        return Ok(());
    }
    match image {
        Image::Linux(linux) if linux.entry_64 || arguments.host_kernel.is_some() => Ok(()),
        Image::Linux(_) => Err(Error::Input(
            "the host of --hypervisor kvm needs a 64-bit kernel, and this is a 32-bit one; give another with \
             --host-kernel"
                .into(),
        )),
        Image::Multiboot(_) => Err(Error::Input(
            "--hypervisor kvm boots Linux only, and this is a multiboot kernel; give a bzImage".into(),
        )),
    }
}

/// Checks what a peer cannot do.
///
/// # Errors
/// An option that only Umbra has, a machine that the peer does not run on, or a host for no KVM.
pub fn check(arguments: &Arguments) -> Result<(), Error> {
    let name = arguments.hypervisor.name();
    if arguments.hypervisor != Hypervisor::Kvm
        && (arguments.host_kernel.is_some() || arguments.host_initrd.is_some())
    {
        return Err(Error::Input(
            "--host-kernel and --host-initrd are for --hypervisor kvm; leave them out".into(),
        ));
    }
    if arguments.hypervisor == Hypervisor::Umbra {
        return Ok(());
    }
    if !arguments.machine.is_emulated() {
        return Err(Error::Input(format!(
            "--hypervisor {name} runs in an emulator only; give another --machine than {}",
            arguments.machine.name()
        )));
    }
    if arguments.hypervisor == Hypervisor::Kvm && arguments.machine == Machine::Ryzen {
        return Err(Error::Input(
            "KVM with npt=0 never gets through a guest's boot on Bochs's ryzen: it hands one page fault to the \
             guest for ever; give --machine qemu-svm"
                .into(),
        ));
    }
    let own = &arguments.guest;
    if own.audit.is_some() || own.shadow_frames.is_some() || !own.without.is_empty() || own.screen {
        return Err(Error::Input(format!(
            "--audit, --screen, --shadow-frames and --without are for Umbra, and --hypervisor {name} runs without it; \
             leave them out"
        )));
    }
    if arguments.trace.is_some() {
        return Err(Error::Input(format!(
            "--trace records the exits to Umbra, and --hypervisor {name} runs without it; leave it out"
        )));
    }
    if arguments.watch {
        return Err(Error::Input(format!(
            "--watch shows the exits to Umbra, and --hypervisor {name} runs without it; leave it out"
        )));
    }
    if own.guest_faults != Policy::Auto {
        return Err(Error::Input(format!(
            "--guest-faults is for Umbra, and --hypervisor {name} runs without it; leave it out"
        )));
    }
    Ok(())
}

/// Reads the host of the KVM peer, if there is to be one.
///
/// # Errors
/// It was not given, or cannot be read.
pub fn read_host(arguments: &Arguments) -> Result<Option<Host>, Error> {
    if arguments.hypervisor != Hypervisor::Kvm {
        return Ok(None);
    }
    let initrd = host_initrd(arguments)?;
    let kernel = arguments.host_kernel.as_deref().map(guest::read_kernel).transpose()?;
    Ok(Some(Host { kernel: kernel.map(|(file, _)| file), initrd: guest::read_initrd(initrd)? }))
}

fn host_initrd(arguments: &Arguments) -> Result<&Path, Error> {
    arguments.host_initrd.as_deref().ok_or_else(|| {
        Error::Input(
            "--hypervisor kvm needs --host-initrd; `cargo xtask bench --hypervisor kvm` builds and gives it"
                .into(),
        )
    })
}

/// As [`read_host`], before all files are there ([`guest::TO_BE_MADE`]).
///
/// # Errors
/// It was not given, or cannot be read.
pub fn check_host(arguments: &Arguments) -> Result<(), Error> {
    if arguments.hypervisor != Hypervisor::Kvm {
        return Ok(());
    }
    guest::check_file("initrd", host_initrd(arguments)?)?;
    arguments.host_kernel.iter().try_for_each(|kernel| guest::check_file("kernel", kernel))
}

/// The guest's command line. On the bare machine Linux also gets the options that make it report.
///
/// # Errors
/// The boot loader of the bare machine cannot hand the line or a module's string on as it is.
pub fn command_line(
    hypervisor: Hypervisor,
    image: &Image,
    config: &BootConfig,
) -> Result<String, Error> {
    let line = &config.append;
    if hypervisor != Hypervisor::None {
        return Ok(line.clone());
    }
    let texts = std::iter::once(line).chain(&config.modules);
    if texts.into_iter().any(|text| text.contains(['\'', '"', '\\'])) {
        return Err(Error::Input(
            "with --hypervisor none GRUB cannot hand on quotes and backslashes; give --append and --module \
             without them"
                .into(),
        ));
    }
    Ok(match image {
        Image::Linux(_) => format!("{line} {BARE_OPTIONS}").trim_start().to_owned(),
        Image::Multiboot(_) => line.clone(),
    })
}

/// Who speaks at the machine's port 0xe9.
pub fn speaker(hypervisor: Hypervisor, image: &Image) -> Speaker {
    match (hypervisor, image) {
        (Hypervisor::Umbra | Hypervisor::Kvm, _) => Speaker::Hypervisor,
        (Hypervisor::None, Image::Linux(_)) => Speaker::Linux,
        (Hypervisor::None, Image::Multiboot(_)) => Speaker::SmallKernel,
    }
}

/// The machine's memory in MiB.
pub fn machine_memory(arguments: &Arguments, with_umbra: u32) -> u32 {
    match arguments.hypervisor {
        Hypervisor::Umbra => with_umbra,
        Hypervisor::Kvm => arguments.guest.memory + HOST_MIB,
        Hypervisor::None => arguments.guest.memory,
    }
}

/// What is known of the exits of a phase or a run, and KVM's counters.
pub fn exits(
    hypervisor: Hypervisor,
    own: &ExitCounts,
    counters: &[(String, u64)],
) -> (Option<Exits>, Option<Kvm>) {
    match hypervisor {
        Hypervisor::Umbra => (Some(Exits::from(own)), None),
        Hypervisor::Kvm => {
            let kvm = Kvm(counters.iter().cloned().collect());
            (Some(kvm.exits()), Some(kvm))
        }
        Hypervisor::None => (None, None),
    }
}

//! The peer: `/init` of a host Linux that runs the benchmark's guest under KVM's shadow MMU and
//! reports as the hypervisor does.
//!
//! The host's initramfs holds this program and KVM's modules; the boot image adds the guest's
//! kernel and initrd and the same configuration that the hypervisor gets ([`BootConfig`]). The
//! guest finds the platform of `umbra_devices`, too, but for interrupt controllers and PIT, which
//! are KVM's own. At the guest's phase marks KVM's counters are read. Messages leave by the
//! machine's port 0xe9, as the hypervisor's do.

mod counters;
mod cpu;
mod load;
mod modules;
mod phases;
mod sys;
mod vm;
mod wire;

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use umbra_telemetry::{BootConfig, Message, PROTOCOL};

use crate::sys::Ports;
use crate::wire::Wire;

/// Where the boot image puts its files.
const CONFIG: &str = "/guest/config";
const KERNEL: &str = "/guest/kernel";
const INITRD: &str = "/guest/initrd";

fn main() {
    if std::process::id() != 1 {
        eprintln!(
            "umbra-kvm-peer is the /init of the KVM peer's host: `umbra bench --hypervisor kvm` boots it."
        );
        std::process::exit(2);
    }
    let ports = match Ports::acquire() {
        Ok(ports) => ports,
        // Without ports nobody can be told; the end of process 1 is a panic of the kernel.
        Err(error) => panic!("{error:#}"),
    };
    let mut wire = Wire::new(ports);
    wire.send(&Message::Hello { protocol: PROTOCOL });
    match run(&mut wire) {
        Ok(last) => wire.send(&last),
        Err(error) => wire.send(&Message::Failure(format!("the KVM peer: {error:#}"))),
    }
    wire.end_machine();
}

/// Runs the guest; returns the report.
fn run(wire: &mut Wire) -> Result<Message> {
    mount(Some("devtmpfs"), "/dev", Some("devtmpfs"), MsFlags::empty(), None::<&str>)
        .context("mounting /dev")?;
    modules::load()?;
    let config = fs::read(CONFIG).context(CONFIG)?;
    let config =
        BootConfig::from_bytes(&config).with_context(|| format!("{CONFIG} is no configuration"))?;
    ensure!(
        config.protocol == PROTOCOL,
        "{CONFIG} has protocol {} instead of {PROTOCOL}",
        config.protocol
    );
    let vm = vm::Vm::new(&config, KERNEL, INITRD)?;
    wire.send(&Message::GuestEntered);
    vm.run(wire).map(Message::End)
}

//! The trial's driver for Linux KVM: `/init` of an emulated machine whose kernel is on trial.
//!
//! It loads KVM's modules with nested paging off and takes programs from COM2, or from its
//! initramfs. It runs each in a guest of its own, and answers with what the guest saw. The kernel's
//! console is COM1. If the kernel dies, the machine does, and the tool (`cargo xtask trial`) knows
//! which program it was.

mod backing;
mod cpu;
mod driver;
mod modules;
mod ports;
mod shared;
mod vcpu;
mod wire;

use std::fs;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use umbra_trial::target;
use umbra_trial::wire::{Reply, Request};

use crate::driver::Kvm;
use crate::wire::Wire;

fn main() {
    if std::process::id() != 1 {
        eprintln!(
            "umbra-kvm-trial is the /init of a kernel on trial: `cargo xtask trial` boots it."
        );
        std::process::exit(2);
    }
    // The end of process 1 is a panic of the kernel: without ports nobody can be told otherwise.
    let mut wire =
        ports::Ports::acquire().map(Wire::new).unwrap_or_else(|error| panic!("{error:#}"));
    if let Err(error) = serve(&mut wire) {
        wire.send(&Reply::Refused(format!("{error:#}")));
    }
    wire.close();
    loop {
        std::thread::park();
    }
}

fn serve(wire: &mut Wire) -> Result<()> {
    for (kind, at) in [("devtmpfs", "/dev"), ("sysfs", "/sys")] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {at}"))?;
    }
    modules::load()?;
    let mut kvm = Kvm::new()?;
    let release = fs::read_to_string("/sys/module/kvm/version")
        .or_else(|_| {
            nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned())
        })
        .context("the kernel's release")?;
    wire.send(&Reply::Ready { release, text: modules::text() });
    while let Some(request) = wire.receive().context("a request")? {
        match request {
            Request::Run(program) => match target::run(&mut kvm, &program) {
                Ok(record) => wire.send(&Reply::Ran(record)),
                Err(why) => wire.send(&Reply::Refused(why)),
            },
        }
    }
    Ok(())
}

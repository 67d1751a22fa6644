//! Whether this host's KVM can run a hypervisor, and the proof of it that opens the device.
//!
//! The order matters: a host whose CPU does not offer VMX is one where `/dev/kvm` is not to be
//! touched. So the device is opened by `NestedVmx::open` only, and only [`Facts::check`] makes a
//! [`NestedVmx`].

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::doctor::Cpu;
use crate::error::Error;

/// What is known without opening a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Why the CPU offers no VMX, in the doctor's words.
    pub no_vmx: Option<&'static str>,
    /// Whether the kernel lists the flag `vmx`: it does not where the firmware has locked VMX off.
    pub kernel_lists_vmx: bool,
    /// The parameter `nested` of the kernel module `kvm_intel`; absent if that is not loaded.
    pub nested: Option<String>,
}

/// The proof that this host's CPU and kernel offer VMX to virtual machines. Nothing but
/// [`Facts::check`] makes one.
#[derive(Debug)]
pub struct NestedVmx(());

/// The proof that KVM could be opened. Nothing but `NestedVmx::open` makes one.
#[derive(Debug)]
pub(super) struct Kvm(());

/// Where to look.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub facts: Facts,
    /// KVM's device.
    pub device: PathBuf,
    /// Where programs are looked for.
    pub search: OsString,
}

impl Host {
    /// This one.
    pub fn this() -> Host {
        Host {
            facts: Facts::of_this_host(),
            device: PathBuf::from("/dev/kvm"),
            search: std::env::var_os("PATH").unwrap_or_default(),
        }
    }
}

impl Facts {
    /// Asks CPUID and reads two files of the kernel's.
    pub fn of_this_host() -> Facts {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let nested = fs::read_to_string("/sys/module/kvm_intel/parameters/nested").ok();
        Facts::new(&Cpu::by_cpuid_only(&cpuinfo), &cpuinfo, nested.as_deref())
    }

    /// `cpuinfo` is what Linux has in `/proc/cpuinfo`, `nested` what it says of the parameter.
    fn new(cpu: &Cpu, cpuinfo: &str, nested: Option<&str>) -> Facts {
        let flags = cpuinfo.lines().find_map(|line| {
            let (key, flags) = line.split_once(':')?;
            (key.trim() == "flags").then_some(flags)
        });
        Facts {
            no_vmx: cpu.no_vmx(),
            kernel_lists_vmx: flags
                .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx")),
            nested: nested.map(|nested| nested.trim().into()),
        }
    }

    /// Whether VMX is there for virtual machines.
    ///
    /// # Errors
    /// It is not: why, and the way out.
    pub fn check(&self) -> Result<NestedVmx, Error> {
        let refuse = |why: &str| {
            let machines = ", or use --machine penryn or skylake, which need nothing of the CPU";
            Err(Error::Input(format!("--machine kvm cannot work here: {why}{machines}")))
        };
        if let Some(why) = self.no_vmx {
            return refuse(&format!("no VMX: {why}; run it on an Intel machine of your own"));
        }
        if !self.kernel_lists_vmx {
            return refuse(
                "the firmware has locked VMX off; turn virtualization on in the firmware's settings",
            );
        }
        match self.nested.as_deref() {
            Some("Y" | "1") => Ok(NestedVmx(())),
            Some(_) => refuse(
                "KVM's nested virtualization is off; run `modprobe -r kvm_intel && modprobe kvm_intel nested=1` as root",
            ),
            None => refuse(
                "the kernel module kvm_intel is not loaded; run `modprobe kvm_intel nested=1` as root",
            ),
        }
    }
}

impl NestedVmx {
    /// Opens KVM's device, as QEMU is going to, and closes it again.
    ///
    /// # Errors
    /// This user may not, or it is not there.
    pub(super) fn open(&self, device: &Path) -> Result<Kvm, Error> {
        let opened = OpenOptions::new().read(true).write(true).open(device);
        opened.map(|_| Kvm(())).map_err(|error| cannot_open(device, &error))
    }
}

fn cannot_open(device: &Path, error: &io::Error) -> Error {
    let device = device.display();
    Error::Input(match error.kind() {
        io::ErrorKind::NotFound => {
            format!(
                "{device} is not there, which --machine kvm needs; run `modprobe kvm_intel` as root"
            )
        }
        io::ErrorKind::PermissionDenied => format!(
            "this user may not open {device}, which --machine kvm needs; run `usermod -aG kvm $USER` as root and log \
             in again"
        ),
        _ => format!(
            "{device} cannot be opened ({error}), which --machine kvm needs; end what else uses it, or use --machine \
             penryn"
        ),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::programs::Programs;
    use super::super::{Machine, qemu};
    use super::*;

    /// The device was opened, for tests of what comes then.
    pub(in super::super) fn opened() -> Kvm {
        Kvm(())
    }

    fn facts() -> Facts {
        Facts { no_vmx: None, kernel_lists_vmx: true, nested: Some("Y".into()) }
    }

    /// A host with an executable file that is called as QEMU is, and one for the device.
    fn host(folder: &Path, facts: Facts) -> Host {
        use std::os::unix::fs::PermissionsExt;
        let program = folder.join(qemu::PROGRAM);
        fs::write(&program, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.join("kvm"), "").unwrap();
        Host { facts, device: folder.join("kvm"), search: folder.into() }
    }

    fn refused(host: Host) -> String {
        match Programs::find_on(&Machine::Kvm, || host).unwrap_err() {
            Error::Input(sentence) => sentence,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_host_that_can() {
        let folder = tempfile::tempdir().unwrap();
        for nested in ["Y", "1"] {
            let facts = Facts { nested: Some(nested.into()), ..facts() };
            let programs = Programs::find_on(&Machine::Kvm, || host(folder.path(), facts)).unwrap();
            assert_eq!(programs.emulator_name(), "QEMU");
        }
    }

    /// A device that cannot be opened is not what is complained of: it was not tried.
    #[test]
    fn without_the_flag_it_is_the_doctors_sentence_and_nothing_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let no_vmx = Some("the doctor's clause");
        let host = Host {
            facts: Facts { no_vmx, ..facts() },
            device: folder.path().join("none"),
            search: OsString::new(),
        };
        let sentence = refused(host);
        assert!(
            sentence.starts_with("--machine kvm cannot work here: no VMX: the doctor's clause;"),
            "{sentence}"
        );
    }

    #[test]
    fn each_thing_that_is_missing_has_its_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let host = |facts| host(folder.path(), facts);
        let with = |nested: Option<&str>| Facts { nested: nested.map(String::from), ..facts() };
        for (host, expected) in [
            (host(Facts { kernel_lists_vmx: false, ..facts() }), "firmware's settings"),
            (host(with(None)), "`modprobe kvm_intel nested=1`"),
            (host(with(Some("N"))), "`modprobe -r kvm_intel && modprobe kvm_intel nested=1`"),
            (host(with(Some("0"))), "nested virtualization is off"),
            (host(with(Some(""))), "nested virtualization is off"),
            (Host { search: OsString::new(), ..host(facts()) }, "apt-get install qemu-system-x86`"),
            (Host { device: folder.path().join("none"), ..host(facts()) }, "is not there"),
            (Host { device: folder.path().into(), ..host(facts()) }, "cannot be opened"),
        ] {
            let sentence = refused(host);
            assert!(sentence.contains(expected), "{expected}: {sentence}");
            assert!(!sentence.contains('\n'), "{sentence}");
        }
        // Root may open everything, so this cannot be had from the system.
        let denied = cannot_open(Path::new("/dev/kvm"), &io::ErrorKind::PermissionDenied.into());
        assert!(denied.to_string().contains("usermod -aG kvm"), "{denied}");
    }

    #[test]
    fn the_kernels_files_are_read() {
        let cpu = Cpu::by_cpuid_only("");
        let facts = |cpuinfo, nested| Facts::new(&cpu, cpuinfo, nested);
        let listed = |cpuinfo| facts(cpuinfo, None).kernel_lists_vmx;
        assert!(listed("processor\t: 0\nflags\t\t: fpu vmx smx\nvmx flags\t: ept\n"));
        assert!(!listed("flags\t\t: fpu svm\nvmx flags\t: vmx\n"));
        assert!(!listed("flags\t\t: fpu avmx vmx2\n"));
        assert!(!listed(""));
        assert_eq!(facts("", Some("Y\n")).nested.as_deref(), Some("Y"));
        assert_eq!(facts("", None).nested, None);
    }
}

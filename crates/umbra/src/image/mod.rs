//! `umbra image`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::ConfigOptions;
use crate::console::message;
use crate::error::Error;
use crate::guest::{self, Guest};
use crate::machine::{self, ImageTools, System};
use crate::report;
use crate::signals::Signals;

/// How the file is called when it cannot be written.
const WHAT: &str = "the boot image";

/// Write a bootable image with hypervisor, guest and options, as `umbra run` boots it.
///
/// It is an ISO 9660 image with a boot sector: a CD, or byte for byte the contents of a disk or USB
/// stick, for machines with a BIOS. The hypervisor writes its messages, and the guest's console in
/// them, to the machine's port 0xe9 and takes the guest's input from COM1; there is nothing on the
/// screen but GRUB's words. `umbra decode` makes results of what port 0xe9 said.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The image to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// Have the hypervisor record every exit, for `umbra decode --trace`
    #[arg(long)]
    trace: bool,

    #[command(flatten)]
    guest: guest::Options,

    #[command(flatten)]
    config: ConfigOptions,
}

/// Builds the image, and says what it is.
///
/// # Errors
/// Wrong input, a missing program, or a failure on this host. Then there is no image.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let guest = Guest::read(&arguments.guest, arguments.trace)?;
    let signals = Signals::catch()?;
    report::check_outputs(&[(WHAT, Some(&arguments.output))], arguments.guest.inputs())?;
    let tools = ImageTools::find()?;
    let folder = machine::temporary_folder(&signals)?;
    machine::build_boot_image(&tools, folder.path(), &guest.files(System::Umbra), &signals)?;
    let built = folder.path().join(machine::IMAGE);
    report::write_output(WHAT, &arguments.output, File::open(&built))?;
    let size = fs::metadata(&built).map_or(0, |metadata| metadata.len());
    message(format_args!(
        "{}",
        how_to_boot(&arguments.output, size, guest.machine_mib, arguments.trace)
    ));
    Ok(ExitCode::SUCCESS)
}

/// What the image is, and what boots it. `machine_mib` is the least memory of its machine.
fn how_to_boot(image: &Path, size: u64, machine_mib: u32, trace: bool) -> String {
    let trace = if trace { " --trace trace" } else { "" };
    let (image, size_mib) = (image.display(), size as f64 / f64::from(1 << 20));
    format!(
        "umbra: {image}: {size_mib:.1} MiB; it boots by a BIOS as a CD, a disk or a USB stick, on a 64-bit CPU with VMX or \
         SVM and {machine_mib} MiB of memory or more
Bochs:     ata0-master: type=disk, mode=flat, path=\"{image}\"
           memory: guest={machine_mib}, host={machine_mib}
           cpu: model=core2_penryn_t9600
           port_e9_hack: enabled=1
QEMU:      qemu-system-x86_64 -cpu EPYC,+svm -icount shift=0,sleep=off -m {machine_mib} -cdrom {image} -no-reboot
             -debugcon file:messages -device isa-debug-exit,iobase=0x8900,iosize=1
with KVM:  qemu-system-x86_64 -enable-kvm -cpu host -m {machine_mib} -cdrom {image} -no-reboot
             -debugcon file:messages -device isa-debug-exit,iobase=0x8900,iosize=1
           (needs KVM's nested virtualization; not tested: `umbra doctor` says what this host can do)
USB stick: dd if={image} of=/dev/sdX bs=4M conv=fsync
           (replaces all that is on the stick; never tried on a real machine)
Results:   umbra decode messages --stats stats.json{trace}
           (messages: what port 0xe9 said, which Bochs writes to its standard output)
The guest's console is in the messages at port 0xe9, and its input is COM1: the screen stays empty.
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_and_memory_are_named_wherever_they_are_needed() {
        let text = how_to_boot(Path::new("a/b.iso"), 3 << 19, 224, true);
        assert!(text.starts_with("umbra: a/b.iso: 1.5 MiB; "), "{text}");
        for expected in [
            "guest=224, host=224",
            "-m 224 -cdrom a/b.iso",
            "dd if=a/b.iso of=",
            "--stats stats.json --trace trace\n",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }
}

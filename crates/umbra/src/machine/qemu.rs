//! The command line of QEMU, which runs the machines `kvm` and `qemu-svm`.

use super::kvm::Kvm;
use super::settings::{IMAGE, Settings};

/// The program.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// The Debian package that has it.
pub(super) const PACKAGE: &str = "qemu-system-x86";

/// The hypervisor ends the machine by the text `Shutdown` to this port. The device there ends QEMU
/// at its first byte.
const EXIT_PORT: u16 = 0x8900;

/// The clock of a machine that does the same in every run: Bochs's `FIXED_TIME`, and from then on
/// the time of the machine.
const FIXED_CLOCK: &str = "base=2026-01-01T00:00:00,clock=vm";

/// What runs the machine's CPU.
#[derive(Debug)]
pub(super) enum Cpu {
    /// This host's, by KVM. That [`Kvm`] could be opened is a condition.
    Host(Kvm),
    /// QEMU itself.
    Emulated,
}

impl Cpu {
    /// What runs it, which model it is, and how its time runs.
    ///
    /// A real CPU is the host's, with as many physical address bits: Trapping entries have all bits
    /// above them set, and the real CPU must find these reserved.
    ///
    /// QEMU's emulation leaves out what it lacks of EPYC, with a warning on standard error. By
    /// `-icount` its time-stamp counter counts instructions, as Bochs's does: runs are repeatable,
    /// and timers do not outrun a guest that an emulator slows down. While the CPU sleeps its
    /// timers do not.
    fn arguments(&self) -> Vec<(&'static str, String)> {
        let arguments: &[(&str, &str)] = match self {
            Cpu::Host(_) => &[("-accel", "kvm"), ("-cpu", "host,host-phys-bits=on")],
            Cpu::Emulated => {
                &[("-accel", "tcg"), ("-cpu", "EPYC,+svm"), ("-icount", "shift=0,sleep=off")]
            }
        };
        arguments.iter().map(|(option, value)| (*option, String::from(*value))).collect()
    }
}

/// Arguments for the folder with the boot image.
///
/// As with Bochs, COM1 is the console's input and a client of this program's socket, and port 0xe9
/// is standard output. A triple fault ends QEMU.
pub(super) fn arguments(cpu: &Cpu, settings: &Settings, console_port: u16) -> Vec<String> {
    let values = [
        ("-machine", "pc".into()),
        ("-smp", "1".into()),
        ("-m", settings.memory_mib.to_string()),
        ("-display", "none".into()),
        ("-drive", format!("file={IMAGE},format=raw,if=ide,media=cdrom")),
        ("-chardev", "file,id=messages,path=/dev/stdout".into()),
        ("-device", "isa-debugcon,iobase=0xe9,chardev=messages".into()),
        ("-chardev", format!("socket,id=console,host=127.0.0.1,port={console_port}")),
        ("-serial", "chardev:console".into()),
        ("-device", format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1")),
    ];
    let clock = settings.fixed_time.then(|| ("-rtc", FIXED_CLOCK.into()));
    let alone = ["-nodefaults", "-no-user-config", "-no-reboot"].map(String::from).into_iter();
    let pairs = cpu.arguments().into_iter().chain(values).chain(clock);
    alone.chain(pairs.flat_map(|(option, value)| [String::from(option), value])).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::net::TcpListener;
    use std::process::{Command, Stdio};

    use umbra_telemetry::Message;
    use umbra_telemetry::frame::Decoder;

    use super::super::kvm::tests::opened;
    use super::super::{ImageTools, System, build_boot_image};
    use super::*;
    use crate::guest::image_tests::multiboot;
    use crate::guest::{Guest, Options};
    use crate::signals::Signals;

    #[test]
    fn the_whole_command_line() {
        let expected = |cpu: &str| {
            format!(
                "-nodefaults -no-user-config -no-reboot {cpu} -machine pc -smp 1 -m 224 -display none -drive file=boot.iso,format=raw,if=ide,media=cdrom \
                 -chardev file,id=messages,path=/dev/stdout \
                 -device isa-debugcon,iobase=0xe9,chardev=messages \
                 -chardev socket,id=console,host=127.0.0.1,port=4321 -serial chardev:console \
                 -device isa-debug-exit,iobase=0x8900,iosize=1"
            )
        };
        let given =
            |cpu: &Cpu, fixed_time| arguments(cpu, &settings(224, fixed_time), 4321).join(" ");
        let kvm = expected("-accel kvm -cpu host,host-phys-bits=on");
        assert_eq!(given(&Cpu::Host(opened()), false), kvm);
        let fixed = expected("-accel tcg -cpu EPYC,+svm -icount shift=0,sleep=off")
            + " -rtc base=2026-01-01T00:00:00,clock=vm";
        assert_eq!(given(&Cpu::Emulated, true), fixed);
    }

    fn settings(memory_mib: u32, fixed_time: bool) -> Settings {
        Settings { memory_mib, ignore_bad_msrs: false, fixed_time }
    }

    /// The same wiring with a CPU that has no SVM: the image boots, the hypervisor's messages
    /// arrive, COM1 is connected, and the machine ends.
    #[test]
    #[ignore = "needs qemu-system-x86; run `cargo test -p umbra --lib -- --ignored`"]
    fn a_cpu_without_svm() {
        #[derive(clap::Parser)]
        struct Test {
            #[command(flatten)]
            options: Options,
        }
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        fs::write(&kernel, multiboot()).unwrap();
        let given = ["umbra", "--memory", "64", "--kernel", kernel.to_str().unwrap()];
        let test: Test = clap::Parser::parse_from(given);
        let guest = Guest::read(&test.options, false).unwrap();
        let signals = Signals::catch().unwrap();
        build_boot_image(
            &ImageTools::find().unwrap(),
            folder.path(),
            &guest.files(System::Umbra),
            &signals,
        )
        .unwrap();

        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let instead = |argument: String| match argument.as_str() {
            "EPYC,+svm" => String::from("EPYC,-svm"),
            _ => argument,
        };
        let mut qemu = Command::new(PROGRAM)
            .args(
                arguments(&Cpu::Emulated, &settings(guest.machine_mib, false), port)
                    .into_iter()
                    .map(instead),
            )
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stream = Vec::new();
        qemu.stdout.take().unwrap().read_to_end(&mut stream).unwrap();
        // Twice the first byte of `Shutdown`, and one more.
        assert_eq!(qemu.wait().unwrap().code(), Some(i32::from(b'S') * 2 + 1));
        listener.set_nonblocking(true).unwrap();
        listener.accept().expect("COM1 has connected");
        let mut said = Vec::new();
        Decoder::default().push(&stream, |message| said.push(message), |noise| panic!("{noise:?}"));
        let Some(Message::Failure(sentence)) = said.last() else { panic!("{said:?}") };
        assert!(sentence.contains("no SVM"), "{sentence}");
    }
}

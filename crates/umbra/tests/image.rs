//! `umbra image` writes what `umbra run` boots, or nothing.

mod small_kernel;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use small_kernel::{GREETING, SmallKernel};
use tempfile::TempDir;
use umbra::machine::{Emulator, IMAGE, Machine, Programs};
use umbra::signals::Signals;
use umbra::trace::{Line, Reader};
use umbra_telemetry::frame::Decoder;
use umbra_telemetry::trace::Record;
use umbra_telemetry::{GuestExit, GuestFaults, Message, Stats};

const MEMORY_MIB: u32 = 32;

/// A kernel with a module, and room for an image.
struct Guest {
    folder: TempDir,
}

impl Guest {
    fn new() -> Guest {
        let guest = Guest { folder: tempfile::tempdir().unwrap() };
        let module = guest.module();
        let small = SmallKernel {
            elf64: false,
            command_line: &format!("{} hello world", guest.path("small.elf").display()),
            modules: &[(b"A=1\n", &module)],
            memory_mib: MEMORY_MIB,
        };
        fs::write(guest.path("env"), "A=1\n").unwrap();
        fs::write(guest.path("small.elf"), small.file()).unwrap();
        fs::create_dir(guest.path("tmp")).unwrap();
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn module(&self) -> String {
        format!("{} one two=2", self.path("env").display())
    }

    fn command(&self, command: &str, options: &[&str]) -> Command {
        let mut umbra = Command::new(env!("CARGO_BIN_EXE_umbra"));
        umbra.args([command, "--kernel"]).arg(self.path("small.elf")).args(options);
        umbra.env("TMPDIR", self.path("tmp")).stdin(Stdio::null());
        umbra
    }

    fn image(&self, output: &Path, options: &[&str]) -> Command {
        let mut command = self.command("image", &["--memory", &MEMORY_MIB.to_string()]);
        command
            .args(["--append", "hello world", "--module", &self.module(), "-o"])
            .arg(output)
            .args(options);
        command
    }

    fn nothing_temporary_is_left(&self) {
        assert_eq!(fs::read_dir(self.path("tmp")).unwrap().count(), 0);
        let hidden =
            fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(hidden.filter(|name| name.to_string_lossy().starts_with('.')).count(), 0);
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Boots the image in `folder` as a run does, and returns what it said, the guest's output in it,
/// and the report.
fn boot(folder: &Path, machine_mib: u32) -> (Vec<u8>, String, Stats) {
    let signals = Signals::catch().unwrap();
    let programs = Programs::find(&Machine::Penryn).unwrap();
    let settings = umbra::machine::Settings {
        memory_mib: machine_mib,
        ignore_bad_msrs: false,
        fixed_time: true,
    };
    let (mut emulator, mut outputs) =
        Emulator::start(&programs, folder, &settings, &signals).unwrap();
    let mut stream = Vec::new();
    outputs.messages.read_to_end(&mut stream).unwrap();
    emulator.kill();
    let (mut console, mut report) = (Vec::new(), None);
    let receive = |message| match message {
        Message::Console(bytes) => console.extend(bytes),
        Message::End(stats) => report = Some(stats),
        Message::Failure(sentence) => panic!("{sentence}"),
        _ => (),
    };
    Decoder::default().push(&stream, receive, |_| ());
    (stream, String::from_utf8(console).unwrap(), report.expect("a report"))
}

#[test]
fn it_boots_as_a_run_does_with_the_options_given() {
    let guest = Guest::new();
    let folder = guest.path("elsewhere");
    fs::create_dir(&folder).unwrap();
    let path = folder.join(IMAGE);
    let output =
        guest.image(&path, &["--guest-faults", "trap", "--audit=1", "--trace"]).output().unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    guest.nothing_temporary_is_left();

    let image = fs::read(&path).unwrap();
    let size = format!("{}: {:.1} MiB;", path.display(), image.len() as f64 / f64::from(1 << 20));
    assert!(said.contains(&size), "{said}");
    // ECMA-119, "Volume Descriptor Header"; and a master boot record with a partition.
    assert_eq!(&image[0x8001..0x8006], b"CD001");
    assert_eq!(image[510..512], [0x55, 0xaa]);
    assert_ne!(image[446 + 4], 0, "the type of the first partition");

    let needed = said.split(" MiB of memory or more").next().unwrap().rsplit(' ').next().unwrap();
    let (stream, console, report) = boot(&folder, needed.parse().unwrap());
    assert_eq!(console, GREETING);
    assert_eq!(report.guest_exit, GuestExit::ExitPort { port: 0xf4, value: 0 });
    assert_eq!(report.guest_faults, GuestFaults::Trap);
    assert!(report.audits.1 > 0);

    // What it said is all that its results need.
    fs::write(guest.path("capture"), stream).unwrap();
    let [stats, trace] = ["stats.json", "trace"].map(|name| guest.path(name));
    let mut decode = Command::new(env!("CARGO_BIN_EXE_umbra"));
    decode
        .arg("decode")
        .arg(guest.path("capture"))
        .args(["--machine", "penryn", "--stats"])
        .arg(&stats);
    let output = decode.arg("--trace").arg(&trace).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(output.stdout, GREETING.as_bytes());
    let stats: Value = serde_json::from_slice(&fs::read(stats).unwrap()).unwrap();
    assert_eq!(stats["exits"]["total"], report.exits.total());
    assert_eq!(
        (&stats["instructions"], &stats["memory"]),
        (&report.tsc.into(), &MEMORY_MIB.into())
    );
    assert_eq!((&stats["machine"], &stats["guest_faults"]), (&"penryn".into(), &"trap".into()));
    let (_, reader) = Reader::open(&trace).unwrap();
    let counts =
        |line: &Line| matches!(line, Line::Record(Record::Exit(exit)) if exit.cause.is_some());
    let traced = reader.map(Result::unwrap).filter(counts).count();
    assert_eq!(traced as u64, report.exits.total());
}

#[test]
fn wrong_input_gets_the_sentence_of_a_run() {
    let guest = Guest::new();
    let (absent, image) = (guest.path("absent").display().to_string(), guest.path("out.iso"));
    for options in [
        ["--memory", "8"],
        ["--memory", "1T"],
        ["--initrd", &absent],
        ["--module", &absent],
        ["--append", "a\nb"],
        ["--shadow-frames", "4000000"],
    ] {
        let refused = |command: &mut Command| {
            let output = command.output().unwrap();
            (output.status.code(), stderr(&output))
        };
        let (status, sentence) = refused(&mut guest.command("run", &options));
        assert_eq!((status, sentence.lines().count()), (Some(2), 1), "{sentence}");
        assert_eq!(
            refused(guest.command("image", &options).arg("-o").arg(&image)),
            (status, sentence)
        );
        assert!(!image.exists());
    }
}

#[test]
fn an_image_that_cannot_be_built_or_written_leaves_what_was_there() {
    let guest = Guest::new();
    let path = guest.path("out.iso");
    fs::write(&path, "what was there").unwrap();
    let bin = guest.path("bin");
    fs::create_dir(&bin).unwrap();
    let script = bin.join("grub-mkrescue");
    fs::write(&script, "#!/bin/sh\necho it is broken >&2\nexit 1\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let search = std::env::var_os("PATH").unwrap();
    let folders = std::iter::once(bin).chain(std::env::split_paths(&search));
    let output = guest
        .image(&path, &[])
        .env("PATH", std::env::join_paths(folders).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("it is broken"), "{}", stderr(&output));
    assert_eq!(fs::read(&path).unwrap(), b"what was there");
    guest.nothing_temporary_is_left();

    for place in [guest.path("none/out.iso"), PathBuf::from("/dev/null"), guest.path("tmp")] {
        let output = guest.image(&place, &[]).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.starts_with("umbra: cannot write the boot image to "), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

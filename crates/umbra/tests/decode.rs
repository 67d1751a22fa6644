//! `umbra decode` as a user runs it: results of a captured stream, or one sentence.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use umbra::trace::{Line, Reader};
use umbra_telemetry::trace::{Exit, Record, Writer};
use umbra_telemetry::{
    BootConfig, ExitCause, GuestExit, GuestFaults, LogLevel, Mechanism, Message, PROTOCOL, Stats,
    frame,
};

struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
        command.arg("decode").args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    fn decode(&self, capture: &[u8], arguments: &[&str]) -> Output {
        fs::write(self.path("capture"), capture).unwrap();
        self.command(&[&["capture"], arguments].concat()).output().unwrap()
    }

    /// Expects one sentence, and no results.
    fn refused(&self, output: &Output) -> String {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
        for entry in fs::read_dir(self.0.path()).unwrap() {
            assert_eq!(entry.unwrap().file_name(), "capture");
        }
        stderr
    }

    fn stats(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("s.json")).unwrap()).unwrap()
    }
}

fn config(trace: bool) -> BootConfig {
    BootConfig {
        protocol: PROTOCOL,
        memory_mib: 64,
        guest_faults: GuestFaults::Auto,
        without: vec![Mechanism::Eager],
        shadow_frames: None,
        audit: None,
        trace,
        screen: false,
        kernel: "6.1".into(),
        append: "quiet".into(),
        modules: Vec::new(),
    }
}

fn stats() -> Stats {
    Stats {
        guest_exit: GuestExit::AcpiOff,
        guest_faults: GuestFaults::Auto,
        filter: "present".into(),
        exits: [(ExitCause::Cpuid, 3)].into_iter().collect(),
        mmu: Default::default(),
        tsc: 77,
        counters: Vec::new(),
        phases: Vec::new(),
        audits: (0, 0),
        canary: Some(4096),
    }
}

fn exits() -> Message {
    let mut writer = Writer::default();
    for n in 0..3 {
        writer.push(&Record::Exit(Exit {
            time: n * 10,
            ticks: 5,
            cause: Some(ExitCause::Cpuid),
            ..Exit::default()
        }));
    }
    Message::Trace(writer.take().unwrap())
}

/// What a machine says, from its start to its end.
fn messages(trace: bool) -> Vec<Message> {
    let cpu = "Some CPU @ 2 GHz".into();
    let mut messages = vec![
        Message::Hello { protocol: PROTOCOL },
        Message::Setup { config: config(trace), cpu },
        Message::Log { level: LogLevel::Warning, text: "it is warm".into() },
        Message::GuestEntered,
        Message::Console(b"hello\n".to_vec()),
    ];
    messages.extend(trace.then(exits));
    messages.push(Message::End(stats()));
    messages
}

/// With text of the machine's before, between and behind.
fn stream(messages: &[Message]) -> Vec<u8> {
    let mut stream = b"SeaBIOS".to_vec();
    for message in messages {
        stream.extend(frame::encode(message));
        stream.extend(b"\nnoise");
    }
    stream
}

#[test]
fn a_capture_gives_the_results_of_a_run() {
    let files = Files::new();
    let output = files.decode(&stream(&messages(true)), &["--stats", "s.json", "--trace", "t"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    assert_eq!(output.stdout, b"hello\n");
    assert!(
        stderr.contains("umbra: warning: it is warm") && stderr.contains("3 records in t"),
        "{stderr}"
    );
    let stats = files.stats();
    for (key, expected) in [
        ("machine", Value::from("Some CPU @ 2 GHz")),
        ("kernel", "6.1".into()),
        ("cmdline", "quiet".into()),
        ("memory", 64.into()),
        ("guest_faults", "bypass".into()),
        ("guest_exit", "acpi_off".into()),
        ("tsc", 77.into()),
        ("instructions", Value::Null),
        ("emulator", Value::Null),
    ] {
        assert_eq!(stats[key], expected, "{key}");
    }
    assert_eq!((&stats["exits"]["cpuid"], &stats["without"][0]), (&3.into(), &"eager".into()));
    let (head, mut reader) = Reader::open(&files.path("t")).unwrap();
    assert!(head.cmdline == "quiet" && head.without == ["eager"]);
    assert_eq!(
        reader.by_ref().map(Result::unwrap).filter(|line| matches!(line, Line::Record(_))).count(),
        3
    );
    assert_eq!(reader.tail().unwrap().guest_exit, "acpi_off");

    // From standard input, and from a machine whose ticks are instructions.
    let mut command = files.command(&["-", "--machine", "skylake", "--stats", "s.json"]);
    let output = command.stdin(File::open(files.path("capture")).unwrap()).output().unwrap();
    assert!(output.status.success());
    let stats = files.stats();
    assert_eq!((&stats["machine"], &stats["instructions"]), (&"skylake".into(), &77.into()));
}

#[test]
fn a_screen_in_a_capture_is_shown() {
    let files = Files::new();
    let mut characters = vec![b' '; 2000];
    characters[80..83].copy_from_slice(b"a\xb3b");
    let mut said = messages(false);
    said.insert(5, Message::Screen(characters));
    let output = files.decode(&stream(&said), &[]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "hello\n--- screen ---\n\na│b\n--------------\n"
    );
}

#[test]
fn a_capture_that_ends_before_its_guest_keeps_what_it_has() {
    let mut cut = messages(true);
    cut.pop();
    let mut reset = cut.clone();
    reset.extend(messages(true));
    for capture in [cut, reset] {
        let files = Files::new();
        let output = files.decode(&stream(&capture), &["--stats", "s.json", "--trace", "t"]);
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(
            (&files.stats()["guest_exit"], &files.stats()["exits"]),
            (&"cut_off".into(), &Value::Null)
        );
        let (_, reader) = Reader::open(&files.path("t")).unwrap();
        assert_eq!(reader.map(Result::unwrap).count(), 3);
    }
    let files = Files::new();
    let mut failed = messages(false);
    failed.pop();
    failed.push(Message::Failure("it is broken".into()));
    assert_eq!(files.decode(&stream(&failed), &["--stats", "s.json"]).status.code(), Some(3));
    assert_eq!(files.stats()["guest_exit"], "hypervisor_failed: it is broken");
}

#[test]
fn every_beginning_of_a_capture_is_a_sentence() {
    let files = Files::new();
    let whole = stream(&messages(true));
    let start = stream(&messages(true)[..2]).len();
    for length in (0..whole.len() - b"\nnoise".len() - 1).step_by(11) {
        let output = files.decode(&whole[..length], &["--trace", "t"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if length + b"\nnoise".len() < start {
            files.refused(&output);
        } else {
            assert_eq!(output.status.code(), Some(3), "{length}: {stderr}");
            assert!(stderr.contains("the capture ends"), "{length}: {stderr}");
            fs::remove_file(files.path("t")).unwrap();
        }
    }
}

#[test]
fn what_is_no_capture_is_named_for_what_it_is() {
    let files = Files::new();
    let stats = &["--stats", "s.json"][..];
    let damaged = {
        let Message::Trace(mut chunk) = exits() else { unreachable!() };
        chunk.count += 1;
        let mut messages = messages(true);
        messages[5] = Message::Trace(chunk);
        stream(&messages)
    };
    for (capture, options, expected) in [
        (Vec::new(), stats, "has no message of Umbra"),
        (b"{}".to_vec(), stats, "has no message of Umbra"),
        (vec![0; 1 << 20], stats, "has no message of Umbra"),
        (stream(&messages(false)[1..]), stats, "first messages"),
        (stream(&messages(false)[..1]), stats, "first messages"),
        (stream(&[Message::Hello { protocol: 4 }]), stats, "protocol 4"),
        (stream(&messages(false)), &["--trace", "t"], "made without --trace"),
        (damaged, &["--trace", "t"], "damaged trace"),
        (stream(&messages(false)), &["--stats", "capture"], "would replace its own input capture"),
        (stream(&messages(false)), &["--stats", "none/s.json"], "cannot write the statistics"),
        (stream(&messages(false)), &["--trace", "."], "cannot write the trace"),
    ] {
        let capture_given = capture.clone();
        let output = files.decode(&capture, options);
        let stderr = if expected == "damaged trace" {
            // The guest's console line comes before.
            assert_eq!(output.status.code(), Some(2));
            assert!(!files.path("t").exists());
            String::from_utf8_lossy(&output.stderr).into_owned()
        } else {
            files.refused(&output)
        };
        assert!(stderr.contains(expected), "{expected}: {stderr}");
        assert_eq!(fs::read(files.path("capture")).unwrap(), capture_given);
    }
    for (name, expected) in
        [("absent", "cannot read the capture absent"), (".", "cannot read the capture .")]
    {
        let sentence = files.refused(&files.command(&[name]).output().unwrap());
        assert!(sentence.contains(expected), "{sentence}");
    }
    assert!(
        files
            .refused(&files.command(&["-"]).output().unwrap())
            .contains("standard input has no message")
    );
}

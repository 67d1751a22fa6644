//! `umbra report` as a user runs it: one page, or one sentence.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use umbra::trace::{Head, Recorder};
use umbra_telemetry::ExitCause;
use umbra_telemetry::trace::{Exit, Record, Writer};

const RESULT: &str = r#"{
    "schema": 1, "version": "0.1.0", "hypervisor": "umbra", "machine": "penryn", "kernel": "6.1", "cmdline": "",
    "memory": 192, "guest_faults": "bypass", "filter": "present", "guest_exit": "acpi_off",
    "exits": {"io": 3, "total": 3}, "mmu": null, "instructions": null, "tsc": null,
    "phases": [{"id": 2, "name": "demand", "ops": 3, "exits": {"io": 3, "total": 3}, "mmu": null,
        "instructions": 9, "tsc": 9}]
}"#;

struct Files(TempDir);

impl Files {
    fn new() -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        files.write("a.json", RESULT.as_bytes());
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, contents: &[u8]) {
        fs::write(self.path(name), contents).unwrap();
    }

    fn report(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
        command
            .arg("report")
            .args(arguments)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Expects one sentence, and no page.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.report(&[arguments, &["-o", "report.html"]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
        assert!(!self.path("report.html").exists());
        stderr
    }
}

fn trace(path: &Path) {
    let mut recorder = Recorder::create(path, &Head::default()).unwrap();
    let mut writer = Writer::default();
    for n in 0..100 {
        writer.push(&Record::Exit(Exit {
            time: n * 100,
            ticks: 5,
            cause: Some(ExitCause::HostFaultInstall),
            address: Some(n << 21),
            ..Exit::default()
        }));
    }
    recorder.add(writer.take().unwrap()).unwrap();
    recorder.finish("acpi_off".into()).unwrap();
}

#[test]
fn a_page_of_everything() {
    let files = Files::new();
    trace(&files.path("boot.trace"));
    let output = files.report(&["a.json", "a.json", "--trace", "boot.trace", "-o", "report.html"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = fs::read_to_string(files.path("report.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
    assert!(page.contains("demand") && page.contains("100 exits in"));
    // The same input makes the same page.
    files.report(&["a.json", "a.json", "--trace", "boot.trace", "-o", "again.html"]);
    assert_eq!(page, fs::read_to_string(files.path("again.html")).unwrap());
}

#[test]
fn results_that_are_none() {
    let files = Files::new();
    files.write("other.json", RESULT.replace("\"schema\": 1", "\"schema\": 9").as_bytes());
    files.write("cut.json", &RESULT.as_bytes()[..RESULT.len() / 2]);
    files.write("wrong.json", b"{\"exits\": 3}");
    files.write("text.json", b"no JSON");
    for (name, expected) in [
        ("other.json", "schema 9"),
        ("cut.json", "ends in the middle"),
        ("wrong.json", "no result"),
        ("text.json", "not JSON"),
        ("absent.json", "cannot be read"),
        (".", "no result"),
    ] {
        let sentence = files.refused(&["a.json", name]);
        assert!(sentence.contains(name) && sentence.contains(expected), "{sentence}");
    }
}

#[test]
fn traces_that_are_none() {
    let files = Files::new();
    trace(&files.path("whole.trace"));
    let whole = fs::read(files.path("whole.trace")).unwrap();
    files.write("cut.trace", &whole[..whole.len() - 12]);
    for (name, expected) in
        [("cut.trace", "cut off"), ("a.json", "is not a trace"), ("absent.trace", "cannot read")]
    {
        let sentence = files.refused(&["a.json", "--trace", name]);
        assert!(sentence.contains(name) && sentence.contains(expected), "{sentence}");
    }
}

#[test]
fn places_where_no_page_can_be() {
    let files = Files::new();
    for (place, expected) in
        [("a.json", "its own input"), ("none/report.html", "cannot write"), (".", "cannot write")]
    {
        let output = files.report(&["a.json", "-o", place]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
    assert_eq!(fs::read_to_string(files.path("a.json")).unwrap(), RESULT);
}

#[test]
fn the_drawings_are_files() {
    let files = Files::new();
    trace(&files.path("boot.trace"));
    let output = files.report(&["a.json", "--trace", "boot.trace", "--svg", "drawings"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["exits-whole-run", "exits-0", "instructions-0", "boot", "regions"] {
        let svg =
            fs::read_to_string(files.path("drawings").join(name).with_extension("svg")).unwrap();
        assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>"), "{name}");
    }
    for (options, expected) in [
        (&["a.json", "--svg", "a.json"][..], "cannot make the folder"),
        (&["a.json", "--svg", "none/drawings"], "cannot make the folder"),
        (&["a.json"], "--output <FILE>"),
    ] {
        let output = files.report(options);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}

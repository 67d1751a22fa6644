//! A trace has every exit that the statistics count, and changes none of them.

mod run_of_umbra;
mod small_kernel;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use run_of_umbra::{signal, wait_until};
use rustix::process::Signal;
use serde_json::Value;
use small_kernel::SmallKernel;
use umbra::trace::{Head, Line, Reader, Recorder};
use umbra_telemetry::ExitCause;
use umbra_telemetry::trace::{Exit, Record, Writer};

/// Exits that come with time, not with what the guest does to its memory.
const TIMED: &[&str] = &["interrupt", "hlt", "io", "total"];

fn run(kernel: &Path, options: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_umbra"))
        .args(["run", "--memory", "32", "--timeout", "200", "--append", "hello world", "--kernel"])
        .arg(kernel)
        .args(options)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn exits(path: &Path) -> BTreeMap<String, u64> {
    let statistics: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let exits = statistics["exits"].as_object().unwrap();
    exits.iter().map(|(cause, count)| (cause.clone(), count.as_u64().unwrap())).collect()
}

#[test]
fn a_trace_is_whole_and_changes_no_memory_exit() {
    let folder = tempfile::tempdir().unwrap();
    let [kernel, plain, traced, trace] =
        ["kernel", "plain.json", "traced.json", "trace"].map(|name| folder.path().join(name));
    let command_line = format!("{} hello world", kernel.display());
    let small =
        SmallKernel { elf64: false, command_line: &command_line, modules: &[], memory_mib: 32 };
    fs::write(&kernel, small.file()).unwrap();
    let text = |path: &Path| path.display().to_string();
    run(&kernel, &["--stats", &text(&plain)]);
    run(&kernel, &["--stats", &text(&traced), "--trace", &text(&trace)]);

    let (plain, traced) = (exits(&plain), exits(&traced));
    let memory = |exits: &BTreeMap<String, u64>| {
        exits
            .clone()
            .into_iter()
            .filter(|(cause, _)| !TIMED.contains(&cause.as_str()))
            .collect::<Vec<_>>()
    };
    assert_eq!(memory(&plain), memory(&traced));

    let (head, reader) = Reader::open(&trace).unwrap();
    assert_eq!((head.machine.as_str(), head.memory), ("penryn", 32));
    let (mut counted, mut built, mut time) = (BTreeMap::new(), 0, 0);
    for line in reader {
        match line.unwrap() {
            Line::Record(Record::Exit(exit)) => {
                assert!(exit.time >= time, "time runs backwards: {time} {exit:?}");
                time = exit.time + exit.ticks;
                if let Some(cause) = exit.cause {
                    *counted.entry(cause.name().to_owned()).or_insert(0) += 1;
                    *counted.entry("total".to_owned()).or_insert(0) += 1;
                }
            }
            Line::Record(Record::Mmu(umbra_telemetry::trace::MmuEvent::Built { .. })) => built += 1,
            Line::Record(_) => (),
            Line::Lost(records) => panic!("{records} records were lost"),
        }
    }
    let expected: BTreeMap<String, u64> =
        traced.into_iter().filter(|&(_, count)| count > 0).collect();
    assert_eq!(counted, expected);
    assert!(built > 0);
}

#[test]
fn addresses_have_the_names_of_a_list_of_symbols() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let mut recorder = Recorder::create(&path, &Head::default()).unwrap();
    let mut writer = Writer::default();
    writer.push(&Record::Exit(Exit {
        rip: 0xffff_ffff_8100_0010,
        cause: Some(ExitCause::HostFaultInstall),
        address: Some(0xffff_ffff_8200_0004),
        ..Exit::default()
    }));
    recorder.add(writer.take().unwrap()).unwrap();
    recorder.finish("acpi_off".into()).unwrap();
    let symbols = folder.path().join("System.map");
    let shown = |text: &str| {
        fs::write(&symbols, text).unwrap();
        let mut umbra = Command::new(env!("CARGO_BIN_EXE_umbra"));
        umbra
            .arg("trace")
            .arg(&path)
            .arg("--symbols")
            .arg(&symbols)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let output =
        shown("ffffffff81000000 T fault\nffffffff82000000 D data\nffffffff83000000 B _end\n");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("gva 0xffffffff82000004 (data+0x4)  by fault+0x10\n"), "{text}");
    let output = shown("no symbols\n");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(stderr.contains("System.map has no lines such as"), "{stderr}");
}

/// The trace comes through a pipe, which does not end.
#[test]
fn a_signal_leaves_no_part_of_what_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, pipe, shown] = ["whole", "pipe", "shown"].map(|name| folder.path().join(name));
    let recorder = Recorder::create(&whole, &Head::default()).unwrap();
    recorder.finish("acpi_off".into()).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut tool = Command::new(env!("CARGO_BIN_EXE_umbra"))
        .arg("trace")
        .arg(&pipe)
        .arg("--output")
        .arg(&shown)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // For reading, too: else it would wait for a tool that has ended.
    let mut writer = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    // Without the end of the stream, but with all that a reader needs to begin.
    let trace = fs::read(&whole).unwrap();
    writer.write_all(&trace[..trace.len() - 1]).unwrap();
    let unfinished = || {
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with(".umbra-")).count()
    };
    wait_until(&mut tool, || unfinished() != 0);
    signal(&tool, Signal::INT);
    let output = tool.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "umbra: ended by the user\n");
    assert_eq!(unfinished(), 0);
    assert!(!shown.exists());
}

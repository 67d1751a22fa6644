//! `--machine kvm` on a host that cannot: it says so, and KVM's device is not opened.

mod run_of_umbra;

use std::fs;
use std::process::Command;

use run_of_umbra::{Run, kernel};

/// Without a program in reach, no host gets as far as to open the device; one without VMX does not
/// even look for programs. (The unit tests have the hosts that this one is not.)
#[test]
fn it_is_refused_in_one_sentence_without_opening_the_device() {
    let run = Run::new(&kernel(|a| a.hlt()));
    let strace =
        ["/usr/bin/strace", "/bin/strace"].into_iter().find(|path| fs::exists(path).unwrap());
    let log = run.path("tmp/strace");
    let program = match strace {
        Some(strace) => {
            let mut program = Command::new(strace);
            program
                .args(["-f", "-e", "trace=file", "-o"])
                .arg(&log)
                .arg(env!("CARGO_BIN_EXE_umbra"));
            program
        }
        None => Command::new(env!("CARGO_BIN_EXE_umbra")),
    };
    let output = run
        .command_by(program, &["--machine", "kvm"])
        .env("PATH", run.path("tmp"))
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    if strace.is_some() {
        let opened = fs::read_to_string(&log).unwrap();
        assert!(opened.contains("/proc/cpuinfo"), "it has looked: {opened}");
        assert!(!opened.contains("/dev/kvm"), "{opened}");
        fs::remove_file(&log).unwrap();
    }
    run.nothing_is_left();

    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    if !cpuinfo.lines().any(|line| line.starts_with("flags") && line.contains(" vmx")) {
        let doctor = Command::new(env!("CARGO_BIN_EXE_umbra")).arg("doctor").output().unwrap();
        let sentence = stderr.strip_prefix("umbra: ").unwrap();
        assert!(String::from_utf8(doctor.stdout).unwrap().contains(sentence), "{sentence}");
    }
}

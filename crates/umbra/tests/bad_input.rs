//! Wrong input ends at once, with one sentence and exit status 2.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Files {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kernel"), kernel()).unwrap();
        Files { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, contents: &[u8]) -> PathBuf {
        fs::write(self.path(name), contents).unwrap();
        self.path(name)
    }

    /// Expects a refusal of the kernel `kernel` with these options, and returns the sentence.
    fn refused(&self, kernel: &Path, options: &[&str]) -> String {
        refused(&mut self.command(kernel, options))
    }

    fn command(&self, kernel: &Path, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
        command.arg("run").arg("--kernel").arg(kernel).args(options).stdin(Stdio::null());
        command
    }
}

fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty());
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("umbra: "), "{stderr}");
    stderr
}

/// A header that promises 64 KiB of kernel, which wants 32 MiB at 16 MiB, and so many zeros
/// (boot.rst, "The Real-Mode Kernel Header").
fn kernel() -> Vec<u8> {
    let mut file = vec![0; 1024 + 0x10000];
    for (at, bytes) in [
        (0x1f1, &[1][..]),
        (0x1f4, &[0, 0x10, 0, 0]),
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
        (0x202, b"HdrS\x0f\x02"),
        (0x236, &[1, 0]),
        (0x238, &[0xff, 7, 0, 0]),
        (0x258, &[0, 0, 0, 1, 0, 0, 0, 0]),
        (0x260, &[0, 0, 0, 2]),
    ] {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    file
}

#[test]
fn a_kernel_that_does_not_boot_here() {
    let files = Files::new();
    let truncated = files.write("short", &kernel()[..5000]);
    let elf = files.write("vmlinux", b"\x7fELF\x02\x01\x01");
    for (kernel, expected) in [
        (files.path("none"), "No such file"),
        (files.folder.path().to_path_buf(), "not a regular file"),
        (truncated, "truncated bzImage"),
        (elf, "an ELF file"),
    ] {
        let sentence = files.refused(&kernel, &[]);
        assert!(sentence.contains(expected), "{sentence}");
        assert!(sentence.contains(kernel.to_str().unwrap()), "{sentence}");
    }
}

#[test]
fn memory_that_does_not_suffice_or_exist() {
    let files = Files::new();
    let initrd = files.path("initrd");
    fs::File::create(&initrd).unwrap().set_len(100 << 20).unwrap();
    let initrd = initrd.to_str().unwrap();
    for (options, expected) in [
        (&["--memory", "40"][..], "give --memory 56 or more"),
        (&["--memory", "4G"], "PCI hole"),
        (&["--memory", "64", "--initrd", initrd], "give --memory 156 or more"),
        (&["--shadow-frames", "4000000000"], "--shadow-frames"),
        (&["--initrd", "/nonexistent/initrd"], "No such file"),
    ] {
        let sentence = files.refused(&files.path("kernel"), options);
        assert!(sentence.contains(expected), "{sentence}");
    }
}

#[test]
fn a_command_line_that_the_kernel_cannot_take() {
    let files = Files::new();
    let sentence = files.refused(&files.path("kernel"), &["--append", &"x".repeat(2048)]);
    assert!(sentence.contains("2047"), "{sentence}");
}

#[test]
fn results_that_cannot_be_written() {
    let files = Files::new();
    let nowhere = files.path("no-folder/stats.json");
    for path in [nowhere.as_path(), files.folder.path()] {
        let sentence = files.refused(&files.path("kernel"), &["--stats", path.to_str().unwrap()]);
        assert!(sentence.contains("cannot write the statistics"), "{sentence}");
    }
}

#[test]
fn programs_that_are_missing_are_named_with_their_packages() {
    let files = Files::new();
    let mut command = files.command(&files.path("kernel"), &[]);
    let sentence = refused(command.env("PATH", files.folder.path()).env("BXSHARE", "/nonexistent"));
    for expected in ["bochs", "grub-mkrescue", "xorriso", "mformat", "apt-get install", "mtools", "bochsbios"]
    {
        assert!(sentence.contains(expected), "{expected}: {sentence}");
    }
}

#[test]
fn options_that_do_not_exist() {
    let files = Files::new();
    for options in
        [&["--machine", "i386"][..], &["--guest-faults", "off"], &["--audit=0"], &["--timeout", "soon"]]
    {
        let output = files.command(&files.path("kernel"), options).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(options[0].split('=').next().unwrap()));
    }
}

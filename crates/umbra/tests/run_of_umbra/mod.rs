//! A run of the tool in a folder of its own, and what it may not leave behind.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Guest memory.
pub const MEMORY_MIB: u32 = 64;

/// Where the kernels are loaded.
const LOAD: u32 = 0x10_0000;

/// Where a short kernel has zeros.
pub const ZEROS: u32 = LOAD + 0xff0;

/// A multiboot kernel of one page that is this code, with a header with address fields before it.
pub fn kernel(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const ADDRESS_FIELDS: u32 = 1 << 16;
    const ENTRY: u32 = LOAD + 32;
    let checksum = 0u32.wrapping_sub(MAGIC + ADDRESS_FIELDS);
    let header = [MAGIC, ADDRESS_FIELDS, checksum, LOAD, LOAD, 0, 0, ENTRY];
    let mut file: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut assembler = CodeAssembler::new(32).unwrap();
    code(&mut assembler).unwrap();
    file.extend(assembler.assemble(ENTRY.into()).unwrap());
    file.resize(4096, 0);
    file
}

/// A folder with a kernel, room for results, and one for temporary files.
pub struct Run {
    folder: TempDir,
}

impl Run {
    pub fn new(kernel: &[u8]) -> Run {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kernel"), kernel).unwrap();
        fs::create_dir(folder.path().join("tmp")).unwrap();
        Run { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Signals end the tool, also where whoever started these tests ignores them: a shell does so
    /// for what it runs in the background.
    pub fn command(&self, options: &[&str]) -> Command {
        let mut program = Command::new("/usr/bin/env");
        program.args(["--default-signal=HUP,INT,TERM", env!("CARGO_BIN_EXE_umbra")]);
        self.command_by(program, options)
    }

    /// `program` runs the tool with the arguments that follow its own.
    pub fn command_by(&self, mut program: Command, options: &[&str]) -> Command {
        program
            .args(["run", "--memory", &MEMORY_MIB.to_string(), "--kernel"])
            .arg(self.path("kernel"))
            .args(options)
            .env("TMPDIR", self.path("tmp"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !options.contains(&"--stats") {
            program.arg("--stats").arg(self.path("stats.json"));
        }
        program
    }

    /// Puts a shell script before the programs of that name; `real` in it is the real one.
    pub fn replace(&self, command: &mut Command, name: &str, script: &str) {
        let bin = self.path("bin");
        fs::create_dir_all(&bin).unwrap();
        let search = std::env::var_os("PATH").unwrap();
        let real = std::env::split_paths(&search)
            .map(|folder| folder.join(name))
            .find(|path| path.exists());
        let text = format!("#!/bin/sh\nreal={}\n{script}\n", real.unwrap().display());
        fs::write(bin.join(name), text).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        let folders = std::iter::once(bin).chain(std::env::split_paths(&search));
        command.env("PATH", std::env::join_paths(folders).unwrap());
    }

    /// Lets the tool run until it says `text`, does something, and returns its end.
    pub fn when(
        &self,
        options: &[&str],
        text: &str,
        act: impl FnOnce(&mut Child),
    ) -> (Output, String) {
        let mut child = self.command(options).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains(text) {
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "it ended: {said}");
        }
        act(&mut child);
        while stderr.read_line(&mut said).unwrap() != 0 {}
        let output = child.wait_with_output().unwrap();
        self.nothing_is_left();
        (output, said)
    }

    /// The statistics.
    pub fn statistics(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path("stats.json")).unwrap()).unwrap()
    }

    /// What the statistics say of the end.
    pub fn guest_exit(&self) -> String {
        self.statistics()["guest_exit"].as_str().unwrap().into()
    }

    /// Processes that run in this folder: the emulator does, and what the scripts of a test start.
    pub fn processes(&self) -> Vec<Pid> {
        let inside = |process: &Path| {
            let cwd = fs::read_link(process.join("cwd"));
            cwd.is_ok_and(|cwd| cwd.starts_with(self.folder.path()))
        };
        let all = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let number = |path: PathBuf| path.file_name().and_then(OsStr::to_str)?.parse().ok();
        all.filter(|path| inside(path)).filter_map(number).filter_map(Pid::from_raw).collect()
    }

    pub fn signal_emulator(&self, signal: Signal) {
        let [emulator] = self.processes()[..] else { panic!("one emulator") };
        kill_process(emulator, signal).unwrap();
    }

    /// No process, no temporary file, no part of a result.
    pub fn nothing_is_left(&self) {
        // One that has been killed may take a moment to go.
        let gone = (0..500).any(|_| {
            let gone = self.processes().is_empty();
            if !gone {
                thread::sleep(Duration::from_millis(10));
            }
            gone
        });
        assert!(gone, "{:?}", self.processes());
        let left =
            |folder: PathBuf| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left(self.path("tmp")).collect::<Vec<_>>(), [] as [&str; 0]);
        let known = ["kernel", "initrd", "tmp", "bin", "stats.json", "trace", "started"];
        let strange = left(self.path(".")).find(|name| !known.iter().any(|known| name == known));
        assert_eq!(strange, None);
    }
}

/// Waits for what the tool is about to do.
///
/// # Panics
/// The tool has ended: with what it said.
pub fn wait_until(tool: &mut Child, done: impl Fn() -> bool) {
    while !done() {
        if let Some(status) = tool.try_wait().unwrap() {
            let mut said = String::new();
            if let Some(stderr) = &mut tool.stderr {
                stderr.read_to_string(&mut said).unwrap();
            }
            assert!(done(), "it ended ({status}): {said}");
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a signal to the tool.
pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

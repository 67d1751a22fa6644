//! Small kernels boot as the Multiboot specification says, on every machine and with each treatment
//! of faults.

mod small_kernel;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use small_kernel::{GREETING, SmallKernel};
use tempfile::TempDir;

const MEMORY_MIB: u32 = 32;

/// A kernel with two modules, as files.
struct Guest {
    folder: TempDir,
    kernel: PathBuf,
    modules: [String; 2],
}

impl Guest {
    fn new(elf64: bool) -> Guest {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("small.elf");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let pattern: Vec<u8> = (0..10_000u32).map(|i| (i * 7 + 3) as u8).collect();
        let modules = [path("pattern"), path("env") + " one two=2"];
        fs::write(path("pattern"), &pattern).unwrap();
        fs::write(path("env"), "A=1\n").unwrap();
        let small = SmallKernel {
            elf64,
            command_line: &format!("{} hello world", kernel.display()),
            modules: &[(&pattern, &modules[0]), (b"A=1\n", &modules[1])],
            memory_mib: MEMORY_MIB,
        };
        fs::write(&kernel, small.file()).unwrap();
        Guest { folder, kernel, modules }
    }

    fn run(&self, append: &str, options: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_umbra"))
            .arg("run")
            .arg("--kernel")
            .arg(&self.kernel)
            .args(self.modules.iter().flat_map(|module| ["--module", module]))
            .args([
                "--append",
                append,
                "--memory",
                &MEMORY_MIB.to_string(),
                "--timeout",
                "100",
                "--audit=1",
            ])
            .args(options)
            .env("TMPDIR", self.folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn boots(&self, options: &[&str]) {
        let output = self.run("hello world", options);
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{options:?}: {stderr}");
        assert_eq!(stdout, GREETING, "{options:?}: {stderr}");
        assert!(stderr.contains("wrote 0 to exit port 0xf4"), "{stderr}");
    }
}

#[test]
fn on_every_machine_with_bypass_and_trap() {
    let guest = Guest::new(false);
    for machine in ["penryn", "skylake"] {
        for faults in ["bypass", "trap"] {
            guest.boots(&["--machine", machine, "--guest-faults", faults]);
        }
    }
}

#[test]
fn an_elf64_starts_in_32_bit_mode_too() {
    Guest::new(true).boots(&[]);
}

/// The kernel's own checks can fail; the seventh is that of the command line.
#[test]
fn another_command_line_is_noticed_by_the_kernel() {
    let output = Guest::new(false).run("hello World", &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("wrote 7 to exit port 0xf4"), "{stderr}");
}

/// Nothing is started for these.
#[test]
fn wrong_files_are_refused_in_one_sentence() {
    let guest = Guest::new(false);
    let kernel = fs::read(&guest.kernel).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = guest.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let mut headless = kernel.clone();
    let header = kernel.windows(4).position(|word| word == 0x1bad_b002u32.to_le_bytes()).unwrap();
    headless[header] = 0;
    let module = write("module", &vec![0; 20 << 20]).display().to_string();
    let initrd = write("initrd", b"070701").display().to_string();
    let absent = guest.folder.path().join("absent").display().to_string();
    let good = guest.kernel.clone();
    let long = "x".repeat(70_000);
    for (kernel, options, expected) in [
        (write("headless", &headless), vec![], "an ELF file without a multiboot header"),
        (write("cut", &kernel[..kernel.len() - 1]), vec![], "is cut off"),
        (good.clone(), vec!["--memory", "8"], "--memory 16 or more"),
        (good.clone(), vec!["--memory", "16", "--module", &module], "--memory 23 or more"),
        (good.clone(), vec!["--initrd", &initrd], "--module"),
        (good.clone(), vec!["--module", &absent], "cannot read the module"),
        (good.clone(), vec!["--module", "a\nb"], "one line"),
        (good, vec!["--append", &long], "shorten"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_umbra"))
            .args(["run", "--kernel"])
            .arg(&kernel)
            .args(&options)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(expected), "{expected}: {stderr}");
    }
}

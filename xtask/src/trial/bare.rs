//! The control: the same programs on the emulator itself. A judge that convicts it is wrong, or the
//! emulator is.
//!
//! The stub becomes a small kernel: a multiboot image that puts the program's memory in its place,
//! turns long mode on and begins. Its results come by port 0xe9.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use umbra_trial::bare::multiboot;
use umbra_trial::judge::{judge, judge_bare};
use umbra_trial::program::Program;
use umbra_trial::record::{End, Record};

use super::machine::PROGRAM;
use super::suspect::{Outcome, Suspect};

/// How long a program may take, boot included.
const PATIENCE: Duration = Duration::from_secs(60);

/// What QEMU ends with when the stub writes 0x10 to isa-debug-exit.
const ENDED: i32 = 33;

/// QEMU without a hypervisor.
pub struct Bare {
    folder: PathBuf,
    strict: bool,
}

impl Bare {
    /// Keeps its files in this folder. `strict`: QEMU's known defects are findings, too.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(folder: &Path, strict: bool) -> Result<Bare> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        Ok(Bare { folder: folder.to_path_buf(), strict })
    }
}

impl Suspect for Bare {
    fn run(&mut self, program: &Program) -> Result<Outcome> {
        let kernel = self.folder.join("program.elf");
        let results = self.folder.join("results");
        fs::write(&kernel, multiboot(program)).with_context(|| kernel.display().to_string())?;
        let _ = fs::remove_file(&results);
        let mut qemu = Command::new(PROGRAM);
        qemu.args(["-accel", "tcg", "-cpu", "EPYC", "-m", "128", "-nodefaults"]);
        qemu.args(["-no-user-config", "-display", "none", "-no-reboot", "-net", "none"]);
        qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        qemu.arg("-debugcon").arg(format!("file:{}", results.display()));
        qemu.arg("-kernel")
            .arg(&kernel)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = qemu.spawn().context("starting QEMU")?;
        let start = Instant::now();
        let end = loop {
            if let Some(status) = child.try_wait().context("waiting for QEMU")? {
                break if status.code() == Some(ENDED) { End::Complete } else { End::TripleFault };
            }
            if start.elapsed() > PATIENCE {
                child.kill().and_then(|()| child.wait().map(drop)).context("ending QEMU")?;
                break End::Hung;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let results = fs::read(&results).context("QEMU has written no results")?;
        if results.is_empty() {
            bail!("QEMU ends before the program of number {} does", program.seed);
        }
        let record = Record { results, end, harvests: Vec::new(), strays: Vec::new() };
        let verdict =
            if self.strict { judge(program, &record) } else { judge_bare(program, &record) };
        Ok(verdict.into())
    }
}

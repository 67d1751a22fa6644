//! The kernel on trial, booted in QEMU.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use umbra_trial::console::{Trouble, trouble};
use umbra_trial::judge::judge;
use umbra_trial::program::Program;
use umbra_trial::wire::{Reply, Request, encode, take};

use super::coverage::Coverage;
use super::kernel::Kernel;
use super::suspect::{Found, Outcome, Suspect};
use crate::{process, setup};

/// The emulator.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// The Debian package that has it.
pub const PACKAGE: &str = "qemu-system-x86";

/// How long a kernel may boot, on a machine that has more to do.
const BOOT: Duration = Duration::from_secs(180);
/// How long a program may take: the driver itself ends a guest after 20 seconds.
const ANSWER: Duration = Duration::from_secs(90);

/// Any bad page or lock is the end, and the end of the kernel is that of the machine. Warnings go
/// to the console, at a rate that Bochs takes time for. COM2 is the driver's own. On a busy machine
/// the emulator may be too late for Linux's test of the timer, and Linux gives up then.
pub const APPEND: &str = "console=ttyS0,115200 loglevel=5 panic=-1 oops=panic softlockup_panic=1 \
                          mitigations=off no_timer_check";

/// MiB of the machine's memory. With less than 512 Linux turns transparent huge pages off
/// (mm/huge_memory.c, hugepage_init), and what the firmware keeps is not counted.
pub const MEMORY: &str = "768";

/// Where QEMU logs what it translates, if coverage was asked for.
const TRANSLATED: &str = "translated.txt";

/// With two CPUs: they have one TSC in this emulator. Without this Linux takes them for
/// unsynchronized, as AMD's CPU has no invariant TSC here, and goes by another clock. That one has
/// stood still in some runs, with timer interrupts on both CPUs without end.
const APPEND_TWO: &str = " tsc=reliable";

/// The kernel in its emulator, booted anew after each death.
pub struct Machine {
    kernel: PathBuf,
    initrd: PathBuf,
    folder: PathBuf,
    cpu: String,
    /// How many CPUs it has.
    cpus: usize,
    /// The machine's state after a boot, once it was saved.
    saved: Option<PathBuf>,
    running: Option<Running>,
    coverage: Option<Coverage>,
    /// Where the module's text is that coverage looks at, once the machine has booted.
    text: Option<u64>,
}

/// One boot.
struct Running {
    child: Child,
    /// Bytes of COM2.
    output: Receiver<Vec<u8>>,
    received: Vec<u8>,
}

/// What comes instead of a reply.
enum Silence {
    /// The emulator has ended.
    Ended,
    /// Nothing came for too long.
    Late,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Machine {
    /// The state of the machine is some hundred MiB.
    fn drop(&mut self) {
        self.running = None;
        if let Some(saved) = &self.saved {
            let _ = fs::remove_file(saved);
        }
    }
}

impl Machine {
    /// Builds the driver and packs it with the kernel's modules.
    ///
    /// # Errors
    /// The driver cannot be built.
    pub fn new(
        kernel: &Kernel,
        folder: &Path,
        cpu: &str,
        cpus: usize,
        coverage: Option<Coverage>,
    ) -> Result<Machine> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let initrd = folder.join("trial.cpio.gz");
        let archive = setup::trial_initramfs(&kernel.modules)?;
        fs::write(&initrd, archive).with_context(|| initrd.display().to_string())?;
        Ok(Machine {
            kernel: kernel.image.clone(),
            initrd,
            folder: folder.to_path_buf(),
            cpu: String::from(cpu),
            cpus,
            saved: None,
            running: None,
            coverage,
            text: None,
        })
    }

    fn console(&self) -> PathBuf {
        self.folder.join("console.txt")
    }

    fn console_text(&self) -> String {
        fs::read(self.console())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The emulator's command line.
    fn command(&self) -> Command {
        let mut qemu = process::mortal(PROGRAM);
        qemu.args([
            "-accel",
            "tcg",
            "-cpu",
            &self.cpu,
            "-m",
            MEMORY,
            "-nodefaults",
            "-no-user-config",
        ]);
        qemu.args(["-display", "none", "-no-reboot", "-smp", &self.cpus.to_string()]);
        qemu.arg("-serial").arg(format!("file:{}", self.console().display()));
        qemu.args(["-chardev", "stdio,id=wire,signal=off", "-serial", "chardev:wire"]);
        qemu.arg("-monitor").arg(format!("unix:{},server=on,wait=off", self.monitor().display()));
        qemu.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        qemu.args(["-append", APPEND]);
        if let (Some(coverage), Some(text)) = (&self.coverage, self.text) {
            qemu.args(coverage.options(text, &self.folder.join(TRANSLATED)));
        }

        let more = if self.cpus == 1 { "" } else { APPEND_TWO };
        qemu.arg("-append").arg(format!("{APPEND}{more}"));
        qemu
    }

    /// Ends the machine, and keeps what it has run.
    fn stop(&mut self) {
        self.running = None;
        if let (Some(coverage), Some(text)) = (&mut self.coverage, self.text) {
            let log = self.folder.join(TRANSLATED);
            coverage.add(text, &fs::read_to_string(&log).unwrap_or_default());
            let _ = fs::remove_file(&log);
        }
    }

    fn monitor(&self) -> PathBuf {
        self.folder.join("monitor")
    }

    fn start(&self, command: &mut Command) -> Result<Running> {
        let _ = fs::remove_file(self.monitor());
        fs::write(self.console(), "").with_context(|| self.console().display().to_string())?;
        let errors = fs::File::create(self.folder.join("emulator.txt"))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().context("starting QEMU")?;
        let mut stdout = child.stdout.take().context("QEMU has a standard output")?;
        let (sender, output) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Running { child, output, received: Vec::new() })
    }

    /// The machine, booted.
    fn running(&mut self) -> Result<&mut Running> {
        if self.running.is_none() {
            self.running = Some(match &self.saved {
                Some(saved) => {
                    let mut command = self.command();
                    self.start(
                        command.arg("-incoming").arg(format!("exec:cat {}", saved.display())),
                    )?
                }
                None => self.boot()?,
            });
        }
        self.running.as_mut().context("the machine runs")
    }

    /// Boots, and saves the machine's state: the next start takes it up.
    fn boot(&mut self) -> Result<Running> {
        let mut running = self.start(&mut self.command())?;
        match running.reply(BOOT) {
            Ok(Reply::Ready { text, .. }) => self.text = text,
            Ok(Reply::Refused(why)) => bail!("this kernel cannot be tried: {why}"),
            Ok(Reply::Ran(_)) => bail!("the driver answers before it is asked"),
            Err(silence) => {
                let log = self.console_text();
                let emulator =
                    fs::read_to_string(self.folder.join("emulator.txt")).unwrap_or_default();
                let last = trouble(&log).map(|trouble| trouble.line);
                let last =
                    last.or_else(|| emulator.lines().last().map(String::from)).unwrap_or_default();
                let what = match silence {
                    Silence::Ended => "ended while it booted",
                    Silence::Late => "has not booted within three minutes",
                };
                bail!("the kernel on trial {what}: {last}");
            }
        }
        let saved = self.folder.join("booted");
        match self.save(&saved, &mut running) {
            Ok(()) => {
                drop(running);
                self.saved = Some(saved.clone());
                let mut command = self.command();
                self.start(command.arg("-incoming").arg(format!("exec:cat {}", saved.display())))
            }
            // The filter of what QEMU logs is chosen after the boot.
            Err(error) if self.coverage.is_some() => Err(error),
            // It will boot each time, then.
            Err(_) => Ok(running),
        }
    }

    fn save(&self, file: &Path, running: &mut Running) -> Result<()> {
        let mut monitor = UnixStream::connect(self.monitor()).context("QEMU's monitor")?;
        monitor.set_read_timeout(Some(Duration::from_secs(60)))?;
        writeln!(monitor, "migrate \"exec:cat > {}\"\nquit", file.display())?;
        // It closes the line when it quits.
        let mut said = Vec::new();
        monitor.read_to_end(&mut said).context("saving the machine's state")?;
        running.child.wait()?;
        anyhow::ensure!(file.metadata()?.len() > 0, "QEMU saved nothing");
        Ok(())
    }

    /// What the machine's end tells.
    fn death(&mut self, silence: Silence) -> Found {
        // Its last lines are written when it ends.
        let text = match silence {
            Silence::Late => "the host hangs",
            Silence::Ended => "the host ends without a word",
        };
        self.stop();
        let log = self.console_text();
        let found = trouble(&log);
        let (symptom, line) = match found {
            Some(Trouble { symptom, line }) => (symptom, line),
            None => (String::from(text), String::from(text)),
        };
        Found { symptom: format!("host: {symptom}"), detail: line, step: None, log }
    }
}

impl Running {
    fn reply(&mut self, patience: Duration) -> Result<Reply, Silence> {
        let start = Instant::now();
        loop {
            match take(&mut self.received) {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(_)) => continue,
                None => (),
            }
            match self.output.recv_timeout(patience.saturating_sub(start.elapsed())) {
                Ok(bytes) => self.received.extend(bytes),
                Err(RecvTimeoutError::Timeout) => return Err(Silence::Late),
                Err(RecvTimeoutError::Disconnected) => return Err(Silence::Ended),
            }
        }
    }

    fn ask(&mut self, program: &Program) -> Result<Reply, Silence> {
        // An empty frame goes first: a machine that takes up its saved state may lose the byte.
        let request = [vec![0], encode(&Request::Run(program.clone()))].concat();
        let input = self.child.stdin.as_mut().ok_or(Silence::Ended)?;
        input.write_all(&request).and_then(|()| input.flush()).map_err(|_| Silence::Ended)?;
        self.reply(ANSWER)
    }
}

impl Suspect for Machine {
    fn run(&mut self, program: &Program) -> Result<Outcome> {
        let reply = self.running()?.ask(program);
        let record = match reply {
            Ok(Reply::Ran(record)) => record,
            Ok(Reply::Refused(why)) => {
                bail!("the driver cannot run program {}: {why}", program.seed)
            }
            Ok(Reply::Ready { .. }) => bail!("the driver starts anew"),
            Err(silence) => return Ok(Outcome::Found(self.death(silence))),
        };
        let log = self.console_text();
        if let Some(Trouble { symptom, line }) = trouble(&log) {
            // The kernel gives some warnings once only: the next program finds a fresh one.
            self.stop();
            return Ok(Outcome::Found(Found {
                symptom: format!("host: {symptom}"),
                detail: line,
                step: None,
                log,
            }));
        }
        Ok(judge(program, &record).into())
    }

    fn coverage(&mut self, folder: &Path) -> Result<Option<String>> {
        self.stop();
        let Some(coverage) = &self.coverage else { return Ok(None) };
        coverage.save(folder)?;
        Ok(Some(coverage.line()))
    }
}

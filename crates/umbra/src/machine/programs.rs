//! The programs and files of other packages that a run needs.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::kvm::Host;
use super::settings::{Bochs, Settings};
use super::{Machine, bochsrc, qemu};
use crate::error::Error;

/// GRUB's modules for a PC with a BIOS.
const GRUB_PC: &str = "/usr/lib/grub/i386-pc";

/// What builds a boot image.
#[derive(Clone, Debug)]
pub struct ImageTools {
    pub(super) grub_mkrescue: PathBuf,
    pub(super) grub_modules: PathBuf,
    /// Makes a program end when this process is killed; absent on a system without util-linux.
    setpriv: Option<PathBuf>,
}

/// QEMU, and what runs its CPU.
#[derive(Debug)]
pub(super) struct Qemu {
    pub program: PathBuf,
    pub cpu: qemu::Cpu,
}

/// What a machine runs in.
#[derive(Debug)]
pub(super) enum EmulatorProgram {
    Bochs(Bochs),
    Qemu(Qemu),
}

/// Where the programs are.
#[derive(Debug)]
pub struct Programs {
    image_tools: ImageTools,
    pub(super) emulator: EmulatorProgram,
}

impl ImageTools {
    /// Looks for what `umbra image` needs.
    ///
    /// # Errors
    /// As [`Programs::find`].
    pub fn find() -> Result<ImageTools, Error> {
        let mut missing = Missing::default();
        let tools = ImageTools::look(&mut missing);
        missing.check().map(|()| tools)
    }

    fn look(missing: &mut Missing) -> ImageTools {
        let tools = ImageTools {
            grub_mkrescue: missing.program("grub-mkrescue", "grub-common"),
            grub_modules: missing.file(PathBuf::from(GRUB_PC), "grub-pc-bin"),
            setpriv: which::which("setpriv").ok(),
        };
        missing.program("xorriso", "xorriso");
        missing.program("mformat", "mtools");
        tools
    }

    /// A command that runs `program`, and that the kernel kills when the thread ends that starts
    /// it.
    pub(super) fn command(&self, program: &Path) -> Command {
        match &self.setpriv {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        }
    }
}

impl Programs {
    /// Looks for all that a machine needs.
    ///
    /// # Errors
    /// One sentence that names everything which is missing, and the Debian packages that have it;
    /// or what this host cannot do.
    pub fn find(machine: &Machine) -> Result<Programs, Error> {
        Programs::find_on(machine, Host::this)
    }

    /// As [`Programs::find`], on a host that is asked about if the machine is KVM's.
    pub(super) fn find_on(
        machine: &Machine,
        host: impl FnOnce() -> Host,
    ) -> Result<Programs, Error> {
        let mut missing = Missing::default();
        let Some(model) = machine.bochs_model() else {
            let (search, kvm) = match machine {
                Machine::Kvm => {
                    let host = host();
                    (host.search, Some((host.facts.check()?, host.device)))
                }
                _ => (std::env::var_os("PATH").unwrap_or_default(), None),
            };
            let program = missing.program_in(&search, qemu::PROGRAM, qemu::PACKAGE);
            let image_tools = ImageTools::look(&mut missing);
            missing.check()?;
            let cpu = match kvm {
                Some((nested, device)) => qemu::Cpu::Host(nested.open(&device)?),
                None => qemu::Cpu::Emulated,
            };
            return Ok(Programs {
                image_tools,
                emulator: EmulatorProgram::Qemu(Qemu { program, cpu }),
            });
        };
        let share = bochs_share();
        let bochs = Bochs {
            program: missing.program("bochs", "bochs"),
            bios: missing.file(share.join("BIOS-bochs-latest"), "bochsbios"),
            vga_bios: missing.file(share.join("VGABIOS-lgpl-latest"), "vgabios"),
            model: model.into(),
        };
        let image_tools = ImageTools::look(&mut missing);
        if !plugin_folders().iter().any(|folder| folder.join("libbx_sdl2_gui.so").exists()) {
            missing.note("Bochs's display library sdl2", "bochs-sdl");
        }
        missing.check().map(|()| Programs { image_tools, emulator: EmulatorProgram::Bochs(bochs) })
    }

    /// What builds its boot image.
    pub fn image_tools(&self) -> &ImageTools {
        &self.image_tools
    }

    /// The emulator's name, for the user.
    pub fn emulator_name(&self) -> &'static str {
        match self.emulator {
            EmulatorProgram::Bochs(_) => "Bochs",
            EmulatorProgram::Qemu(_) => "QEMU",
        }
    }

    /// Writes what the emulator reads beside the boot image in `folder`, and says how it is started
    /// there, and which file is its log. COM1 connects to the TCP port `console_port` of this host;
    /// what the machine writes to port 0xe9 goes to standard output.
    pub(super) fn emulator_command(
        &self,
        folder: &Path,
        settings: &Settings,
        console_port: u16,
    ) -> io::Result<(Command, &'static str)> {
        match &self.emulator {
            EmulatorProgram::Bochs(bochs) => {
                let mut command = self.image_tools.command(&bochs.program);
                bochsrc::prepare(&mut command, folder, bochs, settings, console_port)?;
                Ok((command, bochsrc::LOG))
            }
            EmulatorProgram::Qemu(Qemu { program, cpu }) => {
                let mut command = self.image_tools.command(program);
                command.args(qemu::arguments(cpu, settings, console_port));
                Ok((command, STDERR))
            }
        }
    }

    /// The line of its standard error that says why the emulator did not start.
    pub(super) fn reason_in<'a>(&self, stderr: &'a str) -> Option<&'a str> {
        let mut lines = stderr.lines().rev().map(str::trim);
        match self.emulator {
            EmulatorProgram::Bochs(_) => {
                lines.find(|line| line.contains('[') && line.contains(']'))
            }
            EmulatorProgram::Qemu(_) => lines.find(|line| !line.is_empty()),
        }
    }

    /// Checks that Bochs has the CPU of a machine.
    ///
    /// # Errors
    /// It has not, or does not say.
    pub fn check_machine(&self, machine: &Machine) -> Result<(), Error> {
        let (Machine::Bochs(model), EmulatorProgram::Bochs(bochs)) = (machine, &self.emulator)
        else {
            return Ok(());
        };
        let output =
            Command::new(&bochs.program).args(["--help", "cpu"]).stdin(Stdio::null()).output();
        let output =
            output.map_err(|error| Error::Machine(format!("cannot start Bochs: {error}")))?;
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        if text.lines().any(|line| line.trim() == model) {
            return Ok(());
        }
        Err(Error::Input(format!(
            "Bochs has no CPU model {model}; `bochs --help cpu` lists those that it has"
        )))
    }
}

/// Where Bochs keeps its BIOS images.
pub fn bochs_share() -> PathBuf {
    std::env::var_os("BXSHARE").unwrap_or_else(|| "/usr/share/bochs".into()).into()
}

/// Where Bochs looks for its plugins: LTDL_LIBRARY_PATH, or a folder chosen when it was built.
pub fn plugin_folders() -> Vec<PathBuf> {
    if let Some(path) = std::env::var_os("LTDL_LIBRARY_PATH") {
        return std::env::split_paths(&path).collect();
    }
    let mut folders = vec![
        PathBuf::from("/usr/local/lib/bochs/plugins"),
        PathBuf::from("/usr/lib/bochs/plugins"),
    ];
    let multiarch = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    folders.extend(multiarch.map(|entry| entry.path().join("bochs/plugins")));
    folders
}

/// The emulator's standard error, in the folder that it runs in.
pub(super) const STDERR: &str = "stderr";

/// What was not found.
#[derive(Default)]
struct Missing {
    things: Vec<String>,
    packages: Vec<&'static str>,
}

impl Missing {
    fn note(&mut self, thing: &str, package: &'static str) {
        self.things.push(String::from(thing));
        if !self.packages.contains(&package) {
            self.packages.push(package);
        }
    }

    fn program(&mut self, name: &str, package: &'static str) -> PathBuf {
        self.program_in(&std::env::var_os("PATH").unwrap_or_default(), name, package)
    }

    /// Looks in the folders of a `PATH`.
    fn program_in(&mut self, search: &OsStr, name: &str, package: &'static str) -> PathBuf {
        let here = std::env::current_dir().unwrap_or_default();
        which::which_in(OsStr::new(name), Some(search), here).unwrap_or_else(|_| {
            self.note(name, package);
            PathBuf::from(name)
        })
    }

    fn file(&mut self, path: PathBuf, package: &'static str) -> PathBuf {
        if !Path::exists(&path) {
            self.note(&path.display().to_string(), package);
        }
        path
    }

    fn check(&self) -> Result<(), Error> {
        self.sentence().map_or(Ok(()), |sentence| Err(Error::Input(sentence)))
    }

    fn sentence(&self) -> Option<String> {
        (!self.things.is_empty()).then(|| {
            let verb = if self.things.len() == 1 { "is" } else { "are" };
            format!(
                "{} {verb} missing; on Debian run `apt-get install {}`",
                self.things.join(", "),
                self.packages.join(" ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_missing_is_named_once_with_its_package() {
        let mut missing = Missing::default();
        assert_eq!(missing.sentence(), None);
        missing.file(PathBuf::from("/nonexistent/BIOS"), "bochs");
        assert!(missing.sentence().unwrap().starts_with("/nonexistent/BIOS is missing"));
        missing.program("no-such-program-here", "bochs");
        let sentence = missing.sentence().unwrap();
        assert!(
            sentence.ends_with("are missing; on Debian run `apt-get install bochs`"),
            "{sentence}"
        );
    }
}

//! The programs and files of other packages that a run needs.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Machine;
use crate::error::Error;

/// GRUB's modules for a PC with a BIOS.
const GRUB_PC: &str = "/usr/lib/grub/i386-pc";

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    pub(super) bochs: PathBuf,
    pub(super) bios: PathBuf,
    pub(super) vga_bios: PathBuf,
    pub(super) grub_mkrescue: PathBuf,
    pub(super) grub_modules: PathBuf,
    /// Makes the emulator end when this process is killed; absent on a system without util-linux.
    pub(super) setpriv: Option<PathBuf>,
}

impl Programs {
    /// Looks for all of them.
    ///
    /// # Errors
    /// One sentence that names everything which is missing, and the Debian packages that have it.
    pub fn find() -> Result<Programs, Error> {
        let mut missing = Missing::default();
        let share = bochs_share();
        let programs = Programs {
            bochs: missing.program("bochs", "bochs"),
            bios: missing.file(share.join("BIOS-bochs-latest"), "bochsbios"),
            vga_bios: missing.file(share.join("VGABIOS-lgpl-latest"), "bochs"),
            grub_mkrescue: missing.program("grub-mkrescue", "grub-common"),
            grub_modules: missing.file(PathBuf::from(GRUB_PC), "grub-pc-bin"),
            setpriv: which::which("setpriv").ok(),
        };
        missing.program("xorriso", "xorriso");
        missing.program("mformat", "mtools");
        if !plugin_folders().iter().any(|folder| folder.join("libbx_sdl2_gui.so").exists()) {
            missing.note("Bochs's display library sdl2", "bochs-sdl");
        }
        missing.sentence().map_or(Ok(programs), |sentence| Err(Error::Input(sentence)))
    }
}

impl Programs {
    /// A command that runs `program`, and that the kernel kills when the thread ends that starts it.
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

    /// Checks that Bochs has the CPU of a machine.
    ///
    /// # Errors
    /// It has not, or does not say.
    pub fn check_machine(&self, machine: &Machine) -> Result<(), Error> {
        let Machine::Bochs(model) = machine else { return Ok(()) };
        let output = Command::new(&self.bochs).args(["--help", "cpu"]).stdin(Stdio::null()).output();
        let output = output.map_err(|error| Error::Machine(format!("cannot start Bochs: {error}")))?;
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
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
    let mut folders =
        vec![PathBuf::from("/usr/local/lib/bochs/plugins"), PathBuf::from("/usr/lib/bochs/plugins")];
    let multiarch = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    folders.extend(multiarch.map(|entry| entry.path().join("bochs/plugins")));
    folders
}

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
        which::which(OsStr::new(name)).unwrap_or_else(|_| {
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
        assert!(sentence.ends_with("are missing; on Debian run `apt-get install bochs`"), "{sentence}");
    }
}

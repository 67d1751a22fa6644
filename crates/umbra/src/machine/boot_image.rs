//! The boot image: GRUB, the hypervisor, and its modules.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use umbra_telemetry::{BootConfig, module_name};

use super::ImageTools;
use crate::error::Error;
use crate::guest::Module;
use crate::signals::Signals;

/// The hypervisor, built with this tool.
const HYPERVISOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/umbra.elf"));

/// How often it is looked for a signal.
const POLL: Duration = Duration::from_millis(10);

/// The image, in the folder that it is built in.
pub const IMAGE: &str = "boot.iso";

/// What the hypervisor finds as multiboot2 modules, by the names of these fields and by [`module_name`].
#[derive(Clone, Copy, Debug)]
pub struct BootFiles<'a> {
    /// What it is to do.
    pub config: &'a BootConfig,
    /// The guest's kernel.
    pub kernel: &'a [u8],
    /// The guest's initrd.
    pub initrd: Option<&'a [u8]>,
    /// A multiboot guest's modules.
    pub modules: &'a [Module],
}

impl BootFiles<'_> {
    /// Bytes that GRUB has to load.
    pub fn size(&self) -> u64 {
        let modules: usize = self.modules.iter().map(|module| module.file.len()).sum();
        (HYPERVISOR.len() + self.kernel.len() + self.initrd.map_or(0, <[u8]>::len) + modules) as u64
    }
}

/// A folder to build the image in, which neither the end of this program nor a signal leaves behind.
///
/// # Errors
/// The system refuses.
pub fn temporary_folder(signals: &Signals) -> Result<TempDir, Error> {
    let folder = tempfile::Builder::new().prefix("umbra-").tempdir().map_err(|error| {
        Error::Machine(format!(
            "cannot make a temporary folder in {}: {error}; TMPDIR can name another one",
            std::env::temp_dir().display()
        ))
    })?;
    signals.set_folder(folder.path());
    Ok(folder)
}

/// Builds the image in `folder`, as the file [`IMAGE`].
///
/// # Errors
/// The disk is full, grub-mkrescue fails, or a signal came.
pub fn build(
    tools: &ImageTools,
    folder: &Path,
    files: &BootFiles<'_>,
    signals: &Signals,
) -> Result<(), Error> {
    let tree = folder.join("tree");
    write_tree(&tree, files).map_err(|error| {
        Error::Machine(format!(
            "cannot write the boot image into {}: {error}; TMPDIR can name another folder",
            folder.display()
        ))
    })?;
    let output = grub_mkrescue(tools, folder, &tree, signals);
    signals.check()?;
    let output = output.map_err(|error| {
        Error::Machine(format!("cannot start {}: {error}", tools.grub_mkrescue.display()))
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Machine(format!(
            "grub-mkrescue cannot build the boot image in {}: {}; TMPDIR can name another folder",
            folder.display(),
            reason(&said)
        )));
    }
    // The image has its own copy, and temporary folders are often in memory.
    fs::remove_dir_all(&tree)
        .map_err(|error| Error::Machine(format!("cannot remove {}: {error}", tree.display())))
}

/// Runs grub-mkrescue until it ends or a signal comes.
fn grub_mkrescue(tools: &ImageTools, folder: &Path, tree: &Path, signals: &Signals) -> io::Result<Output> {
    let child = tools
        .command(&tools.grub_mkrescue)
        .arg("-d")
        .arg(&tools.grub_modules)
        // Only what the menu below needs: a smaller image boots sooner.
        .args(["--install-modules=multiboot2 normal iso9660 biosdisk part_msdos", "--fonts=", "--locales="])
        .arg("--themes=")
        .arg("-o")
        .arg(folder.join(IMAGE))
        .arg(tree)
        // It has temporary files, too.
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A Ctrl-C in the terminal is for this program, which then ends grub-mkrescue and what that has started.
        .process_group(0)
        .spawn()?;
    signals.set_child(Some(child.id()));
    let (tell, told) = channel();
    thread::spawn(move || tell.send(child.wait_with_output()));
    let output = loop {
        match told.recv_timeout(POLL) {
            Ok(output) => break output,
            Err(_) if signals.status().is_some() => signals.kill_child(),
            Err(_) => (),
        }
    };
    signals.set_child(None);
    output
}

/// What grub-mkrescue, or xorriso under it, says went wrong: its last line says no more than that something did.
fn reason(said: &str) -> &str {
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().next_back().unwrap_or("it gave no reason");
    lines.find_map(|line| line.strip_prefix("xorriso : FAILURE : ")).unwrap_or(last)
}

fn write_tree(tree: &Path, files: &BootFiles<'_>) -> io::Result<()> {
    let boot = tree.join("boot");
    fs::create_dir_all(boot.join("grub"))?;
    fs::write(boot.join("umbra.elf"), HYPERVISOR)?;
    fs::write(boot.join("config"), files.config.to_bytes())?;
    fs::write(boot.join("kernel"), files.kernel)?;
    if let Some(initrd) = files.initrd {
        fs::write(boot.join("initrd"), initrd)?;
    }
    for (index, module) in files.modules.iter().enumerate() {
        fs::write(boot.join(module_name(index)), &module.file)?;
    }
    fs::write(boot.join("grub/grub.cfg"), menu(files.initrd.is_some(), files.modules.len()))
}

/// Commands without a menu: GRUB carries them out at once.
fn menu(with_initrd: bool, modules: usize) -> String {
    let mut menu = String::from("multiboot2 /boot/umbra.elf\n");
    let names = ["config", "kernel", "initrd"].map(String::from).into_iter();
    for name in names.take(if with_initrd { 3 } else { 2 }).chain((0..modules).map(module_name)) {
        menu += &format!("module2 /boot/{name} {name}\n");
    }
    menu + "boot\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_named_as_the_hypervisor_looks_for_them() {
        assert_eq!(
            menu(false, 0),
            "multiboot2 /boot/umbra.elf\nmodule2 /boot/config config\nmodule2 /boot/kernel kernel\nboot\n"
        );
        assert!(menu(true, 0).contains("module2 /boot/initrd initrd\n"));
    }

    #[test]
    fn a_multiboot_guests_modules_are_numbered() {
        let menu = menu(false, 2);
        assert!(
            menu.ends_with("module2 /boot/module0 module0\nmodule2 /boot/module1 module1\nboot\n"),
            "{menu}"
        );
    }

    #[test]
    fn the_reason_of_a_failure_is_xorrisos_if_it_has_one() {
        let said = "xorriso : UPDATE : 43 files added\nxorriso : FAILURE : Image size 4545s exceeds free space on media \
                    1756s\nxorriso : NOTE : -return_with SORRY 32 triggered by problem severity FAILURE\n\
                    grub-mkrescue: error: `xorriso` invocation failed\n.\n";
        assert_eq!(reason(said), "Image size 4545s exceeds free space on media 1756s");
        assert_eq!(reason("grub-mkrescue: error: cannot open.\n\n"), "grub-mkrescue: error: cannot open.");
        assert_eq!(reason(" \n"), "it gave no reason");
    }

    #[test]
    fn an_elf_is_embedded() {
        assert!(HYPERVISOR.starts_with(b"\x7fELF"));
    }
}

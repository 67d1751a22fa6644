//! The boot image: GRUB, the hypervisor or its peer, and the guest.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use cpio::newc::{Builder, ModeFileType, trailer};
use umbra_telemetry::{BootConfig, Message, module_name};

use super::ImageTools;
use super::settings::IMAGE;
use crate::error::Error;
use crate::guest::Module;
use crate::signals::Signals;
use crate::temporary::TemporaryFolder;

/// The hypervisor, built with this tool.
#[cfg(feature = "hypervisor")]
const HYPERVISOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/umbra.elf"));

/// A library that only checks options has none.
#[cfg(not(feature = "hypervisor"))]
const HYPERVISOR: &[u8] = &[];

/// How often it is looked for a signal.
const POLL: Duration = Duration::from_millis(10);

/// What GRUB starts.
#[derive(Clone, Copy, Debug)]
pub enum System<'a> {
    /// The hypervisor.
    Umbra,
    /// A host Linux whose initramfs runs the guest under KVM.
    Kvm {
        /// The host's kernel.
        kernel: &'a [u8],
        /// The host's initramfs.
        initrd: &'a [u8],
    },
    /// The guest itself, a Linux kernel.
    Bare,
    /// The guest itself, a multiboot kernel.
    BareMultiboot,
}

/// What the hypervisor finds as multiboot2 modules, by the names of these fields and by
/// [`module_name`]; the peer's host finds them in its folder `/guest`.
#[derive(Clone, Copy, Debug)]
pub struct BootFiles<'a> {
    /// What is started with them.
    pub system: System<'a>,
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
        let system = match self.system {
            System::Umbra => HYPERVISOR.len(),
            System::Kvm { kernel, initrd } => kernel.len() + initrd.len(),
            System::Bare | System::BareMultiboot => 0,
        };
        (system + self.kernel.len() + self.initrd.map_or(0, <[u8]>::len) + modules) as u64
    }
}

/// A folder to build the image in, which neither the end of this program nor a signal leaves
/// behind.
///
/// # Errors
/// The system refuses.
pub fn temporary_folder(signals: &Signals) -> Result<TemporaryFolder, Error> {
    let folder = new_folder()?;
    signals.set_folder(folder.path());
    Ok(folder)
}

/// A temporary folder.
///
/// # Errors
/// The system refuses.
pub fn new_folder() -> Result<TemporaryFolder, Error> {
    TemporaryFolder::new().map_err(|error| {
        Error::Machine(format!(
            "cannot make a temporary folder in {}: {error}; TMPDIR can name another one",
            std::env::temp_dir().display()
        ))
    })
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
    let output = grub_mkrescue(tools, folder, &tree, modules(&files.system), signals);
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
fn grub_mkrescue(
    tools: &ImageTools,
    folder: &Path,
    tree: &Path,
    modules: &str,
    signals: &Signals,
) -> io::Result<Output> {
    let child = tools
        .command(&tools.grub_mkrescue)
        .arg("-d")
        .arg(&tools.grub_modules)
        // Only what the menu below needs: a smaller image boots sooner.
        .args([modules, "--fonts=", "--locales="])
        .arg("--themes=")
        .arg("-o")
        .arg(folder.join(IMAGE))
        .arg(tree)
        // It has temporary files, too.
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A Ctrl-C in the terminal is for this program, which then ends grub-mkrescue and what that
        // has started.
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

/// What grub-mkrescue, or xorriso under it, says went wrong: its last line says no more than that
/// something did.
fn reason(said: &str) -> &str {
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().next_back().unwrap_or("it gave no reason");
    lines.find_map(|line| line.strip_prefix("xorriso : FAILURE : ")).unwrap_or(last)
}

fn modules(system: &System<'_>) -> &'static str {
    match system {
        System::Umbra => "--install-modules=multiboot2 normal iso9660 biosdisk part_msdos",
        System::BareMultiboot => {
            "--install-modules=multiboot iorw normal iso9660 biosdisk part_msdos"
        }
        System::Kvm { .. } | System::Bare => {
            "--install-modules=linux normal iso9660 biosdisk part_msdos"
        }
    }
}

fn write_tree(tree: &Path, files: &BootFiles<'_>) -> io::Result<()> {
    let boot = tree.join("boot");
    fs::create_dir_all(boot.join("grub"))?;
    fs::write(boot.join("grub/grub.cfg"), menu(files))?;
    match files.system {
        System::Umbra if cfg!(not(feature = "hypervisor")) => {
            return Err(io::Error::other(
                "this library was built without the feature `hypervisor`",
            ));
        }
        System::Umbra => fs::write(boot.join("umbra.elf"), HYPERVISOR)?,
        System::Kvm { kernel, initrd } => {
            fs::write(boot.join("host-kernel"), kernel)?;
            fs::write(boot.join("host-initrd"), initrd)?;
            return fs::write(boot.join("guest"), guest_archive(files)?);
        }
        System::Bare | System::BareMultiboot => (),
    }
    fs::write(boot.join("config"), files.config.to_bytes())?;
    fs::write(boot.join("kernel"), files.kernel)?;
    if let Some(initrd) = files.initrd {
        fs::write(boot.join("initrd"), initrd)?;
    }
    for (index, module) in files.modules.iter().enumerate() {
        fs::write(boot.join(module_name(index)), &module.file)?;
    }
    Ok(())
}

/// The guest for the peer's host: a second archive of its initramfs. (GRUB 2.06 could pack one
/// itself, but ends no file's name with a zero, and Linux since 6.1.120 skips such files.)
fn guest_archive(files: &BootFiles<'_>) -> io::Result<Vec<u8>> {
    let config = files.config.to_bytes();
    let guest = [("config", config.as_slice()), ("kernel", files.kernel)];
    let guest = guest.into_iter().chain(files.initrd.map(|initrd| ("initrd", initrd)));
    let mut archive = Vec::new();
    for (inode, (name, contents)) in (1..).zip(guest) {
        let size = u32::try_from(contents.len()).map_err(io::Error::other)?;
        let entry = Builder::new(&format!("guest/{name}")).mode(0o644).ino(inode).nlink(1);
        let mut writer = entry.set_mode_file_type(ModeFileType::Regular).write(&mut archive, size);
        writer.write_all(contents)?;
        writer.finish()?;
    }
    trailer(archive)
}

/// What the peer's host is told: nothing but errors to say, and the end of a machine that cannot go
/// on (Bochs stops at a triple fault, and would boot again after another reset; its MWAITX never
/// comes back).
const HOST_COMMAND_LINE: &str = "quiet panic=-1 reboot=triple clearcpuid=mwaitx";

/// Commands without a menu: GRUB carries them out at once.
fn menu(files: &BootFiles<'_>) -> String {
    let initrd = files.initrd.map(|_| "initrd");
    match files.system {
        System::Umbra => {
            let names = ["config", "kernel"].into_iter().chain(initrd).map(String::from);
            let names = names.chain((0..files.modules.len()).map(module_name));
            let modules: String =
                names.map(|name| format!("module2 /boot/{name} {name}\n")).collect();
            format!("multiboot2 /boot/umbra.elf\n{modules}boot\n")
        }
        System::Kvm { .. } => {
            format!(
                "linux /boot/host-kernel {HOST_COMMAND_LINE}\ninitrd /boot/host-initrd /boot/guest\nboot\n"
            )
        }
        System::Bare => {
            let words = quoted(&files.config.append);
            let initrd = initrd.map(|name| format!("initrd /boot/{name}\n")).unwrap_or_default();
            format!("linux /boot/kernel{words}\n{initrd}boot\n")
        }
        System::BareMultiboot => {
            // GRUB leaves its own first argument, the file, out of what the kernel gets.
            let kernel = format!("multiboot /boot/kernel{}\n", quoted(&files.config.append));
            let module = |(index, module): (usize, &Module)| {
                format!("module /boot/{}{}\n", module_name(index), quoted(&module.string))
            };
            let modules: String = files.modules.iter().enumerate().map(module).collect();
            // What the emulator says before these bytes is not the guest's.
            let entered: String = umbra_telemetry::frame::encode(&Message::GuestEntered)
                .iter()
                .map(|byte| format!("outb 0xe9 {byte:#x}\n"))
                .collect();
            format!("{kernel}{modules}{entered}boot\n")
        }
    }
}

/// Words as arguments of a GRUB command. They are quoted one by one: GRUB hands each argument on,
/// with quotes around those that have blanks.
fn quoted(line: &str) -> String {
    line.split_whitespace().map(|word| format!(" '{word}'")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use cpio::newc::Reader;
    use umbra_telemetry::{GuestFaults, PROTOCOL};

    use super::*;

    fn config() -> BootConfig {
        BootConfig {
            protocol: PROTOCOL,
            memory_mib: 192,
            guest_faults: GuestFaults::Auto,
            without: Vec::new(),
            shadow_frames: None,
            audit: None,
            trace: false,
            screen: false,
            kernel: "6.1".into(),
            append: "console=ttyS0  quiet $x".into(),
            modules: Vec::new(),
        }
    }

    fn commands(system: System<'_>, initrd: Option<&[u8]>, modules: &[Module]) -> String {
        let config = config();
        menu(&BootFiles { system, config: &config, kernel: b"kernel", initrd, modules })
    }

    #[test]
    fn modules_are_named_as_the_hypervisor_looks_for_them() {
        assert_eq!(
            commands(System::Umbra, None, &[]),
            "multiboot2 /boot/umbra.elf\nmodule2 /boot/config config\nmodule2 /boot/kernel kernel\nboot\n"
        );
        let menu = commands(System::Umbra, Some(b"initrd"), &[]);
        assert!(menu.contains("module2 /boot/initrd initrd\n"));
    }

    #[test]
    fn a_multiboot_guests_modules_are_numbered() {
        let module = Module { file: Vec::new(), string: "m".into() };
        let menu = commands(System::Umbra, None, &[module.clone(), module]);
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
        assert_eq!(
            reason("grub-mkrescue: error: cannot open.\n\n"),
            "grub-mkrescue: error: cannot open."
        );
        assert_eq!(reason(" \n"), "it gave no reason");
    }

    #[test]
    fn the_peers_host_gets_the_guest_in_its_initramfs() {
        let menu = commands(System::Kvm { kernel: b"host", initrd: b"peer" }, Some(b"initrd"), &[]);
        assert!(menu.starts_with("linux /boot/host-kernel quiet"), "{menu}");
        assert!(menu.contains("\ninitrd /boot/host-initrd /boot/guest\n"), "{menu}");
        let config = config();
        let files = BootFiles {
            system: System::Bare,
            config: &config,
            kernel: b"kernel",
            initrd: Some(b"initrd"),
            modules: &[],
        };
        let archive = guest_archive(&files).unwrap();
        let mut rest = archive.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mut contents) = (String::from(reader.entry().name()), Vec::new());
            reader.read_to_end(&mut contents).unwrap();
            rest = reader.finish().unwrap();
            found.push((name, contents));
        }
        let expected = [
            ("config", config.to_bytes()),
            ("kernel", b"kernel".to_vec()),
            ("initrd", b"initrd".to_vec()),
        ];
        assert_eq!(found, expected.map(|(name, contents)| (format!("guest/{name}"), contents)));
    }

    #[test]
    fn a_bare_kernels_words_are_not_grubs() {
        assert_eq!(
            commands(System::Bare, Some(b"initrd"), &[]),
            "linux /boot/kernel 'console=ttyS0' 'quiet' '$x'\ninitrd /boot/initrd\nboot\n"
        );
    }

    #[test]
    fn a_bare_multiboot_kernel_gets_its_modules_and_is_announced() {
        let module = Module { file: Vec::new(), string: "env a=1".into() };
        let menu = commands(System::BareMultiboot, None, &[module]);
        let (loads, rest) = menu.split_once("outb 0xe9 0x0\n").unwrap();
        assert_eq!(
            loads,
            "multiboot /boot/kernel 'console=ttyS0' 'quiet' '$x'\nmodule /boot/module0 'env' 'a=1'\n"
        );
        assert!(rest.ends_with("outb 0xe9 0x0\nboot\n"), "{rest}");
    }

    #[test]
    #[cfg(feature = "hypervisor")]
    fn an_elf_is_embedded() {
        assert!(HYPERVISOR.starts_with(b"\x7fELF"));
    }

    /// A checkout that is copied with its build folder must not watch, and so embed, what lies in
    /// the other one.
    #[test]
    #[cfg(feature = "hypervisor")]
    fn the_build_watches_its_own_checkout() {
        if option_env!("UMBRA_HYPERVISOR").is_some() {
            return;
        }
        let script = Path::new(env!("OUT_DIR")).with_file_name("output");
        let said = fs::read_to_string(script).unwrap();
        let watched: Vec<&str> =
            said.lines().filter_map(|line| line.strip_prefix("cargo::rerun-if-changed=")).collect();
        assert!(watched.contains(&"../hypervisor/src/main.rs"), "{watched:?}");
        let elsewhere: Vec<_> =
            watched.iter().filter(|path| Path::new(path).is_absolute()).collect();
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
    }
}

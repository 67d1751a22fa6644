//! Initramfs of the guest and of the KVM peer's host: a compressed cpio archive (Linux:
//! Documentation/driver-api/early-userspace/buffer-format).

use std::io::Write;

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};
use flate2::Compression;
use flate2::write::GzEncoder;
use umbra_build::GuestArch;

use super::tiny;

/// busybox under the names by which the phases and a shell call it before `busybox --install`.
const APPLETS: &[&str] = &["sh", "ls", "grep", "sort", "wc", "true"];

/// Packs `/init` and busybox for guests of this kind. Equal contents give equal bytes.
///
/// # Errors
/// A program that is too large for the format.
pub fn build(init: &[u8], busybox: &[u8], arch: GuestArch) -> Result<Vec<u8>> {
    let mut archive = Archive::new(&["bin", "dev", "proc", "sys", "tmp"], init)?;
    archive.add(entry("bin/busybox", ModeFileType::Regular, 0o755), busybox)?;
    archive.add(entry("bin/tiny", ModeFileType::Regular, 0o755), &tiny::program(arch)?)?;
    for applet in APPLETS {
        archive.add(entry(&format!("bin/{applet}"), ModeFileType::Symlink, 0o777), b"busybox")?;
    }
    archive.finish()
}

/// Packs the KVM peer's `/init` and modules, by their names. The boot image adds the guest.
///
/// # Errors
/// A file that is too large for the format.
pub fn build_peer<'a>(
    init: &[u8],
    modules: impl IntoIterator<Item = (&'a str, Vec<u8>)>,
) -> Result<Vec<u8>> {
    let mut archive = Archive::new(&["dev", "guest", "modules"], init)?;
    for (name, module) in modules {
        archive.add(entry(&format!("modules/{name}.ko"), ModeFileType::Regular, 0o644), &module)?;
    }
    archive.finish()
}

/// Packs the trial's `/init`, a kernel's modules (file names, parameters, contents), and the list
/// of both that it reads.
///
/// # Errors
/// A file that is too large for the format.
pub fn build_trial(init: &[u8], modules: &[(String, &str, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut archive = Archive::new(&["dev", "modules", "sys"], init)?;
    let mut list = String::new();
    for (name, parameters, module) in modules {
        archive.add(entry(&format!("modules/{name}"), ModeFileType::Regular, 0o644), module)?;
        list += &format!("{name} {parameters}\n");
    }
    archive.add(entry("modules/list", ModeFileType::Regular, 0o644), list.as_bytes())?;
    archive.finish()
}

/// Packs one file more, for an initramfs that goes before it: Linux unpacks one archive after the
/// other.
///
/// # Errors
/// It is too large for the format.
pub fn build_file(name: &str, contents: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::empty();
    archive.add(entry(name, ModeFileType::Regular, 0o644), contents)?;
    archive.finish()
}

fn entry(name: &str, kind: ModeFileType, permissions: u32) -> Builder {
    Builder::new(name).mode(permissions).set_mode_file_type(kind)
}

struct Archive {
    output: GzEncoder<Vec<u8>>,
    inode: u32,
}

impl Archive {
    /// An archive with folders, what the kernel gives `/init` as standard input and output before
    /// devtmpfs is mounted, and `/init`.
    fn new(folders: &[&str], init: &[u8]) -> Result<Archive> {
        let mut archive = Archive::empty();
        for folder in folders {
            archive.add(entry(folder, ModeFileType::Directory, 0o755), &[])?;
        }
        archive.add(
            entry("dev/console", ModeFileType::Char, 0o600).rdev_major(5).rdev_minor(1),
            &[],
        )?;
        archive
            .add(entry("dev/null", ModeFileType::Char, 0o666).rdev_major(1).rdev_minor(3), &[])?;
        archive.add(entry("init", ModeFileType::Regular, 0o755), init)?;
        Ok(archive)
    }

    fn empty() -> Archive {
        Archive { output: GzEncoder::new(Vec::new(), Compression::default()), inode: 0 }
    }

    fn add(&mut self, entry: Builder, contents: &[u8]) -> Result<()> {
        let size = u32::try_from(contents.len()).context("a file is too large for an initramfs")?;
        // Each file has a number of its own, or Linux takes files for links to each other.
        self.inode += 1;
        let mut writer = entry.ino(self.inode).nlink(1).write(&mut self.output, size);
        writer.write_all(contents)?;
        writer.finish()?;
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        trailer(&mut self.output)?;
        Ok(self.output.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use cpio::newc::Reader;
    use flate2::read::GzDecoder;

    use super::*;

    fn unpack(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut rest = Vec::new();
        GzDecoder::new(archive).read_to_end(&mut rest).unwrap();
        let mut rest = rest.as_slice();
        let mut files = BTreeMap::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return files;
            }
            let (name, mode) = (String::from(reader.entry().name()), reader.entry().mode());
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).unwrap();
            rest = reader.finish().unwrap();
            assert!(files.insert(name, (mode, contents)).is_none());
        }
    }

    #[test]
    fn the_archive_holds_what_a_guest_needs() {
        let files = unpack(&build(b"the init", b"the busybox", GuestArch::Amd64).unwrap());
        assert_eq!(files["init"], (0o100755, b"the init".to_vec()));
        assert_eq!(files["bin/busybox"], (0o100755, b"the busybox".to_vec()));
        assert_eq!(files["bin/sh"], (0o120777, b"busybox".to_vec()));
        assert_eq!(files["dev/console"].0, 0o020600);
        assert_eq!(files["proc"].0, 0o040755);
    }

    #[test]
    fn the_peers_archive_holds_its_modules() {
        let files = unpack(&build_peer(b"the init", [("kvm", b"elf".to_vec())]).unwrap());
        assert_eq!(files["modules/kvm.ko"], (0o100644, b"elf".to_vec()));
        assert_eq!(files["init"].0, 0o100755);
    }

    #[test]
    fn equal_contents_give_equal_bytes() {
        for arch in [GuestArch::Amd64, GuestArch::I386] {
            assert_eq!(build(b"a", b"b", arch).unwrap(), build(b"a", b"b", arch).unwrap());
        }
    }
}

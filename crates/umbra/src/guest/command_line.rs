//! What a kernel finds as its command line.

use std::path::Path;

use umbra_telemetry::BootConfig;

use super::{Image, Module};
use crate::error::Error;

/// Linux finds no screen, as no firmware tells it of one.
const LINUX_DEFAULT: &str = "console=ttyS0";

/// The command line for `--append`, or for the lack of it. A multiboot kernel gets its file's name
/// first, as from QEMU.
///
/// # Errors
/// `--append` is longer than the kernel takes, or not one line.
pub fn command_line(kernel: &Path, image: &Image, append: Option<&str>) -> Result<String, Error> {
    check_append(append)?;
    match image {
        Image::Linux(linux) => {
            // To other programs that follow the protocol, Linux's options mean nothing, or
            // something else.
            let line = append.unwrap_or(if linux.is_linux() { LINUX_DEFAULT } else { "" });
            if line.len() as u64 > linux.command_line_limit {
                return Err(Error::Input(format!(
                    "--append has {} bytes, but this kernel takes at most {}",
                    line.len(),
                    linux.command_line_limit
                )));
            }
            Ok(String::from(line))
        }
        Image::Multiboot(_) => {
            let name = kernel.display();
            Ok(append.map_or_else(|| name.to_string(), |append| format!("{name} {append}")))
        }
    }
}

/// Checks what is wrong for any kernel.
///
/// # Errors
/// `--append` is not one line.
pub fn check_append(append: Option<&str>) -> Result<(), Error> {
    if append.is_some_and(|append| append.contains(char::is_control)) {
        return Err(Error::Input("--append must be one line without control characters".into()));
    }
    Ok(())
}

/// Checks that the hypervisor takes a configuration with all its command lines.
///
/// # Errors
/// They are too long together.
pub fn check_configuration(config: &BootConfig) -> Result<(), Error> {
    let (size, limit) = (config.to_bytes().len(), BootConfig::MAX_BYTES);
    if size > limit {
        return Err(Error::Input(format!(
            "--append and the --module texts take {size} bytes together, and at most {limit} fit; shorten them"
        )));
    }
    Ok(())
}

/// Checks that the kernel can take what is given beside it.
///
/// # Errors
/// An initrd for a multiboot kernel, or modules for Linux.
pub fn check_files(image: &Image, initrd: Option<&[u8]>, modules: &[Module]) -> Result<(), Error> {
    match image {
        Image::Linux(_) if !modules.is_empty() => Err(Error::Input(
            "--module is for multiboot kernels, and this is a Linux kernel; give its RAM disk with --initrd"
                .into(),
        )),
        Image::Multiboot(_) if initrd.is_some() => Err(Error::Input(
            "--initrd is for Linux, and this is a multiboot kernel; give it the file with --module".into(),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::bzimage;
    use crate::guest::image::tests::multiboot;

    #[test]
    fn linux_gets_what_is_appended() {
        let image = Image::classify(&bzimage::tests::synthetic()).unwrap();
        let line = |append: Option<&str>| command_line(Path::new("k"), &image, append);
        assert_eq!(line(None).unwrap(), "console=ttyS0");
        assert_eq!(line(Some("")).unwrap(), "");
        line(Some(&"x".repeat(2047))).unwrap();
        assert!(line(Some(&"x".repeat(2048))).unwrap_err().to_string().contains("2047"));
        assert!(line(Some("a\nb")).is_err());
    }

    #[test]
    fn a_multiboot_kernel_gets_its_name_first() {
        let image = Image::classify(&multiboot()).unwrap();
        let line =
            |append: Option<&str>| command_line(Path::new("a/k.elf"), &image, append).unwrap();
        assert_eq!(line(None), "a/k.elf");
        assert_eq!(line(Some("one two")), "a/k.elf one two");
    }

    #[test]
    fn each_kind_has_its_own_files() {
        let module = Module { file: Vec::new(), string: "m".into() };
        let linux = Image::classify(&bzimage::tests::synthetic()).unwrap();
        let small = Image::classify(&multiboot()).unwrap();
        check_files(&linux, Some(b"initrd"), &[]).unwrap();
        check_files(&small, None, std::slice::from_ref(&module)).unwrap();
        assert!(check_files(&linux, None, &[module]).unwrap_err().to_string().contains("--initrd"));
        assert!(
            check_files(&small, Some(b"initrd"), &[]).unwrap_err().to_string().contains("--module")
        );
    }
}

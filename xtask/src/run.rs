//! `cargo xtask run`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use umbra::cli::{Cli, TO_BE_MADE};
use umbra_build::GuestArch;

use crate::setup::{GuestPackage, Setup, need_program};

/// What the guest's kernel is told unless the user says something else.
///
/// Times would differ between any two runs; a panic resets, which ends the run as a failure.
pub const APPEND: &str = "console=ttyS0 printk.time=0 nokaslr panic=-1";

/// Set everything up, and boot Debian's kernel under Umbra.
///
/// Does what `cargo xtask build` does, then calls `umbra run` with Debian's kernel and our
/// initramfs. That exercises memory (fork, exec, mmap, copy-on-write, a shell pipeline), checks
/// itself, shows the guest's own counters and powers off. The exit status is that of `umbra run`.
#[derive(clap::Args)]
#[command(after_long_help = "Examples:
  cargo xtask run                                  the whole exercise
  cargo xtask run --guest-faults trap              the same without the bypass, for comparison
  cargo xtask run --machine skylake --stats s.json
  cargo xtask run --append 'console=ttyS0 umbra.shell'    a shell to type into
  cargo xtask run --kernel linux-image-686-pae     another kernel of Debian's: 32-bit with PAE (-686: without)

A kernel's package is fetched and unpacked, not installed. A 32-bit kernel gets a 32-bit initramfs.

The initramfs knows: umbra.shell, umbra.quick (a tenth of the work), umbra.phases=demand,cow_child,... (the work
ends behind the last of these phases).")]
pub struct Arguments {
    /// Options of `umbra run`; --kernel, --initrd and --append replace what is given otherwise
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTIONS OF umbra run"
    )]
    options: Vec<OsString>,
}

/// The options whose files are made if the user gives none.
pub const MADE: [&str; 2] = ["--kernel", "--initrd"];

/// Sets up what the user does not bring and becomes `umbra run`.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let options = match expanded("run", &arguments.options) {
        Ok(options) => options,
        Err(status) => return Ok(status),
    };
    become_umbra("run", &options, &MADE, |_, umbra| {
        if !is_given(&options, "--append") {
            umbra.arg("--append").arg(APPEND);
        }
        Ok(())
    })
}

/// The options with those of a file that `--config` names: what it gives need not be made.
pub fn expanded(command: &str, options: &[OsString]) -> Result<Vec<OsString>, ExitCode> {
    let line = ["umbra", command].map(OsString::from).into_iter().chain(options.iter().cloned());
    Ok(Cli::expand(line.collect())?.split_off(2))
}

/// Becomes `umbra COMMAND` with these options, with what `more` adds first, and with kernel and
/// initramfs if the user brings none. What is wrong with the options is said first: what follows
/// takes minutes. `made` are the options whose files are made.
pub fn become_umbra(
    command: &str,
    options: &[OsString],
    made: &[&str],
    more: impl FnOnce(&mut Setup, &mut Command) -> Result<()>,
) -> Result<ExitCode> {
    let (options, package) = &without_package(options);
    if let Err(status) = Cli::check(prospect(command, options, made)) {
        return Ok(status);
    }
    if values(options, "--machine").any(|machine| machine == "qemu-svm") {
        need_program("qemu-system-x86_64", "qemu-system-x86")?;
    }
    let mut setup = Setup::new()?;
    // Before the build, which takes minutes: there may be no such package.
    let packaged = package.as_ref().map(|package| setup.packaged_kernel(package)).transpose()?;
    let program = setup.umbra()?;
    let mut umbra = Command::new(&program);
    umbra.arg(command);
    more(&mut setup, &mut umbra)?;
    let arch = package.as_ref().map_or(GuestArch::Amd64, GuestPackage::arch);
    if !is_given(options, "--kernel") {
        umbra.arg("--kernel").arg(match packaged {
            Some(kernel) => kernel,
            None => setup.kernel()?,
        });
    }
    if !is_given(options, "--initrd") {
        umbra.arg("--initrd").arg(setup.initrd(arch)?);
    }
    umbra.args(options);
    // Returns only if it fails.
    Err(umbra.exec()).with_context(|| format!("starting {}", program.display()))
}

/// The options without a `--kernel` that names a Debian package, and that package.
fn without_package(options: &[OsString]) -> (Vec<OsString>, Option<GuestPackage>) {
    let mut rest = Vec::new();
    let mut package = None;
    let mut given = options.iter();
    while let Some(option) = given.next() {
        let text = option.to_str().unwrap_or_default();
        let joined = text.strip_prefix("--kernel=");
        let apart = if text == "--kernel" {
            given.as_slice().first().and_then(|next| next.to_str())
        } else {
            None
        };
        match joined.or(apart).and_then(GuestPackage::named) {
            Some(named) => {
                package = Some(named);
                if apart.is_some() {
                    given.next();
                }
            }
            None => rest.push(option.clone()),
        }
    }
    (rest, package)
}

/// The command line that is going to be, with stand-ins for the files of `made` that the user does
/// not give.
fn prospect(command: &str, options: &[OsString], made: &[&str]) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["umbra".into(), command.into()];
    for option in made.iter().filter(|option| !is_given(options, option)) {
        line.extend([option, TO_BE_MADE].map(OsString::from));
    }
    line.extend_from_slice(options);
    line
}

/// Whether the user gave `option`, as `--option VALUE` or `--option=VALUE`.
pub fn is_given(options: &[OsString], option: &str) -> bool {
    options.iter().any(|given| {
        let rest = given.as_encoded_bytes().strip_prefix(option.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'=')
    })
}

/// The values of an option, as `--option VALUE` or `--option=VALUE`, as far as they are text.
pub fn values<'a>(options: &'a [OsString], option: &'a str) -> impl Iterator<Item = &'a str> {
    let behind = options.iter().skip(1).map(Some).chain([None]);
    options.iter().zip(behind).filter_map(move |(given, next)| {
        let rest = given.to_str()?.strip_prefix(option)?;
        if rest.is_empty() { next?.to_str() } else { rest.strip_prefix('=') }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::bench::made_for;

    #[test]
    fn wrong_options_are_refused_before_anything_is_built() {
        let check = |command: &str, options: &[&str]| {
            let options: Vec<OsString> = options.iter().map(OsString::from).collect();
            Cli::check(prospect(command, &options, made_for(&options))).is_ok()
        };
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("none/x").display().to_string();
        assert!(check("bench", &["--quick", "--against", "kvm", "--phase", "pipe"]));
        assert!(check("bench", &["--repeat", "3", "--ablation", folder.path().to_str().unwrap()]));
        for (command, wrong) in [
            ("run", &["--guest-faults", "no"][..]),
            ("run", &["--memroy", "64"]),
            ("run", &["--memory", "1T"]),
            ("run", &["--fixed-time", "--machine", "kvm"]),
            ("run", &["--hypervisor", "none", "--trace", "t"]),
            ("run", &["--append", "a\nb"]),
            ("run", &["--kernel", &absent]),
            ("run", &["--stats", &absent]),
            ("bench", &["--phase", "nap"]),
            ("bench", &["--phase=pipe,nap"]),
            ("bench", &["--repeat", "0"]),
            ("bench", &["--without", "cr3", "--hypervisor", "none"]),
            ("bench", &["--stats", &absent]),
            ("bench", &["--ablation", &absent]),
        ] {
            assert!(!check(command, wrong), "{command} {wrong:?}");
        }
        assert!(check("run", &["--memory", "64"]));
        let config = folder.path().join("run.toml");
        fs::write(&config, "kernel = '/nonexistent'\n").unwrap();
        let options = ["--config".into(), config.into_os_string()];
        let all = expanded("run", &options).unwrap();
        assert!(is_given(&all, "--kernel") && !is_given(&all, "--initrd"), "{all:?}");
        assert!(Cli::check(prospect("run", &all, &MADE)).is_err());
        assert!(expanded("run", &["--config", "/nonexistent"].map(OsString::from)).is_err());
    }

    #[test]
    fn a_kernel_may_be_a_package() {
        let split = |options: &[&str]| {
            let options: Vec<OsString> = options.iter().map(OsString::from).collect();
            let (rest, package) = without_package(&options);
            (
                rest.iter().map(|option| option.to_str().unwrap().into()).collect::<Vec<String>>(),
                package,
            )
        };
        for given in [
            &["--kernel", "linux-image-686", "--audit"][..],
            &["--kernel=linux-image-686", "--audit"],
        ] {
            assert_eq!(
                split(given),
                (vec!["--audit".into()], GuestPackage::named("linux-image-686"))
            );
        }
        let file = ["--kernel", "/nowhere/linux-image-686", "--kernel"];
        assert_eq!(split(&file), (file.map(String::from).to_vec(), None));
    }

    #[test]
    fn both_spellings_of_an_option_are_seen() {
        let options = ["--append=quiet", "--kernel", "x", "--initrd-extra"].map(OsString::from);
        assert!(is_given(&options, "--append"));
        assert!(is_given(&options, "--kernel"));
        assert!(!is_given(&options, "--initrd"));
    }
}

//! What the kernel's command line asks for.
//!
//! | option | meaning |
//! |---|---|
//! | `umbra.shell` | no exercise: an interactive shell on the serial console; its end powers the machine off |
//! | `umbra.quick` | a tenth of every count, for tests |
//! | `umbra.bare` | no hypervisor counts: this program takes the time of its phases and reports them to the tool |
//! | `umbra.high` | before the phases, fresh pages are touched, some of which must lie above 4 GiB |
//! | `umbra.alive=n` | n more processes are alive, each with a small working set, while the phases run |
//! | `umbra.phases=a,b` | the workload ends behind the last of these phases (all before it run: see [phases]) |

use anyhow::{Context, Result, bail};

use crate::phases::{self, Scale};

/// The parsed options.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub mode: Mode,
    /// There is no hypervisor.
    pub bare: bool,
    /// There is memory above 4 GiB.
    pub high: bool,
}

/// What this boot is for.
#[derive(Debug, PartialEq, Eq)]
pub enum Mode {
    /// An interactive shell.
    Shell,
    /// The phases: all, or those up to the last one `wanted`.
    Exercise { scale: Scale, wanted: Option<Vec<String>>, alive: u32 },
}

impl Options {
    /// Reads the options among the words of a kernel command line.
    ///
    /// # Errors
    /// A word that starts with `umbra.` and is no option, or names no phase.
    pub fn parse(command_line: &str) -> Result<Options> {
        let (mut shell, mut bare, mut high) = (false, false, false);
        let mut scale = Scale::Full;
        let mut wanted = None;
        let mut alive = 0;
        for word in command_line.split_ascii_whitespace() {
            let Some(option) = word.strip_prefix("umbra.") else { continue };
            match option.split_once('=') {
                None if option == "shell" => shell = true,
                None if option == "bare" => bare = true,
                None if option == "high" => high = true,
                None if option == "quick" => scale = Scale::Quick,
                Some(("phases", list)) => wanted = Some(parse_phases(list)?),
                Some(("alive", count)) => {
                    alive = count
                        .parse()
                        .with_context(|| format!("{count} is no number of processes"))?;
                }
                _ => {
                    bail!(
                        "option {word} is unknown: there are umbra.shell, umbra.bare, umbra.high, umbra.quick, umbra.alive=N and \
                         umbra.phases=A,B"
                    )
                }
            }
        }
        let mode = if shell { Mode::Shell } else { Mode::Exercise { scale, wanted, alive } };
        Ok(Options { mode, bare, high })
    }
}

fn parse_phases(list: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in list.split(',') {
        if !phases::names().any(|known| known == name) {
            bail!(
                "phase {name} is unknown: there are {}",
                phases::names().collect::<Vec<_>>().join(", ")
            );
        }
        names.push(String::from(name));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(command_line: &str) -> Mode {
        Options::parse(command_line).unwrap().mode
    }

    #[test]
    fn everything_at_full_count_is_the_default() {
        assert_eq!(
            mode("console=ttyS0 quiet\n"),
            Mode::Exercise { scale: Scale::Full, wanted: None, alive: 0 }
        );
    }

    #[test]
    fn options_are_found_among_the_kernels() {
        let wanted = Some(vec![String::from("demand"), String::from("pipe")]);
        assert_eq!(
            mode("quiet umbra.phases=demand,pipe umbra.quick umbra.alive=20"),
            Mode::Exercise { scale: Scale::Quick, wanted, alive: 20 }
        );
        assert_eq!(mode("umbra.shell console=ttyS0"), Mode::Shell);
    }

    #[test]
    fn a_hypervisor_is_the_default() {
        assert!(!Options::parse("quiet").unwrap().bare);
        assert!(Options::parse("quiet umbra.bare").unwrap().bare);
        assert!(
            Options::parse("umbra.high").unwrap().high && !Options::parse("quiet").unwrap().high
        );
    }

    #[test]
    fn what_is_unknown_is_named() {
        let message = |command_line| Options::parse(command_line).unwrap_err().to_string();
        assert!(message("umbra.fast").contains("umbra.fast"));
        assert!(message("umbra.quick=2").contains("umbra.quick=2"));
        assert!(message("umbra.phases=demand,nap").contains("nap"));
        assert!(message("umbra.alive=many").contains("many"));
        assert!(message("umbra.phases=boot").contains("boot"));
    }
}

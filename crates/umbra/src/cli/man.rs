//! `umbra man`: the manual's pages.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::Cli;
use crate::error::Error;
use crate::report;

/// What is written, for the user.
const WHAT: &str = "a page of the manual";

/// Write the pages of the manual into a folder.
///
/// They are umbra.1 and one for each command, such as umbra-run.1. In a folder `man1` within
/// `~/.local/share/man`, `man umbra-run` finds them.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The folder; it is made if it is not there
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Writes them.
///
/// # Errors
/// They cannot be written.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    report::make_folder(&arguments.folder)?;
    let pages =
        pages().map_err(|error| Error::Machine(format!("cannot make the manual: {error}")))?;
    for (name, page) in &pages {
        report::write_output(WHAT, &arguments.folder.join(name), Ok(page.as_slice()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A page for the program, and one for each command.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut program = Cli::command();
    program.build();
    let commands: Vec<Command> =
        program.get_subcommands().filter(|one| one.get_name() != "help").cloned().collect();
    let page = |name: String, command: Command| {
        let mut page = Vec::new();
        Man::new(command).render(&mut page)?;
        Ok((format!("{name}.1"), page))
    };
    let first = page("umbra".into(), program);
    let others =
        commands.into_iter().map(|command| page(format!("umbra-{}", command.get_name()), command));
    std::iter::once(first).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_all_its_options() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for command in Cli::command().get_subcommands() {
            let name = format!("umbra-{}.1", command.get_name());
            let place =
                names.iter().position(|other| *other == name).unwrap_or_else(|| panic!("{name}"));
            let page = String::from_utf8(pages[place].1.clone()).unwrap();
            assert!(
                page.starts_with(".ie")
                    && page.contains(&format!(".TH umbra-{}", command.get_name())),
                "{page}"
            );
            for option in command.get_arguments().filter_map(|option| option.get_long()) {
                let option = option.replace('-', "\\-");
                assert!(page.contains(&option), "{name}: --{option}");
            }
        }
        assert_eq!(names[0], "umbra.1");
    }
}

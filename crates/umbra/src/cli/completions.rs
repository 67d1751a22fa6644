//! `umbra completions`: what a shell asks for at the Tab key.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use crate::console::output_bytes;
use crate::error::Error;

/// Print a completion script for a shell.
///
/// For bash: `umbra completions bash > ~/.local/share/bash-completion/completions/umbra`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints it.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    output_bytes(&script(arguments.shell))?;
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "umbra", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn every_shell_has_one_that_names_commands_and_options() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            let script = String::from_utf8(script(shell)).unwrap();
            for word in ["compare", "guest-faults", "completions"] {
                assert!(script.contains(word), "{shell} {word}");
            }
        }
    }

    /// Bash itself says what it would complete.
    #[test]
    fn bash_completes_by_it() {
        let script = String::from_utf8(script(Shell::Bash)).unwrap();
        let ask =
            "COMP_WORDS=(umbra ru); COMP_CWORD=1; _umbra umbra ru umbra; echo \"${COMPREPLY[@]}\"";
        let output = Command::new("bash")
            .args(["--norc", "-c", &format!("{script}\n{ask}")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "run", "{output:?}");
    }
}

//! Differences that are known and have a reason.

use anyhow::{Result, ensure};
use umbra_forms::Case;
use umbra_forms::generate::Entry;

use super::measure::How;

/// The list: machine, kind of memory and instruction, each or `*`; then the reason.
const LIST: &str = include_str!("exceptions.txt");

/// One line of the list.
struct Exception {
    machine: &'static str,
    kind: &'static str,
    instruction: &'static str,
}

/// The list.
pub struct Exceptions(Vec<Exception>);

impl Exceptions {
    /// Reads it.
    ///
    /// # Errors
    /// A line is not understood, or gives no reason.
    pub fn read() -> Result<Exceptions> {
        parse(LIST).map(Exceptions)
    }

    /// Whether a case is on the list.
    pub fn has(&self, how: &How<'_>, entry: &Entry, case: Case) -> bool {
        let machine = how.name();
        let mnemonic = format!("{:?}", entry.mnemonic()).to_lowercase();
        self.0.iter().any(|exception| {
            (exception.machine == "*" || machine.starts_with(exception.machine))
                && (exception.kind == "*" || case.kind().name == exception.kind)
                && exception.instruction == mnemonic
        })
    }
}

fn parse(list: &'static str) -> Result<Vec<Exception>> {
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<_> = line.splitn(4, ' ').collect();
            ensure!(words.len() == 4, "an exception is machine, kind, instruction and reason: {line:?}");
            Ok(Exception { machine: words[0], kind: words[1], instruction: words[2] })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sound() {
        Exceptions::read().unwrap();
        assert_eq!(parse("# words\n\npenryn hole xsave Why.\n").unwrap().len(), 1);
        assert!(parse("penryn hole xsave\n").is_err());
    }
}

//! Differences that are known and have a reason.

use anyhow::{Result, bail, ensure};
use umbra_forms::Case;
use umbra_forms::generate::{self, Entry};

use super::measure::How;

/// The list: machine, kind of memory, bits of the code, `--with`, each or `*`; how the instruction
/// begins; the reason.
const LIST: &str = include_str!("exceptions.txt");

/// One line of the list.
struct Exception {
    machine: &'static str,
    kind: &'static str,
    bits: &'static str,
    with: &'static str,
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
        let (bits, text) = (generate::bits(entry.form.mode).to_string(), entry.text());
        self.0.iter().any(|exception| {
            (exception.machine == "*" || machine.starts_with(exception.machine))
                && (exception.kind == "*" || case.kind().name == exception.kind)
                && (exception.bits == "*" || bits == exception.bits)
                && (exception.with == "*" || how.with_name() == exception.with)
                && text.starts_with(exception.instruction)
        })
    }
}

fn parse(list: &'static str) -> Result<Vec<Exception>> {
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<_> = line.split('|').map(str::trim).collect();
            let [machine, kind, bits, with, instruction, reason] = words[..] else {
                bail!(
                    "an exception is machine, kind, bits, with, instruction and reason: {line:?}"
                );
            };
            ensure!(
                !instruction.is_empty() && !reason.is_empty(),
                "an exception has a reason: {line:?}"
            );
            Ok(Exception { machine, kind, bits, with, instruction })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sound() {
        Exceptions::read().unwrap();
        assert_eq!(parse("# words\n\npenryn | hole | 64 | * | xsave | Why.\n").unwrap().len(), 1);
        assert!(parse("penryn | hole | 64 | * | xsave\n").is_err());
        assert!(parse("penryn | hole | 64 | * | xsave |\n").is_err());
    }
}

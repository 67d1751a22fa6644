//! Text that this program did not write: what files, machines and users say.
//!
//! It may hold anything, also what makes a terminal do something, and may be of any length.
//! [`Untrusted`] keeps it as it is, for files, and shows it without harm; [`escape`] is what all
//! messages go through.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

/// Characters of one text that are shown.
const SHOWN: usize = 200;

/// Characters of a line that are shown, where sentences are lines.
const LINE: usize = 1000;

/// A text of a file or a machine. It is written to files as it is; [`Display`](fmt::Display) shows
/// it escaped and cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Untrusted(String);

impl Untrusted {
    /// The text as it is: to compare it, not to show it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Untrusted {
    fn from(text: String) -> Untrusted {
        Untrusted(text)
    }
}

impl From<&str> for Untrusted {
    fn from(text: &str) -> Untrusted {
        Untrusted(text.into())
    }
}

impl PartialEq<&str> for Untrusted {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&shown(&self.0))
    }
}

/// A text of somebody else's, escaped and cut.
pub fn shown(text: &str) -> String {
    cut(text, SHOWN)
}

/// The lines of a text of somebody else's, each escaped and cut.
pub fn lines(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().map(|line| cut(line, LINE))
}

fn cut(text: &str, most: usize) -> String {
    let mut characters = text.chars();
    let mut shown = String::new();
    for character in characters.by_ref().take(most) {
        push(&mut shown, character);
    }
    let rest = characters.count();
    if rest > 0 {
        // Writing into a String cannot fail.
        let _ = write!(shown, "... ({rest} characters more)");
    }
    shown
}

/// A text of several lines in which nothing but the line ends does anything to a terminal.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => escaped.push('\n'),
            other => push(&mut escaped, other),
        }
    }
    escaped
}

/// As itself if it is printable, else by its number: control characters, and those that change the
/// order or the look of others.
fn push(text: &mut String, character: char) {
    match character {
        '"' | '\'' | '\\' => text.push(character),
        other => text.extend(other.escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_by_its_number() {
        for (text, expected) in [
            ("penryn \"x\" C:\\ 'é' – 日本", "penryn \"x\" C:\\ 'é' – 日本"),
            ("\x1b[2Jgone", "\\u{1b}[2Jgone"),
            ("a\nb\tc\r\0\x7f\u{9b}", "a\\nb\\tc\\r\\0\\u{7f}\\u{9b}"),
            // Right-to-left override, a line separator, a character of no width.
            ("\u{202e}nyrnep\u{2028}\u{200b}", "\\u{202e}nyrnep\\u{2028}\\u{200b}"),
        ] {
            assert_eq!(shown(text), expected);
            assert_eq!(Untrusted::from(text).to_string(), expected);
            assert_eq!(escape(text), expected.replace("\\n", "\n"));
        }
    }

    #[test]
    fn what_is_too_long_is_cut_and_written_whole() {
        let long = Untrusted::from("é".repeat(5000));
        assert_eq!(long.to_string(), format!("{}... (4800 characters more)", "é".repeat(SHOWN)));
        assert_eq!(Untrusted::from("x".repeat(SHOWN)).to_string().len(), SHOWN);
        let json = serde_json::to_string(&long).unwrap();
        assert_eq!(serde_json::from_str::<Untrusted>(&json).unwrap(), long);
        assert!(json.len() > 10_000);
    }

    #[test]
    fn lines_stay_lines() {
        let text = format!("one\n\x1btwo\n{}", "x".repeat(2000));
        let lines: Vec<_> = lines(&text).collect();
        assert_eq!(lines[..2], ["one", "\\u{1b}two"]);
        assert!(lines[2].ends_with("x... (1000 characters more)") && lines.len() == 3);
    }

    #[test]
    fn it_is_padded_as_other_text_is() {
        assert_eq!(format!("{:<6}|", Untrusted::from("ab")), "ab    |");
    }
}

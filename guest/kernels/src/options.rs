//! The command line: words, some of them `name=value`.

/// A kernel's command line.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a>(&'a str);

/// An option whose value is not a number, or zero where there must be something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadValue<'a> {
    /// The option.
    pub name: &'a str,
    /// What stands behind its `=`.
    pub value: &'a str,
}

impl<'a> Options<'a> {
    /// Wraps a command line. Its first word may be the kernel's own name: it is no option that
    /// anyone asks for.
    pub const fn new(line: &'a str) -> Options<'a> {
        Options(line)
    }

    /// Whether the word is there.
    pub fn has(&self, word: &str) -> bool {
        self.0.split_ascii_whitespace().any(|given| given == word)
    }

    /// What stands behind `name=`; the last one counts.
    pub fn value(&self, name: &str) -> Option<&'a str> {
        let value = |word: &'a str| word.strip_prefix(name)?.strip_prefix('=');
        self.0.split_ascii_whitespace().filter_map(value).next_back()
    }

    /// The number behind `name=`: decimal, or hexadecimal after `0x`.
    ///
    /// # Errors
    /// What stands there is no number.
    pub fn number(&self, name: &'static str) -> Result<Option<u64>, BadValue<'a>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let parsed = match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => value.parse(),
        };
        parsed.map(Some).map_err(|_| BadValue { name, value })
    }

    /// Whether `name=a,b,c` lists `item`; without the option everything is listed.
    pub fn lists(&self, name: &str, item: &str) -> bool {
        self.value(name).is_none_or(|list| list.split(',').any(|listed| listed == item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: Options<'static> =
        Options::new("x.elf quick seed=0x1f stride=3 stride=7 only=a,b bad=x empty=");

    #[test]
    fn words_and_numbers() {
        assert!(LINE.has("quick") && !LINE.has("quic") && !LINE.has("stride"));
        assert_eq!(LINE.number("seed"), Ok(Some(31)));
        assert_eq!(LINE.number("stride"), Ok(Some(7)));
        assert_eq!(LINE.number("see"), Ok(None));
        assert_eq!(LINE.number("bad"), Err(BadValue { name: "bad", value: "x" }));
        assert!(LINE.number("empty").is_err());
    }

    #[test]
    fn lists() {
        assert!(LINE.lists("only", "a") && LINE.lists("only", "b") && !LINE.lists("only", "c"));
        assert!(LINE.lists("other", "c"));
    }
}

//! Names for addresses of the guest's kernel: its System.map, or what its /proc/kallsyms says.

use std::fmt;
use std::io::Read;
use std::path::Path;

use crate::error::Error;
use crate::report::{name_of, open_input};
use crate::untrusted::Untrusted;

/// Larger files are no lists of symbols.
const MAX_BYTES: u64 = 64 << 20;

/// The symbols of a kernel, ascending by address.
pub struct Symbols(Vec<(u64, Untrusted)>);

/// An address by the symbol before it.
#[derive(Debug, PartialEq)]
pub struct Place<'a> {
    name: &'a Untrusted,
    offset: u64,
}

impl Symbols {
    /// Reads a list of symbols; `-` is standard input. Lines of another form are passed over, so
    /// that the output of a guest's console with `cat /proc/kallsyms` will do.
    ///
    /// # Errors
    /// It cannot be read, has no symbols, or hides their addresses.
    pub fn read(path: &Path) -> Result<Symbols, Error> {
        let name = name_of(path);
        let mut bytes = Vec::new();
        let read =
            open_input(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        read.map_err(|error| {
            Error::Input(format!("cannot read the symbols {name}: {error}; give a readable file"))
        })?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::Input(format!(
                "{name} is too large for a list of symbols; give the guest's System.map"
            )));
        }
        Symbols::parse(&String::from_utf8_lossy(&bytes))
            .map_err(|why| Error::Input(format!("{name} {why}")))
    }

    /// Why the text is no list of symbols, as the end of a sentence that starts with its name.
    pub(super) fn parse(text: &str) -> Result<Symbols, &'static str> {
        let mut symbols: Vec<(u64, Untrusted)> = text.lines().filter_map(symbol).collect();
        if symbols.is_empty() {
            return Err(
                "has no lines such as `ffffffff81000000 T _text`; give the guest's System.map, or what \
                        `cat /proc/kallsyms` says in it as root",
            );
        }
        if symbols.iter().all(|&(address, _)| address == 0) {
            return Err(
                "has no addresses: the guest's kernel hides them from who is not root (kptr_restrict); \
                        read /proc/kallsyms as root",
            );
        }
        // Debian ships a System.map of one line that says where the real one is.
        if symbols.len() == 1 {
            return Err(
                "has one symbol only: it stands for the real System.map, which Debian has in the package of \
                        the kernel's debug symbols; give that, or what `cat /proc/kallsyms` says in the guest",
            );
        }
        // Offsets into per-CPU areas stand between the symbols of a 64-bit kernel, and are no
        // addresses.
        let upper = symbols.iter().any(|&(address, _)| is_upper(address));
        symbols.retain(|&(address, _)| address > 0 && (!upper || is_upper(address)));
        symbols.sort_by_key(|&(address, _)| address);
        // Of several names of a place the first one, which is the one that the kernel would show.
        symbols.dedup_by_key(|&mut (address, _)| address);
        Ok(Symbols(symbols))
    }

    /// The last symbol at or before an address; behind the last one, nothing has a name.
    pub fn place(&self, address: u64) -> Option<Place<'_>> {
        let after = self.0.partition_point(|&(start, _)| start <= address);
        let (start, name) = self.0.get(after.checked_sub(1)?)?;
        (after < self.0.len() || *start == address).then(|| Place { name, offset: address - start })
    }
}

/// In the half of the address space where a 64-bit kernel lies.
fn is_upper(address: u64) -> bool {
    address >> 63 == 1
}

/// A line of System.map or /proc/kallsyms: address, type, name, and perhaps a module.
fn symbol(line: &str) -> Option<(u64, Untrusted)> {
    let mut words = line.split_whitespace();
    let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
    let module = words.next();
    let is_module = |word: &str| word.starts_with('[') && word.ends_with(']');
    let fits = (8..=16).contains(&address.len())
        && kind.len() == 1
        && kind.bytes().all(|kind| kind.is_ascii_alphabetic())
        && module.is_none_or(is_module)
        && words.next().is_none();
    if !fits {
        return None;
    }
    let name = module.map_or_else(|| name.into(), |module| format!("{name} {module}"));
    Some((u64::from_str_radix(address, 16).ok()?, name.into()))
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            0 => write!(f, "{}", self.name),
            offset => write!(f, "{}+{offset:#x}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "0000000000000000 D __per_cpu_start\n\
                       0000000000030000 D __per_cpu_end\n\
                       ffffffff81000000 T _text\n\
                       ffffffff81000000 T startup_64\n\
                       ffffffff81000080 t verify_cpu\n\
                       ffffffffc0000000 t nop\t[module]\n\
                       ffffffff82000000 B _end\n";

    fn shown(symbols: &Symbols, address: u64) -> Option<String> {
        symbols.place(address).map(|place| place.to_string())
    }

    #[test]
    fn an_address_has_the_name_before_it() {
        let symbols = Symbols::parse(MAP).unwrap();
        for (address, name) in [
            (0xffff_ffff_8100_0000, Some("_text")),
            (0xffff_ffff_8100_007f, Some("_text+0x7f")),
            (0xffff_ffff_8100_0080, Some("verify_cpu")),
            (0xffff_ffff_8100_1080, Some("verify_cpu+0x1000")),
            (0xffff_ffff_c000_0000, Some("nop [module]")),
            // Behind the last one, and where programs lie.
            (0xffff_ffff_c000_0001, None),
            (0x40_1000, None),
            (0, None),
        ] {
            assert_eq!(shown(&symbols, address).as_deref(), name, "{address:#x}");
        }
        let small = Symbols::parse("c1000000 T _text\nc1000100 T _end\n").unwrap();
        assert_eq!(shown(&small, 0xc100_0010).as_deref(), Some("_text+0x10"));
    }

    #[test]
    fn a_console_with_other_lines_will_do() {
        let text = format!(
            "[    1.0] Linux\r\n~ # cat /proc/kallsyms\r\n{}~ # exit\r\n",
            MAP.replace('\n', "\r\n")
        );
        assert_eq!(
            shown(&Symbols::parse(&text).unwrap(), 0xffff_ffff_8100_0081).unwrap(),
            "verify_cpu+0x1"
        );
    }

    #[test]
    fn what_has_no_symbols_is_refused() {
        for (text, why) in [
            ("", "has no lines such as"),
            ("hello world 1\n\u{1b}[2J", "has no lines such as"),
            ("0000000000000000 T _text\n0000000000000000 T _end\n", "kptr_restrict"),
            ("ffffffffffffffff B The-real-System.map\n", "has one symbol only"),
        ] {
            let sentence = Symbols::parse(text).err().unwrap();
            assert!(sentence.contains(why), "{sentence}");
        }
        // Debian's own line has blanks, so it is no symbol at all.
        assert!(
            Symbols::parse(
                "ffffffffffffffff B The real System.map is in the linux-image package\n"
            )
            .is_err()
        );
    }
}

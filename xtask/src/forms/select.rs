//! Which cases.

use umbra::number::whole;
use umbra_forms::generate::{self, Entry};
use umbra_forms::{Case, Kind, Mode, Ring};

/// Options that choose cases.
#[derive(Clone, Debug, clap::Args)]
pub struct Selection {
    /// Only with operands on these kinds of memory
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kinds())]
    kind: Vec<String>,

    /// Only in 16-, 32- or 64-bit code
    #[arg(long, value_name = "BITS", value_delimiter = ',', value_parser = bits)]
    bits: Vec<u32>,

    /// Only instructions whose text contains this
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,

    /// Only every Nth case
    #[arg(long, value_name = "N", default_value = "1", value_parser = whole::<usize>(1..=u32::MAX.into()), allow_negative_numbers = true)]
    stride: usize,

    /// Where the sample of every Nth case starts
    #[arg(long, value_name = "N", default_value = "0", value_parser = whole::<usize>(0..=u32::MAX.into()), allow_negative_numbers = true)]
    seed: usize,

    /// Only these cases, by their numbers
    #[arg(long, value_name = "CASE", value_delimiter = ',', value_parser = number)]
    case: Vec<u32>,
}

fn kinds() -> clap::builder::PossibleValuesParser {
    Kind::ALL.map(|kind| kind.name).into()
}

fn bits(text: &str) -> Result<u32, &'static str> {
    text.parse().ok().filter(|bits| [16, 32, 64].contains(bits)).ok_or("give 16, 32 or 64")
}

fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "give the number of a case, such as 300 or 0x12c".into())
}

impl Selection {
    /// All cases.
    pub fn all() -> Selection {
        Selection {
            kind: Vec::new(),
            bits: Vec::new(),
            instruction: None,
            stride: 1,
            seed: 0,
            case: Vec::new(),
        }
    }

    /// The chosen cases: kind after kind, as the kernel switches control bits between some of them.
    pub fn cases(&self, table: &[Entry]) -> Vec<Case> {
        let mut cases = Vec::new();
        for kind in Kind::ALL.iter().filter(|kind| listed(&self.kind, &kind.name.to_owned())) {
            for (index, entry) in table.iter().enumerate().filter(|(_, entry)| self.takes(entry)) {
                let fit = [Ring::Kernel, Ring::User]
                    .into_iter()
                    .filter(|&ring| kind.fits(&entry.form, ring));
                cases.extend(fit.map(|ring| Case::new(index, kind, ring)));
            }
        }
        cases.retain(|case| listed(&self.case, &case.0));
        cases.into_iter().skip(self.seed % self.stride).step_by(self.stride).collect()
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed as u64
    }

    fn takes(&self, entry: &Entry) -> bool {
        listed(&self.bits, &generate::bits(entry.form.mode))
            && self.instruction.as_ref().is_none_or(|text| entry.text().contains(text))
    }
}

/// Whether a list has it; an empty one has everything.
fn listed<T: PartialEq>(list: &[T], item: &T) -> bool {
    list.is_empty() || list.contains(item)
}

/// A case in words.
pub fn describe(table: &[Entry], case: Case) -> String {
    let entry = &table[case.form()];
    let ring = if case.ring() == Ring::User { 3 } else { 0 };
    let bits = generate::bits(entry.form.mode);
    format!("{:#x}: {bits}-bit, ring {ring}, {}: {}", case.0, case.kind().name, entry.text())
}

/// The modes of code, in the order of reports.
pub const MODES: [Mode; 3] = [Mode::Bits64, Mode::Bits32, Mode::Bits16];

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn numbers_that_are_none_are_refused_in_words() {
        #[derive(clap::Parser)]
        struct Test {
            #[command(flatten)]
            _selection: Selection,
        }
        for (option, wrong, why) in [
            ("--stride", "0", "give a whole number from 1"),
            ("--seed", "-1", "give a whole number from 0"),
            ("--bits", "8", "give 16, 32 or 64"),
            ("--case", "x", "give the number of a case"),
        ] {
            let refused = Test::try_parse_from(["test", option, wrong]).err().unwrap().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn a_selection_is_the_cases_that_fit() {
        let table = generate::table();
        let all = Selection::all();
        let total = all.cases(&table).len();
        let parts =
            (0..7).map(|seed| Selection { stride: 7, seed, ..all.clone() }.cases(&table).len());
        assert_eq!(parts.sum::<usize>(), total);
        let one = Selection {
            kind: vec!["hole".into()],
            bits: vec![64],
            instruction: Some("movups".into()),
            ..all
        };
        let cases = one.cases(&table);
        assert!(!cases.is_empty() && cases.iter().all(|case| case.kind().name == "hole"));
        assert_eq!(describe(&table, cases[0]).split(": ").nth(1), Some("64-bit, ring 0, hole"));
    }
}

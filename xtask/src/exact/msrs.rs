//! Model-specific registers: a guest finds under Umbra what the table says. Where that differs from
//! the bare machine, the table has the reason.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use umbra_msrs::{Answer, Cpu, Flips, Registers};

use super::lines::Lines;

const ROW: &str = "msrs";

/// Registers that the CPU or a device answers for, and that differ from Bochs's all the same.
const DIFFERENT: &[(u32, &str)] = &[
    (0x6e0, "the platform's local APIC has a TSC-deadline timer on every CPU"),
    (0x1d9, "Bochs has no IA32_DEBUGCTL"),
    (0xc000_0103, "bits 63 to 32 are reserved (SDM vol. 4, IA32_TSC_AUX); Bochs takes them"),
    (0x10a, "what the CPU is immune to; Bochs says nothing"),
    (0xe7, "Bochs has no IA32_MPERF, though its CPUID shows it"),
    (0xe8, "Bochs has no IA32_APERF, though its CPUID shows it"),
];

/// What a comparison has found.
#[derive(Default)]
pub struct Comparison {
    /// How many registers are as on the bare machine.
    pub alike: usize,
    /// Those that are not, and that the table gives a reason for.
    explained: BTreeSet<u32>,
    /// Those that are not as the table says, in words.
    pub wrong: Vec<String>,
}

impl Comparison {
    /// How many differ with a reason.
    pub fn explained(&self) -> usize {
        self.explained.len()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} registers as on the bare machine, {} otherwise and as the table says",
            self.alike,
            self.explained.len()
        )?;
        self.wrong.iter().try_for_each(|line| write!(f, "\n  wrong: {line}"))
    }
}

/// What a guest finds of a register that is no more than a value, or that is not there; nothing of
/// others.
fn expected(registers: &mut Registers, msr: u32) -> Option<Option<String>> {
    let value = match registers.read(msr) {
        Ok(Answer::Ask(_)) => return None,
        Ok(Answer::Done(value)) => value,
        Err(_) => return Some(None),
    };
    let Flips { refused, kept } = registers.flips(msr);
    Some(Some(format!("{value:#x} kept {kept:#x} refused {refused:#x}")))
}

/// The registers that any of them has.
fn numbers(bare: &Lines, found: &Lines) -> BTreeSet<u32> {
    let names = bare.row(ROW).chain(found.row(ROW)).map(|(name, _)| name);
    names.filter_map(|name| u32::from_str_radix(name.strip_prefix("0x")?, 16).ok()).collect()
}

/// Compares what a guest found on the bare machine and under Umbra.
pub fn compare(cpu: &Cpu, bare: &Lines, found: &Lines) -> Comparison {
    let mut comparison = Comparison::default();
    let mut registers = Registers::new(cpu);
    for msr in numbers(bare, found) {
        let name = format!("{msr:#x}");
        let (bare, found) = (bare.get(ROW, &name), found.get(ROW, &name));
        let wanted = expected(&mut registers, msr);
        let as_table = wanted.as_ref().is_none_or(|wanted| wanted.as_deref() == found);
        let reason = wanted.is_some() || DIFFERENT.iter().any(|(number, _)| *number == msr);
        match bare == found {
            _ if !as_table => {
                comparison.wrong.push(format!("{name} is {found:?}, the table says {wanted:?}"))
            }
            true => comparison.alike += 1,
            false if reason => {
                comparison.explained.insert(msr);
            }
            false => comparison
                .wrong
                .push(format!("{name} is {found:?}, and {bare:?} on the bare machine")),
        }
    }
    comparison
}

/// Every difference between the bare machine and the table, with the reason.
pub fn reasons(cpu: &Cpu, bare: &Lines, found: &Lines) -> String {
    let mut text = String::new();
    let mut last = None;
    for msr in compare(cpu, bare, found).explained {
        let row = umbra_msrs::row(msr, cpu);
        if row.is_some() && row == last {
            continue;
        }
        last = row;
        let other = DIFFERENT.iter().find(|(number, _)| *number == msr).map(|(_, why)| *why);
        let (name, why) = row
            .map_or((format!("{msr:#x}"), "it has no row: #GP"), |row| (row.to_string(), row.why));
        let _ = writeln!(text, "  {name}: {}", other.unwrap_or(why));
    }
    text
}

#[cfg(test)]
mod tests {
    use umbra_msrs::{Source, Treatment, Vendor};

    use super::*;

    const CPU: Cpu =
        Cpu { vendor: Vendor::Intel, family: 6, model: 0x17, maxphyaddr: 40, ratio: 10 };

    fn lines(text: &str) -> Lines {
        Lines::read(&format!("{text}\nexact END: {} lines\n", text.lines().count())).unwrap()
    }

    #[test]
    fn the_table_is_the_judge_of_values_and_the_bare_machine_of_the_rest() {
        let bare = lines(
            "msrs: 0x277 = 0x0\nmsrs: 0x480 = 0x1\nmsrs: 0xc0000081 = 0x0 kept 0xff refused 0x0",
        );
        // PAT as the table has it, VMX hidden, STAR as on the bare machine.
        let pat = expected(&mut Registers::new(&CPU), 0x277).flatten().unwrap();
        let found =
            lines(&format!("msrs: 0x277 = {pat}\nmsrs: 0xc0000081 = 0x0 kept 0xff refused 0x0"));
        let comparison = compare(&CPU, &bare, &found);
        assert_eq!((comparison.alike, comparison.wrong), (1, vec![]));
        assert_eq!(comparison.explained, BTreeSet::from([0x277, 0x480]));
        assert!(reasons(&CPU, &bare, &found).contains("IA32_VMX_BASIC"));
        for wrong in [
            "msrs: 0x277 = 0x0",
            "msrs: 0xc0000081 = 0x0 kept 0x0 refused 0x0",
            "msrs: 0x480 = 0x1",
        ] {
            assert!(!compare(&CPU, &bare, &lines(wrong)).wrong.is_empty(), "{wrong}");
        }
    }

    /// A reason here is for a register that the table leaves to somebody else.
    #[test]
    fn reasons_are_needed() {
        for (msr, _) in DIFFERENT {
            let row = umbra_msrs::row(*msr, &CPU).unwrap();
            assert!(matches!(row.treatment, Treatment::Shown(_)), "{row}");
            assert_ne!(row.treatment, Treatment::Shown(Source::Efer), "{row}");
        }
    }
}

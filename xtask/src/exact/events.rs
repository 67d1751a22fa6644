//! Delivery of events: each case must do what it does on the bare machine.

use std::fmt;

use super::lines::Lines;

const ROW: &str = "events";

/// Cases of a line: with and without a single step, of each breakpoint, on each stack.
const CASES: usize = 2 * BREAKPOINTS.len() * STACKS.len();
const BREAKPOINTS: [&str; 5] = ["none", "instruction", "first", "operand", "registers"];
const STACKS: [&str; 3] = ["memory", "table", "nowhere"];

/// Which case of which line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place<'a> {
    /// Instruction, what stands before it, ring.
    line: &'a str,
    index: usize,
}

impl Place<'_> {
    fn step(&self) -> bool {
        self.index >= CASES / 2
    }

    fn breakpoint(&self) -> &'static str {
        BREAKPOINTS[self.index / STACKS.len() % BREAKPOINTS.len()]
    }

    fn stack(&self) -> &'static str {
        STACKS[self.index % STACKS.len()]
    }

    /// Whether the instruction reads or writes memory.
    fn touches_memory(&self) -> bool {
        const VERBS: [&str; 6] = ["load", "store", "xchg", "push", "send", "rep"];
        VERBS.iter().any(|verb| self.line.starts_with(verb))
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = if self.step() { ", stepped" } else { "" };
        write!(f, "{}{step}, breakpoint {}, stack {}", self.line, self.breakpoint(), self.stack())
    }
}

/// A kind of cases that may differ.
struct Reason {
    why: &'static str,
    applies: fn(&Place<'_>) -> bool,
}

const REASONS: &[Reason] = &[
    Reason {
        why: "MOV SS holds back a trap, and the next instruction exits by a page fault: Bochs 2.7 forgets the trap \
              then, which the VMCS should hold (SDM, \"Saving Non-Register State\")",
        applies: |place| {
            place.line.contains("MOV SS ring")
                && place.breakpoint() == "first"
                && place.touches_memory()
        },
    },
    Reason {
        why: "a trap between two iterations pushes RF set (SDM, \"Instruction-Breakpoint Exception Condition\"), so \
              that the breakpoint on the instruction is not met again; Bochs leaves RF clear for ports",
        applies: |place| {
            place.line.starts_with("rep outsb")
                && place.step()
                && place.breakpoint() == "instruction"
        },
    },
];

/// What a comparison has found.
#[derive(Default)]
pub struct Comparison {
    /// How many cases are as on the bare machine.
    pub alike: usize,
    /// How many differ by each reason.
    explained: [usize; REASONS.len()],
    /// Those that differ without one, in words.
    pub wrong: Vec<String>,
    /// The line of the first of them.
    pub first_wrong: Option<String>,
}

impl Comparison {
    /// How many differ with a reason.
    pub fn explained(&self) -> usize {
        self.explained.iter().sum()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let explained = self.explained();
        write!(
            f,
            "{} events as on the bare machine, {explained} otherwise with a reason",
            self.alike
        )?;
        self.wrong.iter().take(SHOWN).try_for_each(|line| write!(f, "\n  wrong: {line}"))?;
        match self.wrong.len() {
            ..=SHOWN => Ok(()),
            more => write!(f, "\n  and {} more", more - SHOWN),
        }
    }
}

/// How many different cases are listed.
const SHOWN: usize = 20;

/// The reasons, with how many cases each has.
pub fn reasons(comparison: &Comparison) -> String {
    let lines = REASONS.iter().zip(comparison.explained).filter(|(_, count)| *count > 0);
    lines.map(|(reason, count)| format!("  {count} cases: {}\n", reason.why)).collect()
}

/// Compares what a guest found on the bare machine and under Umbra.
pub fn compare(bare: &Lines, found: &Lines) -> Comparison {
    let mut comparison = Comparison::default();
    for (line, right) in bare.row(ROW) {
        let other = found.get(ROW, line).unwrap_or_default();
        let (mut right, mut other) = (right.split(' '), other.split(' '));
        for index in 0..CASES {
            let place = Place { line, index };
            if right.next() == other.next() {
                comparison.alike += 1;
            } else if let Some(reason) = REASONS.iter().position(|reason| (reason.applies)(&place))
            {
                comparison.explained[reason] += 1;
            } else {
                comparison.wrong.push(place.to_string());
                comparison.first_wrong.get_or_insert_with(|| line.into());
            }
        }
    }
    comparison
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(name: &str, hashes: &[usize]) -> Lines {
        let hashes: Vec<_> = hashes.iter().map(|hash| format!("{hash:08x}")).collect();
        Lines::read(&format!("events: {name} = {}\nexact END: 1 lines\n", hashes.join(" ")))
            .unwrap()
    }

    #[test]
    fn a_case_that_differs_needs_a_reason() {
        let hashes: Vec<usize> = (0..CASES).collect();
        let mut other = hashes.clone();
        other[6] = 77;
        for (name, wrong, explained) in
            [("load behind MOV SS ring 0", 0, 1), ("load alone ring 0", 1, 0)]
        {
            let comparison = compare(&lines(name, &hashes), &lines(name, &other));
            assert_eq!((comparison.alike, comparison.wrong.len()), (CASES - 1, wrong), "{name}");
            assert_eq!(comparison.explained.iter().sum::<usize>(), explained);
            assert_eq!(comparison.first_wrong.is_some(), wrong == 1);
        }
        let missing = compare(&lines("nop alone ring 3", &hashes), &lines("other", &hashes));
        assert_eq!((missing.alike, missing.wrong.len()), (0, CASES));
    }

    #[test]
    fn places_are_told_in_words() {
        let place = Place { line: "nop alone ring 0", index: 16 };
        assert_eq!(place.to_string(), "nop alone ring 0, stepped, breakpoint none, stack table");
        let last = Place { line: "nop alone ring 0", index: CASES - 1 };
        assert_eq!((last.breakpoint(), last.stack()), ("registers", "nowhere"));
    }
}

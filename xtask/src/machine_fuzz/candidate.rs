//! Random programs, and shorter ones.

use umbra_cases::random::{Random, scramble};
use umbra_forms::generate::Entry;
use umbra_forms::program::Program;

use super::setting::{SIZE, Start, flag};
use super::step::{self, Maker, Step};

/// The most steps of a random program.
const LENGTH: u64 = 12;

/// A program as the host knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// It is made of this.
    pub seed: u64,
    pub start: Start,
    pub steps: Vec<Step>,
}

/// Makes programs of the forms in the table.
pub struct Generator<'a> {
    /// For 16-, 32- and 64-bit code.
    forms: [Vec<&'a Entry>; 3],
}

impl<'a> Generator<'a> {
    pub fn new(table: &'a [Entry]) -> Generator<'a> {
        Generator { forms: [16, 32, 64].map(|bits| step::by_width(table, bits)) }
    }

    /// The program of a seed.
    pub fn candidate(&self, seed: u64) -> Candidate {
        let mut random = Random::new(scramble(seed));
        let start = Start::random(&mut random);
        let forms = &self.forms[(start.mode.bits / 32) as usize];
        let count = 2 + random.below(LENGTH - 1);
        let maker = Maker { start: &start, forms };
        let mut steps: Vec<_> = (0..count).map(|_| maker.step(&mut random)).collect();
        if start.high && random.one_in(2) {
            steps.push(maker.exit(&mut random));
        }
        let mut candidate = Candidate { seed, start, steps };
        candidate.set_breakpoints(&mut random);
        candidate
    }
}

impl Candidate {
    fn set_breakpoints(&mut self, random: &mut Random) {
        if self.start.quiet || self.start.high || !random.one_in(3) {
            return;
        }
        let (arena, origin) = (self.start.arena, self.start.setting.origin);
        let program = self.program();
        let starts = program.starts();
        for register in 0..4 {
            let at = if random.one_in(2) {
                origin + u64::from(starts[random.index(starts.len())])
            } else {
                (2 + random.below(13)) * 4096 + [0, 4, 0xffc, 0xff8, 0xc00, 0xbfc][random.index(6)]
            };
            self.start.setting.debug[register] = arena + at;
        }
        self.start.setting.debug[4] = step::control(random);
    }

    /// As the kernel gets it. What does not fit is left out.
    pub fn program(&self) -> Program {
        let mut setting = self.start.setting;
        setting.defined = self.steps.iter().fold(!0, |bits, step| bits & step.defined);
        let mut program = Program::new(setting);
        for step in &self.steps {
            if program.push(&step.code).is_none() {
                break;
            }
        }
        if self.start.high {
            // What is behind the last instruction is no address.
            program.setting.origin = SIZE - program.code().len() as u64;
            program.setting.rip = program.setting.base + program.setting.origin;
        } else {
            // The end; without it, where the code ends.
            let _ = program.push(&[0xcd, umbra_forms::program::vector::STOP]);
        }
        program
    }

    /// Simpler ones: without a step, without what is special at the start.
    pub fn simpler(&self) -> Vec<Candidate> {
        let mut simpler = Vec::new();
        let mut changed = |change: &dyn Fn(&mut Candidate)| {
            let mut candidate = self.clone();
            change(&mut candidate);
            if candidate != *self {
                simpler.push(candidate);
            }
        };
        if self.steps.len() > 3 {
            let half = self.steps.len() / 2;
            changed(&|candidate| candidate.steps.truncate(half));
            changed(&|candidate| drop(candidate.steps.drain(..half)));
        }
        for index in 0..self.steps.len() {
            changed(&|candidate| drop(candidate.steps.remove(index)));
        }
        changed(&|candidate| candidate.start.setting.debug = [0, 0, 0, 0, 0x400]);
        changed(&|candidate| candidate.start.setting.interrupt = false);
        changed(&|candidate| candidate.start.setting.stack = 0);
        changed(&|candidate| candidate.start.setting.cr0 = 0);
        changed(&|candidate| candidate.start.setting.cr4 = 0);
        for bit in [flag::TF, flag::AC, flag::NT, flag::IF, 3 << 12, flag::STATUS] {
            changed(&|candidate| candidate.start.setting.flags &= !bit);
        }
        simpler
    }

    /// In words.
    pub fn words(&self) -> String {
        let setting = &self.start.setting;
        let mut words = format!(
            "seed {}: {}, RFLAGS {:#x}, CR0 ^ {:#x}, CR4 ^ {:#x}",
            self.seed, self.start.mode.name, setting.flags, setting.cr0, setting.cr4
        );
        if self.start.high {
            words += ", ending with the canonical addresses";
        }
        if setting.interrupt {
            words += ", an interrupt is pending";
        }
        if setting.stack != 0 {
            words += &format!(", ring 0's stack {:#x}", setting.stack);
        }
        if setting.debug[4] != 0x400 {
            words += &format!(", DR {:x?}", setting.debug);
        }
        words += &format!("\n  at {:#x}", setting.rip);
        for (name, segment) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().zip(&self.start.segments)
        {
            words += &format!(", {name} {:#x}", segment.selector);
            if segment.base != 0 {
                words += &format!(" from {:#x}", segment.base);
            }
            if let Some(limit) = segment.limit {
                words += &format!(" to {limit:#x}");
            }
        }
        for step in &self.steps {
            let code: Vec<_> = step.code.iter().map(|byte| format!("{byte:02x}")).collect();
            words += &format!("\n  {} ({})  {}", step.name, step.operand, code.join(""));
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use umbra_forms::generate;

    use super::*;
    use crate::machine_fuzz::mode::MODES;

    #[test]
    fn programs_repeat_by_seed_and_have_every_mode() {
        let table = generate::table();
        let generator = Generator::new(&table);
        let candidates: Vec<_> = (0..400).map(|seed| generator.candidate(seed)).collect();
        let modes: BTreeSet<_> = candidates.iter().map(|candidate| candidate.start.mode).collect();
        assert_eq!(modes.len(), MODES.len());
        for candidate in &candidates {
            assert_eq!(*candidate, generator.candidate(candidate.seed));
            let program = candidate.program();
            let (words, count) = program.to_words();
            assert_eq!(Program::from_words(&words[1..count]), Some(program));
            let shorter = candidate.simpler();
            assert!(shorter.iter().all(|other| other != candidate));
            assert!(shorter.iter().any(|other| other.steps.len() + 1 == candidate.steps.len()));
        }
    }
}

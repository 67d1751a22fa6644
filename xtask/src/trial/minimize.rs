//! Makes a program short that finds something.

use std::time::{Duration, Instant};

use anyhow::Result;
use umbra_trial::program::Program;

use super::suspect::{Found, Outcome, Suspect};

/// Takes steps out of `program` as long as it shows the same symptom and time is left. Returns the
/// shortest program, how it went, and whether no single step can be left out.
///
/// # Errors
/// The suspect's.
pub fn minimize(
    suspect: &mut impl Suspect,
    program: &Program,
    found: &Found,
    time: Duration,
    mut progress: impl FnMut(usize),
) -> Result<(Program, Found, bool)> {
    let start = Instant::now();
    let mut best = (program.clone(), found.clone());
    if let Some(step) = found.step {
        best.0.truncate(step + 1);
    }
    let mut attempt = |program: Program, best: &mut (Program, Found)| -> Result<bool> {
        let Outcome::Found(again) = suspect.run(&program)? else { return Ok(false) };
        if again.symptom != best.1.symptom {
            return Ok(false);
        }
        let steps = again.step.map_or(program.steps.len(), |step| step + 1);
        *best = (program, again);
        best.0.truncate(steps);
        progress(best.0.steps.len());
        Ok(true)
    };
    // Not every death comes again: whatever is not in the program decides, then.
    if !attempt(best.0.clone(), &mut best)? {
        return Ok((program.clone(), found.clone(), false));
    }
    loop {
        // A short program may do with one CPU where a long one does not.
        if best.0.cpus() > 1 {
            let mut alone = best.0.clone();
            alone.turns.clear();
            attempt(alone, &mut best)?;
        }
        let before = (best.0.steps.len(), best.0.cpus());
        let mut chunk = before.0.div_ceil(2);
        while chunk > 0 {
            // From the end: what comes before decides about what comes after.
            let mut end = best.0.steps.len();
            while end > 0 {
                if start.elapsed() > time {
                    return Ok((best.0, best.1, false));
                }
                let from = end.saturating_sub(chunk);
                let mut shorter = best.0.clone();
                shorter.remove(from..end);
                attempt(shorter, &mut best)?;
                end = from.min(best.0.steps.len());
            }
            chunk /= 2;
        }
        if (best.0.steps.len(), best.0.cpus()) == before {
            return Ok((best.0, best.1, true));
        }
    }
}

#[cfg(test)]
mod tests {
    use umbra_trial::generate;
    use umbra_trial::judge::Tally;
    use umbra_trial::program::Step;

    use super::*;

    /// Finds something if these steps are there, in this order.
    struct Needs(Vec<Step>);

    impl Suspect for Needs {
        fn run(&mut self, program: &Program) -> Result<Outcome> {
            let mut needed = self.0.iter();
            let mut next = needed.next();
            for (at, step) in program.steps.iter().enumerate() {
                if Some(step) == next {
                    next = needed.next();
                }
                if next.is_none() {
                    let (symptom, detail, log) = ("it".into(), String::new(), String::new());
                    return Ok(Outcome::Found(Found { symptom, detail, step: Some(at), log }));
                }
            }
            Ok(Outcome::Clean(Tally::default()))
        }
    }

    #[test]
    fn a_second_cpu_goes_unless_it_is_needed() {
        /// Finds something where this CPU takes the step.
        struct By(usize, Step);

        impl Suspect for By {
            fn run(&mut self, program: &Program) -> Result<Outcome> {
                let By(cpu, step) = *self;
                let taken = |&at: &usize| program.steps[at] == step && program.cpu(at) == cpu;
                Ok(match (0..program.steps.len()).find(taken) {
                    Some(at) => Outcome::Found(Found {
                        symptom: "it".into(),
                        detail: String::new(),
                        step: Some(at),
                        log: String::new(),
                    }),
                    None => Outcome::Clean(Tally::default()),
                })
            }
        }

        let program = generate::program_of_two(3, 300);
        for cpu in [0, 1] {
            let at = (200..).find(|&at| program.cpu(at) == cpu).unwrap();
            let mut suspect = By(cpu, program.steps[at]);
            let Outcome::Found(found) = suspect.run(&program).unwrap() else { panic!("found") };
            let time = Duration::from_secs(60);
            let (short, ..) = minimize(&mut suspect, &program, &found, time, |_| ()).unwrap();
            assert_eq!((short.steps.len(), short.cpus()), (1, cpu + 1));
            assert_eq!((short.cpu(0), short.check()), (cpu, Ok(())));
        }
    }

    #[test]
    fn nothing_but_what_is_needed_remains() {
        let program = generate::program(3, 300);
        let needed: Vec<Step> = [20, 21, 150, 260].map(|at| program.steps[at]).to_vec();
        let mut suspect = Needs(needed.clone());
        let Outcome::Found(found) = suspect.run(&program).unwrap() else { panic!("it is found") };
        let time = Duration::from_secs(60);
        let (short, _, complete) = minimize(&mut suspect, &program, &found, time, |_| ()).unwrap();
        assert_eq!(short.steps, needed);
        assert!(complete);
        let (long, _, complete) =
            minimize(&mut suspect, &program, &found, Duration::ZERO, |_| ()).unwrap();
        assert!(!complete && long.steps.len() > needed.len());
    }
}

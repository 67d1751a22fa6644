//! Where Bochs differs from the manual, which wins.
//!
//! Two places are not here: the kernel `machine` hides RF of a debug exception, and programs that
//! could leave it in memory repeat no INS or OUTS ([`Start::shows_resume_flag`]).
//!
//! [`Start::shows_resume_flag`]: super::setting::Start::shows_resume_flag

use super::candidate::Candidate;
use super::mode::Mode;
use super::step::Step;

/// A kind of step that may do something else.
struct Reason {
    why: &'static str,
    applies: fn(Mode, &Step) -> bool,
}

/// Whether a step's name has one of these.
fn is_named(step: &Step, names: &[&str]) -> bool {
    names.iter().any(|name| step.name.contains(name))
}

const REASONS: &[Reason] = &[
    Reason {
        why: "a fault restores the status flags (SDM vol. 2, REP); Bochs leaves those of the last \
              iteration",
        applies: |_, step| {
            is_named(
                step,
                &["rep scas", "rep cmps", "repe scas", "repe cmps", "repne scas", "repne cmps"],
            ) && step.operand != "ram"
        },
    },
    Reason {
        why: "Umbra does not show XSAVES: nothing here has supervisor state",
        applies: |_, step| is_named(step, &["xsaves", "xrstors"]),
    },
    Reason {
        why: "a fault leaves no trace; Bochs stores or loads the part before the second page",
        applies: |_, step| {
            is_named(step, &["sgdt", "sidt", "frstor"]) && step.operand.contains('+')
        },
    },
    Reason {
        why: "66H makes the frame pointer's operand 16 bits wide (SDM vol. 2, ENTER); Bochs ignores \
              the prefix",
        applies: |_, step| is_named(step, &["data16 enter"]),
    },
    Reason {
        why: "a page fault comes before #AC (SDM vol. 3, \"Priority Among Concurrent Events\"); Bochs \
              looks at the alignment first, and Umbra carries out these instructions itself",
        applies: |mode, step| {
            let names = ["insw", "insd", "outsw", "outsd", "ins of", "outs of"];
            mode.ring == 3 && is_named(step, &names) && step.operand != "ram"
        },
    },
];

/// Why a program may differ, if it may.
pub fn reason(candidate: &Candidate) -> Option<&'static str> {
    let mode = candidate.start.mode;
    let explained =
        |reason: &&Reason| candidate.steps.iter().any(|step| (reason.applies)(mode, step));
    REASONS.iter().find(explained).map(|reason| reason.why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine_fuzz::mode::MODES;

    #[test]
    fn a_step_that_may_differ_is_known_by_its_name() {
        let step = |name: &str, operand: &str| Step {
            name: name.into(),
            operand: operand.into(),
            code: Vec::new(),
            defined: !0,
        };
        let known_in =
            |mode, step: &Step| REASONS.iter().any(|reason| (reason.applies)(mode, step));
        let known = |step: &Step| known_in(MODES[0], step);
        assert!(known(&step("rep scas of 2 bytes, 4 times", "table+none")));
        assert!(!known(&step("rep scas of 2 bytes, 4 times", "ram")));
        assert!(!known(&step("scas of 2 bytes, 4 times", "table")));
        assert!(
            known(&step("sidt [rbx+10h]", "ram+none")) && !known(&step("sidt [rbx+10h]", "table"))
        );
        let input = step("insw [di],dx", "ram+supervisor");
        assert_eq!((MODES[0].ring, MODES[1].ring), (0, 3));
        assert!(!known(&input) && known_in(MODES[1], &input));
    }
}

//! Where Bochs differs from the manual, which wins.
//!
//! Two places are not here: the kernel `machine` hides RF of a debug exception, and programs that
//! could leave it in memory repeat no INS or OUTS ([`Start::shows_resume_flag`]).
//!
//! [`Start::shows_resume_flag`]: super::setting::Start::shows_resume_flag

use umbra_forms::program::{World, selector};

use super::candidate::Candidate;
use super::setting::Start;
use super::step::Step;
use crate::umbra_run::Machine;

/// A kind of step that may do something else.
struct Reason {
    why: &'static str,
    applies: fn(&Start, &Step) -> bool,
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
            let names = ["sgdt", "sidt", "frstor", "fldenv", "pusha"];
            is_named(step, &names) && step.operand.contains('+')
        },
    },
    Reason {
        why: "a fault leaves no trace; Bochs stores the limit before it checks the alignment of \
              the base",
        applies: |start, step| {
            start.mode.ring == 3 && start.checks_alignment() && is_named(step, &["sgdt", "sidt"])
        },
    },
    Reason {
        why: "a fault leaves no trace; Bochs leaves the frame pointer that ENTER pushes before it \
              reads the outer ones",
        applies: |_, step| is_named(step, &["enter 20h,2"]),
    },
    Reason {
        why: "66H makes the frame pointer's operand 16 bits wide (SDM vol. 2, ENTER); Bochs ignores \
              the prefix",
        applies: |_, step| is_named(step, &["data16 enter"]),
    },
    Reason {
        why: "a page fault comes before #AC (SDM vol. 3, \"Priority Among Concurrent Events\"); Bochs \
              looks at the alignment first, and Umbra carries out these instructions itself",
        applies: |start, step| {
            let names = ["insw", "insd", "outsw", "outsd", "ins of", "outs of"];
            start.mode.ring == 3 && is_named(step, &names) && step.operand != "ram"
        },
    },
    Reason {
        why: "the privilege level of virtual-8086 mode is 3 (SDM vol. 3, \"Running a Task in \
              Virtual-8086 Mode\"), so #AC can come; at a VM entry Bochs takes it for the low bits of \
              CS, and checks no alignment until RFLAGS or CR0 is loaded",
        applies: |start, _| start.mode.virtual_8086 && start.checks_alignment(),
    },
    Reason {
        why: "the frame of a trap between two iterations has RF set (SDM vol. 3, \
              \"Instruction-Breakpoint Exception Condition\"); Bochs leaves it clear, and Umbra carries \
              out iterations itself where an operand needs it",
        applies: |start, step| {
            start.shows_resume_flag() && is_named(step, &["rep ", "repe ", "repne "])
        },
    },
    Reason {
        why: "a call through a 32-bit gate pushes ESP and EIP whole (SDM vol. 2, CALL); Bochs cuts them \
              in 16-bit code, and Umbra carries out the call itself where the stack needs it",
        applies: |start, step| {
            let gate = format!("far call or jump to {:#x}", selector::GATE | 3);
            start.mode.bits == 16 && start.mode.ring == 3 && step.name == gate
        },
    },
    Reason {
        why: "an interrupt that TPR masks before it is taken may come as the spurious vector (SDM \
              vol. 3, \"Spurious Interrupt\"); with Bochs's APIC it does, with Umbra's it waits",
        applies: |start, step| {
            start.setting.interrupt && (step.operand == "apic" || is_named(step, &["write CR8"]))
        },
    },
];

/// What Bochs does as an AMD machine only.
const ON_RYZEN: &[Reason] = &[
    Reason {
        why: "the CPU writes DR6 before an intercepted #DB (APM vol. 2, \"#DB (Debug)\"); Bochs does \
              not, so which breakpoint trapped is lost",
        // Single steps alone are told apart: those must agree.
        applies: |start, _| start.breaks(),
    },
    Reason {
        why: "SYSCALL loads a flat SS (APM vol. 3, SYSCALL); without a change of CPL, the next push of \
              Bochs goes by the base before, until an exit or a load of SS",
        applies: |start, step| {
            start.mode.ring == 0
                && start.mode.world() != World::Long
                && is_named(step, &["syscall"])
        },
    },
];

/// Why a program may differ on a machine, if it may.
pub fn reason(machine: Machine, candidate: &Candidate) -> Option<&'static str> {
    let here = if machine == Machine::Ryzen { ON_RYZEN } else { &[] };
    let explained = |reason: &&Reason| {
        candidate.steps.iter().any(|step| (reason.applies)(&candidate.start, step))
    };
    REASONS.iter().chain(here).find(explained).map(|reason| reason.why)
}

#[cfg(test)]
mod tests {
    use umbra_cases::random::Random;

    use super::*;

    /// A start in a mode like this.
    fn start(is_wanted: impl Fn(&Start) -> bool) -> Start {
        let mut random = Random::new(1);
        loop {
            let start = Start::random(&mut random);
            if is_wanted(&start) {
                break start;
            }
        }
    }

    #[test]
    fn a_step_that_may_differ_is_known_by_its_name() {
        let step = |name: &str, operand: &str| Step {
            name: name.into(),
            operand: operand.into(),
            code: Vec::new(),
            defined: !0,
        };
        let known_in =
            |start: &Start, step: &Step| REASONS.iter().any(|reason| (reason.applies)(start, step));
        let kernel = start(|start| start.mode.ring == 0 && start.quiet && !start.setting.interrupt);
        let user = start(|start| start.mode.ring == 3 && !start.mode.virtual_8086);
        let known = |step: &Step| known_in(&kernel, step);
        assert!(known(&step("rep scas of 2 bytes, 4 times", "table+none")));
        assert!(!known(&step("rep scas of 2 bytes, 4 times", "ram")));
        assert!(!known(&step("scas of 2 bytes, 4 times", "table")));
        assert!(
            known(&step("sidt [rbx+10h]", "ram+none")) && !known(&step("sidt [rbx+10h]", "table"))
        );
        assert!(known(&step("pushad (on the stack)", "none+table")));
        assert!(!known(&step("pushad (on the stack)", "table")));
        assert!(!known(&step("popad (on the stack)", "none+table")));
        assert!(known(&step("data32 enter 20h,2 (on the stack)", "table")));
        assert!(!known(&step("enter 20h,0", "table")));
        let input = step("insw [di],dx", "ram+supervisor");
        assert!(!known(&input) && known_in(&user, &input));
        let traced = start(|start| start.mode.ring == 0 && start.shows_resume_flag());
        let copy = step("rep movs of 4 bytes, 696 times", "table+ram");
        assert!(!known(&copy) && known_in(&traced, &copy));
        let wide = start(|start| start.mode.ring == 3 && start.mode.bits == 32 && start.quiet);
        let narrow = start(|start| start.mode.ring == 3 && start.mode.bits == 16 && start.quiet);
        let gate = step("far call or jump to 0x63", "no operand");
        assert!(known_in(&narrow, &gate) && !known_in(&wide, &gate));
        assert!(!known_in(&narrow, &step("far call or jump to 0x8b", "no operand")));
        let (priority, interrupt) = (step("write CR8, read it", "no operand"), |expected| {
            start(move |start| start.mode.ring == 0 && start.setting.interrupt == expected)
        });
        assert!(known_in(&interrupt(true), &priority) && !known_in(&interrupt(false), &priority));
    }

    #[test]
    fn what_the_amd_machine_does_counts_there_alone() {
        let candidate = |start: Start, name: &str| {
            let step = Step {
                name: name.into(),
                operand: "no operand".into(),
                code: Vec::new(),
                defined: !0,
            };
            Candidate { seed: 0, start, steps: vec![step] }
        };
        let in_ring = |ring| start(move |start| start.mode.ring == ring && start.quiet);
        let (mut breaks, quiet) = (in_ring(3), in_ring(3));
        breaks.setting.debug[4] |= 1;
        let on_ryzen =
            |start: &Start, name| reason(Machine::Ryzen, &candidate(start.clone(), name));
        assert!(on_ryzen(&breaks, "nop").is_some() && on_ryzen(&quiet, "nop").is_none());
        assert_eq!(reason(Machine::Skylake, &candidate(breaks, "nop")), None);

        let legacy = |ring| {
            start(move |start| {
                let mode = start.mode;
                start.quiet && mode.ring == ring && mode.world() != World::Long
            })
        };
        assert!(on_ryzen(&legacy(0), "syscall").is_some());
        assert!(on_ryzen(&legacy(0), "sysenter").is_none());
        assert!(on_ryzen(&legacy(3), "syscall").is_none());
        let skylake = reason(Machine::Skylake, &candidate(legacy(0), "syscall"));
        assert_eq!(skylake, None);
    }

    #[test]
    fn alignment_checks_may_differ() {
        let known = |name: &str, start: &Start| {
            let step =
                Step { name: name.into(), operand: "table".into(), code: Vec::new(), defined: !0 };
            REASONS.iter().any(|reason| (reason.applies)(start, &step))
        };
        let in_v86 = |virtual_8086, checks| {
            start(move |start| {
                start.mode.virtual_8086 == virtual_8086 && start.checks_alignment() == checks
            })
        };
        let plain = |start: &Start| known("psrlw mm1,[bx+10h]", start);
        assert!(plain(&in_v86(true, true)));
        assert!(!plain(&in_v86(true, false)) && !plain(&in_v86(false, true)));
        let in_ring = |ring, checks| {
            start(move |start| {
                let mode = start.mode;
                mode.ring == ring && !mode.virtual_8086 && start.checks_alignment() == checks
            })
        };
        let store = |start: &Start| known("sgdt [ebx+10h]", start);
        assert!(store(&in_ring(3, true)));
        assert!(!store(&in_ring(3, false)) && !store(&in_ring(0, true)));
    }
}

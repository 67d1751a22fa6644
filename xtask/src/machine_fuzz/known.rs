//! Where Bochs differs from the manual, which wins.

use super::candidate::Candidate;

/// A kind of programs that may differ.
struct Reason {
    why: &'static str,
    applies: fn(&Candidate) -> bool,
}

const REASONS: &[Reason] = &[];

/// Why a program may differ, if it may.
pub fn reason(candidate: &Candidate) -> Option<&'static str> {
    REASONS.iter().find(|reason| (reason.applies)(candidate)).map(|reason| reason.why)
}

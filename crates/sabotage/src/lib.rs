//! Rules of the shadow MMU that tests break on purpose.
//!
//! A [`Mutation`] breaks one rule by a few edits of the source, each a passage to keep and what
//! stands there when the rule is broken. [`weave()`] makes one source of all of them: every passage
//! becomes a branch on the number of the rule that is broken. So one build tests all rules, and
//! the source that ships knows nothing of it.
//!
//! `crates/mmu/sabotage` has the mutations and says how they are written. `cargo xtask sabotage`
//! carries them out in a copy of the tree. It builds those of `crates/hypervisor/sabotage` one by
//! one ([`apply`]).
#![forbid(unsafe_code)]

mod mutation;
mod weave;

pub use mutation::{Catcher, Edit, Mutation, read};
pub use weave::{Broken, Change, Switch, Woven, apply, branch, set, weave, with_switch};

/// The variable whose value is the number of the rule that a woven program breaks. Without it,
/// or with 0, none is.
pub const VARIABLE: &str = "UMBRA_BROKEN";

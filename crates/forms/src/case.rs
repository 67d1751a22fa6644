//! A form on a kind of memory, in a ring.

use crate::Kind;

/// In the kernel's list of cases, what a program of several cases begins with; a seed follows.
pub const START: u32 = u32::MAX;

/// Who runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Ring 0.
    Kernel,
    /// Ring 3.
    User,
}

/// One case, as the kernel gets it: a word of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case(pub u32);

impl Case {
    /// The case of form `form`.
    pub fn new(form: usize, kind: &Kind, ring: Ring) -> Case {
        Case(
            (form * Kind::COUNT + usize::from(kind.number)) as u32 * 2
                + u32::from(ring == Ring::User),
        )
    }

    /// The form's place in the table.
    pub fn form(self) -> usize {
        self.0 as usize / 2 / Kind::COUNT
    }

    /// What its operand lies on.
    pub fn kind(self) -> &'static Kind {
        const ALL: &[Kind; Kind::COUNT] = &Kind::ALL;
        &ALL[self.0 as usize / 2 % Kind::COUNT]
    }

    /// Who runs it.
    pub fn ring(self) -> Ring {
        if self.0 % 2 == 1 { Ring::User } else { Ring::Kernel }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_its_parts() {
        for form in [0, 1, 9999] {
            for kind in &Kind::ALL {
                for ring in [Ring::Kernel, Ring::User] {
                    let case = Case::new(form, kind, ring);
                    assert_eq!((case.form(), case.kind(), case.ring()), (form, kind, ring));
                }
            }
        }
    }
}

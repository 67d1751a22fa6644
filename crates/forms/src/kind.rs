//! What lies under an operand.

use crate::{Contents, Form, Mode, Ring, Role};

/// One page under an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Memory that may be written.
    Ram,
    /// An address without memory or device.
    Hole,
    /// The local APIC.
    Apic,
    /// A page table in use.
    Table,
    /// Memory for reading only, with CR0.WP clear.
    ReadOnly,
    /// The same, and a user page, under SMAP and SMEP where the CPU has them.
    UserReadOnly,
    /// Not present.
    Nothing,
}

/// What an operand lies on: one page, or two that it crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The number in a case.
    pub number: u8,
    /// The name in options and reports.
    pub name: &'static str,
    /// The page where the operand starts.
    pub first: Page,
    /// The page where it ends, if that is another one.
    pub second: Option<Page>,
}

macro_rules! kinds {
    ($($name:literal: $first:ident $(, $second:ident)?;)*) => {
        &[$(Kind {
            number: 0,
            name: $name,
            first: Page::$first,
            second: kinds!(@second $($second)?),
        }),*]
    };
    (@second) => { None };
    (@second $second:ident) => { Some(Page::$second) };
}

const UNNUMBERED: &[Kind; Kind::COUNT] = kinds! {
    "ram": Ram;
    "hole": Hole;
    "apic": Apic;
    "table": Table;
    "wp0": ReadOnly;
    "wp0-user": UserReadOnly;
    "ram+ram": Ram, Ram;
    "ram+hole": Ram, Hole;
    "hole+ram": Hole, Ram;
    "ram+table": Ram, Table;
    "table+ram": Table, Ram;
    "ram+wp0": Ram, ReadOnly;
    "wp0+ram": ReadOnly, Ram;
    "hole+table": Hole, Table;
    "ram+none": Ram, Nothing;
    "table+none": Table, Nothing;
    "hole+none": Hole, Nothing;
};

const fn numbered() -> [Kind; Kind::COUNT] {
    let mut kinds = *UNNUMBERED;
    let mut number = 0;
    while number < Kind::COUNT {
        kinds[number].number = number as u8;
        number += 1;
    }
    kinds
}

impl Kind {
    /// How many there are.
    pub const COUNT: usize = 17;
    /// All, each at its number.
    pub const ALL: [Kind; Kind::COUNT] = numbered();

    /// Whether the case makes sense.
    ///
    /// The APIC defines accesses of 4 bytes only (SDM, "APIC Register Address Map"), and the
    /// emulator stops at some others. One byte crosses nothing. CR0.WP says nothing of ring 3. An
    /// address that a device gives must not lead 32-bit code of ring 0 to the kernel's own map of
    /// all memory.
    pub fn fits(&self, form: &Form, ring: Ring) -> bool {
        let is = |page| self.first == page || self.second == Some(page);
        let on_stack = matches!(form.role, Role::Push | Role::Pop | Role::Frame);
        let one = form.size == 4 && form.role != Role::Both && (!on_stack || form.word == 4);
        let small = form.size < 4 && !form.writes && !on_stack;
        let leaps = form.contents == Contents::Near && form.role != Role::Push;
        let wild = leaps && form.mode == Mode::Bits32 && ring == Ring::Kernel;
        let apic = !is(Page::Apic) || (one || small) && !leaps;
        let hole = !is(Page::Hole) || !wild;
        let read_only = is(Page::ReadOnly) || is(Page::UserReadOnly);
        let crosses = self.second.is_none() || form.size >= 2;
        apic && hole && crosses && !(read_only && ring == Ring::User)
    }

    /// Whether Umbra has to do something at an access: memory alone is the CPU's.
    pub fn exits(&self) -> bool {
        [Some(self.first), self.second]
            .iter()
            .flatten()
            .any(|&page| !matches!(page, Page::Ram | Page::Nothing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gives_no_address_to_ring_0() {
        let mut form = Form::new(&[0xff, 0x23], Mode::Bits32);
        (form.contents, form.size) = (Contents::Near, 4);
        let fits = |name, ring| {
            Kind::ALL
                .iter()
                .find(|kind| kind.name == name)
                .is_some_and(|kind| kind.fits(&form, ring))
        };
        assert!(fits("table", Ring::Kernel) && fits("hole", Ring::User));
        assert!(
            !fits("hole", Ring::Kernel)
                && !fits("ram+hole", Ring::Kernel)
                && !fits("apic", Ring::User)
        );
    }

    #[test]
    fn numbers_are_places_and_names_differ() {
        for (number, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(usize::from(kind.number), number);
            assert!(Kind::ALL[number + 1..].iter().all(|other| other.name != kind.name));
        }
    }
}

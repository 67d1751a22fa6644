//! Shadow entries and their three states.
//!
//! | state | hardware sees | meaning |
//! |---|---|---|
//! | Mapped | P=1, no reserved bit | a translation, or a link to a shadow table |
//! | NotPresent | P=0 | the guest's entry is not present now |
//! | Trapping | P=1 and a reserved bit set (or P=0, if guest faults are trapped) | the hypervisor must look |
//!
//! Trapping is either [`State::Trap`] or [`State::Mmio`]. The address field of an entry that is not
//! Mapped names no cacheable memory: a terminal fault may use it speculatively (L1TF). The guest
//! chooses an MMIO gfn, so that one is stored inverted, or, where its inverse may be memory, not at
//! all. Host memory must lie in the lower half of the physical address space.

use umbra_paging::{Gfn, Hpa, Level, Rights, bits};

/// Bit 9 is ignored by the CPU in every entry: set in Trapping entries only.
const TRAPPING: u64 = 1 << 9;
/// Bit 10 is ignored by the CPU in every entry: set in Trapping entries of MMIO.
const MMIO: u64 = 1 << 10;
/// Bit 10 of a Mapped entry that has [`HELD`]: nothing but the tracking of the frame holds the
/// right to write back.
const TRACKED: u64 = 1 << 10;
/// Bit 11 is ignored by the CPU in every entry: set in Mapped entries of pages that lack a right to
/// write which the guest's own entry gives.
const HELD: u64 = 1 << 11;
/// Where an MMIO entry keeps the generation.
const GENERATION_SHIFT: u32 = 52;
/// Generations wrap at this value: bits 52..62.
pub(crate) const GENERATIONS: u32 = 1 << 11;

/// How Trapping entries look to the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encodings {
    /// P for Trapping entries with reserved bits, 0 for those that are not present.
    present: u64,
    /// MAXPHYADDR of the real CPU, which walks these entries. The guest's may be less.
    maxphyaddr: u8,
}

impl Encodings {
    /// Trapping entries are present with all of MAXPHYADDR..51 set, on a real CPU of this
    /// MAXPHYADDR. `None` if it is 52: then there is no such bit (SDM, "4-Level Paging").
    ///
    /// Whoever builds on this tries [`Encodings::probes`] on the real CPU first.
    ///
    /// # Panics
    /// If `maxphyaddr` is not within 32..=52.
    pub fn reserved(maxphyaddr: u8) -> Option<Encodings> {
        let encodings = Encodings { present: bits::P, ..Encodings::not_present(maxphyaddr) };
        (encodings.address_reserved() != 0).then_some(encodings)
    }

    /// Trapping entries are not present, on a real CPU of this MAXPHYADDR: the trick is off.
    ///
    /// # Panics
    /// If `maxphyaddr` is not within 32..=52.
    pub fn not_present(maxphyaddr: u8) -> Encodings {
        assert!((32..=52).contains(&maxphyaddr), "MAXPHYADDR is 32 to 52");
        Encodings { present: 0, maxphyaddr }
    }

    /// MAXPHYADDR of the real CPU.
    pub fn maxphyaddr(&self) -> u8 {
        self.maxphyaddr
    }

    /// The address bits that the real CPU reserves in every entry.
    const fn address_reserved(&self) -> u64 {
        bits::ADDRESS & !((1 << self.maxphyaddr) - 1)
    }

    /// Whether not-present faults can be told from faults on Trapping entries by the CPU.
    pub fn separates_guest_faults(&self) -> bool {
        self.present != 0
    }

    /// Entries to try at every level on the real CPU: an access through each must raise a page
    /// fault whose error code has P and RSVD set.
    pub fn probes(&self) -> [u64; 3] {
        let rights = Rights::ALL;
        [
            self.trap_entry().raw(),
            self.mmio(Gfn::new(0), rights, 0).raw(),
            self.mmio(Gfn::new(0xfee00), Rights { execute: false, ..rights }, GENERATIONS - 1)
                .raw(),
        ]
    }

    pub(crate) const fn not_present_entry(&self) -> ShadowEntry {
        ShadowEntry(bits::ADDRESS)
    }

    pub(crate) const fn trap_entry(&self) -> ShadowEntry {
        ShadowEntry(self.present | TRAPPING | bits::ADDRESS)
    }

    /// Whether an MMIO entry may hold this gfn. Inverted, a gfn of the lower half of the physical
    /// address space names the upper half, where no memory is; one of the upper half would name any
    /// memory that the guest likes (L1TF). Linux draws the same line for its own inverted entries
    /// ("L1TF - L1 Terminal Fault", "Kernel mitigation": MAX_PA/2).
    pub(crate) fn can_hide(&self, gfn: Gfn) -> bool {
        gfn.raw() < 1 << (self.maxphyaddr - 13)
    }

    pub(crate) fn mmio(&self, gfn: Gfn, rights: Rights, generation: u32) -> ShadowEntry {
        let reserved = self.address_reserved();
        let inverted = !(gfn.raw() << 12) & bits::ADDRESS & !reserved;
        let generation = u64::from(generation % GENERATIONS) << GENERATION_SHIFT;
        ShadowEntry(
            self.present | TRAPPING | MMIO | rights_bits(rights) | reserved | inverted | generation,
        )
    }

    /// Whether the entry is [`State::Mapped`].
    pub(crate) const fn is_mapped(&self, entry: ShadowEntry) -> bool {
        entry.0 & (TRAPPING | bits::P) == bits::P
    }

    pub(crate) fn state(&self, entry: ShadowEntry) -> State {
        if entry.0 & TRAPPING == 0 {
            return if entry.0 & bits::P == 0 { State::NotPresent } else { State::Mapped };
        }
        if entry.0 & MMIO == 0 {
            return State::Trap;
        }
        State::Mmio {
            gfn: Gfn::new((!entry.0 & bits::ADDRESS & !self.address_reserved()) >> 12),
            rights: entry.rights(),
            generation: (entry.0 >> GENERATION_SHIFT) as u32 % GENERATIONS,
        }
    }
}

fn rights_bits(rights: Rights) -> u64 {
    let mut raw = 0;
    if rights.write {
        raw |= bits::W;
    }
    if rights.user {
        raw |= bits::U;
    }
    if !rights.execute {
        raw |= bits::NX;
    }
    raw
}

/// What a shadow entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    NotPresent,
    Trap,
    Mmio {
        /// The first frame behind the entry.
        gfn: Gfn,
        /// What the entry's own level allows; W only if the guest's D is set.
        rights: Rights,
        generation: u32,
    },
    Mapped,
}

/// An entry of a shadow page, as the hardware walks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShadowEntry(u64);

impl ShadowEntry {
    pub(crate) const fn new(raw: u64) -> ShadowEntry {
        ShadowEntry(raw)
    }

    /// A reference to the shadow page at `child`.
    pub(crate) fn link(child: Hpa, rights: Rights) -> ShadowEntry {
        ShadowEntry(bits::P | bits::A | rights_bits(rights) | child.raw())
    }

    /// A PDPTE of PAE paging: it has no rights and no accessed bit (SDM, "PAE Paging").
    pub(crate) fn pdpte(child: Hpa) -> ShadowEntry {
        ShadowEntry(bits::P | child.raw())
    }

    /// A translation. A and D are set from the start, so that the CPU never writes a shadow page.
    pub(crate) fn page(
        level: Level,
        page: Hpa,
        rights: Rights,
        global: bool,
        held: Held,
    ) -> ShadowEntry {
        let mut raw = bits::P | bits::A | bits::D | rights_bits(rights) | page.raw();
        raw |= match held {
            Held::Nothing => 0,
            Held::Write => HELD,
            Held::TrackedWrite => HELD | TRACKED,
        };
        if level != Level::L1 {
            raw |= bits::PS;
        }
        if global {
            raw |= bits::G;
        }
        ShadowEntry(raw)
    }

    pub(crate) const fn raw(self) -> u64 {
        self.0
    }

    /// The address in a Mapped entry.
    pub(crate) const fn hpa(self) -> Hpa {
        Hpa::new(self.0 & bits::ADDRESS)
    }

    pub(crate) const fn is_large(self) -> bool {
        self.0 & bits::PS != 0
    }

    pub(crate) const fn is_global(self) -> bool {
        self.0 & bits::G != 0
    }

    pub(crate) const fn rights(self) -> Rights {
        Rights {
            write: self.0 & bits::W != 0,
            user: self.0 & bits::U != 0,
            execute: self.0 & bits::NX == 0,
        }
    }

    /// The entry of a page that may be written, when its frame becomes tracked: the right to write
    /// is held back.
    pub(crate) const fn protected(self) -> ShadowEntry {
        ShadowEntry(self.0 & !bits::W | HELD | TRACKED)
    }

    /// The entry without what only says why it lacks W.
    pub(crate) const fn without_hint(self) -> ShadowEntry {
        ShadowEntry(self.0 & !(HELD | TRACKED))
    }

    /// The right to write that a Mapped entry of a page lacks.
    pub(crate) const fn held(self) -> Held {
        match (self.0 & HELD != 0, self.0 & TRACKED != 0) {
            (false, _) => Held::Nothing,
            (true, false) => Held::Write,
            (true, true) => Held::TrackedWrite,
        }
    }
}

/// Whether a page is mapped with less than the guest's own entry gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// No.
    Nothing,
    /// W: because D is clear, or the embedder has made the memory read-only.
    Write,
    /// W: because the frame is tracked, and for no other reason.
    TrackedWrite,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_rights() -> impl Iterator<Item = Rights> {
        (0..8).map(|n| Rights { write: n & 1 != 0, user: n & 2 != 0, execute: n & 4 != 0 })
    }

    #[test]
    fn states_are_told_apart_for_every_maxphyaddr() {
        for width in 32..=52 {
            for encodings in
                Encodings::reserved(width).into_iter().chain([Encodings::not_present(width)])
            {
                assert_eq!(encodings.state(encodings.not_present_entry()), State::NotPresent);
                assert_eq!(encodings.state(encodings.trap_entry()), State::Trap);
                assert!(
                    !encodings.is_mapped(encodings.not_present_entry())
                        && !encodings.is_mapped(encodings.trap_entry())
                );
                for rights in all_rights() {
                    for shift in 0..width - 12 {
                        let gfn = Gfn::new(1 << shift);
                        for generation in [0, 1, GENERATIONS - 1] {
                            let entry = encodings.mmio(gfn, rights, generation);
                            assert_eq!(
                                encodings.state(entry),
                                State::Mmio { gfn, rights, generation }
                            );
                        }
                    }
                    let mapped = ShadowEntry::page(
                        Level::L1,
                        Hpa::new(0x1000),
                        rights,
                        true,
                        Held::TrackedWrite,
                    );
                    assert_eq!(encodings.state(mapped), State::Mapped);
                    assert!(encodings.is_mapped(mapped));
                    assert_eq!(
                        encodings.state(ShadowEntry::link(Hpa::new(0x1000), rights)),
                        State::Mapped
                    );
                }
            }
        }
    }

    #[test]
    fn every_pending_entry_is_present_and_reserved() {
        for width in 32..52 {
            let encodings = Encodings::reserved(width).unwrap();
            let reserved = bits::ADDRESS >> width << width;
            for raw in encodings.probes() {
                assert_ne!(raw & bits::P, 0);
                assert_eq!(raw & reserved, reserved);
                assert_eq!(raw & bits::PS, 0);
            }
            assert_eq!(encodings.not_present_entry().raw() & bits::P, 0);
        }
        assert!(Encodings::reserved(52).is_none());
    }

    #[test]
    fn no_guest_chosen_frame_stands_in_an_entry_as_it_is() {
        let encodings = Encodings::reserved(40).unwrap();
        for gfn in [0, 1, 0xfee00, 0xfff_ffff] {
            let raw = encodings.mmio(Gfn::new(gfn), Rights::ALL, 0).raw();
            assert_eq!((raw & ((1 << 40) - 1)) >> 12, !gfn & 0xfff_ffff);
        }
    }

    #[test]
    fn what_hides_an_mmio_gfn_names_the_upper_half_of_the_address_space() {
        for width in 32..=52 {
            let encodings = Encodings::not_present(width);
            let last = (1u64 << (width - 12)) - 1;
            for gfn in [0, 1, 0xfee, last / 2, last / 2 + 1, last - 1, last] {
                let raw = encodings.mmio(Gfn::new(gfn), Rights::ALL, 0).raw();
                let named = raw & bits::ADDRESS & ((1 << width) - 1);
                assert_eq!(
                    encodings.can_hide(Gfn::new(gfn)),
                    named >> (width - 1) == 1,
                    "{width}: {gfn:#x}"
                );
            }
        }
    }
}

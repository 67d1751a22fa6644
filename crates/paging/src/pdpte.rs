//! The PDPTE registers of PAE paging.
//!
//! They are state of the vCPU: loaded, and checked, by MOV to CR3 and by the writes of CR0 and CR4
//! for which [`loads_pdptes`] is true, and never read again from memory (SDM, "PDPTE Registers").

use core::fmt;

use crate::{Features, Gfn, Gpa, Gva, Tables, bits, cr0, cr4};

/// The four PDPTE registers: always of a kind that the CPU can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pdptes([u64; 4]);

/// A present PDPTE has a reserved bit set: the instruction that loads it raises #GP(0), and changes
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedPdpte {
    /// Which of the four.
    pub index: usize,
    /// Its value.
    pub value: u64,
}

impl fmt::Display for ReservedPdpte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PDPTE {} has a reserved bit set: {:#x}", self.index, self.value)
    }
}

impl core::error::Error for ReservedPdpte {}

impl Pdptes {
    /// None is present.
    pub const NONE: Pdptes = Pdptes([0; 4]);

    /// What a load from the table that CR3 names puts into the registers.
    ///
    /// # Errors
    /// The first present entry with a reserved bit: #GP(0).
    pub fn load(
        tables: &impl Tables,
        cr3: u64,
        features: &Features,
    ) -> Result<Pdptes, ReservedPdpte> {
        // SDM, "Use of CR3 with PAE Paging": bits 5 to 31.
        let table = cr3 & 0xffff_ffe0;
        let read = |index: usize| tables.read_entry(Gpa::new(table + 8 * index as u64));
        Pdptes::checked(core::array::from_fn(read), features)
    }

    /// Registers with these values.
    ///
    /// # Errors
    /// The first present entry with a reserved bit.
    pub fn checked(values: [u64; 4], features: &Features) -> Result<Pdptes, ReservedPdpte> {
        let bad =
            |&(_, value): &(usize, u64)| value & bits::P != 0 && value & reserved(features) != 0;
        match values.into_iter().enumerate().find(bad) {
            Some((index, value)) => Err(ReservedPdpte { index, value }),
            None => Ok(Pdptes(values)),
        }
    }

    /// Their values.
    pub const fn raw(self) -> [u64; 4] {
        self.0
    }

    /// The frames of the page directories, of those that are present.
    pub const fn directories(self) -> [Option<Gfn>; 4] {
        [self.directory(0), self.directory(1), self.directory(2), self.directory(3)]
    }

    const fn directory(self, index: usize) -> Option<Gfn> {
        let value = self.0[index];
        if value & bits::P == 0 { None } else { Some(Gfn::new((value & bits::ADDRESS) >> 12)) }
    }

    /// The frame of the page directory for `gva`, if its PDPTE is present.
    #[inline]
    pub const fn directory_for(self, gva: Gva) -> Option<Gfn> {
        self.directory(gva.raw() as usize >> 30 & 3)
    }
}

/// Bits that must be clear in a present PDPTE (SDM, "Format of a PAE Page-Directory-Pointer-Table
/// Entry"): 1, 2, 5 to 8, and all from MAXPHYADDR up.
const fn reserved(features: &Features) -> u64 {
    0b1_1110_0110 | !((1 << features.maxphyaddr) - 1)
}

/// Whether a MOV to CR0 or CR4 that changes their values like this loads the PDPTE registers, if
/// PAE paging is in use after it (SDM, "PDPTE Registers"). A MOV to CR3 under PAE paging always
/// does. A write of EFER never does: LME cannot change under paging.
pub const fn loads_pdptes(from: (u64, u64), to: (u64, u64)) -> bool {
    (from.0 ^ to.0) & (cr0::CD | cr0::NW | cr0::PG) != 0
        || (from.1 ^ to.1) & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    /// Four PDPTEs at 0x12340, and nothing else.
    struct Four([u64; 4]);

    impl Tables for Four {
        fn read_entry(&self, gpa: Gpa) -> u64 {
            self.0[(gpa.raw() - 0x1_2340) as usize / 8]
        }
    }

    #[test]
    fn every_reserved_bit_of_every_width_in_every_register() {
        for width in 32..=52u8 {
            for bit in 0..64 {
                let reserved = matches!(bit, 1 | 2 | 5..=8) || bit >= u32::from(width);
                for index in 0..4 {
                    let mut values = [0x1000, 0, 0x3001, 0x4019];
                    values[index] = 1 | 1 << bit;
                    let loaded =
                        Pdptes::load(&Four(values), 0x1_2340 | 0x1f, &Features::new(width, false));
                    let expected = match reserved {
                        true => Err(ReservedPdpte { index, value: values[index] }),
                        false => Ok(Pdptes(values)),
                    };
                    assert_eq!(loaded, expected, "bit {bit}, width {width}");
                    // What is not present may say anything.
                    values[index] &= !1;
                    assert!(
                        bit == 0 || Pdptes::checked(values, &Features::new(width, false)).is_ok()
                    );
                }
            }
        }
    }

    #[test]
    fn an_address_selects_the_register() {
        let pdptes = Pdptes([0x1001, 0x2000, 0xf_0000_3001, 0]);
        let frames = [Some(Gfn::new(1)), None, Some(Gfn::new(0xf0_0003)), None];
        assert_eq!(pdptes.directories(), frames);
        for (n, frame) in frames.into_iter().enumerate() {
            assert_eq!(pdptes.directory_for(Gva::new((n as u64) << 30 | 0x3fff_ffff)), frame);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = Pdptes::checked([0, 0, 3, 0], &Features::new(40, false)).unwrap_err();
        assert_eq!(error.to_string(), "PDPTE 2 has a reserved bit set: 0x3");
    }

    #[test]
    fn writes_that_load_the_registers() {
        for bit in 0..32 {
            let changed = loads_pdptes((0, 0), (1 << bit, 0));
            assert_eq!(changed, matches!(bit, 29..=31), "CR0 bit {bit}");
            let changed = loads_pdptes((0, 1 << bit), (0, 0));
            assert_eq!(changed, matches!(bit, 4 | 5 | 7 | 20), "CR4 bit {bit}");
        }
    }
}

//! The guest's control registers, and what the instructions that change them invalidate.

use umbra_paging::{Gfn, Gva};

use crate::hardware::{Caches, Control, PagingMode};
use crate::memory::PhysAddr;

/// What the CPU that the guest sees can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// MAXPHYADDR.
    pub maxphyaddr: u8,
    /// Whether it has 1 GiB pages.
    pub gib_pages: bool,
}

/// The control state of one virtual CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// CR0.PG. Paging is 4-level when on.
    pub paging: bool,
    /// CR0.WP.
    pub wp: bool,
    /// The frame in CR3.
    pub root: Gfn,
    /// The PCID in CR3: 0 while `pcide` is clear.
    pub pcid: u16,
    /// CR4.PCIDE.
    pub pcide: bool,
    /// CR4.PGE.
    pub pge: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// EFER.NXE.
    pub nxe: bool,
}

/// A guest instruction that changes paging or invalidates translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privileged {
    /// INVLPG.
    Invlpg(Gva),
    /// MOV to CR3.
    LoadCr3 {
        /// The new root frame.
        root: Gfn,
        /// The new PCID, ignored while CR4.PCIDE is clear.
        pcid: u16,
        /// Bit 63, ignored while CR4.PCIDE is clear.
        no_flush: bool,
    },
    /// INVPCID of all contexts, globals included (type 2).
    FlushAll,
    /// INVPCID of one address (type 0). Its PCID counts as 0 while CR4.PCIDE is clear, or it would
    /// be #GP.
    InvpcidAddress {
        /// The PCID in the descriptor.
        pcid: u16,
        /// The linear address in the descriptor.
        gva: Gva,
    },
    /// INVPCID of one context, global pages spared (type 1). The PCID counts as in type 0.
    InvpcidContext(u16),
    /// INVPCID of all contexts, global pages spared (type 3).
    InvpcidAllButGlobals,
    /// CR0.PG. Clearing it clears CR4.PCIDE before, or it would be #GP.
    Paging(bool),
    /// CR0.WP.
    Wp(bool),
    /// CR4.PGE.
    Pge(bool),
    /// CR4.PCIDE. Setting it is left out where it would be #GP: while the PCID in CR3 is not 0 or
    /// paging is off.
    Pcide(bool),
    /// CR4.SMEP.
    Smep(bool),
    /// CR4.SMAP.
    Smap(bool),
    /// EFER.NXE.
    Nxe(bool),
}

/// What an instruction must at least invalidate (SDM, "Operations that Invalidate TLBs and
/// Paging-Structure Caches").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// Nothing.
    Nothing,
    /// What INVLPG invalidates.
    Page(Gva),
    /// Everything of the PCID that is current after the instruction, but global pages.
    Context,
    /// What translates one linear address under this PCID, but global pages.
    Address(u16, Gva),
    /// Everything of this PCID, but global pages.
    Pcid(u16),
    /// Everything but global pages.
    AllButGlobals,
    /// Everything.
    All,
}

impl Invalidation {
    /// Invalidates that much, and no more, in a CPU's caches.
    pub fn apply(self, caches: &mut Caches, pcid: u16) {
        match self {
            Invalidation::Nothing => (),
            Invalidation::Page(gva) => caches.invlpg(pcid, gva),
            Invalidation::Context => caches.drop_pcid(pcid),
            Invalidation::Address(pcid, gva) => caches.drop_address(pcid, gva),
            Invalidation::Pcid(pcid) => caches.drop_pcid(pcid),
            Invalidation::AllButGlobals => caches.drop_all_but_globals(),
            Invalidation::All => caches.clear(),
        }
    }
}

impl Registers {
    /// Long mode with everything on but PCIDE.
    pub fn long_mode(root: Gfn) -> Registers {
        Registers {
            paging: true,
            wp: true,
            root,
            pcid: 0,
            pcide: false,
            pge: true,
            smep: true,
            smap: true,
            nxe: true,
        }
    }

    /// The state of a bare paging unit with these registers.
    pub fn control(&self, cpu: &Cpu) -> Control {
        let root = PhysAddr::new(self.root.base().raw());
        Control {
            mode: if self.paging { PagingMode::Long4 { root } } else { PagingMode::Off },
            pcid: self.pcid,
            wp: self.wp,
            smep: self.smep,
            smap: self.smap,
            pge: self.pge,
            nxe: self.nxe,
            maxphyaddr: cpu.maxphyaddr,
            gib_pages: cpu.gib_pages,
        }
    }

    /// Executes an instruction.
    pub fn execute(&mut self, instruction: Privileged) -> Invalidation {
        let before = *self;
        match instruction {
            Privileged::Invlpg(gva) => return Invalidation::Page(gva),
            Privileged::FlushAll => return Invalidation::All,
            Privileged::InvpcidAddress { pcid, gva } => {
                return Invalidation::Address(if self.pcide { pcid } else { 0 }, gva);
            }
            Privileged::InvpcidContext(pcid) => {
                return Invalidation::Pcid(if self.pcide { pcid } else { 0 });
            }
            Privileged::InvpcidAllButGlobals => return Invalidation::AllButGlobals,
            Privileged::LoadCr3 { root, pcid, no_flush } => {
                self.root = root;
                if self.pcide {
                    self.pcid = pcid;
                    if no_flush {
                        return Invalidation::Nothing;
                    }
                }
                return Invalidation::Context;
            }
            Privileged::Paging(on) => {
                self.paging = on;
                if !on {
                    (self.pcide, self.pcid) = (false, 0);
                }
            }
            Privileged::Pcide(on) => {
                self.pcide = on && self.paging && (self.pcide || self.pcid == 0);
                if !self.pcide {
                    self.pcid = 0;
                }
            }
            Privileged::Wp(on) => self.wp = on,
            Privileged::Pge(on) => self.pge = on,
            Privileged::Smep(on) => self.smep = on,
            Privileged::Smap(on) => self.smap = on,
            Privileged::Nxe(on) => self.nxe = on,
        }
        let all = (before.paging && !self.paging)
            || before.pge != self.pge
            || (before.pcide && !self.pcide);
        if all {
            Invalidation::All
        } else if self.smep && !before.smep {
            Invalidation::Context
        } else {
            Invalidation::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalidations_of_each_instruction() {
        let base = Registers::long_mode(Gfn::new(1));
        let of = |mut from: Registers, instruction| from.execute(instruction);
        assert_eq!(of(base, Privileged::Pge(false)), Invalidation::All);
        assert_eq!(of(base, Privileged::Pge(true)), Invalidation::Nothing);
        assert_eq!(of(base, Privileged::Paging(false)), Invalidation::All);
        assert_eq!(of(base, Privileged::Smep(false)), Invalidation::Nothing);
        assert_eq!(
            of(Registers { smep: false, ..base }, Privileged::Smep(true)),
            Invalidation::Context
        );
        assert_eq!(of(base, Privileged::Smap(false)), Invalidation::Nothing);
        assert_eq!(of(base, Privileged::Wp(false)), Invalidation::Nothing);
        assert_eq!(of(base, Privileged::Pcide(true)), Invalidation::Nothing);
        let tagged = Registers { pcide: true, pcid: 2, ..base };
        assert_eq!(of(tagged, Privileged::Pcide(false)), Invalidation::All);
        let load = |no_flush| Privileged::LoadCr3 { root: Gfn::new(2), pcid: 1, no_flush };
        assert_eq!(of(tagged, load(true)), Invalidation::Nothing);
        assert_eq!(of(tagged, load(false)), Invalidation::Context);
        assert_eq!(of(base, load(true)), Invalidation::Context);
        let address = Privileged::InvpcidAddress { pcid: 2, gva: Gva::new(0x1000) };
        assert_eq!(of(tagged, address), Invalidation::Address(2, Gva::new(0x1000)));
        assert_eq!(of(base, address), Invalidation::Address(0, Gva::new(0x1000)));
        assert_eq!(of(tagged, Privileged::InvpcidContext(1)), Invalidation::Pcid(1));
        assert_eq!(of(base, Privileged::InvpcidContext(1)), Invalidation::Pcid(0));
        assert_eq!(of(base, Privileged::InvpcidAllButGlobals), Invalidation::AllButGlobals);
    }
}

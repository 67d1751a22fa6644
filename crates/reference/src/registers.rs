//! The guest's control registers, and what the instructions that change them invalidate.

use umbra_paging::{Features, Format, Gfn, Gva, Mode, Paging, Pdptes};

use crate::hardware::{Caches, Control, PagingMode};
use crate::memory::{PhysAddr, PhysicalMemory};
use crate::universe::narrow;

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
    /// CR0.PG.
    pub paging: bool,
    /// EFER.LME: paging is 4-level when it is on.
    pub long: bool,
    /// CR4.PAE: set with `long`. Without that, it tells PAE paging from 32-bit paging.
    pub pae: bool,
    /// CR4.PSE.
    pub pse: bool,
    /// The PDPTE registers. They count while paging is PAE paging.
    pub pdptes: [u64; 4],
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

/// Bits that must be clear in a present PDPTE (SDM, "Format of a PAE Page-Directory-Pointer-Table
/// Entry").
pub(crate) fn pdpte_reserved(maxphyaddr: u8) -> u64 {
    0b1_1110_0110 | u64::MAX << maxphyaddr
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
    /// CR4.PAE. Left out with EFER.LME, where clearing it would be #GP.
    Pae(bool),
    /// CR4.PSE.
    Pse(bool),
    /// What a guest does to get to another format: CR0.PG is cleared, EFER.LME, CR4.PAE, CR4.PSE
    /// and CR3 are set, and CR0.PG is set again.
    Enter {
        /// The format.
        format: Format,
        /// The frame of the root.
        root: Gfn,
    },
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
            long: true,
            pae: true,
            pse: false,
            pdptes: [0; 4],
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
        let mode = match self.format() {
            None => PagingMode::Off,
            Some(Format::Long4) => PagingMode::Long4 { root },
            Some(Format::Pae) => PagingMode::Pae { pdptes: self.pdptes },
            Some(Format::Legacy32 { pse }) => PagingMode::Legacy32 { root, pse },
        };
        Control {
            mode,
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

    /// The format of the tables; `None` while paging is off.
    pub fn format(&self) -> Option<Format> {
        self.paging.then_some(match (self.long, self.pae) {
            (true, _) => Format::Long4,
            (false, true) => Format::Pae,
            (false, false) => Format::Legacy32 { pse: self.pse },
        })
    }

    /// What `umbra_mmu` is to be told of these registers.
    ///
    /// # Panics
    /// If the PDPTE registers hold what this CPU's cannot.
    pub fn for_mmu(&self, cpu: &Cpu) -> Paging {
        let &Registers { root, wp, smep, smap, pge, nxe, .. } = self;
        let mode = match self.format() {
            None => Mode::Off,
            Some(Format::Long4) => Mode::Long4,
            Some(Format::Legacy32 { pse }) => Mode::Legacy32 { pse },
            Some(Format::Pae) => {
                let features = Features::new(cpu.maxphyaddr, cpu.gib_pages);
                let pdptes = Pdptes::checked(self.pdptes, &features);
                Mode::Pae { pdptes: pdptes.expect("the load was checked") }
            }
        };
        Paging { mode, root, wp, smep, smap, pge, nxe }
    }

    /// The linear address that a program means by `gva`: where paging has addresses of 32 bits,
    /// that which [stands for it](narrow).
    pub fn linear(&self, gva: Gva) -> Gva {
        if self.paging && !self.long { narrow(gva) } else { gva }
    }

    /// Executes an instruction, and loads the PDPTE registers from memory where it does so (SDM,
    /// "PDPTE Registers"). `None` if one of them has a reserved bit: #GP, and nothing has changed.
    pub fn execute_on(
        &mut self,
        instruction: Privileged,
        memory: &impl PhysicalMemory,
        cpu: &Cpu,
    ) -> Option<Invalidation> {
        let mut after = *self;
        let invalidation = after.execute(instruction);
        let bits = |registers: &Registers| {
            let Registers { paging, pae, pge, pse, smep, .. } = *registers;
            [paging, pae, pge, pse, smep]
        };
        let loads = matches!(instruction, Privileged::LoadCr3 { .. } | Privileged::Enter { .. })
            || bits(self) != bits(&after);
        if loads && after.format() == Some(Format::Pae) {
            let table = after.root.base().raw();
            after.pdptes = [0, 8, 16, 24].map(|at| memory.read(PhysAddr::new(table + at)));
            if after
                .pdptes
                .iter()
                .any(|&pdpte| pdpte & 1 != 0 && pdpte & pdpte_reserved(cpu.maxphyaddr) != 0)
            {
                return None;
            }
        }
        *self = after;
        Some(invalidation)
    }

    /// CR3 has 32 bits outside IA-32e mode.
    fn cut_root(&mut self) {
        if !self.long {
            self.root = Gfn::new(self.root.raw() & 0xf_ffff);
        }
    }

    /// Executes an instruction that loads no PDPTE registers.
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
                self.cut_root();
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
                let possible = self.paging && self.long;
                self.pcide = on && possible && (self.pcide || self.pcid == 0);
                if !self.pcide {
                    self.pcid = 0;
                }
            }
            Privileged::Wp(on) => self.wp = on,
            Privileged::Pge(on) => self.pge = on,
            Privileged::Smep(on) => self.smep = on,
            Privileged::Smap(on) => self.smap = on,
            Privileged::Nxe(on) => self.nxe = on,
            Privileged::Pae(on) => self.pae = on || self.long,
            Privileged::Pse(on) => self.pse = on,
            Privileged::Enter { format, root } => {
                (self.paging, self.root) = (true, root);
                (self.pcide, self.pcid) = (false, 0);
                self.long = format == Format::Long4;
                self.pae = !matches!(format, Format::Legacy32 { .. });
                self.pse = format == Format::Legacy32 { pse: true };
                self.cut_root();
                return Invalidation::All;
            }
        }
        // SDM, "Invalidating the Translation Lookaside Buffers (TLBs)", has PSE and PAE, too.
        let all = (before.paging && !self.paging)
            || before.pge != self.pge
            || before.paging && before.format() != self.format()
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
    use crate::memory::Ram;

    #[test]
    fn registers_of_pdptes_are_loaded_and_checked_where_the_manual_says() {
        let cpu = Cpu { maxphyaddr: 36, gib_pages: false };
        let mut ram = Ram::new(2);
        for index in 0..4 {
            ram.write(PhysAddr::new(0x1000 + 8 * index), (0x5000 * index) | 1);
        }
        let root = Gfn::new(1);
        let mut guest = Registers::long_mode(root);
        let before = guest;
        let enter = Privileged::Enter { format: Format::Pae, root };
        assert_eq!(guest.execute_on(enter, &ram, &cpu), Some(Invalidation::All));
        assert_eq!(guest.pdptes, [1, 0x5001, 0xa001, 0xf001]);
        assert_eq!(guest.control(&cpu).mode, PagingMode::Pae { pdptes: guest.pdptes });
        // A bit that is reserved: whatever loads the registers faults, and changes nothing.
        ram.write(PhysAddr::new(0x1010), 0xa003);
        let load = Privileged::LoadCr3 { root, pcid: 0, no_flush: false };
        for refused in
            [load, enter, Privileged::Pge(false), Privileged::Pse(true), Privileged::Smep(false)]
        {
            let mut after = guest;
            assert_eq!(
                (after.execute_on(refused, &ram, &cpu), after),
                (None, guest),
                "{refused:?}"
            );
        }
        for taken in [Privileged::Smap(false), Privileged::Nxe(false), Privileged::Wp(false), enter]
        {
            let mut after = if taken == enter { before } else { guest };
            let is_load = taken == enter;
            assert_eq!(after.execute_on(taken, &ram, &cpu).is_none(), is_load, "{taken:?}");
        }
        // Without P nothing is reserved.
        ram.write(PhysAddr::new(0x1010), 0xa002);
        assert!(guest.execute_on(load, &ram, &cpu).is_some());
        assert_eq!(guest.pdptes[2], 0xa002);
        // From 32-bit paging, by CR4.PAE.
        let mut legacy = guest;
        legacy.execute(Privileged::Enter { format: Format::Legacy32 { pse: true }, root });
        legacy.pdptes = [0; 4];
        assert_eq!(legacy.execute_on(Privileged::Pae(true), &ram, &cpu), Some(Invalidation::All));
        assert_eq!(legacy.pdptes, guest.pdptes);
    }

    #[test]
    fn modes_change_as_the_manual_allows() {
        let root = Gfn::new(0x10_0001);
        let mut guest = Registers { pcide: true, pcid: 2, ..Registers::long_mode(root) };
        assert_eq!(
            guest.execute(Privileged::Pae(false)),
            Invalidation::Nothing,
            "#GP in IA-32e mode"
        );
        assert_eq!(guest.format(), Some(Format::Long4));
        let legacy = Privileged::Enter { format: Format::Legacy32 { pse: false }, root };
        assert_eq!(guest.execute(legacy), Invalidation::All);
        assert_eq!((guest.root, guest.pcide, guest.pcid), (Gfn::new(1), false, 0));
        assert_eq!(guest.execute(Privileged::Pse(true)), Invalidation::All);
        assert_eq!(guest.format(), Some(Format::Legacy32 { pse: true }));
        guest.execute(Privileged::Pcide(true));
        assert!(!guest.pcide, "#GP outside IA-32e mode");
    }

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

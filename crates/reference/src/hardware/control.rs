//! The register state of a paging unit.

use umbra_paging::{Access, AccessKind, Gva, Pfec};

use crate::memory::PhysAddr;

/// What the paging unit walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagingMode {
    /// CR0.PG = 0: linear addresses, of 32 bits, are physical ones.
    Off,
    /// 4-level paging from this PML4 table.
    Long4 {
        /// The table's address, from CR3.
        root: PhysAddr,
    },
    /// 32-bit paging from this page directory.
    Legacy32 {
        /// The directory's address, from CR3.
        root: PhysAddr,
        /// CR4.PSE.
        pse: bool,
    },
    /// PAE paging. Its PDPTEs are registers, loaded by MOV CR3 and by VM entries (SDM, "PDPTE
    /// Registers").
    Pae {
        /// The four registers.
        pdptes: [u64; 4],
    },
}

/// Everything that a paging unit looks at beside memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// The paging mode and where its structures are.
    pub mode: PagingMode,
    /// The current PCID, 0 while CR4.PCIDE is clear.
    pub pcid: u16,
    /// CR0.WP.
    pub wp: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// CR4.PGE.
    pub pge: bool,
    /// EFER.NXE.
    pub nxe: bool,
    /// MAXPHYADDR.
    pub maxphyaddr: u8,
    /// Whether the CPU has 1 GiB pages.
    pub gib_pages: bool,
}

impl Control {
    /// The linear address that a guest means by `gva`: of 32 bits outside IA-32e mode.
    pub fn linear(&self, gva: Gva) -> Gva {
        match self.mode {
            PagingMode::Long4 { .. } => gva,
            PagingMode::Off | PagingMode::Legacy32 { .. } | PagingMode::Pae { .. } => {
                Gva::new(gva.raw() & 0xffff_ffff)
            }
        }
    }

    /// The part of a page-fault error code that describes the access (SDM, "Page-Fault
    /// Exceptions").
    pub fn access_code(&self, access: Access) -> Pfec {
        let mut code = Pfec::empty();
        if access.kind == AccessKind::Write {
            code |= Pfec::WRITE;
        }
        if access.user {
            code |= Pfec::USER;
        }
        // NXE counts with CR4.PAE only: every mode but 32-bit paging has it set.
        let pae = !matches!(self.mode, PagingMode::Legacy32 { .. });
        if access.kind == AccessKind::Fetch && (self.nxe && pae || self.smep) {
            code |= Pfec::FETCH;
        }
        code
    }
}

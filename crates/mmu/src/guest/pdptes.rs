//! The PDPTE registers of a vCPU that runs on PAE tables.
//!
//! A PDPTE can be Mapped or not present, never Trapping: the CPU loads all four with CR3 and
//! refuses reserved bits (SDM, "PDPTE Registers"). So each vCPU has one page for them, which is
//! written when its guest loads them, and the pages behind them are pinned as roots are. The
//! guest's PDPTEs are those of its last load, whatever its memory says now. While a vCPU runs on a
//! root that it may load by itself (`lifecycle/pae_roots.rs`), its page for the registers is empty.

use crate::ShadowFrame;
use crate::format::ShadowKey;

#[derive(Default)]
pub(super) struct PdpteRegisters {
    /// The shadow page that holds them.
    page: Option<ShadowFrame>,
    directories: [Option<ShadowKey>; 4],
}

impl PdpteRegisters {
    pub(super) fn page(&self) -> Option<ShadowFrame> {
        self.page
    }

    pub(super) fn page_mut(&mut self) -> &mut Option<ShadowFrame> {
        &mut self.page
    }

    /// What this one references: nothing, if it is not present or none of the four.
    pub(super) fn directory(&self, index: usize) -> Option<ShadowKey> {
        *self.directories.get(index)?
    }

    pub(super) fn load(&mut self, directories: [Option<ShadowKey>; 4]) {
        self.directories = directories;
    }
}

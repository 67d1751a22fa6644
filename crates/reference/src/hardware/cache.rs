//! TLB and paging-structure caches, and what invalidates their entries (SDM, "Caching Translation
//! Information"). They do as little as each operation must do, never more.

use umbra_paging::Gva;

use super::{Page, Start, Visit};

/// A TLB entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The PCID it was made under.
    pub pcid: u16,
    /// Whether any PCID may use it: G was set, and CR4.PGE too.
    pub global: bool,
    /// The linear address divided by the size of the page.
    pub number: u64,
    /// What is there.
    pub page: Page,
}

/// An entry of a paging-structure cache: PDE, PDPTE or PML4E.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// The PCID it was made under.
    pub pcid: u16,
    /// The linear address divided by what the cached entry covers.
    pub number: u64,
    /// log2 of that.
    pub shift: u32,
    /// Where a walk goes on; the cached entry's own level is one higher.
    pub next: Start,
}

impl Translation {
    fn covers(&self, gva: Gva) -> bool {
        gva.raw() >> self.page.shift() == self.number
    }

    fn serves(&self, pcid: u16, gva: Gva) -> bool {
        (self.global || self.pcid == pcid) && self.covers(gva)
    }
}

impl Structure {
    fn serves(&self, pcid: u16, gva: Gva) -> bool {
        self.pcid == pcid && gva.raw() >> self.shift == self.number
    }
}

/// Everything that is cached. Several entries for one address may stand side by side, as the SDM
/// warns ("Details of TLB Use").
#[derive(Clone, Debug, Default)]
pub struct Caches {
    translations: Vec<Translation>,
    structures: Vec<Structure>,
}

impl Caches {
    /// The TLB.
    pub fn translations(&self) -> &[Translation] {
        &self.translations
    }

    /// The paging-structure caches.
    pub fn structures(&self) -> &[Structure] {
        &self.structures
    }

    /// The TLB entries that may translate `gva`.
    pub fn translations_for(&self, pcid: u16, gva: Gva) -> impl Iterator<Item = &Translation> {
        self.translations.iter().filter(move |entry| entry.serves(pcid, gva))
    }

    /// The paging-structure-cache entries that a walk of `gva` may begin at.
    pub fn structures_for(&self, pcid: u16, gva: Gva) -> impl Iterator<Item = &Structure> {
        self.structures.iter().filter(move |entry| entry.serves(pcid, gva))
    }

    pub(crate) fn insert_translation(&mut self, pcid: u16, global: bool, gva: Gva, page: Page) {
        let number = gva.raw() >> page.shift();
        let entry = Translation { pcid, global, number, page };
        if !self.translations.contains(&entry) {
            self.translations.push(entry);
        }
    }

    pub(crate) fn insert_structure(&mut self, pcid: u16, gva: Gva, visit: &Visit) {
        let shift = visit.width.shift(visit.level);
        let entry = Structure { pcid, number: gva.raw() >> shift, shift, next: visit.next() };
        if !self.structures.contains(&entry) {
            self.structures.push(entry);
        }
    }

    /// Drops entries that `keep` does not want: a CPU may do so at any time.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut() -> bool) {
        self.translations.retain(|_| keep());
        self.structures.retain(|_| keep());
    }

    /// INVLPG: the page's translations of this PCID and global ones, and every structure of this
    /// PCID.
    pub fn invlpg(&mut self, pcid: u16, gva: Gva) {
        self.translations.retain(|entry| !entry.serves(pcid, gva));
        self.structures.retain(|entry| entry.pcid != pcid);
    }

    /// A page fault: the page's translations and the structures for this address, so that a fault
    /// that came from them does not recur.
    pub fn page_fault(&mut self, pcid: u16, gva: Gva) {
        self.translations.retain(|entry| !entry.serves(pcid, gva));
        self.structures.retain(|entry| !entry.serves(pcid, gva));
    }

    /// MOV to CR3 that flushes, and the setting of CR4.SMEP: everything of this PCID but global
    /// pages.
    pub fn drop_pcid(&mut self, pcid: u16) {
        self.translations.retain(|entry| entry.global || entry.pcid != pcid);
        self.structures.retain(|entry| entry.pcid != pcid);
    }

    /// INVPCID of one address: what translates it under this PCID, but global translations.
    pub fn drop_address(&mut self, pcid: u16, gva: Gva) {
        self.translations.retain(|entry| entry.global || !entry.serves(pcid, gva));
        self.structures.retain(|entry| !entry.serves(pcid, gva));
    }

    /// INVPCID of all contexts that spares global translations.
    pub fn drop_all_but_globals(&mut self) {
        self.translations.retain(|entry| entry.global);
        self.structures.clear();
    }

    /// Everything: CR4.PGE changes, CR4.PCIDE or CR0.PG is cleared, INVPCID of all contexts,
    /// INVVPID.
    pub fn clear(&mut self) {
        self.translations.clear();
        self.structures.clear();
    }
}

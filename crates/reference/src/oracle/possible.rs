//! What one CPU may have cached.

use std::collections::BTreeMap;

use crate::hardware::{A, Control, Page, PagingMode, Start, root, step};
use crate::memory::{PhysAddr, PhysicalMemory};
use crate::universe::{Tree, Universe};

/// Possible cache contents under one PCID, per node of the tree that paging divides. Nothing is
/// cached when that becomes another: a change of the format drops everything.
#[derive(Clone, Debug)]
struct Context {
    /// The root under which the PCID was last in use.
    root: PagingMode,
    /// By the prefix of the cached entry: where a walk may go on.
    structures: Vec<Vec<Start>>,
    translations: Vec<Vec<Page>>,
}

#[derive(Clone, Debug)]
pub(super) struct Possible {
    nodes: usize,
    contexts: BTreeMap<u16, Context>,
    /// Global translations, which every PCID may use.
    globals: Vec<Vec<Page>>,
}

impl Possible {
    pub(super) fn new(universe: &Universe) -> Possible {
        let nodes = universe.most_nodes();
        Possible { nodes, contexts: BTreeMap::new(), globals: vec![Vec::new(); nodes] }
    }

    /// Adds what the entries in memory allow to be cached now: at each prefix, below the root or
    /// any possible structure, an entry that is present, has no reserved bit and has its accessed
    /// flag set (SDM, "Caches for Paging Structures" and "TLBs").
    pub(super) fn learn(&mut self, tree: &Tree, memory: &impl PhysicalMemory, control: &Control) {
        let nodes = self.nodes;
        let context = self.contexts.entry(control.pcid).or_insert_with(|| Context {
            root: control.mode,
            structures: vec![Vec::new(); nodes],
            translations: vec![Vec::new(); nodes],
        });
        if context.root != control.mode {
            context.root = control.mode;
            fracture(&mut context.translations, tree);
            fracture(&mut self.globals, tree);
        }
        for (at, node) in tree.nodes().iter().enumerate() {
            let root = root(control, node.gva);
            // Parents stand before children, so the split leaves the parent on the left.
            let (above, own) = context.structures.split_at_mut(at);
            let starts = node.parent.map_or(root.as_slice(), |parent| &above[parent]);
            for &start in starts {
                let Ok(visit) = step(memory, control, node.gva, start) else { continue };
                if visit.entry & A == 0 {
                    continue;
                }
                match visit.page() {
                    Some(page) if page.global && control.pge => add(&mut self.globals[at], page),
                    Some(page) => add(&mut context.translations[at], page),
                    None => add(&mut own[0], visit.next()),
                }
            }
        }
    }

    /// The translations that may serve an address with this path.
    pub(super) fn translations(&self, pcid: u16, path: &[usize]) -> impl Iterator<Item = &Page> {
        let own = self.contexts.get(&pcid).map(|context| &context.translations);
        let lists = own.into_iter().chain([&self.globals]);
        lists.flat_map(|list| path.iter().flat_map(|&node| &list[node]))
    }

    /// The places where a walk of an address with this path may begin, the root aside.
    pub(super) fn structures(&self, pcid: u16, path: &[usize]) -> impl Iterator<Item = &Start> {
        let own = self.contexts.get(&pcid).into_iter();
        own.flat_map(|context| path.iter().flat_map(|&node| &context.structures[node]))
    }

    /// All places where a walk may begin under this PCID, the root aside.
    pub(super) fn all_structures(&self, pcid: u16) -> impl Iterator<Item = Start> + '_ {
        let own = self.contexts.get(&pcid).into_iter();
        own.flat_map(|context| context.structures.iter().flatten().copied())
    }

    pub(super) fn invlpg(&mut self, pcid: u16, path: Option<&[usize]>) {
        self.drop_translations(pcid, path);
        if let Some(context) = self.contexts.get_mut(&pcid) {
            context.structures.iter_mut().for_each(Vec::clear);
        }
    }

    pub(super) fn page_fault(&mut self, pcid: u16, path: &[usize]) {
        self.drop_translations(pcid, Some(path));
        if let Some(context) = self.contexts.get_mut(&pcid) {
            path.iter().for_each(|&node| context.structures[node].clear());
        }
    }

    fn drop_translations(&mut self, pcid: u16, path: Option<&[usize]>) {
        for &node in path.into_iter().flatten() {
            self.globals[node].clear();
            if let Some(context) = self.contexts.get_mut(&pcid) {
                context.translations[node].clear();
            }
        }
    }

    pub(super) fn drop_address(&mut self, pcid: u16, path: Option<&[usize]>) {
        if let Some(context) = self.contexts.get_mut(&pcid) {
            for &node in path.into_iter().flatten() {
                context.translations[node].clear();
                context.structures[node].clear();
            }
        }
    }

    pub(super) fn drop_all_but_globals(&mut self) {
        self.contexts.clear();
    }

    pub(super) fn drop_pcid(&mut self, pcid: u16) {
        self.contexts.remove(&pcid);
    }

    pub(super) fn clear(&mut self) {
        self.contexts.clear();
        self.globals.iter_mut().for_each(Vec::clear);
    }

    pub(super) fn aliased_at_two_levels(&self) -> bool {
        let mut seen: Vec<(PhysAddr, u8)> = Vec::new();
        for context in self.contexts.values() {
            for start in context.structures.iter().flatten() {
                if seen.iter().any(|&(table, level)| table == start.table && level != start.level) {
                    return true;
                }
                add(&mut seen, (start.table, start.level));
            }
        }
        false
    }
}

/// A CPU may cache a large page as several small ones, and drops all of them by one INVLPG or page
/// fault only as far as the paging structures specify a large page ("Details of TLB Use"). Not so
/// once the PCID has got another root without a flush: from then on the pieces may go one by one.
///
/// A change of the entries below the same root is not treated so: guests count on one INVLPG there.
fn fracture(translations: &mut [Vec<Page>], tree: &Tree) {
    for path in tree.paths() {
        let Some((&small, above)) = path.split_last() else { continue };
        for &large in above {
            for page in translations[large].clone() {
                add(&mut translations[small], page);
            }
        }
    }
    for (list, node) in translations.iter_mut().zip(tree.nodes()) {
        if node.level > 1 {
            list.clear();
        }
    }
}

fn add<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

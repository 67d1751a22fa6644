//! The auditor: checks the invariants over what is reachable, and the bookkeeping behind them.

use alloc::string::String;
use core::fmt;

use umbra_paging::{ENTRIES, Gfn, Hpa, Level, Mode, Rights};

use crate::derive::Target;
use crate::derive::View;
use crate::format::State;
use crate::format::{Role, ShadowKey, Wp};
use crate::lifecycle::Shadow;
use crate::roots::{Loadable, Sampled};
use crate::tables::GROUP;
use crate::tables::{List, Slot};
use crate::{Backing, Env, ShadowFrame, VcpuId};

/// An invariant does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// Which one.
    pub invariant: Invariant,
    /// Where, and what was found.
    pub detail: String,
}

/// The invariants that can be seen in the tables. (I3 and I6 are about exits: the differential test
/// has them.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Invariant {
    /// I1: NotPresent only where the guest's entry is not present, in a tracked frame.
    NeverStale,
    /// I2: nothing is mapped that is not the guest's, or with more rights than the guest gave.
    NeverWider,
    /// I4: while protection faults of user mode go around the hypervisor, no entry gives user mode
    /// less than the guest.
    NeverNarrower,
    /// I5 and the bookkeeping: references lead to live pages, every Mapped entry is in its list.
    Lifetime,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.invariant {
            Invariant::NeverStale => "I1 (never stale)",
            Invariant::NeverWider => "I2 (never wider)",
            Invariant::NeverNarrower => "I4 (never narrower)",
            Invariant::Lifetime => "I5 (lifetime)",
        };
        write!(f, "{name}: {}", self.detail)
    }
}

impl core::error::Error for Violation {}

/// The shadow, and what the embedder says of it.
pub(crate) struct Auditor<'a, E> {
    shadow: &'a Shadow,
    env: &'a E,
}

impl<E> Clone for Auditor<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Auditor<'_, E> {}

impl<'a, E: Env> Auditor<'a, E> {
    pub(crate) fn new(shadow: &'a Shadow, env: &'a E) -> Auditor<'a, E> {
        Auditor { shadow, env }
    }

    fn view(self) -> View<'a, E> {
        self.shadow.view(self.env)
    }

    /// Checks every entry of every page, and all that is known beside.
    pub(crate) fn everything(self) -> Result<(), Violation> {
        for frame in self.shadow.tables().pool().live_frames() {
            for index in 0..ENTRIES {
                self.audit_entry(Slot::new(frame, index))?;
            }
            self.audit_page(frame)?;
        }
        self.quarantine()?;
        if let Some(detail) = self.shadow.guest().audit(self.env, self.shadow.tables().pool()) {
            return Err(violation(Invariant::Lifetime, detail));
        }
        self.shadow.roots().vcpus().try_for_each(|vcpu| self.audit_roots(vcpu))
    }

    /// Checks an entry that has changed.
    pub(crate) fn changed(self, slot: Slot) -> Result<(), Violation> {
        self.audit_entry(slot)?;
        self.audit_page(slot.frame())
    }

    fn audit_roots(self, vcpu: VcpuId) -> Result<(), Violation> {
        let (tables, roots) = (self.shadow.tables(), self.shadow.roots());
        let paging = roots.paging(vcpu);
        let expected = ShadowKey::root(paging, vcpu);
        // Under PAE paging the root may be what the vCPU can load again by itself.
        let own = ShadowKey::pae_root(paging, paging.root);
        let live = tables.pool().frame_of(roots.current(vcpu));
        let live = live.filter(|&root| tables.pool().is_pinned(root));
        let key = live.map(|root| tables.key(root));
        let pae = matches!(paging.mode, Mode::Pae { .. }) && key == Some(own);
        if key != Some(expected) && !pae {
            let detail =
                alloc::format!("the root {expected:?} of a vCPU is not what it has loaded");
            return Err(violation(Invariant::Lifetime, detail));
        }
        if let Some(index) = (0..4).find(|&index| !self.is_right_pdpte(vcpu, index)) {
            let detail = alloc::format!("PDPTE {index} of a vCPU is not what it has loaded");
            return Err(violation(Invariant::Lifetime, detail));
        }
        // What CR3 names is one thing.
        let loads_current = matches!(paging.mode, Mode::Pae { .. })
            && roots.find_loadable(tables, vcpu, paging.root).is_some();
        if loads_current && !pae {
            let detail = alloc::format!("{own:?} may be loaded, and other PDPTEs are");
            return Err(violation(Invariant::Lifetime, detail));
        }
        let unseen = !self.shadow.config().cr3_loads_exit && !roots.loadable(vcpu).is_empty();
        if self.shadow.guest().has_unsync() && unseen {
            let detail = String::from(
                "a vCPU may load a root, and so flush, unseen while a table is unsync",
            );
            return Err(violation(Invariant::NeverStale, detail));
        }
        match roots.loadable(vcpu).iter().find_map(|root| self.audit_loadable(vcpu, root)) {
            Some(detail) => Err(violation(Invariant::Lifetime, detail)),
            None => Ok(()),
        }
    }

    /// Whether a PDPTE of a vCPU leads to the page that it has loaded, which is pinned; or nowhere,
    /// if it has loaded none.
    fn is_right_pdpte(self, vcpu: VcpuId, index: usize) -> bool {
        let (tables, roots) = (self.shadow.tables(), self.shadow.roots());
        let Some(root) = tables
            .pool()
            .frame_of(roots.current(vcpu))
            .filter(|&root| tables.key(root).role.is_pdptes())
        else {
            return roots.directories(vcpu)[index].is_none();
        };
        let slot = Slot::new(root, index);
        let expected = ShadowKey::directories(roots.paging(vcpu))[index];
        match (roots.directories(vcpu)[index], self.view().child(slot)) {
            (Some(id), Some(child)) => {
                let key = tables.key(child);
                tables.pool().frame_of(id) == Some(child)
                    && tables.pool().is_pinned(child)
                    && (key == ShadowKey::NOWHERE && expected.is_some() || expected == Some(key))
            }
            (None, None) => {
                expected.is_none() && tables.state(self.view().read(slot)) == State::NotPresent
            }
            _ => false,
        }
    }

    /// What is wrong with a root that a vCPU may load by itself.
    fn audit_loadable(self, vcpu: VcpuId, loadable: &Loadable) -> Option<String> {
        let id = loadable.page();
        let Some(root) = self
            .shadow
            .tables()
            .pool()
            .frame_of(id)
            .filter(|&root| self.shadow.tables().pool().is_pinned(root))
        else {
            return Some(alloc::format!("the loadable root {id:?} is gone"));
        };
        let key = self.shadow.tables().key(root);
        let expected = self.shadow.roots().key(vcpu, key.gfn);
        let in_place = self.env.hpa(root).raw() == key.gfn.base().raw();
        if key != expected || !in_place || !self.shadow.guest().is_tracked(key.gfn) {
            return Some(alloc::format!(
                "the loadable root {key:?} is not in its place, tracked, and as {expected:?}"
            ));
        }
        self.audit_sampled(root, loadable.sampled()?)
    }

    /// Whether a CPU may load PDPTEs from this page. The page for the registers of a vCPU is pinned
    /// even while it runs on another.
    fn may_be_loaded(self, frame: ShadowFrame) -> bool {
        let (pool, roots) = (self.shadow.tables().pool(), self.shadow.roots());
        match pool.key(frame).role {
            Role::Pdptes { .. } => roots.is_current(frame),
            role => role.is_pdptes() && pool.is_pinned(frame),
        }
    }

    /// What is wrong with the PDPTEs that a vCPU loads with a root.
    fn audit_sampled(self, root: ShadowFrame, sampled: &Sampled) -> Option<String> {
        let pool = self.shadow.tables().pool();
        let gfn = pool.key(root).gfn;
        let now = [0, 1, 2, 3].map(|index| self.env.read_entry(gfn.entry(index)));
        let wrong = (0..4).find(|&index| {
            let page = sampled.directories()[index];
            let live = page.and_then(|id| pool.frame_of(id)).filter(|&at| pool.is_pinned(at));
            live.is_some() != page.is_some() || live != self.view().child(Slot::new(root, index))
        });
        let stale = sampled.pdptes().raw() != now;
        (stale || wrong.is_some()).then(|| {
            alloc::format!("the PDPTEs in {gfn:?} are {now:x?}, and loaded as {sampled:x?}")
        })
    }

    /// Checks that tables whose zapped shadows may still be cached are protected.
    pub(crate) fn quarantine(self) -> Result<(), Violation> {
        match self
            .shadow
            .tables()
            .pool()
            .quarantined_frames()
            .find(|&gfn| !self.shadow.guest().is_tracked(gfn))
        {
            None => Ok(()),
            Some(gfn) => {
                let detail =
                    alloc::format!("{gfn:?} lost its protection while its shadow may be cached");
                Err(violation(Invariant::Lifetime, detail))
            }
        }
    }

    /// Checks what a page promises beside its entries: its frame is protected, and it is found by
    /// its key.
    fn audit_page(self, frame: ShadowFrame) -> Result<(), Violation> {
        let key = self.shadow.tables().key(frame);
        if self.shadow.guest().lists(key)
            && !self.shadow.guest().is_listed(self.shadow.tables().pool(), key, frame)
        {
            return Err(violation(
                Invariant::Lifetime,
                alloc::format!("{key:?} is not found in its place"),
            ));
        }
        if self.shadow.guest().is_detached(key)
            && (self.shadow.tables().pool().is_pinned(frame)
                || self.shadow.tables().rmap().first(List::Parents(frame)).is_some())
        {
            return Err(violation(
                Invariant::NeverStale,
                alloc::format!("{key:?} is detached and in use"),
            ));
        }
        if !key.role.is_of_frame() {
            return Ok(());
        }
        if self.shadow.guest().is_unsync_leaf(key.gfn) && key.role.level() != Level::L1 {
            let detail = alloc::format!("{key:?} is unsync, and leads to other tables");
            return Err(violation(Invariant::NeverStale, detail));
        }
        if !self.shadow.guest().is_tracked(key.gfn) {
            let followed = !matches!(key.role, Role::PaeRoot { .. });
            let detail = || alloc::format!("writes to {key:?} are not seen");
            return followed
                .then_some(())
                .ok_or_else(|| violation(Invariant::NeverStale, detail()));
        }
        let gfn = key.gfn.raw() as u32;
        for slot in self.shadow.tables().rmap().iter(List::Gfn(gfn)) {
            if self.view().read(slot).rights().write {
                let detail = alloc::format!("{slot:?} maps the table {:?} writable", key.gfn);
                return Err(violation(Invariant::NeverStale, detail));
            }
        }
        let region = self.shadow.guest().region(key.gfn).expect("a tracked frame lies in a region");
        if self.shadow.tables().rmap().first(List::Region(region)).is_some() {
            let detail = alloc::format!("a large page maps the table {:?}", key.gfn);
            return Err(violation(Invariant::NeverStale, detail));
        }
        Ok(())
    }

    fn audit_entry(self, slot: Slot) -> Result<(), Violation> {
        let Some(key) = self.shadow.tables().pool().live_key(slot.frame()) else {
            return Err(violation(
                Invariant::Lifetime,
                alloc::format!("{slot:?} is in no live page"),
            ));
        };
        let entry = self.view().read(slot);
        let state = self.shadow.tables().state(entry);
        if state != State::NotPresent
            && !self.shadow.tables().pool().is_busy(slot.frame(), slot.index() / GROUP)
        {
            let detail =
                alloc::format!("{slot:?} is {state:?} among entries that count as NotPresent");
            return Err(violation(Invariant::Lifetime, detail));
        }
        let listed = self.shadow.tables().rmap().list_of(slot);
        if listed.is_some() != (state == State::Mapped) {
            let detail = alloc::format!("{slot:?} is {state:?} and stands in {listed:?}");
            return Err(violation(Invariant::Lifetime, detail));
        }
        if self.shadow.guest().is_detached(key) {
            // Out of date, and nothing leads there; but what it references is followed, so that it
            // can come back.
            return if state == State::Mapped { self.audit_unsync(slot, listed) } else { Ok(()) };
        }
        let unsync = self.shadow.guest().is_unsync(key);
        // While a table is unsync protection faults exit; its entries are refreshed when it is
        // tracked again.
        if self.shadow.filter_is_user() && !unsync && self.view().is_narrow(slot) {
            let detail = alloc::format!("{slot:?} of {key:?} is {:#x}", entry.raw());
            return Err(violation(Invariant::NeverNarrower, detail));
        }
        let wanted = self.view().target(slot, false);
        let wrong = |invariant| {
            let raw = entry.raw();
            let detail = alloc::format!(
                "{slot:?} of {key:?} is {raw:#x}, its guest entry asks for {wanted:?}"
            );
            Err(violation(invariant, detail))
        };
        match state {
            State::NotPresent if wanted == Target::NotPresent => Ok(()),
            State::NotPresent => wrong(Invariant::NeverStale),
            State::Trap | State::Mmio { .. } if self.may_be_loaded(slot.frame()) => {
                wrong(Invariant::NeverStale)
            }
            // Trapping is always right: the hypervisor looks.
            State::Trap => Ok(()),
            State::Mmio { generation, .. } if generation != self.shadow.guest().generation() => {
                Ok(())
            }
            State::Mmio { gfn, rights, .. } => match wanted {
                Target::Mmio(wanted_gfn, wanted)
                    if gfn == wanted_gfn
                        && (rights.within(wanted) || self.is_override(slot, rights, key)) =>
                {
                    Ok(())
                }
                _ if unsync => Ok(()),
                _ => wrong(Invariant::NeverWider),
            },
            State::Mapped if unsync => self.audit_unsync(slot, listed),
            State::Mapped => match wanted {
                Target::Link(child, rights) => {
                    let same = !entry.is_large() && entry.hpa() == self.env.hpa(child);
                    let within = key.role.is_pdptes()
                        || entry.rights().within(rights)
                        || self.is_override(slot, entry.rights(), key);
                    if !same || !within {
                        return wrong(Invariant::NeverWider);
                    }
                    if listed != Some(List::Parents(child)) {
                        return wrong(Invariant::Lifetime);
                    }
                    Ok(())
                }
                Target::Page { level: Level::L2, gfn, .. } if !entry.is_large() => {
                    match self.audit_split(slot, gfn, listed) {
                        true => Ok(()),
                        false => wrong(Invariant::NeverWider),
                    }
                }
                Target::Page { level, gfn, hfn, rights, global, .. } => {
                    let same = entry.hpa() == hfn.base()
                        && entry.is_large() == (level != Level::L1)
                        && entry.is_global() == global;
                    let within = entry.rights().within(rights)
                        || self.is_override(slot, entry.rights(), key);
                    if !same || !within {
                        return wrong(Invariant::NeverWider);
                    }
                    let expected = match level {
                        Level::L1 => List::Gfn(gfn.raw() as u32),
                        _ => List::Region((gfn.raw() / crate::guest::REGION) as u32),
                    };
                    if listed != Some(expected) { wrong(Invariant::Lifetime) } else { Ok(()) }
                }
                _ => wrong(Invariant::NeverWider),
            },
        }
    }

    /// An entry may still lead to the identity page of a region that a large page could map again
    /// by now: whether that link is right. The page's own entries are audited by themselves.
    fn audit_split(self, slot: Slot, first: Gfn, listed: Option<List>) -> bool {
        let Some(child) =
            self.shadow.guest().find(self.shadow.tables(), ShadowKey::direct(Level::L1, first))
        else {
            return false;
        };
        let rights = self.view().read(slot).rights();
        let key = self.shadow.tables().key(slot.frame());
        let allowed = match (key.role, self.view().guest_entry(slot)) {
            (Role::Guest { nxe, wp, .. }, Some(entry)) => wp.page_rights(entry, nxe, false),
            _ => Rights::ALL,
        };
        self.view().child(slot) == Some(child)
            && listed == Some(List::Parents(child))
            && (rights.within(allowed) || self.is_override(slot, rights, key))
    }

    /// A Mapped entry of an unsync or detached table may be old, but what it leads to is live, and
    /// this guest's.
    fn audit_unsync(self, slot: Slot, listed: Option<List>) -> Result<(), Violation> {
        let hpa = self.view().read(slot).hpa();
        let holds = match listed {
            Some(List::Parents(child)) => {
                self.view().child(slot) == Some(child)
                    && self.shadow.tables().pool().live_key(child).is_some()
            }
            Some(List::Gfn(gfn)) => is_backed(self.env, u64::from(gfn), hpa),
            Some(List::Region(region)) => {
                let frames = crate::guest::REGION;
                (0..frames).all(|n| {
                    is_backed(self.env, u64::from(region) * frames + n, (hpa.hfn() + n).base())
                })
            }
            None => false,
        };
        if holds {
            return Ok(());
        }
        Err(violation(
            Invariant::NeverWider,
            alloc::format!("{slot:?} of a table that is out of date leads elsewhere: {listed:?}"),
        ))
    }

    /// Whether these are the rights of the form for a supervisor's write under CR0.WP = 0.
    fn is_override(self, slot: Slot, rights: Rights, key: ShadowKey) -> bool {
        let Role::Guest { wp: Wp::Off { .. }, .. } = key.role else { return false };
        match self.view().target(slot, true) {
            Target::Page { rights: wanted, .. }
            | Target::Link(_, wanted)
            | Target::Mmio(_, wanted) => rights.within(wanted),
            _ => false,
        }
    }
}

fn violation(invariant: Invariant, detail: String) -> Violation {
    Violation { invariant, detail }
}

fn is_backed(env: &impl Env, gfn: u64, hpa: Hpa) -> bool {
    matches!(env.backing(Gfn::new(gfn)), Backing::Ram { hfn, .. } if hfn == hpa.hfn())
}

//! Where a #PF exit is decided: guest fault or host fault, and what to do about it.

use umbra_paging::{Access, ENTRIES, Gpa, GuestFault, Gva, PAGE_SIZE, Pfec, Rights, Walk};

use crate::derive::Target;
use crate::format::State;
use crate::format::{Role, index};
use crate::policy::{Answer, Origin, Place, TableWrite, WritePolicy};
use crate::quick::Known;
use crate::sabotage::Rule;
use crate::tables::GROUP;
use crate::tables::Slot;
use crate::{Backing, Env, Event, FaultOutcome, GuestFaults, Mmu, Work};

/// How much of the stack is searched for return addresses: what a function saves, and a little more.
const STACK_WORDS: usize = 8;

impl<P> Mmu<P> {
    /// Handles a #PF exit of the instruction at `origin`, whose `access` to `gva` raised it. Of the exit's error
    /// code only what describes the access is taken (in `access`); whether it is a guest fault, and its error
    /// code, come from a walk of the guest's own tables (I3).
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn page_fault<E: Env>(
        &mut self,
        env: &mut E,
        vcpu: usize,
        gva: Gva,
        access: Access,
        origin: &Origin,
    ) -> FaultOutcome
    where
        P: WritePolicy,
    {
        self.learned[vcpu].detaches.fault(origin.rip);
        match self.known(env, vcpu, gva, access) {
            Some(Known::Mmio(gpa)) => return FaultOutcome::Mmio { gpa },
            Some(Known::TableWrite(gpa)) => return self.table_write(env, vcpu, gpa, origin),
            None => (),
        }
        let (walk, updated) = match self.walk(env, vcpu, gva, access) {
            Ok(found) => found,
            Err(fault) if self.is_bypassed(fault) && self.map(env, vcpu, gva, Rights::ALL, access).linked => {
                return FaultOutcome::Resume(Work::Link);
            }
            Err(fault) => {
                if !fault.pfec.contains(Pfec::RSVD) {
                    self.mark_ahead(env, vcpu, fault);
                    self.learn_filter(env, fault.pfec);
                }
                return FaultOutcome::Guest(self.reported(fault));
            }
        };
        let gpa = walk.gpa();
        let is_ram = match env.backing(gpa.gfn()) {
            Backing::None => false,
            Backing::Ram { writable, .. } => writable || !access.is_write(),
        };
        if is_ram && access.is_write() && self.guest.is_tracked(gpa.gfn()) {
            return self.table_write(env, vcpu, gpa, origin);
        }
        let mapped = self.map(env, vcpu, gva, walk.rights(), access);
        if !is_ram {
            FaultOutcome::Mmio { gpa }
        } else if !mapped.complete {
            FaultOutcome::Override { gpa }
        } else if mapped.linked {
            FaultOutcome::Resume(Work::Link)
        } else {
            FaultOutcome::Resume(updated.unwrap_or(Work::Install))
        }
    }

    /// Whether the CPU itself can deliver this fault once the tables on the way are linked: it exited only
    /// because they were not.
    fn is_bypassed(&self, fault: GuestFault) -> bool {
        let spared = match self.guest_faults() {
            GuestFaults::Trap => false,
            GuestFaults::Present => true,
            GuestFaults::User => fault.pfec.contains(Pfec::USER),
        };
        !fault.pfec.contains(Pfec::PRESENT) && spared
    }

    /// A write to a tracked table.
    fn table_write(&mut self, env: &mut impl Env, vcpu: usize, gpa: Gpa, origin: &Origin) -> FaultOutcome
    where
        P: WritePolicy,
    {
        let gfn = gpa.gfn();
        let reachable = self.view(env).is_reachable(gfn);
        let idle = reachable && self.is_idle(vcpu, gfn);
        let mut write = TableWrite { gpa, place: Place::default(), soon: origin.soon, reachable, idle };
        if self.policy.needs_place(&write) {
            write.place = Place {
                rip: origin.rip.raw(),
                callers: self.callers(env, vcpu, origin),
                alike: self.is_followed_by_alike(env, gpa),
            };
        }
        let answer = self.policy.answer(&write);
        if answer == Answer::Detach && self.may_detach(vcpu, gfn) {
            self.detach_space(env, gfn);
            return FaultOutcome::Resume(Work::Detach);
        }
        self.emulated = Some((vcpu, gfn));
        FaultOutcome::TableWrite { gpa }
    }

    /// [`Place::alike`] of the entry at `gpa`, as far as the first shadow of its table tells.
    fn is_followed_by_alike(&self, env: &impl Env, gpa: Gpa) -> bool {
        let (Some(frame), index) = (self.guest.first(gpa.gfn()), gpa.page_offset() as usize / 8) else {
            return false;
        };
        let is_absent =
            |index| self.tables.state(self.tables.read(env, Slot::new(frame, index))) == State::Absent;
        index + 1 < ENTRIES && is_absent(index) == is_absent(index + 1)
    }

    /// How an instruction was reached, as far as its stack tells: the first return addresses there. They lie in the same
    /// 2 GiB of code as the instruction. (What is the address of a page is none.)
    fn callers(&mut self, env: &impl Env, vcpu: usize, origin: &Origin) -> u64 {
        let top = origin.rsp.filter(|rsp| rsp.raw().is_multiple_of(8));
        let Some(top) = top.and_then(|rsp| self.mapped(env, vcpu, rsp)) else { return 0 };
        // What a loose table says now need not be what is mapped.
        if self.guest.has_loose() || env.backing(top.gfn()) == Backing::None {
            return 0;
        }
        let is_code = |&&word: &&u64| (word ^ origin.rip.raw()) >> 31 == 0 && word % PAGE_SIZE != 0;
        let (mut callers, mut found) = (0u64, 0);
        let first = top.page_offset() as usize / 8;
        let end = (first + STACK_WORDS).min(ENTRIES);
        let mut at = first;
        while at < end {
            let group = env.read_entries(top.gfn(), at / GROUP * GROUP);
            let until = (at / GROUP * GROUP + GROUP).min(end);
            for word in group[at % GROUP..][..until - at].iter().filter(is_code) {
                callers = callers.rotate_left(32) ^ word;
                found += 1;
                if found == 2 {
                    return callers;
                }
            }
            at = until;
        }
        callers
    }

    /// The fault as the guest gets it: as its own tables raise it, not as the exit says.
    fn reported(&self, fault: GuestFault) -> GuestFault {
        if self.keeps(Rule::CodeFromWalk) {
            return fault;
        }
        GuestFault { pfec: fault.pfec | Pfec::PRESENT | Pfec::RSVD, ..fault }
    }

    /// Where an access of an emulated instruction goes. Sets accessed and dirty bits as the access itself
    /// would.
    ///
    /// # Errors
    /// The page fault that it raises.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn translate(
        &mut self,
        env: &mut impl Env,
        vcpu: usize,
        gva: Gva,
        access: Access,
    ) -> Result<Gpa, GuestFault> {
        self.walk(env, vcpu, gva, access).map(|(walk, _)| walk.gpa())
    }

    /// Walks the guest's tables and sets the accessed and dirty bits, through the door.
    fn walk(
        &mut self,
        env: &mut impl Env,
        vcpu: usize,
        gva: Gva,
        access: Access,
    ) -> Result<(Walk, Option<Work>), GuestFault> {
        let paging = *self.roots.paging(vcpu);
        let mut work: Option<Work> = None;
        'again: loop {
            let walk = match umbra_paging::walk(env, &paging, &self.config.features, gva, access) {
                Ok(walk) => walk,
                Err(fault) => {
                    // A page fault invalidates what is cached for its address (SDM, "Operations that
                    // Invalidate TLBs and Paging-Structure Caches"), so loose tables must not keep it.
                    if self.keeps(Rule::TightenAtFault) {
                        self.tighten_all(env);
                    }
                    env.flush_fault(vcpu, gva);
                    return Err(fault);
                }
            };
            for step in walk.steps() {
                let Some(new) = step.update(access) else { continue };
                let old = step.entry.raw();
                if self.entries(env).update_entry(step.at, old, new).is_err() {
                    // Another vCPU changed the entry. Each round follows a change of the guest's own making.
                    continue 'again;
                }
                let dirty = (new ^ old) & umbra_paging::bits::D != 0;
                let this = if dirty { Work::Dirty } else { Work::Accessed };
                work = Some(work.map_or(this, |before| before.min(this)));
            }
            return Ok((walk, work));
        }
    }

    /// Makes the shadow translate `gva` for an access that the guest's tables allow to a page with these
    /// `rights`: builds and links what is missing on the way, and installs the leaf. Where the guest's tables
    /// end in an entry that is not present, it goes as far as that.
    fn map(&mut self, env: &mut impl Env, vcpu: usize, gva: Gva, rights: Rights, access: Access) -> Mapped
    where
        P: WritePolicy,
    {
        self.entries(env).refresh_loose();
        let root = self.roots.current(vcpu);
        let mut frame = self.tables.pool().frame_of(root).expect("a root in use is pinned");
        let top = frame;
        let (mut linked, mut below_root) = (false, false);
        let mut path = [frame; 4];
        for depth in 0.. {
            path[depth] = frame;
            let role = self.tables.source(frame).role;
            let overrides = match role {
                Role::Guest { wp, nxe, .. } if wp.overrides(rights, access) => {
                    if wp.override_is_unsafe(nxe) && self.keeps(Rule::OverrideIsSafe) {
                        return Mapped { linked, complete: false };
                    }
                    true
                }
                _ => false,
            };
            let slot = Slot::new(frame, index(role, gva));
            let mut target = self.view(env).target(slot, overrides);
            if let Target::Missing(source) = target {
                // The page that is reclaimed for it must be none of those on the way here.
                if self.keeps(Rule::SparePath) {
                    path[..=depth].iter().for_each(|&frame| self.tables.touch(frame));
                }
                self.provide(env, source);
                if matches!((role, source.role), (Role::Guest { .. }, Role::Direct { .. })) {
                    self.tables.happened(env, Event::Split { gfn: source.gfn });
                }
                target = self.view(env).target(slot, overrides);
            }
            let old_child = self.tables.child(env, slot);
            let changes = self.entries(env).install(slot, target);
            if !changes && matches!(target, Target::Page { .. }) {
                // Installed already: the fault came from something cached. It is dropped by the fault itself
                // (SDM, "Operations that Invalidate TLBs"), but not all CPUs do so if the fault exits.
                env.flush_fault(vcpu, gva);
            }
            let child = match target {
                Target::Link(child, _) => child,
                Target::Page { .. } | Target::Mmio(..) => {
                    if below_root {
                        self.link_ahead(env, top);
                    }
                    return Mapped { linked, complete: true };
                }
                Target::Absent | Target::Look | Target::Missing(_) => {
                    return Mapped { linked, complete: false };
                }
            };
            if old_child != Some(child) {
                linked = true;
                below_root |= depth == 0;
                self.tables.touch(child);
            }
            frame = child;
        }
        unreachable!("the entries of a page table link no further")
    }
}

/// What [`Mmu::map`] came to.
struct Mapped {
    /// A table was linked on the way.
    linked: bool,
    /// A translation, or the knowledge that there is no memory, is installed. If not, no shadow entry can
    /// allow the access: not without allowing more, or it goes through a table that is no memory.
    complete: bool,
}

pub(crate) fn both(upper: Rights, lower: Rights) -> Rights {
    Rights {
        write: upper.write && lower.write,
        user: upper.user && lower.user,
        execute: upper.execute && lower.execute,
    }
}

//! Detached frames: guest tables that nothing leads to, so that the guest may write them freely.
//!
//! Every parent entry of all shadows of the frame becomes Pending, what is cached of them is flushed, and only then is
//! the protection dropped. The shadows stay, out of date, until the first access through one of them: that exits, and
//! the frame is *attached* again: protected, flushed, read, and what has changed since is rebuilt. A burst of writes
//! costs two exits so, whatever its length. Nothing that the hardware can reach is ever out of date (I1).
//!
//! A root in use has no parent: it is never detached. One that is only loadable is withdrawn.

use umbra_paging::{Gfn, Gva};

use crate::format::Source;
use crate::policy::WritePolicy;
use crate::sabotage::Rule;
use crate::tables::List;
use crate::{Env, Event, Mmu};

/// How many detaches by one instruction are remembered: more tables than one instruction can write to.
const REMEMBERED: usize = 8;

/// The latest detaches on a vCPU, all by one instruction, since which no other has faulted there.
///
/// A detached table may map the very instruction, stack or operand of the write: then it is attached before the write
/// is repeated, which would exit again, and so on. So what the same instruction has detached is not detached again
/// before another one has faulted, which shows that the guest got further (I6).
#[derive(Default)]
pub(crate) struct Detaches {
    rip: u64,
    gfns: [Option<Gfn>; REMEMBERED],
    next: usize,
}

impl Detaches {
    fn contains(&self, gfn: Gfn) -> bool {
        self.gfns.contains(&Some(gfn))
    }

    /// An instruction has faulted.
    pub(crate) fn fault(&mut self, rip: Gva) {
        if self.rip != rip.raw() {
            *self = Detaches { rip: rip.raw(), ..Detaches::default() };
        }
    }

    fn push(&mut self, gfn: Gfn) {
        self.gfns[self.next % REMEMBERED] = Some(gfn);
        self.next += 1;
    }
}

impl<P> Mmu<P> {
    /// Whether a write of the instruction that has faulted can be answered by a detach; it will be then.
    pub(crate) fn may_detach(&mut self, vcpu: usize, gfn: Gfn) -> bool {
        let again = self.learned[vcpu].detaches.contains(gfn);
        if !self.can_detach(gfn) || again && self.keeps(Rule::DetachOnce) {
            return false;
        }
        self.learned[vcpu].detaches.push(gfn);
        true
    }

    /// Detaches the frame of a write that could not be emulated, if that can help.
    pub(crate) fn detach_unemulated(&mut self, env: &mut impl Env, gfn: Gfn) -> bool {
        let by = self.emulated.take().filter(|&(_, emulated)| emulated == gfn);
        let can = by.is_some_and(|(vcpu, _)| self.may_detach(vcpu, gfn));
        if can {
            self.detach(env, &[gfn]);
        }
        can
    }

    /// The shadows of a frame that is most likely no table any more are the first to be reclaimed.
    pub(crate) fn age_shadows(&mut self, gfn: Gfn) {
        let mut next = self.guest.first(gfn);
        while let Some(frame) = next {
            next = self.tables.pool().next_of_gfn(frame);
            self.tables.age(frame);
        }
    }

    /// Whether the tracked frame can be detached: no vCPU runs on it as a root.
    pub(crate) fn can_detach(&self, gfn: Gfn) -> bool {
        self.guest.is_tracked(gfn)
            && !self.guest.shadows(self.tables.pool(), gfn).any(|frame| self.roots.is_current(frame))
    }

    /// Gives up the tracking of those of these frames for which that can be: see the module's documentation.
    pub(crate) fn detach(&mut self, env: &mut impl Env, gfns: &[Gfn]) {
        let mut cached = self.tables.pool().has_limbo();
        for &gfn in gfns {
            if self.can_detach(gfn) {
                cached |= self.unlink(env, gfn);
            }
        }
        if cached && self.keeps(Rule::FlushBeforeDetach) {
            self.tables.flush(env);
        }
        for &gfn in gfns {
            // A frame with shadows of several roles may be named several times.
            if self.can_detach(gfn) {
                self.guest.detach(gfn);
                self.tables.happened(env, Event::Detached(gfn));
                self.entries(env).unprotect(gfn);
            }
        }
    }

    /// Removes all that leads to the shadows of a frame. Whether any of it may be cached.
    fn unlink(&mut self, env: &mut impl Env, gfn: Gfn) -> bool {
        self.roots.withdraw_everywhere(&mut self.tables, gfn);
        let mut cached = false;
        let mut next = self.guest.first(gfn);
        while let Some(frame) = next {
            next = self.tables.pool().next_of_gfn(frame);
            if self.keeps(Rule::UnlinkDetached) {
                self.tables.look_all(env, List::Parents(frame));
            }
            cached |= self.tables.pool().may_be_cached(frame);
        }
        cached
    }

    /// Tracks the frame of `source` again, which is detached, and brings its shadow of that role up to date. Its shadows of
    /// other roles go: most of them are of an earlier life of the frame.
    pub(crate) fn attach(&mut self, env: &mut impl Env, source: Source)
    where
        P: WritePolicy,
    {
        let gfn = source.gfn;
        let mut kept = None;
        let mut next = self.guest.first(gfn);
        while let Some(frame) = next {
            next = self.tables.pool().next_of_gfn(frame);
            match self.tables.source(frame) == source {
                true => kept = Some(frame),
                false => self.zap(env, frame),
            }
        }
        // With the last shadow the frame stops being detached. It was not needed again: the detach has spared all that.
        let Some(frame) = kept else { return self.policy.attached(gfn, u32::MAX) };
        self.guest.attach(gfn);
        if self.keeps(Rule::ReadAfterAttach) {
            self.entries(env).protect_now(gfn);
        }
        let mut changed = 0;
        if self.keeps(Rule::RefillAttached) {
            self.tables.copy(frame);
            changed = self.entries(env).fill_now(frame);
        }
        if !self.keeps(Rule::ReadAfterAttach) {
            self.entries(env).protect_now(gfn);
        }
        self.policy.attached(gfn, changed);
        self.tables.happened(env, Event::Attached { gfn, level: source.role.level(), changed });
    }
}

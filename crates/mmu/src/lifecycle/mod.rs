//! Whole pages change state: built, attached, detached, zapped, moved; and guest frames with them.
//!
//! [`Shadow`] owns all that the hardware's view of the guest depends on. It is changed through a
//! [`Cx`], which adds the embedder's `env`.

mod build;
mod detach;
mod load;
mod pae_roots;
mod placement;
mod revoke;
mod unsync;
mod zap;

use umbra_paging::Gfn;

use crate::derive::{Basis, View};
use crate::guest::GuestFrames;
use crate::roots::Roots;
use crate::sync::{Entries, FaultFilter};
use crate::tables::{Slot, Tables};
use crate::{Config, Env, Event, GuestFaults, MIN_FRAMES_PER_VCPU, ShadowFrame, VcpuId};

/// The pages of a loadable root under PAE paging: its PDPTEs, and the directories behind them.
const PAE_ROOT: usize = 5;

/// The shadow pages, the guest frames, the roots, and the filter that rests on them.
pub(crate) struct Shadow {
    basis: Basis,
    roots: Roots,
    filter: FaultFilter,
}

impl Shadow {
    /// The shadow of a guest whose memory ends at `end`, in so many shadow frames, of which each
    /// vCPU may have so many roots loadable. There are no vCPUs yet.
    pub(crate) fn new(config: Config, frames: u32, end: Gfn, loadable: usize) -> Shadow {
        // With that many pages every instruction gets through, as in the smallest pool there can
        // be.
        let reserve = config.vcpus * (MIN_FRAMES_PER_VCPU as usize + loadable);
        // Under PAE paging each pins its directories. Half of the pool is left, or there are none.
        let rest = (frames as usize).saturating_sub(reserve);
        let pae = if 2 * PAE_ROOT * config.vcpus * loadable <= rest { loadable } else { 0 };
        Shadow {
            roots: Roots::new(config.vcpus, loadable, pae),
            filter: FaultFilter::new(config.filter),
            basis: Basis::new(
                Tables::new(&config, frames, end, reserve),
                GuestFrames::new(end, config.vcpus),
                config,
            ),
        }
    }

    /// The bytes of metadata that this takes now.
    pub(crate) fn bytes(&self) -> usize {
        self.basis.tables().bytes() + self.basis.guest().bytes() + self.filter.bytes()
    }

    pub(crate) fn tables(&self) -> &Tables {
        self.basis.tables()
    }

    pub(crate) fn guest(&self) -> &GuestFrames {
        self.basis.guest()
    }

    fn guest_mut(&mut self) -> &mut GuestFrames {
        self.basis.both_mut().1
    }

    pub(crate) fn roots(&self) -> &Roots {
        &self.roots
    }

    pub(crate) fn config(&self) -> &Config {
        self.basis.config()
    }

    /// Whether entries must not be narrow now.
    pub(crate) fn filter_is_user(&self) -> bool {
        self.filter.is_user()
    }

    /// Which page faults must exit when the guest runs next.
    pub(crate) fn guest_faults(&self) -> GuestFaults {
        self.filter.guest_faults(self.basis.tables(), self.basis.guest(), &self.roots)
    }

    /// Whether the filter that is chosen decides which page faults exit.
    pub(crate) fn filter_decides(&self) -> bool {
        FaultFilter::decides(self.basis.tables(), self.basis.guest(), &self.roots)
    }

    /// Which page faults must exit while no table is unsync.
    pub(crate) fn guest_faults_without_unsync(&self) -> GuestFaults {
        self.filter.without_unsync(self.basis.tables(), &self.roots)
    }

    /// The shadow and the guest, to be looked at.
    #[inline]
    pub(crate) fn view<'a, E: Env>(&'a self, env: &'a E) -> View<'a, E> {
        self.basis.view(env)
    }

    /// The shadow and the guest, to be changed.
    #[inline]
    pub(crate) fn with<'a, E: Env>(&'a mut self, env: &'a mut E) -> Cx<'a, E> {
        Cx { shadow: self, env }
    }

    /// The vCPU has loaded one of its loadable roots by itself.
    pub(crate) fn switched(&mut self, vcpu: VcpuId, root: Gfn) {
        self.roots.switched(self.basis.tables_mut(), vcpu, root);
    }

    /// The vCPU may not load this root by itself any more: the embedder has asked for it.
    pub(crate) fn withdraw(&mut self, vcpu: VcpuId, root: Gfn) {
        self.roots.withdraw(self.basis.tables_mut(), vcpu, root);
    }

    /// Takes one of the entries that changed since they were last [seen](Shadow::all_seen): for the
    /// auditor.
    pub(crate) fn take_changed(&mut self) -> Option<Slot> {
        self.basis.tables_mut().take_changed()
    }

    /// All entries were looked at.
    pub(crate) fn all_seen(&mut self) {
        self.basis.tables_mut().all_seen();
    }
}

/// The shadow, to be changed, and the embedder.
pub(crate) struct Cx<'a, E> {
    shadow: &'a mut Shadow,
    env: &'a mut E,
}

impl<E: Env> Cx<'_, E> {
    #[inline]
    pub(crate) fn view(&self) -> View<'_, E> {
        self.shadow.view(self.env)
    }

    /// The entries of the pages there are, to be changed.
    #[inline]
    pub(crate) fn entries(&mut self) -> Entries<'_, E> {
        let Shadow { basis, filter, .. } = &mut *self.shadow;
        Entries::new(basis, filter, self.env)
    }

    #[inline]
    pub(crate) fn shadow(&self) -> &Shadow {
        self.shadow
    }

    #[inline]
    pub(crate) fn env(&mut self) -> &mut E {
        self.env
    }

    pub(crate) fn flush(&mut self) {
        self.shadow.basis.tables_mut().flush(self.env);
    }

    /// Counts something, and tells the embedder.
    pub(crate) fn happened(&mut self, event: Event) {
        self.shadow.basis.tables_mut().happened(self.env, event);
    }

    /// Makes the page the last to be reclaimed.
    pub(crate) fn touch(&mut self, frame: ShadowFrame) {
        self.shadow.basis.tables_mut().touch(frame);
    }

    /// Does this to each shadow of a guest frame, which may go by that.
    fn each_shadow(&mut self, gfn: Gfn, mut action: impl FnMut(&mut Self, ShadowFrame)) {
        let mut next = self.shadow.basis.guest().first(gfn);
        while let Some(frame) = next {
            next = self.shadow.basis.tables().pool().next_of_gfn(frame);
            action(self, frame);
        }
    }
}

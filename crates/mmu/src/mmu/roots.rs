//! The roots that the vCPUs run on, and those that they may load by themselves.

use umbra_paging::{Gfn, Mode, Paging};

use super::Mmu;
use crate::policy::WritePolicy;
use crate::{Env, LoadableRoot, Root, RootFormat, VcpuId};

impl<P> Mmu<P> {
    /// What the real CR3 of a vCPU must hold. Changes with [`Mmu::load_paging`],
    /// [`Mmu::allow_native_load`], [`Mmu::allow_native_load_of`], [`Mmu::switched`] and
    /// [`Mmu::revoke`]. Under PAE paging it also changes with whatever writes to the frame of the
    /// root: [`Mmu::page_fault`], [`Mmu::translate`], [`Mmu::write_guest`], [`Mmu::release`] and
    /// [`Mmu::release_frame`]. So ask [`Mmu::entry_state`] before each entry.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
    /// # fn main() {
    /// let (host, mmu) = start();
    /// let root = mmu.root(&host, VCPU);
    /// assert!(root.hpa().raw() >= 1 << 20, "a shadow frame");
    /// # }
    /// ```
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn root(&self, env: &impl Env, vcpu: VcpuId) -> Root {
        let (tables, roots) = (self.shadow.tables(), self.shadow.roots());
        let frame = tables.pool().frame_of(roots.current(vcpu)).expect("a root in use is pinned");
        let format = match roots.paging(vcpu).mode {
            Mode::Off | Mode::Legacy32 { .. } | Mode::Pae { .. } => RootFormat::Pae,
            Mode::Long4 => RootFormat::Long4,
        };
        Root::new(env.hpa(frame), format)
    }

    /// Follows a change of the guest's CR0, CR3, CR4 or EFER, or of its PDPTE registers. Under PAE
    /// paging these are what [`Pdptes::load`](umbra_paging::Pdptes::load) gave when the guest last
    /// loaded them; the guest's memory is not asked. It does not flush what the guest's
    /// own instruction must flush: for that, call [`Mmu::flush`] behind a MOV to CR3, and
    /// [`Mmu::flush_guest`] behind others.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
    /// # fn main() {
    /// let (mut host, mut mmu) = start();
    /// // CR0.WP is cleared: another root serves.
    /// let before = mmu.root(&host, VCPU);
    /// let after = mmu.load_paging(&mut host, VCPU, Paging { wp: false, ..paging() });
    /// assert_ne!(before, after);
    /// # }
    /// ```
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn load_paging(&mut self, env: &mut impl Env, vcpu: VcpuId, paging: Paging) -> Root
    where
        P: WritePolicy,
    {
        let mut cx = self.shadow.with(env);
        cx.guest_flushes(&mut self.policy);
        cx.load_paging(&mut self.policy, vcpu, paging);
        self.flushes += 1;
        self.root(env, vcpu)
    }

    /// Lets a vCPU load its current root by itself from now on, if that can be. Then the real CR3
    /// must hold exactly what the guest's does. Under PAE paging that is so while the PDPTEs lie at
    /// the start of their frame (bits 5 to 11 of CR3 are clear): do not ask for others, and while
    /// the guest runs on others, let its loads and reads of CR3 exit.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
    /// # fn main() {
    /// let (mut host, mut mmu) = start();
    /// assert!(mmu.allow_native_load(&mut host, VCPU));
    /// assert_eq!(mmu.root(&host, VCPU).hpa().raw(), 0x1000, "as the guest's own CR3");
    /// # }
    /// ```
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn allow_native_load(&mut self, env: &mut impl Env, vcpu: VcpuId) -> bool
    where
        P: WritePolicy,
    {
        self.shadow.with(env).allow_current(&mut self.policy, vcpu)
    }

    /// Lets a vCPU load the root in this guest frame by itself from now on, if that can be, though
    /// it runs on another one: a root that it is likely to load soon, such as the other one of a
    /// process with page-table isolation. Its shadow is built or attached if need be, but nothing
    /// is reclaimed for it.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn allow_native_load_of(&mut self, env: &mut impl Env, vcpu: VcpuId, root: Gfn) -> bool
    where
        P: WritePolicy,
    {
        self.shadow.with(env).allow_other(&mut self.policy, vcpu, root)
    }

    /// Whether [`Mmu::allow_native_load_of`] can be expected to do it once another root is
    /// withdrawn, if need be.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn may_allow_native_load(&self, env: &impl Env, vcpu: VcpuId, root: Gfn) -> bool {
        self.shadow.may_allow_native_load(env, vcpu, root)
    }

    /// Whether the root in this guest frame has a shadow for the control bits that a vCPU has now,
    /// which is up to date.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn knows_root(&self, vcpu: VcpuId, root: Gfn) -> bool {
        self.shadow.knows_root(vcpu, root)
    }

    /// The opposite of [`Mmu::allow_native_load`]: makes room for another root. Not for
    /// [`Mmu::roots_changed`] to tell.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn withdraw_root(&mut self, vcpu: VcpuId, root: Gfn) {
        self.shadow.withdraw(vcpu, root);
    }

    /// Whether a vCPU may load the root in this guest frame by itself.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn is_loadable(&self, vcpu: VcpuId, root: Gfn) -> bool {
        self.shadow.roots().find_loadable(self.shadow.tables(), vcpu, root).is_some()
    }

    /// The root in this guest frame, if a vCPU may load it by itself.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn loadable(&self, vcpu: VcpuId, root: Gfn) -> Option<LoadableRoot> {
        self.is_loadable(vcpu, root).then(|| LoadableRoot::new(root))
    }

    /// How many roots a vCPU may load by itself: as configured, or fewer if the pool is small.
    pub fn loadable_roots(&self) -> usize {
        self.shadow.roots().capacity()
    }

    /// A number that changes whenever the MMU itself has withdrawn a root, or moved one.
    pub fn roots_changed(&self) -> u64 {
        self.shadow.roots().changes()
    }

    /// The vCPU has loaded one of its loadable roots by itself, and has left the guest: told before
    /// any other call for this vCPU. A call for another vCPU asks for it where it matters
    /// ([`Tlb::take_loaded_root`](crate::Tlb::take_loaded_root)). The root that it ran on already
    /// need not be loadable any more, and its load is not told.
    ///
    /// # Panics
    /// If it is not loadable, or there is no such vCPU.
    pub fn switched(&mut self, vcpu: VcpuId, root: Gfn) {
        self.shadow.switched(vcpu, root);
    }
}

//! Creation, and the roots that vCPUs run on.

use umbra_paging::{Gva, Mode, Paging};

use crate::ahead::Ahead;
use crate::derive::Target;
use crate::format::{Role, Source};
use crate::guest::GuestFrames;
use crate::policy::WritePolicy;
use crate::predict::Predictor;
use crate::quick::Shortcuts;
use crate::roots::Roots;
use crate::sabotage::Rule;
use crate::space::Idle;
use crate::sync::FaultFilter;
use crate::tables::{Slot, Tables};
use crate::{Config, ConfigError, Env, Learned, MIN_FRAMES_PER_VCPU, Mmu, Root, RootFormat};

impl Mmu {
    /// An MMU that predicts bursts of writes to tables: see [`Mmu::with_policy`].
    ///
    /// # Errors
    /// As [`Mmu::with_policy`].
    pub fn new(config: Config, env: &mut impl Env) -> Result<Mmu, ConfigError> {
        Mmu::with_policy(config, env, Predictor::default())
    }
}

impl<P: WritePolicy> Mmu<P> {
    /// An MMU whose vCPUs all have paging off. Here all is allocated whose size is constant; later, 4 KiB are allocated
    /// for a shadow page that is built, never more than for as many as there are shadow frames.
    ///
    /// # Errors
    /// The configuration and what `env` offers do not fit together.
    pub fn with_policy(config: Config, env: &mut impl Env, policy: P) -> Result<Mmu<P>, ConfigError> {
        let (frames, end) = (env.count(), env.end());
        let needed = MIN_FRAMES_PER_VCPU.saturating_mul(config.vcpus.try_into().unwrap_or(u32::MAX));
        if frames < needed {
            return Err(ConfigError::TooFewFrames(frames, needed));
        }
        if frames > 1 << 20 || end.raw() > 1 << 30 {
            return Err(ConfigError::TooLarge);
        }
        if let Some(above) = (0..frames).map(|frame| env.hpa(frame)).find(|hpa| hpa.raw() >= 1 << 32) {
            return Err(ConfigError::FrameAbove4G(above));
        }
        // Pinned roots are not there to be reclaimed: what one instruction needs comes first.
        let loadable = ((frames - needed) as usize / config.vcpus.max(1)).min(config.loadable_roots);
        let mut mmu = Mmu {
            policy,
            filter: FaultFilter::new(config.filter),
            regret: 0,
            emulated: None,
            shortcuts: Shortcuts::default(),
            idle: Idle::default(),
            ahead: Ahead::default(),
            tables: Tables::new(&config, frames, end),
            guest: GuestFrames::new(end),
            roots: Roots::new(config.vcpus, loadable),
            learned: (0..config.vcpus).map(|_| Learned::default()).collect(),
            config,
        };
        let off = Paging {
            mode: Mode::Off,
            root: umbra_paging::Gfn::new(0),
            wp: false,
            smep: false,
            smap: false,
            pge: false,
            nxe: false,
        };
        for _ in 0..config.vcpus {
            let root = mmu.pinned_root(env, &off);
            let root = mmu.tables.pool().id(root);
            mmu.roots.add(off, root);
        }
        Ok(mmu)
    }
}

impl<P> Mmu<P> {
    /// What the real CR3 of a vCPU must hold. Changes with [`Mmu::load_paging`], [`Mmu::offer_root`], [`Mmu::offer_other_root`],
    /// [`Mmu::switched`] and [`Mmu::revoke`].
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn root(&self, env: &impl Env, vcpu: usize) -> Root {
        let root = self.roots.current(vcpu);
        let frame = self.tables.pool().frame_of(root).expect("a root in use is pinned");
        let format = match self.roots.paging(vcpu).mode {
            Mode::Off => RootFormat::Pae,
            Mode::Long4 => RootFormat::Long4,
        };
        Root { hpa: env.hpa(frame), format }
    }

    /// The paging state that a vCPU was last given.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn paging(&self, vcpu: usize) -> &Paging {
        self.roots.paging(vcpu)
    }

    /// Follows a change of the guest's CR0, CR3, CR4 or EFER. It does not flush what the guest's own
    /// instruction must flush: for that, call [`Mmu::flush_guest`] as well.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn load_paging(&mut self, env: &mut impl Env, vcpu: usize, paging: Paging) -> Root
    where
        P: WritePolicy,
    {
        self.tighten_all(env);
        let old = self.roots.current(vcpu);
        let old_paging = *self.roots.paging(vcpu);
        // CR4.PGE shapes no shadow page, and what a change of it flushes is the guest's own flush.
        let changed = (Paging { root: paging.root, pge: paging.pge, ..old_paging }) != paging;
        // A root is built for the control bits that it may be loaded under.
        if changed && self.keeps(Rule::WithdrawAtRoleChange) {
            self.roots.withdraw_from(&mut self.tables, vcpu, |_| true);
        }
        let new = self.pinned_root(env, &paging);
        self.roots.load(vcpu, paging, self.tables.pool().id(new));
        self.unpin_root(env, old.frame());
        // Entries cached under other control bits carry rights that are not the guest's any more (I2, I3).
        if changed && self.keeps(Rule::FlushAfterRoleChange) {
            self.tables.flush(env);
        }
        self.root(env, vcpu)
    }

    fn pinned_root(&mut self, env: &mut impl Env, paging: &Paging) -> u32
    where
        P: WritePolicy,
    {
        let source = Source::root(paging);
        let root = self.provide(env, source);
        self.tables.pin(root);
        self.tables.touch(root);
        if source.role == Role::PaeRoot {
            // PDPTEs cannot be Pending: all four are there as long as the root is in use.
            for index in 0..4 {
                let slot = Slot::new(root, index);
                if let Target::Missing(child) = self.view(env).target(slot, false) {
                    self.provide(env, child);
                }
                self.entries(env).refresh_now(slot);
                let child = self.tables.child(env, slot).expect("the identity page was built just now");
                self.tables.pin(child);
            }
        }
        root
    }

    fn unpin_root(&mut self, env: &impl Env, root: u32) {
        self.tables.unpin_root(root);
        if self.tables.source(root).role == Role::PaeRoot {
            for index in 0..4 {
                let child = self
                    .tables
                    .child(env, Slot::new(root, index))
                    .expect("PDPTEs of a root in use are Mapped");
                self.tables.unpin(child);
            }
        }
    }

    /// Carries out the guest's INVLPG. Only while [`Mmu::has_loose_tables`] must it exit: else no table that the CPU can
    /// reach is ever out of date, and what the instruction itself does is enough.
    pub fn invlpg(&mut self, env: &mut impl Env, vcpu: usize, gva: Gva) {
        self.tighten_all(env);
        env.flush_page(vcpu, gva);
    }

    /// Carries out any larger flush of the guest: MOV to CR3 without the no-flush bit, changes of CR4.PGE and
    /// the like, INVPCID (which need not exit either, as INVLPG).
    pub fn flush_guest(&mut self, env: &mut impl Env) {
        self.tighten_all(env);
        self.tables.flush(env);
    }
}

//! The facade: one call of the embedder, from top to bottom.
//!
//! Only here the policy is known, and only here proposals are turned into changes.

mod audit;
mod create;
mod page_fault;
mod roots;
mod writes;

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use umbra_paging::{Access, Gfn, Gpa, Gva, Hpa, Paging};

use crate::advice::{InactiveAddressSpaces, Predictor, PrefetchAccessed, Regret};
use crate::fault::{self, Detaches, WalkCache};
use crate::lifecycle::Shadow;
use crate::policy::{UnsyncFlush, WritePolicy};
use crate::{Counters, EntryState, Env, GuestFaults, TranslateError, VcpuId};

/// One guest's shadow MMU.
///
/// All methods take the embedder's `env`; it must be the same one every time. vCPUs are numbered
/// from zero ([`VcpuId`]).
pub struct Mmu<P = Predictor> {
    shadow: Shadow,
    policy: P,
    regret: Regret,
    vcpus: Vec<Vcpu>,
    /// Loads of roots, and flushes of the guest that are not of an address: for the policy.
    flushes: u64,
}

/// The figures, not the pool.
impl<P> fmt::Debug for Mmu<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mmu")
            .field("live_pages", &self.live_pages())
            .field("guest_faults", &self.guest_faults())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

/// What was learned of one vCPU. Nothing of it is needed for a right shadow; `detaches` is for
/// progress (I6).
#[derive(Default)]
struct Vcpu {
    detaches: Detaches,
    walks: WalkCache,
    spaces: InactiveAddressSpaces,
    accessed: PrefetchAccessed,
}

impl<P> Mmu<P> {
    /// The bytes of metadata beside the shadow frames now: a constant part, by the sizes of pool
    /// and guest memory, and 4 KiB for each page that lives (and for up to 64 that did). For
    /// [`MIN_FRAMES_PER_VCPU`](crate::MIN_FRAMES_PER_VCPU) pages, and those of loadable roots, they
    /// are there from the start.
    pub fn metadata_bytes(&self) -> usize {
        self.shadow.bytes()
    }

    /// Shadow frames in use.
    pub fn live_pages(&self) -> u32 {
        self.shadow.tables().pool().live()
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        *self.shadow.tables().counters()
    }

    /// The paging state that a vCPU was last given.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn paging(&self, vcpu: VcpuId) -> &Paging {
        self.shadow.roots().paging(vcpu)
    }

    /// Which page faults must exit when the guest runs next. May change with every call that takes
    /// the MMU `&mut`. While a page table is unsync, a protection fault may come from an old entry
    /// that the guest has replaced. The CPU must not deliver that again and again, so only
    /// not-present faults pass. While a table of another level is unsync, those may come from an old
    /// reference, too, and every fault exits.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
    /// # fn main() {
    /// use umbra_mmu::GuestFaults;
    ///
    /// let (mut host, mut mmu) = start();
    /// assert_eq!(mmu.guest_faults(), GuestFaults::Present);
    /// mmu.release_frame(&mut host, Gfn::new(1));
    /// assert_eq!(mmu.guest_faults(), GuestFaults::Trap);
    /// # }
    /// ```
    pub fn guest_faults(&self) -> GuestFaults {
        self.shadow.guest_faults()
    }

    /// What a vCPU enters the guest with: asked for before each entry. While other vCPUs run, it
    /// may be out of date before the vCPU has entered: see [`Tlb`](crate::Tlb).
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
    /// # fn main() {
    /// use umbra_mmu::GuestFaults;
    ///
    /// let (mut host, mut mmu) = start();
    /// let entry = mmu.entry_state(&host, VCPU);
    /// assert_eq!((entry.guest_faults, entry.flushes_exit), (GuestFaults::Present, false));
    /// mmu.release_frame(&mut host, Gfn::new(1));
    /// let entry = mmu.entry_state(&host, VCPU);
    /// assert_eq!((entry.guest_faults, entry.flushes_exit), (GuestFaults::Trap, true));
    /// # }
    /// ```
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn entry_state(&self, env: &impl Env, vcpu: VcpuId) -> EntryState {
        EntryState {
            root: self.root(env, vcpu),
            guest_faults: self.guest_faults(),
            flushes_exit: self.has_unsync_tables(),
            loadable_epoch: self.roots_changed(),
        }
    }

    /// Whether any table is unsync. Then all instructions of the guest that flush must exit (INVLPG,
    /// INVPCID, MOV to CR3 and the rest), and more of its page faults (see [`Mmu::guest_faults`]).
    pub fn has_unsync_tables(&self) -> bool {
        self.shadow.guest().has_unsync()
    }

    /// Where an access of an emulated instruction goes. Sets accessed and dirty bits as the access
    /// itself would.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
    /// # fn main() {
    /// let (mut host, mut mmu) = start();
    /// let gpa = mmu.translate(&mut host, VCPU, Gva::new(0x123), Access::supervisor_read());
    /// assert_eq!(gpa, Ok(Gpa::new(0x9123)));
    /// # }
    /// ```
    ///
    /// # Errors
    /// The page fault that it raises, or that the guest's tables do not hold still.
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn translate(
        &mut self,
        env: &mut impl Env,
        vcpu: VcpuId,
        gva: Gva,
        access: Access,
    ) -> Result<Gpa, TranslateError> {
        fault::walk(&mut self.shadow.with(env), vcpu, gva, access).map(|(walk, _)| walk.gpa())
    }

    /// Where the byte of code at `gva` lies that a vCPU has just executed, if the shadow maps it
    /// now: only to be read, and only before the guest runs again. (The answer is from the shadow
    /// as it is; the CPU may have used an older translation, as it may on bare hardware.)
    pub fn code(&mut self, env: &impl Env, vcpu: VcpuId, gva: Gva) -> Option<Hpa> {
        self.vcpus[vcpu.index()].walks.code(self.shadow.view(env), self.shadow.roots(), vcpu, gva)
    }

    /// Carries out the guest's INVLPG. Only while [`Mmu::has_unsync_tables`] must it exit: else no
    /// table that the CPU can reach is ever out of date, and what the instruction itself does is
    /// enough.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
    /// # fn main() {
    /// let (mut host, mut mmu) = start();
    /// mmu.release_frame(&mut host, Gfn::new(1));
    /// // The guest has changed the table, and says so.
    /// mmu.invlpg(&mut host, VCPU, Gva::new(0));
    /// assert!(!mmu.has_unsync_tables());
    /// # }
    /// ```
    pub fn invlpg(&mut self, env: &mut impl Env, vcpu: VcpuId, gva: Gva)
    where
        P: WritePolicy,
    {
        let mut cx = self.shadow.with(env);
        let resynced = fault::resync_address(&mut cx, vcpu, gva);
        if cx.shadow().guest().has_unsync() {
            let flush = match resynced {
                None => UnsyncFlush::Elsewhere,
                Some(entry) if !entry.has_changed() => UnsyncFlush::Unchanged(entry.at()),
                Some(entry) if entry.is_zero() => UnsyncFlush::Cleared(entry.at()),
                Some(entry) => UnsyncFlush::Changed(entry.at()),
            };
            if !self.policy.flushed(flush) {
                cx.resync_all();
            }
        }
        env.flush_page(vcpu, gva);
    }

    /// Carries out any larger flush of the guest: changes of CR4.PGE and the like, and INVPCID
    /// (which need not exit either, as INVLPG). Behind a MOV to CR3 that [`Mmu::load_paging`] has
    /// followed, [`Mmu::flush`] is enough.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
    /// # fn main() {
    /// let (mut host, mut mmu) = start();
    /// mmu.release_frame(&mut host, Gfn::new(1));
    /// mmu.flush_guest(&mut host);
    /// assert!(!mmu.has_unsync_tables() && host.flushes > 0);
    /// # }
    /// ```
    pub fn flush_guest(&mut self, env: &mut impl Env)
    where
        P: WritePolicy,
    {
        let mut cx = self.shadow.with(env);
        cx.guest_flushes(&mut self.policy);
        cx.flush();
        self.flushes += 1;
    }

    /// Drops what CPUs have cached of the shadows. A MOV to CR3 that flushes needs no more, once
    /// [`Mmu::load_paging`] has followed it.
    pub fn flush(&mut self, env: &mut impl Env) {
        self.shadow.with(env).flush();
    }

    /// Makes sure that nothing maps, or is built from, these guest frames. The embedder calls it
    /// before it changes what is behind them, with all vCPUs stopped until it has done so.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
    /// # fn main() {
    /// let (mut host, mut mmu) = start();
    /// let outcome = mmu.translate(&mut host, VCPU, Gva::new(0), Access::supervisor_read());
    /// assert!(outcome.is_ok());
    /// mmu.revoke(&mut host, Gfn::new(9)..Gfn::new(10));
    /// // Nothing maps the frame now, and no CPU has cached that something did.
    /// host.places.0[9] = 100;
    /// mmu.audit(&host).unwrap();
    /// # }
    /// ```
    pub fn revoke(&mut self, env: &mut impl Env, gfns: Range<Gfn>) {
        self.shadow.with(env).revoke(gfns);
    }

    /// Throws all shadows away. They are built again as the guest faults. Nothing is read of the
    /// guest's memory or of its map.
    pub fn zap_all(&mut self, env: &mut impl Env) {
        self.shadow.with(env).zap_all();
    }
}

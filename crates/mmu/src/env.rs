//! What the MMU asks of the hypervisor that embeds it.

use umbra_paging::{ENTRIES, Gfn, Gpa, Gva, Hfn, Hpa, Tables};

use crate::{Event, ShadowFrame, VcpuId};

/// What lies behind a guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Host memory of this guest.
    Ram {
        /// The host frame.
        hfn: Hfn,
        /// Whether guest accesses may write it. Writes to a frame that is not writable are reported
        /// as [`FaultOutcome::Mmio`](crate::FaultOutcome::Mmio). (Accessed and dirty bits are still
        /// set there.)
        writable: bool,
    },
    /// No memory: a device, or nothing.
    None,
}

/// The guest's memory and its gpa->hpa map.
///
/// [`Tables::read_entry`] reads page-table entries out of it. Before a gfn's [`Backing`] changes,
/// the embedder calls [`Mmu::revoke`](crate::Mmu::revoke) and lets no vCPU run until it has made
/// the change.
pub trait GuestMemory: Tables {
    /// What lies behind `gfn`: any value, also far beyond [`GuestMemory::end`], where it must be
    /// [`Backing::None`]. No two frames may have the same host frame: tracking goes by guest frame.
    fn backing(&self, gfn: Gfn) -> Backing;

    /// One past the highest frame that can ever be RAM. Constant.
    fn end(&self) -> Gfn;

    /// Reads the 8 entries from `first` on of the table in the frame `gfn`, which is RAM: the same
    /// as [`Tables::read_entry`] for each.
    fn read_entries(&self, gfn: Gfn, first: usize) -> [u64; 8] {
        core::array::from_fn(|n| self.read_entry(gfn.entry(first + n)))
    }

    /// Which groups of 8 entries of the table in the frame `gfn`, which is RAM, are not as in
    /// `known`: a bit for each. Each entry is read as by [`Tables::read_entry`].
    fn compare_table(&self, gfn: Gfn, known: &[[u64; 8]; ENTRIES / 8]) -> u64 {
        let differs =
            |(group, known): (usize, &[u64; 8])| self.read_entries(gfn, group * 8) != *known;
        known.iter().enumerate().rev().fold(0, |all, group| all << 1 | u64::from(differs(group)))
    }

    /// Replaces the 8 bytes at `gpa` (aligned, in RAM) by `new` if they are `old`, atomically.
    ///
    /// # Errors
    /// They are something else: that value.
    fn compare_exchange_entry(&mut self, gpa: Gpa, old: u64, new: u64) -> Result<(), u64>;

    /// Writes `bytes`, which do not cross a page, at `gpa` in RAM. Aligned writes of 1, 2, 4 and 8
    /// bytes are single stores.
    fn write(&mut self, gpa: Gpa, bytes: &[u8]);
}

/// The pool of host frames that hold shadow pages. Nothing else uses them, and no guest can name
/// them.
pub trait ShadowFrames {
    /// How many frames there are, numbered from zero. Constant.
    fn count(&self) -> u32;

    /// Where `frame` lies in host memory. Constant, but for [`ShadowFrames::swap_frames`].
    fn hpa(&self, frame: ShadowFrame) -> Hpa;

    /// The inverse of [`ShadowFrames::hpa`], for frames that lie where they lay at first.
    fn frame(&self, hpa: Hpa) -> ShadowFrame;

    /// Entry `index` of `frame`, read at once.
    fn read_shadow(&self, frame: ShadowFrame, index: usize) -> u64;

    /// The 8 entries of `frame` from `first` on.
    fn read_shadow_entries(&self, frame: ShadowFrame, first: usize) -> [u64; 8] {
        core::array::from_fn(|n| self.read_shadow(frame, first + n))
    }

    /// Stores entry `index` of `frame` at once.
    fn write_shadow(&mut self, frame: ShadowFrame, index: usize, value: u64);

    /// Stores `value` in every entry of `frame`, each at once: a CPU may be walking it.
    fn fill_shadow(&mut self, frame: ShadowFrame, value: u64) {
        (0..ENTRIES).for_each(|index| self.write_shadow(frame, index, value));
    }

    /// Exchanges the host frames behind the guest frame `gfn`, which is RAM, and the shadow frame
    /// `frame`, with their contents: each lies where the other lay afterwards, the guest frame as
    /// writable as it was. The MMU has seen to it that no CPU uses, or has cached anything of,
    /// either. It asks for this to let a shadow root lie at the host-physical address that the
    /// guest's own CR3 names ([`Config::loadable_roots`](crate::Config)).
    ///
    /// False, if that cannot be done: then nothing has changed. By default it cannot. An exchange
    /// is never refused that takes the last one of the same two frames back.
    fn swap_frames(&mut self, frame: ShadowFrame, gfn: Gfn) -> bool {
        let _ = (frame, gfn);
        false
    }

    /// Takes note of what the MMU has done, for a trace. Nothing depends on it.
    fn observe(&mut self, _event: Event) {}
}

/// The CPUs: their TLBs and paging-structure caches, and what they have latched at VM entry.
///
/// # Several vCPUs
/// A CPU that is in the guest goes by what it has latched at its VM entry ([`EntryState`]). So
/// before that becomes wrong, the MMU makes the other vCPUs leave, by [`Tlb::flush`] or
/// [`Tlb::kick`]. When either returns, every vCPU has left the guest, and asks [`Mmu::entry_state`]
/// before it enters again: after the call of the MMU that is under way, which has the MMU to
/// itself.
///
/// A vCPU that has asked already and has not entered yet must ask again. So the embedder keeps a
/// number that each flush and kick changes, and a vCPU enters like this (KVM: `IN_GUEST_MODE` and
/// `kvm_make_all_cpus_request`):
///
/// 1. it reads the number, and asks for its entry state;
/// 2. it publishes that it is about to enter, and executes a full fence;
/// 3. if the number is another one now, it takes back 2. and begins again;
/// 4. it enters.
///
/// Who flushes or kicks changes the number, executes a full fence, and then waits for every vCPU
/// that has published. Whoever looks before it publishes, enters with what is out of date.
///
/// [`EntryState`]: crate::EntryState
/// [`Mmu::entry_state`]: crate::Mmu::entry_state
pub trait Tlb {
    /// Drops everything that any CPU may have cached for this guest: globals, intermediate entries,
    /// all PCIDs. On a CPU that is not running the guest now it may be put off until just before
    /// the guest's next instruction there; one that is running it has left it before this returns,
    /// as by [`Tlb::kick`].
    fn flush(&mut self);

    /// Makes every vCPU leave the guest: see above. By default a flush, which is more.
    fn kick(&mut self) {
        self.flush();
    }

    /// The root that a vCPU, which has left the guest, has loaded without an exit, if the MMU has
    /// not been told of it by [`Mmu::switched`](crate::Mmu::switched): now it has. By default there
    /// is none, as without [`Config::loadable_roots`](crate::Config).
    fn take_loaded_root(&mut self, vcpu: VcpuId) -> Option<Gfn> {
        let _ = vcpu;
        None
    }

    /// Called from [`Mmu::invlpg`](crate::Mmu::invlpg): carries out a guest's INVLPG of `gva` on
    /// the vCPU that executed it. It drops what is cached for the page, and every intermediate entry of
    /// the PCID.
    fn flush_page(&mut self, vcpu: VcpuId, gva: Gva);

    /// Called where a fault turns out to be the guest's: drops what a page fault at `gva` drops on
    /// the vCPU that raised it (SDM, "Operations that Invalidate TLBs and Paging-Structure
    /// Caches"). That is what is cached for the page, and the intermediate entries on the way to it. By
    /// default as much as [`Tlb::flush_page`], which is more.
    fn flush_fault(&mut self, vcpu: VcpuId, gva: Gva) {
        self.flush_page(vcpu, gva);
    }
}

/// All of it together. Implemented for whatever implements the parts.
pub trait Env: GuestMemory + ShadowFrames + Tlb {}

impl<T: GuestMemory + ShadowFrames + Tlb> Env for T {}

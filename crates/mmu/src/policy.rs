//! How writes to tracked guest tables are answered.

use umbra_paging::{Gfn, Gpa, Gva};

use crate::VcpuId;

/// What is known of an access that exited, beside the access: all of it is a hint, but `rip` must
/// be the same for as long as the guest gets no further.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct FaultContext {
    /// The guest instruction.
    pub rip: Gva,
    /// Its stack pointer, where return addresses may stand.
    pub rsp: Option<Gva>,
    /// The guest had run for a short time only since its last exit, some hundred instructions, and
    /// has met no page fault since then (also none that did not exit: its CR2 tells).
    pub back_to_back: bool,
}

impl FaultContext {
    /// Nothing but the instruction is known.
    pub const fn at(rip: Gva) -> FaultContext {
        FaultContext { rip, rsp: None, back_to_back: false }
    }

    /// Its stack pointer is known, too.
    pub const fn with_stack(self, rsp: Gva) -> FaultContext {
        FaultContext { rsp: Some(rsp), ..self }
    }

    /// So is whether it comes [back to back](FaultContext::back_to_back).
    pub const fn with_back_to_back(self, back_to_back: bool) -> FaultContext {
        FaultContext { back_to_back, ..self }
    }
}

/// A place in the guest's code that writes tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallSite {
    /// The instruction.
    pub rip: u64,
    /// What the first return addresses on its stack are, mixed; 0 if nothing there looks like one.
    pub callers: u64,
    /// Whether the next entry has the same P bit as the entry being written. Bursts write entry
    /// after entry; where the next one differs, the burst is short.
    pub same_presence: bool,
}

/// A write to a tracked frame.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TableWrite {
    /// The vCPU that writes.
    pub vcpu: VcpuId,
    /// Where it goes.
    pub gpa: Gpa,
    /// The guest's code that writes; nothing, if the policy does not
    /// [need](WritePolicy::needs_site) it.
    pub site: CallSite,
    /// [`FaultContext::back_to_back`].
    pub back_to_back: bool,
    /// Whether a shadow of the frame can be reached by the hardware: a parent links to it, or it is
    /// a root in use. Guests free page tables by clearing what references them, and then use the
    /// frame for data.
    pub reachable: bool,
    /// Whether no root that a vCPU runs on (or its PTI sibling) leads there.
    /// Guests that end a process write its tables from another address space. A detach is of all
    /// tables of the address space then.
    pub inactive: bool,
    /// Whether [`Answer::Unsync`] can be carried out, and what it switches off.
    pub unsync: Unsync,
    /// How often a vCPU has loaded a root, or flushed all addresses, that the MMU was told of.
    pub flushes: u64,
}

/// What comes of an [`Answer::Unsync`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unsync {
    /// It counts as [`Answer::Emulate`]: the frame is no page table, or not only that.
    Impossible,
    /// Roots that the CPU loads, or may load, exit for as long. (It may be impossible as well.)
    SwitchesOff,
    /// The guest's flushes exit for as long. So do its page faults in the table, and all that are
    /// not not-present ones.
    FlushesAndFaults,
    /// Nothing changes but that the guest's flushes exit.
    OnlyFlushes,
}

impl TableWrite {
    /// A write to a table in use of which nothing else is known.
    pub fn new(vcpu: VcpuId, gpa: Gpa) -> TableWrite {
        TableWrite {
            vcpu,
            gpa,
            site: CallSite::default(),
            back_to_back: false,
            reachable: true,
            inactive: false,
            unsync: Unsync::Impossible,
            flushes: 0,
        }
    }
}

/// The answer to a [`TableWrite`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// The hypervisor emulates the instruction; the shadows follow.
    Emulate,
    /// The frame is detached: the guest writes freely until it next uses the table. Where that is
    /// not possible (the table is a root in use, or the same instruction has just been answered
    /// so), it counts as [`Answer::Emulate`].
    Detach,
    /// The frame is *unsync*: the guest writes freely, and its flushes exit, until one of them, or
    /// a fault, [ends](WritePolicy::flushed) that.
    Unsync,
}

/// A flush of the guest, or a fault, that exited because page tables were unsync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnsyncFlush {
    /// The address is not one of an unsync table.
    Elsewhere,
    /// The guest has not written its entry, at this site.
    Unchanged(Gpa),
    /// The guest has cleared its entry: one write that did not exit.
    Cleared(Gpa),
    /// The guest has changed its entry, most likely by clearing it first: two writes.
    Changed(Gpa),
    /// The guest has loaded a root, or flushed all addresses. In this unsync table so many entries
    /// are not what they were at the flush before.
    All(Gfn, u32),
    /// No flush, but a page fault of the guest. With all tables tracked the CPU would have
    /// delivered it, if the page was accessed before.
    Fault,
}

/// Decides how writes to tracked frames are answered. Any answer is correct; they differ in exits.
pub trait WritePolicy {
    /// Whether the answer to this write, whose site is not known yet, depends on its site. It takes
    /// time to find that out.
    fn needs_site(&self, write: &TableWrite) -> bool {
        let _ = write;
        true
    }

    /// Decides about one write.
    fn answer(&mut self, write: &TableWrite) -> Answer;

    /// A frame that was detached is in use again, and this many of its entries had changed.
    fn attached(&mut self, gfn: Gfn, changed: u32) {
        let _ = (gfn, changed);
    }

    /// The guest has flushed, or faulted, while page tables were unsync. Whether they stay so; or
    /// the one table, if it is told of that.
    fn flushed(&mut self, flush: UnsyncFlush) -> bool {
        !matches!(flush, UnsyncFlush::All(..))
    }
}

/// The simplest policy: emulate writes to tables in use, detach the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmulateReachable;

impl WritePolicy for EmulateReachable {
    fn needs_site(&self, _: &TableWrite) -> bool {
        false
    }

    fn answer(&mut self, write: &TableWrite) -> Answer {
        if write.reachable { Answer::Emulate } else { Answer::Detach }
    }
}

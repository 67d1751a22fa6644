//! Writes to guest memory, and tables whose writes cannot be emulated.

use umbra_paging::{Gfn, Gpa, PAGE_SIZE};

use super::Mmu;
use crate::{Env, TableTicket, VcpuId};

impl<P> Mmu<P> {
    /// Writes guest memory: for emulated instructions, and for whatever a device model stores.
    /// Bytes that go to no memory, or to memory that is not writable, are dropped. May cross pages.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
    /// # fn main() {
    /// let (mut host, mut mmu) = start();
    /// // The guest's store to its page table, which was emulated: another page at 0.
    /// mmu.write_guest(&mut host, Gfn::new(4).entry(0), &(0xa003_u64).to_le_bytes());
    /// let gpa = mmu.translate(&mut host, VCPU, Gva::new(0), Access::supervisor_read());
    /// assert_eq!(gpa, Ok(Gpa::new(0xa000)));
    /// # }
    /// ```
    pub fn write_guest(&mut self, env: &mut impl Env, gpa: Gpa, bytes: &[u8]) {
        let (mut gpa, mut bytes) = (gpa, bytes);
        while !bytes.is_empty() {
            let room = (PAGE_SIZE - gpa.page_offset()) as usize;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            let mut cx = self.shadow.with(env);
            cx.before_write(gpa.gfn());
            if let Some(child) = cx.entries().write(gpa, now) {
                cx.let_go(child);
            }
            bytes = rest;
            gpa = Gpa::new(gpa.raw().wrapping_add(now.len() as u64));
        }
    }

    /// Lets the guest carry out a write that cannot be emulated. Its table is detached if that can
    /// help; else it is unsync until the guest's next flush. (Each vCPU has its own ticket: what
    /// happens on others meanwhile does not matter.)
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
    /// # fn main() {
    /// use umbra_mmu::FaultOutcome;
    /// use umbra_paging::AccessKind;
    ///
    /// let (mut host, mut mmu) = start();
    /// // The page at 0 is the guest's page table itself.
    /// host.memory[4][0] = 0x4003;
    /// let write = Access { kind: AccessKind::Write, ..Access::supervisor_read() };
    /// let context = FaultContext::at(Gva::new(0x1_0000));
    /// loop {
    ///     match mmu.page_fault(&mut host, VCPU, Gva::new(0), write, &context) {
    ///         // Nobody can emulate the instruction.
    ///         FaultOutcome::TableWrite { ticket, .. } => break mmu.release(&mut host, ticket),
    ///         outcome => assert!(matches!(outcome, FaultOutcome::Resume(_))),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn release(&mut self, env: &mut impl Env, ticket: TableTicket) {
        let gfn = ticket.gfn();
        if self.may_detach(ticket.vcpu(), gfn) {
            self.shadow.with(env).detach(&[gfn]);
        } else {
            self.release_frame(env, gfn);
        }
    }

    /// Lets anybody write a tracked frame freely, until the guest's next flush: for writes that are
    /// no instruction's.
    pub fn release_frame(&mut self, env: &mut impl Env, gfn: Gfn) {
        if self.shadow.guest().is_tracked(gfn) {
            self.shadow.with(env).unsync(gfn);
        }
    }

    /// Whether a write of the instruction that has faulted can be answered by a detach; it will be
    /// then.
    pub(super) fn may_detach(&mut self, vcpu: VcpuId, gfn: Gfn) -> bool {
        let detaches = &mut self.vcpus[vcpu.index()].detaches;
        let again = detaches.contains(gfn);
        let may = !again && self.shadow.can_detach(gfn);
        if may {
            detaches.push(gfn);
        }
        may
    }
}

//! Where a #PF exit is decided: guest fault or host fault, and what to do about it.

use umbra_paging::{Access, Gfn, Gpa, GuestFault, Gva, Pfec, Rights, bits};

use super::{Mmu, Vcpu};
use crate::advice::{PrefetchTables, Step, call_site, tables_of_space, unaccessed};
use crate::fault::{self, Answered, Mapped};
use crate::lifecycle::Shadow;
use crate::policy::{Answer, CallSite, FaultContext, TableWrite, Unsync, UnsyncFlush, WritePolicy};
use crate::{Backing, Env, FaultOutcome, TableTicket, TranslateError, VcpuId, Work};

impl<P: WritePolicy> Mmu<P> {
    /// Handles a #PF exit of the instruction at `context`, whose `access` to `gva` raised it. Of
    /// the exit's error code only what describes the access is taken (in `access`); whether it is a
    /// guest fault, and its error code, come from a walk of the guest's own tables (I3).
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
    /// # fn main() {
    /// use umbra_mmu::{FaultOutcome, Work};
    ///
    /// let (mut host, mut mmu) = start();
    /// let (context, read) = (FaultContext::at(Gva::new(0x1_0000)), Access::supervisor_read());
    /// // The shadow lacks what the guest's tables have: a host fault.
    /// let outcome = mmu.page_fault(&mut host, VCPU, Gva::new(0x123), read, &context);
    /// assert_eq!(outcome, FaultOutcome::Resume(Work::Link));
    /// // The guest's own tables map nothing there: a guest fault.
    /// let outcome = mmu.page_fault(&mut host, VCPU, Gva::new(0x5000), read, &context);
    /// assert!(matches!(outcome, FaultOutcome::Guest(fault) if fault.gva == Gva::new(0x5000)));
    /// # }
    /// ```
    ///
    /// # Panics
    /// If there is no such vCPU.
    pub fn page_fault<E: Env>(
        &mut self,
        env: &mut E,
        vcpu: VcpuId,
        gva: Gva,
        access: Access,
        context: &FaultContext,
    ) -> FaultOutcome {
        let Vcpu { detaches, walks, .. } = &mut self.vcpus[vcpu.index()];
        detaches.fault(context.rip);
        let (view, roots) = (self.shadow.view(env), self.shadow.roots());
        let known = if view.config().shadow_walk {
            walks.known(view, roots, vcpu, gva, access)
        } else {
            None
        };
        match known {
            Some(Answered::Mmio(gpa)) => return FaultOutcome::Mmio { gpa },
            Some(Answered::TableWrite(gpa)) => {
                return self.table_write(env, vcpu, gpa, context);
            }
            None => (),
        }
        let (walk, updated) = match fault::walk(&mut self.shadow.with(env), vcpu, gva, access) {
            Ok(found) => found,
            Err(TranslateError::Fault(fault)) => return self.guest_fault(env, vcpu, access, fault),
            Err(TranslateError::Raced) => return FaultOutcome::Resume(Work::Raced),
        };
        if updated.is_some() {
            // A and D are set for an access that goes where this walk leads: it must not go by an
            // older translation. (The fault drops that, but not on all CPUs if it exits.)
            env.flush_fault(vcpu, gva);
        }
        let gpa = walk.gpa();
        let is_ram = match env.backing(gpa.gfn()) {
            Backing::None => false,
            Backing::Ram { writable, .. } => writable || !access.is_write(),
        };
        if is_ram && access.is_write() && self.shadow.guest().is_tracked(gpa.gfn()) {
            if fault::resync_leaf_entry(&mut self.shadow.with(env), vcpu, gva).is_some() {
                env.flush_fault(vcpu, gva);
            }
            return self.table_write(env, vcpu, gpa, context);
        }
        let mapped = self.map(env, vcpu, gva, walk.rights(), access);
        if !is_ram {
            FaultOutcome::Mmio { gpa }
        } else if mapped.has_raced() {
            FaultOutcome::Resume(Work::Raced)
        } else if !mapped.is_complete() {
            FaultOutcome::Override { gpa }
        } else if mapped.has_linked() {
            FaultOutcome::Resume(Work::Link)
        } else {
            FaultOutcome::Resume(updated.unwrap_or(Work::Install))
        }
    }

    /// A fault that the guest's own tables raise: the CPU delivers it if it can.
    fn guest_fault(
        &mut self,
        env: &mut impl Env,
        vcpu: VcpuId,
        access: Access,
        fault: GuestFault,
    ) -> FaultOutcome {
        if fault::is_bypassed(&self.shadow, fault)
            && self.map(env, vcpu, fault.gva, Rights::ALL, access).has_linked()
        {
            return FaultOutcome::Resume(Work::Link);
        }
        if !fault.pfec.contains(Pfec::RSVD) {
            self.prefetch_accessed(env, vcpu, fault);
            if fault::is_lost_to_unsync(&self.shadow, fault) {
                if !self.policy.flushed(UnsyncFlush::Fault) {
                    self.shadow.with(env).resync_all();
                }
            } else {
                self.learn_filter(env, fault.pfec);
            }
        }
        FaultOutcome::Guest(fault)
    }

    /// A write to a tracked table.
    fn table_write(
        &mut self,
        env: &mut impl Env,
        vcpu: VcpuId,
        gpa: Gpa,
        context: &FaultContext,
    ) -> FaultOutcome {
        let gfn = gpa.gfn();
        self.shadow.with(env).before_write(gfn);
        if !self.shadow.guest().is_tracked(gfn) {
            // It held PDPTEs, and is followed no more. Another vCPU may load them before the
            // instruction is repeated: then the write is emulated.
            let detaches = &mut self.vcpus[vcpu.index()].detaches;
            if detaches.contains(gfn) {
                return FaultOutcome::TableWrite { gpa, ticket: TableTicket::new(vcpu, gfn) };
            }
            detaches.push(gfn);
            return FaultOutcome::Resume(Work::Detach);
        }
        let (view, roots) = (self.shadow.view(env), self.shadow.roots());
        let Vcpu { walks, spaces, .. } = &mut self.vcpus[vcpu.index()];
        let reachable = view.is_reachable(gfn);
        let inactive = reachable && spaces.is_inactive(view, roots, vcpu, gfn);
        let unsync = unsync(&self.shadow, gfn);
        let site = CallSite::default();
        let mut write = TableWrite {
            vcpu,
            gpa,
            site,
            back_to_back: context.back_to_back,
            reachable,
            inactive,
            unsync,
            flushes: self.flushes,
        };
        if self.policy.needs_site(&write) {
            write.site = call_site(view, roots, walks, vcpu, context, gpa);
        }
        match self.policy.answer(&write) {
            Answer::Detach if self.may_detach(vcpu, gfn) => {
                self.detach_space(env, gfn);
                return FaultOutcome::Resume(Work::Detach);
            }
            Answer::Unsync if self.shadow.can_unsync(gfn) => {
                self.shadow.with(env).unsync_leaf(gfn);
                return FaultOutcome::Resume(Work::Detach);
            }
            Answer::Emulate | Answer::Detach | Answer::Unsync => (),
        }
        FaultOutcome::TableWrite { gpa, ticket: TableTicket::new(vcpu, gfn) }
    }

    /// Detaches a frame, and if it is inactive, all tables of its address space.
    fn detach_space(&mut self, env: &mut impl Env, gfn: Gfn) {
        let Some(space) = tables_of_space(self.shadow.view(env), self.shadow.roots(), gfn) else {
            return self.shadow.with(env).detach(&[gfn]);
        };
        let mut cx = self.shadow.with(env);
        cx.detach(space.gfns());
        for &gfn in space.gfns() {
            cx.age_shadows(gfn);
        }
    }

    fn map(
        &mut self,
        env: &mut impl Env,
        vcpu: VcpuId,
        gva: Gva,
        rights: Rights,
        access: Access,
    ) -> Mapped {
        let mut cx = self.shadow.with(env);
        let mapped = fault::map(&mut cx, &mut self.policy, vcpu, gva, rights, access);
        if mapped.has_linked_below_root() {
            self.prefetch_tables(env, vcpu);
        }
        mapped
    }

    /// Links tables of an address space that comes into use.
    fn prefetch_tables(&mut self, env: &mut impl Env, vcpu: VcpuId) {
        let mut cx = self.shadow.with(env);
        let root = cx.shadow().roots().current(vcpu).frame();
        let Some(mut way) = PrefetchTables::below(cx.view(), root) else { return };
        while let Some(step) = way.next(cx.view()) {
            match step {
                Step::Provide(key) => _ = cx.provide(&mut self.policy, key),
                Step::Link(slot) => cx.entries().refresh_now(slot),
            }
        }
    }

    /// Sets A in entries that the guest is about to write through.
    fn prefetch_accessed(&mut self, env: &mut impl Env, vcpu: VcpuId, fault: GuestFault) {
        let mut cx = self.shadow.with(env);
        let root = cx.shadow().roots().current(vcpu);
        let Some(slots) = self.vcpus[vcpu.index()].accessed.propose(cx.view(), root, fault) else {
            return;
        };
        for slot in slots {
            let Some((format, at, entry)) = unaccessed(cx.view(), slot) else { continue };
            cx.before_write(at.gfn());
            // Another vCPU may have changed it meanwhile: then it is not what was expected.
            let _ = cx.entries().update_entry(format, at, entry.raw(), entry.raw() | bits::A);
        }
    }

    /// Changes the filter, if this injected fault tells that another one pays.
    fn learn_filter(&mut self, env: &mut impl Env, pfec: Pfec) {
        if !self.shadow.filter_decides() {
            return;
        }
        let (policy, now) = (self.shadow.config().filter, self.shadow.guest_faults());
        let changes = self.shadow.tables().counters().filter_switches;
        if let Some(filter) = self.regret.learn(policy, now, changes, pfec) {
            self.shadow.with(env).entries().choose(filter);
        }
    }
}

/// What an answer to a write to this frame by [`Answer::Unsync`] comes to.
fn unsync(shadow: &Shadow, gfn: Gfn) -> Unsync {
    let roots = shadow.roots();
    // The cheap questions first: of most guests none of the others is asked. Where the CPU delivers
    // page faults, that no root may be loaded right now is not enough.
    let delivers = shadow.tables().encodings().separates_guest_faults();
    let loads = |vcpu| {
        if delivers { roots.can_load(vcpu) } else { !roots.loadable(vcpu).is_empty() }
    };
    if !shadow.config().cr3_loads_exit && roots.vcpus().any(loads) {
        return Unsync::SwitchesOff;
    }
    match shadow.can_unsync(gfn) {
        true if delivers => Unsync::FlushesAndFaults,
        true => Unsync::OnlyFlushes,
        false => Unsync::Impossible,
    }
}

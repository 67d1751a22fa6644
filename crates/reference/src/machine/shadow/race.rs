//! What other CPUs do while the MMU works: at every call of the embedder's traits some of them may
//! get further.
//!
//! The MMU takes `&mut self`, so what runs at the same time is hardware: a CPU that is in the guest
//! translates, stores, sets bits, delivers faults and loads roots by what it has latched, until it
//! exits or is made to leave.

use std::cell::RefCell;
use std::collections::VecDeque;

use fastrand::Rng;
use umbra_mmu::{Backing, Event, GuestMemory, ShadowFrame, ShadowFrames, Tlb, VcpuId};
use umbra_paging::{ENTRIES, Gfn, Gpa, Gva, Hpa, Tables};

use super::cpu::{Attempt, Presence, Protocol};
use super::host::Host;
use crate::machine::{Deed, Interleaved, Planned, When};
use crate::oracle::Observed;

/// What is to happen meanwhile, and what did.
pub(super) struct Race {
    when: When,
    random: Rng,
    protocol: Protocol,
    /// Calls so far.
    points: u32,
    waiting: VecDeque<Planned>,
    done: Vec<Interleaved>,
    broken: Option<String>,
}

impl Race {
    pub(super) fn new(when: When, protocol: Protocol, waiting: Vec<Planned>) -> Race {
        let random = Rng::with_seed(if let When::Chance { seed, .. } = when { seed } else { 0 });
        let (waiting, done) = (waiting.into(), Vec::new());
        Race { when, random, protocol, points: 0, waiting, done, broken: None }
    }

    /// The calls at which something could have happened.
    pub(super) fn points(&self) -> u32 {
        self.points
    }

    /// Something went wrong before it began.
    pub(super) fn fail(&mut self, why: String) {
        self.broken.get_or_insert(why);
    }

    pub(super) fn take(&mut self) -> (Vec<Interleaved>, Option<String>) {
        (std::mem::take(&mut self.done), self.broken.take())
    }

    /// How many steps of other CPUs there are here.
    fn due(&mut self) -> usize {
        self.points += 1;
        match &self.when {
            When::At(points) => points.iter().filter(|&&point| point == self.points).count(),
            &When::Chance { one_in, .. } => usize::from(self.random.u32(..one_in) == 0),
        }
    }

    /// The first of the waiting steps whose CPU can get further does.
    fn step(&mut self, host: &mut Host) {
        for n in 0..self.waiting.len() {
            let cpu = self.waiting[n].cpu;
            // Each CPU's steps stay in order.
            if self.waiting.iter().take(n).any(|before| before.cpu == cpu) {
                continue;
            }
            let epoch = host.epoch();
            if host.cpu_mut(cpu).proceed(self.protocol, epoch) {
                return;
            }
            if matches!(host.cpu(cpu).presence, Presence::Inside(_)) {
                return self.act(host, n);
            }
        }
    }

    fn act(&mut self, host: &mut Host, n: usize) {
        let Planned { number, cpu, deed } = self.waiting[n].clone();
        let before = match host.take_changes() {
            Ok(changes) => changes,
            Err(why) => return self.broken = Some(why),
        };
        let observed = match deed {
            Deed::Access { access, pieces } => match host.attempt(cpu, access, &pieces) {
                Ok(Attempt::Done(places)) => Some(Observed::Done(places)),
                Ok(Attempt::Delivered(fault)) => Some(Observed::Fault(fault)),
                // It takes place when the CPU gets hold of the MMU.
                Ok(Attempt::Exits(_)) => {
                    self.waiting.retain(|planned| planned.cpu != cpu);
                    return self.keep(before, host);
                }
                Err(why) => return self.broken = Some(why),
            },
            Deed::Execute { instruction, after, invalidation } => {
                if !host.execute(cpu, instruction, &after, invalidation) {
                    host.cpu_mut(cpu).presence = Presence::Out;
                    self.waiting.retain(|planned| planned.cpu != cpu);
                    return self.keep(before, host);
                }
                None
            }
        };
        self.waiting.remove(n);
        match host.take_changes() {
            Ok(changes) => self.done.push(Interleaved { number, before, observed, changes }),
            Err(why) => self.broken = Some(why),
        }
    }

    /// Nothing has happened, so what was taken is given back.
    fn keep(&mut self, changes: Vec<crate::oracle::Change>, host: &mut Host) {
        host.give_changes(changes);
    }
}

/// The embedder, with other CPUs that get further at each of its calls.
pub(super) struct Busy<'a> {
    inner: RefCell<(&'a mut Host, Option<&'a mut Race>)>,
}

impl<'a> Busy<'a> {
    pub(super) fn new(host: &'a mut Host, race: Option<&'a mut Race>) -> Busy<'a> {
        Busy { inner: RefCell::new((host, race)) }
    }

    fn point(&self) {
        let (host, race) = &mut *self.inner.borrow_mut();
        if let Some(race) = race {
            for _ in 0..race.due() {
                race.step(host);
            }
        }
    }

    fn look<T>(&self, call: impl FnOnce(&Host) -> T) -> T {
        self.point();
        call(self.inner.borrow().0)
    }

    fn change<T>(&mut self, call: impl FnOnce(&mut Host) -> T) -> T {
        self.point();
        call(self.inner.get_mut().0)
    }

    /// For what no other CPU can make a difference to.
    fn constant<T>(&self, call: impl FnOnce(&Host) -> T) -> T {
        call(self.inner.borrow().0)
    }
}

impl Tables for Busy<'_> {
    fn read_entry(&self, gpa: Gpa) -> u64 {
        self.look(|host| host.read_entry(gpa))
    }
}

impl GuestMemory for Busy<'_> {
    fn backing(&self, gfn: Gfn) -> Backing {
        self.constant(|host| host.backing(gfn))
    }

    fn end(&self) -> Gfn {
        self.constant(|host| host.end())
    }

    fn read_entries(&self, gfn: Gfn, first: usize) -> [u64; 8] {
        self.look(|host| host.read_entries(gfn, first))
    }

    fn compare_table(&self, gfn: Gfn, known: &[[u64; 8]; ENTRIES / 8]) -> u64 {
        self.look(|host| host.compare_table(gfn, known))
    }

    fn compare_exchange_entry(&mut self, gpa: Gpa, old: u64, new: u64) -> Result<(), u64> {
        self.change(|host| host.compare_exchange_entry(gpa, old, new))
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        self.change(|host| host.write(gpa, bytes));
    }
}

impl ShadowFrames for Busy<'_> {
    fn count(&self) -> u32 {
        self.constant(ShadowFrames::count)
    }

    fn hpa(&self, frame: ShadowFrame) -> Hpa {
        self.constant(|host| host.hpa(frame))
    }

    fn frame(&self, hpa: Hpa) -> ShadowFrame {
        self.constant(|host| host.frame(hpa))
    }

    fn read_shadow(&self, frame: ShadowFrame, index: usize) -> u64 {
        self.constant(|host| host.read_shadow(frame, index))
    }

    fn write_shadow(&mut self, frame: ShadowFrame, index: usize, value: u64) {
        self.change(|host| host.write_shadow(frame, index, value));
    }

    fn fill_shadow(&mut self, frame: ShadowFrame, value: u64) {
        self.change(|host| host.fill_shadow(frame, value));
    }

    fn swap_frames(&mut self, frame: ShadowFrame, gfn: Gfn) -> bool {
        self.change(|host| host.swap_frames(frame, gfn))
    }

    fn observe(&mut self, event: Event) {
        self.inner.get_mut().0.observe(event);
    }
}

impl Tlb for Busy<'_> {
    fn flush(&mut self) {
        self.change(Tlb::flush);
    }

    fn kick(&mut self) {
        self.change(Tlb::kick);
    }

    fn take_loaded_root(&mut self, vcpu: VcpuId) -> Option<Gfn> {
        self.inner.get_mut().0.take_loaded_root(vcpu)
    }

    fn flush_page(&mut self, vcpu: VcpuId, gva: Gva) {
        self.change(|host| host.flush_page(vcpu, gva));
    }

    fn flush_fault(&mut self, vcpu: VcpuId, gva: Gva) {
        self.change(|host| host.flush_fault(vcpu, gva));
    }
}

//! The host of a [`Shadow`](super::Shadow) machine: its memory, the gpa->hpa map, and the real
//! CPUs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;

use arrayvec::ArrayVec;
use fastrand::Rng;
use umbra_mmu::{Backing, Event, GuestMemory, ShadowFrame, ShadowFrames, Shadowed, Tlb, VcpuId};
use umbra_paging::{Access, ENTRIES, Format, Gfn, Gpa, Gva, Hfn, Hpa, Tables};

use crate::hardware::{PageFault, PagingMode, PagingUnit};
use crate::memory::{PhysAddr, PhysicalMemory, Ram, overlay};
use crate::oracle::{Change, Piece};
use crate::registers::{Invalidation, Privileged, Registers};
use crate::universe::{END, HIGH_FRAMES, HOLE};

use super::cpu::{Attempt, Presence, RealCpu};
use super::targets::operand;

/// How host memory is laid out.
struct Places {
    /// Where the shadow frames begin.
    shadow: u64,
    /// The 2 MiB regions of guest memory, that above 4 GiB last: the second is shuffled, the others
    /// are in one piece.
    homes: [u64; 4],
}

/// The shadow frames stand where the guest's hot frames would stand if gpa and hpa were the same:
/// whoever confuses the two hits them. Some guest frames lie above 4 GiB that the guest believes
/// below it, and the other way round.
const APART: Places = Places { shadow: 0x10, homes: [0x400, 0x10_0400, 0x10_0200, 0xa00] };
/// Guest frames lie where their gpa says, as roots that the guest loads by itself need it.
const SAME: Places = Places { shadow: 0x800, homes: [0, 0x200, 0x400, HIGH_FRAMES.start] };
/// Frames to move guest frames to.
const SPARE: u64 = 0xe00;
const SPARES: u64 = 64;
const LOW_FRAMES: u64 = SPARE + SPARES;
/// Host memory above 4 GiB: three regions.
const HIGH_HOST_FRAMES: Range<u64> = HIGH_FRAMES.start..HIGH_FRAMES.start + 3 * 512;
/// What stands in host memory that nobody may look at.
const POISON: u64 = 0xdead_dead_dead_def7;

#[derive(Clone, Copy)]
struct Slot {
    /// `None` while swapped out.
    hfn: Option<u64>,
    writable: bool,
}

pub(super) struct Host {
    ram: Ram,
    /// By place: `None` in the hole.
    map: Vec<Option<Slot>>,
    /// One past the highest guest frame that is memory.
    end: Gfn,
    /// By place: whose frame it is.
    owners: Vec<Option<Gfn>>,
    spare: VecDeque<u64>,
    swap: Vec<(Gfn, Vec<u64>)>,
    /// Frames that were read as tables while they were swapped out.
    wanted: RefCell<Vec<Gfn>>,
    places: &'static Places,
    /// Where each shadow frame lies.
    shadow: Vec<u64>,
    cpus: Vec<RealCpu>,
    /// Counts the times that vCPUs were made to leave the guest.
    epoch: u64,
    /// What changed in guest memory and was not asked for yet.
    changes: Result<Vec<Change>, String>,
    random: Rng,
    /// The guest table of each shadow frame, as long as the CPUs may have cached that it is one.
    tables: Vec<Option<Gfn>>,
    /// The shadow frame that was filled last.
    filled: ShadowFrame,
    /// Guest tables whose writes are not seen, as the MMU says.
    unsync_frames: Vec<Gfn>,
    /// Calls that tell what the MMU is at.
    seen: Seen,
}

/// Calls of the MMU that tell what it is at.
#[derive(Clone, Default)]
pub(super) struct Seen {
    /// Guest entries that it changed.
    pub(super) updates: u64,
    /// Tables that it compared with its copy of them.
    pub(super) compared: Cell<u64>,
}

impl Places {
    fn home(&self, gfn: u64) -> u64 {
        let (region, offset) = ((guest_place(gfn) / 512) as usize, gfn % 512);
        self.homes[region] + if region == 1 { offset ^ 0x105 } else { offset }
    }
}

/// Where a guest frame stands in a list of them; beyond its end, if it is no memory.
fn guest_place(gfn: u64) -> u64 {
    match gfn {
        _ if gfn < END => gfn,
        _ if HIGH_FRAMES.contains(&gfn) => END + gfn - HIGH_FRAMES.start,
        _ => u64::MAX,
    }
}

/// Where a host frame stands in a list of them; beyond its end, if it is no memory.
fn host_place(hfn: u64) -> usize {
    match hfn {
        _ if hfn < LOW_FRAMES => hfn as usize,
        _ if HIGH_HOST_FRAMES.contains(&hfn) => {
            (LOW_FRAMES + hfn - HIGH_HOST_FRAMES.start) as usize
        }
        _ => usize::MAX,
    }
}

impl Host {
    pub(super) fn new(
        memory: &Ram,
        shadow_frames: u32,
        identity: bool,
        units: Vec<PagingUnit>,
        registers: Registers,
        seed: u64,
    ) -> Host {
        let places = if identity { &SAME } else { &APART };
        let shadow: Vec<u64> = (places.shadow..).take(shadow_frames as usize).collect();
        let taken = |hfn: u64| {
            (SPARE..LOW_FRAMES).contains(&hfn)
                || places.homes.iter().any(|home| (*home..home + 512).contains(&hfn))
        };
        assert!(!shadow.iter().any(|&hfn| taken(hfn)), "shadow frames stay apart from the guest's");
        let mut host = Host {
            ram: Ram::new(LOW_FRAMES as usize).with_frames(HIGH_HOST_FRAMES),
            map: Vec::new(),
            end: memory
                .pieces()
                .map(|frames| Gfn::new(frames.end))
                .max()
                .expect("a guest has memory"),
            owners: vec![
                None;
                (LOW_FRAMES + HIGH_HOST_FRAMES.end - HIGH_HOST_FRAMES.start) as usize
            ],
            spare: (SPARE..LOW_FRAMES).collect(),
            swap: Vec::new(),
            wanted: RefCell::new(Vec::new()),
            places,
            shadow,
            cpus: units.into_iter().map(|unit| RealCpu::new(unit, registers)).collect(),
            epoch: 0,
            changes: Ok(Vec::new()),
            random: Rng::with_seed(seed),
            tables: vec![None; shadow_frames as usize],
            filled: ShadowFrame::new(0),
            unsync_frames: Vec::new(),
            seen: Seen::default(),
        };
        for gfn in memory.pieces().flatten() {
            let hfn = places.home(gfn);
            let slot = (gfn != HOLE).then_some(Slot { hfn: Some(hfn), writable: true });
            if slot.is_some() {
                host.owners[host_place(hfn)] = Some(Gfn::new(gfn));
            }
            host.map.push(slot);
        }
        // The other frames are zero on both sides.
        for gfn in memory.written() {
            for index in 0..512 {
                host.ram
                    .write_silently(word(places.home(gfn), index), memory.read(word(gfn, index)));
            }
        }
        host
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.clone()
    }

    pub(super) fn ram(&self) -> &Ram {
        &self.ram
    }

    pub(super) fn cpu(&self, cpu: usize) -> &RealCpu {
        &self.cpus[cpu]
    }

    pub(super) fn cpu_mut(&mut self, cpu: usize) -> &mut RealCpu {
        &mut self.cpus[cpu]
    }

    pub(super) fn cpus(&self) -> Range<usize> {
        0..self.cpus.len()
    }

    /// Makes every CPU leave the guest that has published that it enters, or has entered. One that
    /// has only asked what to enter with will find another epoch.
    pub(super) fn stop_all(&mut self) {
        self.epoch += 1;
        self.cpus.iter_mut().for_each(RealCpu::kick);
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether there is a shadow frame at this address.
    pub(super) fn is_shadow(&self, at: PhysAddr) -> bool {
        self.shadow.contains(&(at.raw() >> 12))
    }

    /// What a CPU does between two instructions of the guest, if it is inside.
    pub(super) fn speculate(&mut self, cpu: usize, pages: &[Gva]) {
        let RealCpu { unit, presence, .. } = &mut self.cpus[cpu];
        if let Presence::Inside(entry) = presence {
            unit.speculate(&mut self.ram, &entry.control, pages);
        }
    }

    /// A CPU that is in the guest attempts an access: all of it takes place, or it faults.
    ///
    /// # Errors
    /// It got at what is not the guest's.
    pub(super) fn attempt(
        &mut self,
        cpu: usize,
        access: Access,
        pieces: &[Piece],
    ) -> Result<Attempt, String> {
        let RealCpu { unit, presence, .. } = &mut self.cpus[cpu];
        let Presence::Inside(entry) = presence else {
            unreachable!("only a CPU in the guest accesses memory")
        };
        let mut places: ArrayVec<PhysAddr, 2> = ArrayVec::new();
        for piece in pieces {
            let gva = entry.control.linear(piece.gva);
            match unit.attempt(&mut self.ram, &entry.control, gva, access, &entry.filter) {
                Ok(reached) => places.push(reached.at),
                Err(fault) => {
                    // CR2 is compared with the address that the program used.
                    let seen = PageFault { gva: piece.gva, ..fault };
                    if entry.filter.exits(fault.code) {
                        *presence = Presence::Out;
                        return Ok(Attempt::Exits(seen));
                    }
                    return Ok(Attempt::Delivered(seen));
                }
            }
        }
        let mut guest = ArrayVec::new();
        for &at in &places {
            guest.push(self.guest_address(at, access.is_write())?);
        }
        for (piece, &at) in pieces.iter().zip(&places).filter(|(piece, _)| !piece.bytes.is_empty())
        {
            self.ram.write_bytes(at, &piece.bytes);
        }
        Ok(Attempt::Done(guest))
    }

    /// A CPU that is in the guest executes an instruction that leaves these registers, if it does
    /// so without an exit.
    pub(super) fn execute(
        &mut self,
        cpu: usize,
        instruction: Privileged,
        after: &Registers,
        invalidation: Invalidation,
    ) -> bool {
        let ram = &self.ram;
        let RealCpu { unit, presence, registers, loaded, .. } = &mut self.cpus[cpu];
        let Presence::Inside(entry) = presence else { return false };
        let native = match instruction {
            Privileged::Invlpg(_)
            | Privileged::InvpcidAddress { .. }
            | Privileged::InvpcidContext(_)
            | Privileged::InvpcidAllButGlobals
            | Privileged::FlushAll => !entry.flushes_exit,
            Privileged::LoadCr3 { root, pcid, no_flush } => {
                let value = operand(after, root, pcid, no_flush);
                let passes = after.paging && entry.targets.contains(&value);
                if passes {
                    let table = root.base().raw();
                    let pdptes = || [0, 8, 16, 24].map(|at| ram.read(PhysAddr::new(table + at)));
                    entry.control.mode = match after.format() {
                        Some(Format::Long4) => PagingMode::Long4 { root: PhysAddr::new(table) },
                        Some(Format::Pae) => PagingMode::Pae { pdptes: pdptes() },
                        other => panic!("no root is loadable in {other:?}"),
                    };
                    entry.control.pcid = after.pcid;
                    *loaded = Some(root);
                }
                passes
            }
            _ => false,
        };
        if native {
            *registers = *after;
            invalidation.apply(unit.caches_mut(), after.pcid);
        }
        native
    }

    /// The guest-physical address of what the hardware reached, if the guest may be there.
    pub(super) fn guest_address(&self, at: PhysAddr, write: bool) -> Result<PhysAddr, String> {
        let Some(gfn) = self.owner(at.raw() >> 12) else {
            return Err(format!("the guest reached host memory that is not its own, at {at:?}"));
        };
        if write && !self.slot(gfn).is_some_and(|slot| slot.writable) {
            return Err(format!("the guest wrote {gfn:?}, which the host has made read-only"));
        }
        Ok(PhysAddr::new(gfn.base().raw() + at.raw() % 4096))
    }

    fn slot(&self, gfn: Gfn) -> Option<Slot> {
        self.map.get(usize::try_from(guest_place(gfn.raw())).ok()?).copied().flatten()
    }

    fn slot_mut(&mut self, gfn: Gfn) -> &mut Option<Slot> {
        &mut self.map[guest_place(gfn.raw()) as usize]
    }

    pub(super) fn is_ram(&self, gfn: Gfn) -> bool {
        self.slot(gfn).is_some()
    }

    /// Whether the host keeps something of this frame back that the guest believes to have.
    pub(super) fn is_withheld(&self, gfn: Gfn) -> bool {
        self.slot(gfn).is_some_and(|slot| slot.hfn.is_none() || !slot.writable)
    }

    pub(super) fn take_wanted(&mut self) -> Vec<Gfn> {
        self.wanted.take()
    }

    /// Where the word of guest memory is, if it is anywhere.
    fn place(&self, gpa: Gpa) -> Option<PhysAddr> {
        let hfn = self.slot(gpa.gfn())?.hfn?;
        Some(PhysAddr::new(hfn << 12 | gpa.page_offset()))
    }

    fn contents(&self, hfn: u64) -> Vec<u64> {
        (0..512).map(|index| self.ram.read(word(hfn, index))).collect()
    }

    /// Fills a frame without the guest having done anything.
    fn fill(&mut self, hfn: u64, contents: &[u64]) {
        for (index, &value) in contents.iter().enumerate() {
            self.ram.write_silently(word(hfn, index), value);
        }
    }

    fn vacate(&mut self, hfn: u64) {
        self.fill(hfn, &[POISON; 512]);
        self.owners[host_place(hfn)] = None;
        if (SPARE..LOW_FRAMES).contains(&hfn) {
            self.spare.push_back(hfn);
        }
    }

    fn occupy(&mut self, gfn: Gfn, hfn: u64, contents: &[u64]) {
        self.fill(hfn, contents);
        self.owners[host_place(hfn)] = Some(gfn);
        *self.slot_mut(gfn) = Some(Slot { hfn: Some(hfn), writable: true });
    }

    fn destination(&mut self, gfn: Gfn, away: bool) -> u64 {
        let home = self.places.home(gfn.raw());
        if away {
            self.spare.pop_front().expect("there are more spare frames than hot ones")
        } else {
            home
        }
    }

    /// Moves a frame from its home to a spare frame, or back.
    pub(super) fn remap(&mut self, gfn: Gfn) {
        let Some(Slot { hfn: Some(old), .. }) = self.slot(gfn) else { return };
        let contents = self.contents(old);
        self.vacate(old);
        let new = self.destination(gfn, old == self.places.home(gfn.raw()));
        self.occupy(gfn, new, &contents);
    }

    pub(super) fn write_protect(&mut self, gfn: Gfn) {
        if let Some(Slot { hfn, .. }) = self.slot(gfn) {
            *self.slot_mut(gfn) = Some(Slot { hfn, writable: false });
        }
    }

    pub(super) fn swap_out(&mut self, gfn: Gfn) {
        let Some(Slot { hfn: Some(old), .. }) = self.slot(gfn) else { return };
        let contents = self.contents(old);
        self.vacate(old);
        self.swap.push((gfn, contents));
        *self.slot_mut(gfn) = Some(Slot { hfn: None, writable: true });
    }

    pub(super) fn give_back(&mut self, gfn: Gfn) {
        match self.slot(gfn) {
            Some(Slot { hfn: Some(hfn), .. }) => {
                *self.slot_mut(gfn) = Some(Slot { hfn: Some(hfn), writable: true });
            }
            Some(Slot { hfn: None, .. }) => {
                let at = self
                    .swap
                    .iter()
                    .position(|(other, _)| *other == gfn)
                    .expect("it was swapped out");
                let (_, contents) = self.swap.swap_remove(at);
                let away = self.random.bool();
                let hfn = self.destination(gfn, away);
                self.occupy(gfn, hfn, &contents);
            }
            None => (),
        }
    }

    /// Checks that an entry which is stored now does not let the guest write one of its tables
    /// while a CPU may still walk its shadow: the protection goes after what is cached (I5).
    fn check_protection(&mut self, entry: u64) {
        const MAPPED_WRITABLE: u64 = 0b11;
        let hfn = (entry & 0x000f_ffff_ffff_f000) >> 12;
        if entry & MAPPED_WRITABLE != MAPPED_WRITABLE || self.owner(hfn).is_none() {
            return;
        }
        let frames = if entry & 1 << 7 != 0 { 512 } else { 1 };
        let opened = |gfn: Gfn| (hfn..hfn + frames).any(|hfn| self.owner(hfn) == Some(gfn));
        for cpu in self.cpus.iter().filter(|cpu| !cpu.owed) {
            for cached in cpu.unit.caches().structures() {
                let frame =
                    self.shadow.iter().position(|&hfn| hfn == cached.next.table.raw() >> 12);
                let table = frame
                    .and_then(|frame| self.tables[frame])
                    .filter(|gfn| !self.unsync_frames.contains(gfn));
                if let Some(gfn) = table.filter(|&gfn| opened(gfn)) {
                    self.changes = Err(format!(
                        "the table {gfn:?} may be written while its shadow is cached (I5)"
                    ));
                    return;
                }
            }
        }
    }

    fn owner(&self, hfn: u64) -> Option<Gfn> {
        self.owners.get(host_place(hfn)).copied().flatten()
    }

    /// What changed in guest memory. Shadow frames are the MMU's own.
    pub(super) fn take_changes(&mut self) -> Result<Vec<Change>, String> {
        self.note_changes();
        std::mem::replace(&mut self.changes, Ok(Vec::new()))
    }

    /// The opposite of [`Host::take_changes`].
    pub(super) fn give_changes(&mut self, mut changes: Vec<Change>) {
        if let Ok(later) = &mut self.changes {
            changes.append(later);
            *later = changes;
        }
    }

    /// Notes what changed so far, while it is known whose memory it was.
    fn note_changes(&mut self) {
        for (at, _) in self.ram.take_journal() {
            let hfn = at.raw() >> 12;
            let is_shadow = self.is_shadow(at);
            match (self.owners[host_place(hfn)], &mut self.changes) {
                (Some(gfn), Ok(changes)) => {
                    let gpa = PhysAddr::new(gfn.base().raw() + at.raw() % 4096);
                    changes.push(Change { at: gpa, value: self.ram.read(at) });
                }
                (None, Ok(_)) if !is_shadow => {
                    self.changes =
                        Err(format!("host memory that is not the guest's was written, at {at:?}"));
                }
                _ => (),
            }
        }
    }
}

fn word(hfn: u64, index: usize) -> PhysAddr {
    PhysAddr::new((hfn << 12) + index as u64 * 8)
}

impl Tables for Host {
    fn read_entry(&self, gpa: Gpa) -> u64 {
        match self.slot(gpa.gfn()) {
            None => u64::MAX,
            Some(Slot { hfn: Some(hfn), .. }) => {
                self.ram.read(word(hfn, gpa.page_offset() as usize / 8))
            }
            Some(Slot { hfn: None, .. }) => {
                let gfn = gpa.gfn();
                let mut wanted = self.wanted.borrow_mut();
                if !wanted.contains(&gfn) {
                    wanted.push(gfn);
                }
                let (_, contents) =
                    self.swap.iter().find(|(other, _)| *other == gfn).expect("it was swapped out");
                contents[gpa.page_offset() as usize / 8]
            }
        }
    }
}

impl GuestMemory for Host {
    fn backing(&self, gfn: Gfn) -> Backing {
        match self.slot(gfn) {
            Some(Slot { hfn: Some(hfn), writable }) => {
                Backing::Ram { hfn: Hfn::new(hfn), writable }
            }
            _ => Backing::None,
        }
    }

    fn end(&self) -> Gfn {
        self.end
    }

    fn compare_exchange_entry(&mut self, gpa: Gpa, old: u64, new: u64) -> Result<(), u64> {
        let at = self.place(gpa).expect("the MMU updates entries in RAM only");
        let found = self.ram.read(at);
        if found != old {
            return Err(found);
        }
        self.ram.write(at, new);
        self.seen.updates += 1;
        Ok(())
    }

    fn compare_table(&self, gfn: Gfn, known: &[[u64; 8]; ENTRIES / 8]) -> u64 {
        self.seen.compared.set(self.seen.compared.get() + 1);
        let differs = |group: usize| self.read_entries(gfn, group * 8) != known[group];
        (0..ENTRIES / 8).fold(0, |all, group| all | u64::from(differs(group)) << group)
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        let at = self.place(gpa).expect("the MMU writes RAM only");
        for (word, mask, value) in overlay(at, bytes) {
            self.ram.write(word, self.ram.read(word) & !mask | value);
        }
    }
}

impl ShadowFrames for Host {
    fn count(&self) -> u32 {
        self.shadow.len() as u32
    }

    fn hpa(&self, frame: ShadowFrame) -> Hpa {
        Hpa::new(self.shadow[frame.index()] << 12)
    }

    fn frame(&self, hpa: Hpa) -> ShadowFrame {
        let frame = ShadowFrame::new(((hpa.raw() >> 12) - self.places.shadow) as u32);
        assert_eq!(
            self.shadow[frame.index()],
            hpa.raw() >> 12,
            "a frame that has moved is never linked"
        );
        frame
    }

    fn read_shadow(&self, frame: ShadowFrame, index: usize) -> u64 {
        self.ram.read(word(self.shadow[frame.index()], index))
    }

    fn write_shadow(&mut self, frame: ShadowFrame, index: usize, value: u64) {
        self.ram.write_silently(word(self.shadow[frame.index()], index), value);
        self.check_protection(value);
    }

    fn fill_shadow(&mut self, frame: ShadowFrame, value: u64) {
        self.filled = frame;
        (0..ENTRIES).for_each(|index| self.write_shadow(frame, index, value));
    }

    fn observe(&mut self, event: Event) {
        match event {
            // A page is filled when it is opened, and no other before it is built.
            Event::Built(Shadowed::Table { gfn, .. }) => {
                self.tables[self.filled.index()] = Some(gfn)
            }
            Event::Built(Shadowed::Identity { .. }) => self.tables[self.filled.index()] = None,
            Event::Unsynced(gfn) => self.unsync_frames.push(gfn),
            Event::Resynced(gfn) => self.unsync_frames.retain(|&other| other != gfn),
            _ => (),
        }
    }

    fn swap_frames(&mut self, frame: ShadowFrame, gfn: Gfn) -> bool {
        let Some(Slot { hfn: Some(guest), writable }) = self.slot(gfn) else { return false };
        let shadow = self.shadow[frame.index()];
        // A host may refuse to let a root lie elsewhere, but not to take it back.
        if shadow == self.places.shadow + u64::from(frame.raw()) && self.random.u8(..16) == 0 {
            return false;
        }
        self.note_changes();
        let (of_guest, of_shadow) = (self.contents(guest), self.contents(shadow));
        self.fill(shadow, &of_guest);
        self.fill(guest, &of_shadow);
        self.owners[host_place(guest)] = None;
        self.owners[host_place(shadow)] = Some(gfn);
        *self.slot_mut(gfn) = Some(Slot { hfn: Some(shadow), writable });
        self.shadow[frame.index()] = guest;
        true
    }
}

impl Tlb for Host {
    fn flush(&mut self) {
        for cpu in 0..self.cpus.len() {
            // Now, or just before the CPU's next instruction.
            self.cpus[cpu].owed = true;
            if self.random.bool() {
                self.cpus[cpu].pay_flush();
            }
        }
        self.stop_all();
    }

    fn kick(&mut self) {
        self.stop_all();
    }

    fn take_loaded_root(&mut self, vcpu: VcpuId) -> Option<Gfn> {
        self.cpus[vcpu.index()].loaded.take()
    }

    fn flush_page(&mut self, vcpu: VcpuId, gva: Gva) {
        let RealCpu { unit, registers, .. } = &mut self.cpus[vcpu.index()];
        unit.caches_mut().invlpg(registers.pcid, gva);
    }

    fn flush_fault(&mut self, vcpu: VcpuId, gva: Gva) {
        let RealCpu { unit, registers, .. } = &mut self.cpus[vcpu.index()];
        unit.caches_mut().page_fault(registers.pcid, gva);
    }
}

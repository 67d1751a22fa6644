//! A small embedder: guest memory at an offset, shadow frames, a TLB that only counts its flushes,
//! and a walk of the shadow tables as the hardware would do it.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;

use umbra_mmu::policy::{Answer, TableWrite, WritePolicy};
use umbra_mmu::{
    Backing, Config, Encodings, Event, FaultContext, FaultOutcome, FilterPolicy, GuestMemory, Mmu,
    RootFormat, ShadowFrame, ShadowFrames, Shadowed, Tlb, VcpuId,
};
use umbra_paging::{
    Access, AccessKind, Features, Format, Gfn, Gpa, GuestEntry, Gva, Hfn, Hpa, Level, Mode, Paging,
    Pdptes, Tables, bits,
};

/// The vCPU that runs, and another one in tests with two.
pub const VCPU: VcpuId = VcpuId::new(0);
pub const OTHER_VCPU: VcpuId = VcpuId::new(1);

pub const FEATURES: Features = Features::new(40, false);
pub const P: u64 = bits::P;
pub const W: u64 = bits::W;
pub const U: u64 = bits::U;
pub const A: u64 = bits::A;
pub const D: u64 = bits::D;

/// Guest frame n lies in host frame n + this: a whole number of 2 MiB regions.
const OFFSET: u64 = 512 * 8;
/// Shadow frame n lies in host frame n + this, until it moves.
const FRAMES_BASE: u64 = 0x8_0000;

pub struct Machine {
    memory: HashMap<u64, u64>,
    /// Guest frame n lies in host frame n + this.
    offset: u64,
    /// Where frames lie that have changed places with a shadow frame.
    moved: HashMap<u64, u64>,
    /// Where each shadow frame lies.
    places: Vec<u64>,
    pub frames: u64,
    pub holes: Vec<u64>,
    /// Guest frames that only the host may write.
    pub read_only: Range<u64>,
    shadow: Vec<[u64; 512]>,
    pub flushes: u64,
    /// Flushes of single addresses.
    pub page_flushes: u64,
    /// The flushes before a frame last changed places.
    pub flushes_at_exchange: Option<u64>,
    /// Calls of the embedder's traits: the unit in which the MMU's work is counted.
    pub work: Cell<u64>,
    /// What another vCPU stores just before the next flush reaches it: table, index, entry.
    pub before_flush: Option<(u64, usize, u64)>,
    /// The shadow frames as they were when guest memory was last written.
    pub shadow_at_write: Vec<[u64; 512]>,
    /// The flushes before guest memory was last written.
    pub flushes_at_write: u64,
    /// How often vCPUs were made to leave the guest, beside flushes.
    pub kicks: u64,
    /// The shadow frames as they were when that last happened.
    pub shadow_at_kick: Vec<[u64; 512]>,
    /// The root that a vCPU has loaded, which the MMU has not been told yet.
    pub loaded_root: Option<(VcpuId, Gfn)>,
    /// How often another vCPU stores to an entry, each time just before it is compared.
    pub racing_stores: u64,
    /// A guest table to look at.
    pub watched: Option<u64>,
    /// It has just been zapped.
    zapped: bool,
    /// Whether anything mapped it writable when the first flush after that came.
    pub writable_at_flush: Option<bool>,
}

impl Machine {
    pub fn new(frames: u64, pool: usize) -> Machine {
        Machine {
            memory: HashMap::new(),
            offset: OFFSET,
            moved: HashMap::new(),
            places: (FRAMES_BASE..).take(pool).collect(),
            frames,
            holes: Vec::new(),
            read_only: 0..0,
            shadow: vec![[0; 512]; pool],
            flushes: 0,
            page_flushes: 0,
            flushes_at_exchange: None,
            work: Cell::new(0),
            before_flush: None,
            shadow_at_write: Vec::new(),
            flushes_at_write: 0,
            kicks: 0,
            shadow_at_kick: Vec::new(),
            loaded_root: None,
            racing_stores: 0,
            watched: None,
            zapped: false,
            writable_at_flush: None,
        }
    }

    /// A machine whose guest frames lie where their gpa says, so that roots can be loaded without
    /// an exit.
    pub fn identical(frames: u64, pool: usize) -> Machine {
        Machine { offset: 0, ..Machine::new(frames, pool) }
    }

    fn hfn(&self, gfn: u64) -> u64 {
        self.moved.get(&gfn).copied().unwrap_or(gfn + self.offset)
    }

    /// The shadow frame that lies at this address, wherever it is.
    pub fn frame_at(&self, hpa: Hpa) -> ShadowFrame {
        let lies_there = |&place: &u64| place == hpa.hfn().raw();
        let number = self.places.iter().position(lies_there).expect("a shadow frame lies there");
        ShadowFrame::new(number as u32)
    }

    fn count(&self) {
        self.work.set(self.work.get() + 1);
    }

    /// Whether a shadow entry that maps nothing names this host frame on a CPU of this MAXPHYADDR:
    /// a terminal fault may use it nevertheless.
    pub fn hints_at(&self, hfn: u64, maxphyaddr: u8) -> bool {
        let features = Features::new(maxphyaddr, false);
        let named = |entry: u64| (entry & bits::ADDRESS & !features.address_reserved()) >> 12;
        let maps = |entry: u64| entry & P != 0 && entry & features.address_reserved() == 0;
        self.shadow.iter().flatten().any(|&entry| entry != 0 && !maps(entry) && named(entry) == hfn)
    }

    /// Stores as the guest did before any table was tracked.
    pub fn poke(&mut self, table: u64, index: usize, entry: u64) {
        self.memory.insert(Gfn::new(table).entry(index).raw(), entry);
    }

    /// As [`Machine::poke`], an entry of 32-bit paging.
    pub fn poke32(&mut self, table: u64, index: usize, entry: u32) {
        let at = Gfn::new(table).base().raw() + 4 * index as u64;
        let (word, shift) = (self.memory.entry(at & !7).or_default(), 8 * (at & 4));
        *word = *word & !(0xffff_ffff << shift) | u64::from(entry) << shift;
    }

    pub fn peek32(&self, table: u64, index: usize) -> GuestEntry {
        let at = Gpa::new(Gfn::new(table).base().raw() + 4 * index as u64);
        Format::Legacy32 { pse: false }.read(self, at)
    }

    pub fn peek(&self, table: u64, index: usize) -> GuestEntry {
        GuestEntry::new(self.read_entry(Gfn::new(table).entry(index)))
    }

    /// The shadow frame of the page table in this guest frame, which the addresses from 0 on go
    /// through.
    pub fn frame_of_table<Q>(&self, table: u64, mmu: &Mmu<Q>) -> usize {
        assert_eq!(self.peek(3, 0).frame(), Gfn::new(table));
        let mut hpa = mmu.root(self, VCPU).hpa();
        for _ in 0..3 {
            hpa = Hpa::new(self.read_shadow(self.frame_at(hpa), 0) & bits::ADDRESS);
        }
        self.frame_at(hpa).index()
    }

    /// Guest frame `gfn` lies where guest frame `other` would.
    pub fn share(&mut self, other: u64, gfn: u64) {
        self.moved.insert(gfn, other + self.offset);
    }

    /// A shadow entry that maps a guest frame by a 4 KiB page.
    pub fn mapping_of(&self, gfn: u64) -> Option<u64> {
        let page = Gfn::new(self.hfn(gfn)).base().raw();
        self.shadow.iter().flatten().copied().find(|entry| entry & (bits::ADDRESS | P) == page | P)
    }

    /// Tables in frames 1 to 4 that map gva 0.. by 4 KiB pages; the leaf entries are the caller's.
    pub fn chain(&mut self) {
        for table in 1..4 {
            self.poke(table, 0, (table + 1) << 12 | P | W | U | A);
        }
    }
}

impl Tables for Machine {
    fn read_entry(&self, gpa: Gpa) -> u64 {
        self.count();
        match self.backing(gpa.gfn()) {
            Backing::Ram { .. } => self.memory.get(&gpa.raw()).copied().unwrap_or(0),
            Backing::None => u64::MAX,
        }
    }
}

impl GuestMemory for Machine {
    fn backing(&self, gfn: Gfn) -> Backing {
        self.count();
        let there = gfn.raw() < self.frames && !self.holes.contains(&gfn.raw());
        if there {
            let writable = !self.read_only.contains(&gfn.raw());
            Backing::Ram { hfn: Hfn::new(self.hfn(gfn.raw())), writable }
        } else {
            Backing::None
        }
    }

    fn read_entries(&self, gfn: Gfn, first: usize) -> [u64; 8] {
        let ram = matches!(self.backing(gfn), Backing::Ram { .. });
        assert!(ram, "entries of {gfn:?} are read, which is no RAM");
        std::array::from_fn(|n| self.read_entry(gfn.entry(first + n)))
    }

    fn end(&self) -> Gfn {
        Gfn::new(self.frames)
    }

    fn compare_exchange_entry(&mut self, gpa: Gpa, old: u64, new: u64) -> Result<(), u64> {
        if self.racing_stores > 0 {
            // Another entry each time, as far as the walk is concerned the same.
            self.racing_stores -= 1;
            *self.memory.entry(gpa.raw()).or_default() ^= 1 << 52;
        }
        let now = self.read_entry(gpa);
        if now != old {
            return Err(now);
        }
        self.memory.insert(gpa.raw(), new);
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        self.count();
        self.shadow_at_write.clone_from(&self.shadow);
        self.flushes_at_write = self.flushes;
        for (n, &byte) in bytes.iter().enumerate() {
            let at = gpa.raw() + n as u64;
            let word = self.memory.entry(at & !7).or_default();
            let shift = at % 8 * 8;
            *word = *word & !(0xff << shift) | u64::from(byte) << shift;
        }
    }
}

impl ShadowFrames for Machine {
    fn count(&self) -> u32 {
        self.shadow.len() as u32
    }
    fn hpa(&self, frame: ShadowFrame) -> Hpa {
        Hfn::new(self.places[frame.index()]).base()
    }
    fn frame(&self, hpa: Hpa) -> ShadowFrame {
        ShadowFrame::new((hpa.hfn().raw() - FRAMES_BASE) as u32)
    }
    fn read_shadow(&self, frame: ShadowFrame, index: usize) -> u64 {
        self.count();
        self.shadow[frame.index()][index]
    }
    fn write_shadow(&mut self, frame: ShadowFrame, index: usize, value: u64) {
        self.count();
        self.shadow[frame.index()][index] = value;
    }
    fn swap_frames(&mut self, frame: ShadowFrame, gfn: Gfn) -> bool {
        self.count();
        let Backing::Ram { hfn, .. } = self.backing(gfn) else { return false };
        self.flushes_at_exchange = Some(self.flushes);
        let place = std::mem::replace(&mut self.places[frame.index()], hfn.raw());
        self.moved.insert(gfn.raw(), place);
        true
    }
    fn observe(&mut self, event: Event) {
        if let Event::Zapped(Shadowed::Table { gfn, .. }) = event {
            self.zapped |= Some(gfn.raw()) == self.watched;
        }
    }
}

impl Tlb for Machine {
    fn flush(&mut self) {
        self.count();
        self.flushes += 1;
        if let Some(gfn) = self.watched.filter(|_| std::mem::take(&mut self.zapped)) {
            let page = Gfn::new(self.hfn(gfn)).base().raw();
            let writable = |&entry: &u64| entry & (bits::ADDRESS | P | W) == page | P | W;
            self.writable_at_flush.get_or_insert(self.shadow.iter().flatten().any(writable));
        }
        if let Some((table, index, entry)) = self.before_flush.take() {
            self.poke(table, index, entry);
        }
    }
    fn kick(&mut self) {
        self.count();
        self.kicks += 1;
        self.shadow_at_kick.clone_from(&self.shadow);
    }
    fn take_loaded_root(&mut self, vcpu: VcpuId) -> Option<Gfn> {
        self.loaded_root.take_if(|(loader, _)| *loader == vcpu).map(|(_, root)| root)
    }
    fn flush_page(&mut self, _: VcpuId, _: Gva) {
        self.page_flushes += 1;
    }
}

pub fn config() -> Config {
    let mut config = Config::new(FEATURES, Encodings::reserved(FEATURES.maxphyaddr).unwrap());
    (config.filter, config.prefetch_tables, config.log_changes) =
        (FilterPolicy::Present, false, true);
    config
}

/// [`config`], with some of it otherwise.
pub fn config_with(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = config();
    change(&mut config);
    config
}

pub fn paging(root: u64) -> Paging {
    let root = Gfn::new(root);
    Paging { mode: Mode::Long4, root, wp: true, smep: false, smap: false, pge: false, nxe: true }
}

/// PAE paging with these PDPTEs.
pub fn pae(entries: [u64; 4]) -> Paging {
    let pdptes = Pdptes::checked(entries, &FEATURES).unwrap();
    Paging { mode: Mode::Pae { pdptes }, ..paging(1) }
}

/// So many vCPUs load root 1.
pub fn load_everywhere<Q: WritePolicy>(machine: &mut Machine, mmu: &mut Mmu<Q>, vcpus: usize) {
    for vcpu in (0..vcpus).map(VcpuId::new) {
        mmu.load_paging(machine, vcpu, paging(1));
    }
}

/// What the hardware makes of an address.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Seen {
    /// P=0 on the way: goes to the guest.
    NotPresent,
    /// A reserved bit on the way: exits.
    Reserved,
    /// Mapped: the guest frame, and whether user mode may write.
    Page { gfn: u64, user: bool, write: bool },
}

pub fn hardware<P>(machine: &Machine, mmu: &Mmu<P>, gva: u64) -> Seen {
    let (root, nxe) = (mmu.root(machine, VCPU), mmu.paging(VCPU).nxe);
    let (mut table, mut level, format) = match root.format() {
        RootFormat::Long4 => (root.hpa(), Level::L4, Format::Long4),
        RootFormat::Pae => {
            let raw = machine.read_shadow(machine.frame_at(root.hpa()), (gva >> 30) as usize & 3);
            assert!(
                Pdptes::checked([raw, 0, 0, 0], &FEATURES).is_ok(),
                "VM entry would fail: {raw:#x}"
            );
            if raw & P == 0 {
                return Seen::NotPresent;
            }
            (Hpa::new(raw & bits::ADDRESS), Level::L2, Format::Pae)
        }
    };
    let of_host = |hfn: u64| {
        let mut moved = machine.moved.iter();
        moved
            .find(|(_, place)| **place == hfn)
            .map_or(hfn.wrapping_sub(machine.offset), |(&gfn, _)| gfn)
    };
    let (mut user, mut write) = (true, true);
    loop {
        let raw = machine.read_shadow(machine.frame_at(table), Gva::new(gva).index(level));
        let entry = GuestEntry::new(raw);
        if !entry.present() {
            return Seen::NotPresent;
        }
        if format.reserved(entry, level, nxe, &FEATURES) != 0 {
            return Seen::Reserved;
        }
        user &= entry.user();
        write &= entry.writable();
        match level.below() {
            Some(below) if !entry.is_leaf(level) => {
                (table, level) = (entry.frame().base_hpa(), below)
            }
            _ => {
                let offset = gva >> 12 & (level.pages() - 1);
                return Seen::Page {
                    gfn: of_host(entry.leaf_frame(level).raw() + offset),
                    user,
                    write,
                };
            }
        }
    }
}

trait BaseHpa {
    fn base_hpa(self) -> Hpa;
}

impl BaseHpa for Gfn {
    /// The frame field of a shadow entry names a host frame.
    fn base_hpa(self) -> Hpa {
        Hpa::new(self.base().raw())
    }
}

/// Every write to a table in use detaches it.
pub struct Detach;

impl WritePolicy for Detach {
    fn answer(&mut self, _: &TableWrite) -> Answer {
        Answer::Detach
    }
}

pub fn fault<Q: WritePolicy>(
    machine: &mut Machine,
    mmu: &mut Mmu<Q>,
    gva: u64,
    access: Access,
) -> FaultOutcome {
    fault_by(machine, mmu, 0, gva, access)
}

/// As `fault`, of the instruction at `rip`.
pub fn fault_by<Q: WritePolicy>(
    machine: &mut Machine,
    mmu: &mut Mmu<Q>,
    rip: u64,
    gva: u64,
    access: Access,
) -> FaultOutcome {
    let outcome = exit_at(machine, mmu, rip, gva, access);
    mmu.audit(machine).unwrap();
    outcome
}

/// As `fault_by`, whatever the auditor says.
pub fn exit_at<Q: WritePolicy>(
    machine: &mut Machine,
    mmu: &mut Mmu<Q>,
    rip: u64,
    gva: u64,
    access: Access,
) -> FaultOutcome {
    mmu.page_fault(machine, VCPU, Gva::new(gva), access, &FaultContext::at(Gva::new(rip)))
}

pub fn user_write() -> Access {
    Access::user_read().with_kind(AccessKind::Write)
}

pub fn supervisor_write() -> Access {
    Access::supervisor_read().with_kind(AccessKind::Write)
}

/// The guest's store to an entry of a tracked table, as the hypervisor emulates it.
pub fn store<Q>(machine: &mut Machine, mmu: &mut Mmu<Q>, table: u64, index: usize, entry: u64) {
    mmu.write_guest(machine, Gfn::new(table).entry(index), &entry.to_le_bytes());
    mmu.audit(machine).unwrap();
}

/// As [`store`], to an entry of 32-bit paging.
pub fn store32<Q>(machine: &mut Machine, mmu: &mut Mmu<Q>, table: u64, index: usize, entry: u32) {
    let at = Gpa::new(Gfn::new(table).base().raw() + 4 * index as u64);
    mmu.write_guest(machine, at, &entry.to_le_bytes());
    mmu.audit(machine).unwrap();
}

/// Lets the guest access an address until the hardware allows it, as after each exit.
///
/// # Panics
/// If the guest's tables refuse the access, or nothing comes of it.
pub fn settle<Q: WritePolicy>(machine: &mut Machine, mmu: &mut Mmu<Q>, gva: u64, access: Access) {
    for _ in 0..8 {
        if let Seen::Page { user, write, .. } = hardware(machine, mmu, gva)
            && (user || !access.user)
            && (write || !access.is_write())
        {
            return;
        }
        let outcome = fault(machine, mmu, gva, access);
        assert!(matches!(outcome, FaultOutcome::Resume(_)), "{outcome:?}");
    }
    panic!("no progress at {gva:#x}");
}

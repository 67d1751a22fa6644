//! Guests of 32-bit and PAE paging on the shadow MMU, with the hostile paging unit in front of the
//! shadow tables. The guest flushes as it must and no more: after each change of a table it
//! executes one INVLPG for each page that it had mapped, at any address within it. So every access
//! must give what a walk of the guest's own tables gives, which the reference machine's own walk
//! says.

use fastrand::Rng;
use umbra_mmu::policy::{Answer, TableWrite, WritePolicy};
use umbra_mmu::{
    Backing, Config, Encodings, FaultContext, FaultOutcome, FilterPolicy, GuestFaults, GuestMemory,
    Mmu, RootFormat, ShadowFrame, ShadowFrames, Tlb, VcpuId,
};
use umbra_paging::{
    Access, AccessKind, Features, Gfn, Gpa, Gva, Hfn, Hpa, Mode, PAGE_SIZE, Paging, Pdptes, Pfec,
    Tables,
};
use umbra_reference::hardware::{self, Control, End, Filter, PagingMode, PagingUnit, Temper};
use umbra_reference::memory::{PhysAddr, PhysicalMemory, Ram};

/// Guest frames: four regions of 2 MiB, whose host memory begins here. Tables lie in the first.
const GUEST: u64 = 0x400;
const GUEST_FRAMES: u64 = 0x800;
const SHADOW: u64 = 0x100;
const SHADOW_FRAMES: u64 = 96;
const FEATURES: Features = Features::new(36, false);
const VCPU: VcpuId = VcpuId::new(0);
/// Frames of tables.
const TABLES: std::ops::Range<u64> = 1..7;

struct Host {
    ram: Ram,
    unit: PagingUnit,
}

/// Guest memory as the guest's own paging unit would see it.
struct Guest<'a>(&'a Ram);

impl PhysicalMemory for Guest<'_> {
    fn read(&self, at: PhysAddr) -> u64 {
        match at.raw() / PAGE_SIZE {
            0..GUEST_FRAMES => self.0.read(PhysAddr::new(at.raw() + GUEST * PAGE_SIZE)),
            _ => u64::MAX,
        }
    }

    fn set_bits(&mut self, _: PhysAddr, _: u64) {
        unreachable!("it is only looked at");
    }
}

impl Tables for Host {
    fn read_entry(&self, gpa: Gpa) -> u64 {
        Guest(&self.ram).read(PhysAddr::new(gpa.raw()))
    }
}

impl GuestMemory for Host {
    fn backing(&self, gfn: Gfn) -> Backing {
        match gfn.raw() {
            0..GUEST_FRAMES => Backing::Ram { hfn: Hfn::new(gfn.raw() + GUEST), writable: true },
            _ => Backing::None,
        }
    }

    fn end(&self) -> Gfn {
        Gfn::new(GUEST_FRAMES)
    }

    fn compare_exchange_entry(&mut self, gpa: Gpa, old: u64, new: u64) -> Result<(), u64> {
        let now = self.read_entry(gpa);
        if now != old {
            return Err(now);
        }
        self.ram.write(PhysAddr::new(gpa.raw() + GUEST * PAGE_SIZE), new);
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        self.ram.write_bytes(PhysAddr::new(gpa.raw() + GUEST * PAGE_SIZE), bytes);
    }
}

impl ShadowFrames for Host {
    fn count(&self) -> u32 {
        SHADOW_FRAMES as u32
    }

    fn hpa(&self, frame: ShadowFrame) -> Hpa {
        Hfn::new(SHADOW + u64::from(frame.raw())).base()
    }

    fn frame(&self, hpa: Hpa) -> ShadowFrame {
        ShadowFrame::new((hpa.hfn().raw() - SHADOW) as u32)
    }

    fn read_shadow(&self, frame: ShadowFrame, index: usize) -> u64 {
        self.ram.read(PhysAddr::new(self.hpa(frame).raw() + 8 * index as u64))
    }

    fn write_shadow(&mut self, frame: ShadowFrame, index: usize, value: u64) {
        self.ram.write(PhysAddr::new(self.hpa(frame).raw() + 8 * index as u64), value);
    }
}

impl Tlb for Host {
    fn flush(&mut self) {
        self.unit.caches_mut().clear();
    }

    fn flush_page(&mut self, _: VcpuId, gva: Gva) {
        self.unit.caches_mut().invlpg(0, gva);
    }

    fn flush_fault(&mut self, _: VcpuId, gva: Gva) {
        self.unit.caches_mut().page_fault(0, gva);
    }
}

/// Answers writes to tables at random.
struct Dice(Rng);

impl WritePolicy for Dice {
    fn answer(&mut self, _: &TableWrite) -> Answer {
        if self.0.bool() { Answer::Detach } else { Answer::Emulate }
    }
}

/// How accesses ended.
#[derive(Debug, Default)]
struct Outcomes {
    mapped: u32,
    /// With a fault that the CPU delivered, or that was injected.
    native: u32,
    injected: u32,
    /// Emulated, as they go to tables or to no memory.
    emulated: u32,
}

struct Machine {
    host: Host,
    mmu: Mmu<Dice>,
    paging: Paging,
    random: Rng,
    addresses: Vec<Gva>,
    outcomes: Outcomes,
}

fn pick<T: Copy>(random: &mut Rng, of: &[T]) -> T {
    of[random.usize(..of.len())]
}

impl Machine {
    fn new(seed: u64) -> Machine {
        let mut random = Rng::with_seed(seed);
        let temper = pick(&mut random, &[Temper::STICKY, Temper::ERRATIC]);
        let mut host = Host {
            ram: Ram::new((GUEST + GUEST_FRAMES) as usize),
            unit: PagingUnit::new(seed, temper),
        };
        let encodings = Encodings::reserved(FEATURES.maxphyaddr).expect("there are reserved bits");
        let mut config = Config::new(FEATURES, encodings);
        config.filter =
            pick(&mut random, &[FilterPolicy::Present, FilterPolicy::User, FilterPolicy::Auto]);
        config.eager = random.bool();
        config.log_changes = true;
        let mmu =
            Mmu::with_policy(config, &mut host, Dice(Rng::with_seed(seed))).expect("enough frames");
        // Two addresses in each of some 4 MiB, across halves and GiB.
        let addresses =
            [0, 0x20_0000, 0x3f_f000, 0x40_1000, 0x60_0000, 0x4000_0000, 0x7fe0_0000, 0xffff_f000];
        let addresses = addresses.iter().flat_map(|&at| [at, at ^ 0x1000]).map(Gva::new).collect();
        let paging = Paging {
            mode: Mode::Off,
            root: Gfn::new(0),
            wp: true,
            smep: false,
            smap: false,
            pge: false,
            nxe: false,
        };
        Machine { host, mmu, paging, random, addresses, outcomes: Outcomes::default() }
    }

    /// The control state of bare hardware.
    fn bare(&self) -> Control {
        let Paging { mode, root, wp, smep, smap, pge, nxe } = self.paging;
        let root = PhysAddr::new(root.base().raw());
        let mode = match mode {
            Mode::Off => PagingMode::Off,
            Mode::Legacy32 { pse } => PagingMode::Legacy32 { root, pse },
            Mode::Pae { pdptes } => PagingMode::Pae { pdptes: pdptes.raw() },
            Mode::Long4 => PagingMode::Long4 { root },
        };
        Control {
            mode,
            pcid: 0,
            wp,
            smep,
            smap,
            pge,
            nxe,
            maxphyaddr: FEATURES.maxphyaddr,
            gib_pages: false,
        }
    }

    /// That of the real CPU.
    fn real(&self) -> Control {
        let root = self.mmu.root(&self.host, VCPU);
        let at = |index: u64| self.host.ram.read(PhysAddr::new(root.hpa().raw() + 8 * index));
        let mode = match root.format() {
            RootFormat::Long4 => PagingMode::Long4 { root: PhysAddr::new(root.hpa().raw()) },
            RootFormat::Pae => {
                let pdptes = [at(0), at(1), at(2), at(3)];
                Pdptes::checked(pdptes, &FEATURES).expect("VM entry takes the PDPTEs");
                PagingMode::Pae { pdptes }
            }
        };
        let off = self.paging.mode == Mode::Off;
        let bare = self.bare();
        let nxe = bare.nxe && !matches!(self.paging.mode, Mode::Legacy32 { .. });
        Control { mode, wp: true, smep: bare.smep && !off, smap: bare.smap && !off, nxe, ..bare }
    }

    /// What bare hardware without caches gives.
    fn expected(&self, gva: Gva, access: Access) -> Result<u64, Pfec> {
        let control = self.bare();
        if control.mode == PagingMode::Off {
            return Ok(gva.raw());
        }
        let cause = match hardware::walk(&Guest(&self.host.ram), &control, gva).end {
            End::NotPresent => Pfec::empty(),
            End::Reserved => Pfec::PRESENT | Pfec::RSVD,
            End::Page(page) if page.rights.permit(access, &control) => {
                return Ok(page.place(gva).raw());
            }
            End::Page(_) => Pfec::PRESENT,
        };
        Err(cause | control.access_code(access))
    }

    fn access(&mut self, gva: Gva, access: Access) {
        for _ in 0..24 {
            let expected = self.expected(gva, access);
            let control = self.real();
            let fault = match self.host.unit.translate(&mut self.host.ram, &control, gva, access) {
                Ok(reached) => {
                    assert_eq!(
                        expected,
                        Ok(reached.at.raw() - GUEST * PAGE_SIZE),
                        "{gva:?} {access:?}"
                    );
                    self.outcomes.mapped += 1;
                    return;
                }
                Err(fault) => fault,
            };
            let filter = match self.mmu.guest_faults() {
                GuestFaults::Trap => Filter::TRAP,
                GuestFaults::Present => Filter::PRESENT,
                GuestFaults::User => Filter::USER,
            };
            if !filter.exits(fault.code) {
                assert_eq!(expected, Err(fault.code), "{gva:?} {access:?} {:?}", self.paging);
                self.outcomes.native += 1;
                return;
            }
            let context = FaultContext::at(Gva::new(self.random.u64(..4)));
            match self.mmu.page_fault(&mut self.host, VCPU, gva, access, &context) {
                FaultOutcome::Resume(_) => (),
                FaultOutcome::Guest(fault) => {
                    assert_eq!(expected, Err(fault.pfec), "{gva:?} {access:?} {:?}", self.paging);
                    self.outcomes.injected += 1;
                    return;
                }
                FaultOutcome::TableWrite { gpa, .. }
                | FaultOutcome::Mmio { gpa }
                | FaultOutcome::Override { gpa } => {
                    assert_eq!(expected, Ok(gpa.raw()), "{gva:?} {access:?}");
                    self.outcomes.emulated += 1;
                    return;
                }
            }
        }
        panic!("no progress at {gva:?} {access:?} {:?}", self.paging);
    }

    /// INVLPG for each page that was mapped, at any address within it, and for each address that
    /// was not.
    fn invalidate(&mut self, before: &[(Gva, u32)]) {
        let mut done = std::collections::BTreeSet::new();
        for &(gva, shift) in before {
            if !done.insert((gva.raw() >> shift, shift)) {
                continue;
            }
            let within =
                before.iter().filter(|(other, _)| other.raw() >> shift == gva.raw() >> shift);
            let within: Vec<Gva> = within.map(|&(other, _)| other).collect();
            let gva = pick(&mut self.random, &within);
            if self.mmu.has_unsync_tables() {
                self.mmu.invlpg(&mut self.host, VCPU, gva);
            } else {
                self.host.unit.caches_mut().invlpg(0, gva);
            }
        }
    }

    /// The page of each address, as far as there is one.
    fn pages(&self) -> Vec<(Gva, u32)> {
        let control = self.bare();
        let shift = |gva| match hardware::walk(&Guest(&self.host.ram), &control, gva).end {
            End::Page(page) => page.shift(),
            End::NotPresent | End::Reserved => 12,
        };
        self.addresses.iter().map(|&gva| (gva, shift(gva))).collect()
    }

    fn write(&mut self) {
        if self.paging.mode == Mode::Off {
            return;
        }
        let before = self.pages();
        let (at, bytes) = self.change();
        self.mmu.write_guest(&mut self.host, Gpa::new(at), &bytes);
        self.invalidate(&before);
    }

    /// An entry, or half of one, or two, and where it goes: mostly on the way to an address in use.
    fn change(&mut self) -> (u64, Vec<u8>) {
        let random = &mut self.random;
        let legacy = matches!(self.paging.mode, Mode::Legacy32 { .. });
        let gva = pick(random, &self.addresses).raw();
        let directory = random.bool();
        let index = match (legacy, directory) {
            (true, true) => gva >> 22,
            (true, false) => gva >> 12 & 0x3ff,
            (false, true) => gva >> 21 & 0x1ff,
            (false, false) => gva >> 12 & 0x1ff,
        };
        let table = random.u64(TABLES);
        let entry = random_entry(random, directory);
        if legacy {
            let pair = [entry as u32, random_entry(random, directory) as u32]
                .map(u32::to_le_bytes)
                .concat();
            let length = if index % 2 == 0 && random.u8(..4) == 0 { 8 } else { 4 };
            (table << 12 | index << 2, pair[..length].to_vec())
        } else {
            let length = if random.u8(..8) == 0 { 4 } else { 8 };
            (table << 12 | index << 3, entry.to_le_bytes()[..length].to_vec())
        }
    }

    /// MOV to CR3, CR0 or CR4, with the flush that comes with it.
    fn load(&mut self) {
        let random = &mut self.random;
        let root = Gfn::new(random.u64(TABLES));
        let mode = match random.u8(..16) {
            0 => Mode::Off,
            1..8 => Mode::Legacy32 { pse: random.u8(..4) != 0 },
            _ => {
                let pdpte =
                    |random: &mut Rng| random.u64(TABLES) << 12 | u64::from(random.u8(..8) != 0);
                let values = core::array::from_fn(|_| pdpte(random));
                Mode::Pae {
                    pdptes: Pdptes::checked(values, &FEATURES).expect("no reserved bit is set"),
                }
            }
        };
        // Mostly a plain load of CR3.
        if random.u8(..4) == 0 || self.paging.mode.format() == mode.format() {
            let nxe = random.bool();
            let bits = if random.bool() { random.u8(..) } else { 1 };
            let (wp, smep, smap) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
            self.paging = Paging { mode, root, wp, smep, smap, nxe, ..self.paging };
        }
        self.mmu.load_paging(&mut self.host, VCPU, self.paging);
        self.mmu.flush_guest(&mut self.host);
    }

    /// A change of CR0.WP or EFER.NXE, which flushes nothing.
    fn toggle(&mut self) {
        if self.random.bool() {
            self.paging.wp = !self.paging.wp;
        } else {
            self.paging.nxe = !self.paging.nxe;
        }
        self.mmu.load_paging(&mut self.host, VCPU, self.paging);
    }

    fn step(&mut self) {
        match self.random.u8(..) {
            0..4 => self.load(),
            4 => self.mmu.zap_all(&mut self.host),
            5..9 => self.toggle(),
            9 => {
                let gfn = Gfn::new(self.random.u64(TABLES));
                self.mmu.revoke(&mut self.host, gfn..gfn + 1);
            }
            10..80 => self.write(),
            _ => {
                let gva = pick(&mut self.random, &self.addresses);
                let kind = pick(
                    &mut self.random,
                    &[AccessKind::Read, AccessKind::Write, AccessKind::Fetch],
                );
                let access =
                    Access { kind, user: self.random.bool(), smap_override: self.random.bool() };
                let offset = self.random.u64(..0x1000) & !7;
                self.access(Gva::new(gva.raw() & !0xfff | offset), access);
            }
        }
        self.mmu.audit_changed(&self.host).unwrap_or_else(|violation| panic!("{violation}"));
        let control = self.real();
        self.host.unit.speculate(&mut self.host.ram, &control, &self.addresses);
        self.host.ram.take_journal();
    }
}

fn random_entry(random: &mut Rng, directory: bool) -> u64 {
    let large = directory && random.u8(..3) == 0;
    let frame = match large {
        true => pick(random, &[0, 0x200, 0x400, 0x400, 0x800]),
        false if directory => random.u64(TABLES),
        false => pick(random, &[1, 2, 3, 9, 0x1ff, 0x200, 0x3ff, 0x800]),
    };
    let entry = frame << 12 | 0x67 | if large { 0x80 } else { 0 };
    match random.u8(..8) {
        // One bit is otherwise: P, W, U, A, D, PS, G, a reserved one or NX.
        0..4 => entry ^ 1 << pick(random, &[0, 1, 2, 5, 6, 7, 8, 13, 17, 21, 40, 52, 62, 63]),
        4 => 0,
        _ => entry,
    }
}

#[test]
fn guests_of_both_formats_see_what_their_tables_say() {
    let mut sums = Outcomes::default();
    for seed in 0..60 {
        let mut machine = Machine::new(seed);
        machine.load();
        for _ in 0..600 {
            machine.step();
        }
        machine
            .mmu
            .audit(&machine.host)
            .unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        let Outcomes { mapped, native, injected, emulated } = machine.outcomes;
        sums.mapped += mapped;
        sums.native += native;
        sums.injected += injected;
        sums.emulated += emulated;
    }
    let Outcomes { mapped, native, injected, emulated } = sums;
    assert!([mapped, native, injected, emulated].into_iter().all(|count| count > 200), "{sums:?}");
}

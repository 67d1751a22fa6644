//! The short way of a write to a page table does what the general one does.

use alloc::vec;
use alloc::vec::Vec;

use umbra_paging::{ENTRIES, Features, Gfn, Gpa, Gva, Hfn, Hpa, Level, bits};

use super::{Entries, FaultFilter};
use crate::derive::Basis;
use crate::format::{Role, ShadowEntry, ShadowKey, TableFormat, Wp};
use crate::guest::GuestFrames;
use crate::tables::{List, Slot, Tables};
use crate::{Backing, Config, Encodings, GuestMemory, ShadowFrame, ShadowFrames, Tlb, VcpuId};

/// The guest's frames: 0 is a hole, 1 can only be read, the rest is RAM.
const FRAMES: u64 = 4;
const TABLE: Gfn = Gfn::new(2);
const INDEX: usize = 7;

/// The guest's memory is one entry of one table.
struct Host {
    entry: u64,
    pool: Vec<[u64; ENTRIES]>,
}

impl umbra_paging::Tables for Host {
    fn read_entry(&self, at: Gpa) -> u64 {
        if at == TABLE.entry(INDEX) { self.entry } else { 0 }
    }
}

impl GuestMemory for Host {
    fn backing(&self, gfn: Gfn) -> Backing {
        match gfn.raw() {
            n @ 1..FRAMES => Backing::Ram { hfn: Hfn::new(n + 0x100), writable: n != 1 },
            _ => Backing::None,
        }
    }

    fn end(&self) -> Gfn {
        Gfn::new(FRAMES)
    }

    fn compare_exchange_entry(&mut self, _: Gpa, _: u64, _: u64) -> Result<(), u64> {
        unreachable!("nobody sets A or D")
    }

    fn write(&mut self, at: Gpa, bytes: &[u8]) {
        assert_eq!(at, TABLE.entry(INDEX));
        self.entry = u64::from_le_bytes(bytes.try_into().expect("whole entries are written"));
    }
}

impl ShadowFrames for Host {
    fn count(&self) -> u32 {
        self.pool.len() as u32
    }

    fn hpa(&self, frame: ShadowFrame) -> Hpa {
        Hpa::new(u64::from(frame.raw()) << 12 | 1 << 24)
    }

    fn frame(&self, hpa: Hpa) -> ShadowFrame {
        ShadowFrame::new((hpa.raw() >> 12) as u32 & 0xfff)
    }

    fn read_shadow(&self, frame: ShadowFrame, index: usize) -> u64 {
        self.pool[frame.index()][index]
    }

    fn write_shadow(&mut self, frame: ShadowFrame, index: usize, value: u64) {
        self.pool[frame.index()][index] = value;
    }
}

impl Tlb for Host {
    fn flush(&mut self) {}

    fn flush_page(&mut self, _: VcpuId, _: Gva) {}
}

/// What there is after a write.
#[derive(Debug, PartialEq, Eq)]
struct After {
    guest: u64,
    shadow: ShadowEntry,
    list: Option<List>,
}

struct Setting {
    host: Host,
    basis: Basis,
    filter: FaultFilter,
    slot: Slot,
}

impl Setting {
    /// A tracked page table with one shadow.
    fn new() -> Setting {
        let features = Features::new(40, true);
        let encodings = Encodings::reserved(features.maxphyaddr).expect("there are reserved bits");
        let config = Config::new(features, encodings);
        let mut host = Host { entry: 0, pool: vec![[0; ENTRIES]; 2] };
        let mut tables = Tables::new(&config, 2, host.end(), 2);
        let mut guest = GuestFrames::new(host.end(), config.vcpus);
        let format = TableFormat::LONG4;
        let key = ShadowKey {
            role: Role::Guest { level: Level::L1, format, nxe: true, wp: Wp::On },
            gfn: TABLE,
        };
        let page = tables.allocate(key).expect("the pool is large enough");
        guest.insert(&mut tables, key, page);
        tables.open(&mut host, page, true);
        let filter = FaultFilter::new(config.filter);
        Setting {
            host,
            basis: Basis::new(tables, guest, config),
            filter,
            slot: Slot::new(page, INDEX),
        }
    }

    /// The guest's entry is `old`, and followed; then `write` writes another.
    fn after<T>(
        &mut self,
        old: u64,
        write: impl FnOnce(&mut Entries<'_, Host>) -> T,
    ) -> (T, After) {
        self.host.entry = old;
        let mut entries = Entries::new(&mut self.basis, &mut self.filter, &mut self.host);
        entries.refresh_now(self.slot);
        let answer = write(&mut entries);
        let (shadow, list) =
            (entries.view().read(self.slot), entries.view().tables().rmap().list_of(self.slot));
        (answer, After { guest: self.host.entry, shadow, list })
    }
}

/// Every combination of the bits that matter, with frames of every kind.
fn entries() -> Vec<u64> {
    const BITS: [u64; 7] = [bits::P, bits::W, bits::U, bits::A, bits::D, bits::G, bits::NX];
    let flags = (0..1u32 << BITS.len())
        .map(|set| (0..BITS.len()).filter(|n| set & 1 << n != 0).fold(0, |all, n| all | BITS[n]));
    flags.flat_map(|flags| (0..=FRAMES).map(move |gfn| flags | gfn << 12)).collect()
}

#[test]
fn the_short_way_of_a_write_does_what_the_general_one_does() {
    let mut setting = Setting::new();
    let (all, mut short) = (entries(), 0);
    for &old in &all {
        for &new in &all {
            let (gpa, bytes) = (TABLE.entry(INDEX), new.to_le_bytes());
            let (taken, by_short) = setting.after(old, |entries| entries.write_leaf(gpa, &bytes));
            if taken {
                let (child, by_general) =
                    setting.after(old, |entries| entries.write_followed(gpa, &bytes));
                assert_eq!((child, by_short), (None, by_general), "{old:#x} -> {new:#x}");
                short += 1;
            }
        }
    }
    assert!(short * 2 > all.len() * all.len(), "the short way was taken {short} times only");
}

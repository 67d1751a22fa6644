//! The short way gives what the general one gives, for all kinds of entries at every level.

use alloc::vec;
use alloc::vec::Vec;

use umbra_paging::{ENTRIES, Features, Gfn, Gpa, Gva, Hfn, Hpa, Level, bits};

use super::Basis;
use crate::format::{Held, Role, ShadowEntry, ShadowKey, TableFormat, Wp};
use crate::guest::GuestFrames;
use crate::tables::{Slot, Tables};
use crate::{Backing, Config, Encodings, GuestMemory, ShadowFrame, ShadowFrames, Tlb, VcpuId};

/// The guest's frames: 0 is a hole, 1 can only be read, the rest is RAM.
const FRAMES: u64 = 8;
const TABLE: Gfn = Gfn::new(2);
/// A table with shadows of every level, and one whose shadows are detached.
const LINKED: Gfn = Gfn::new(3);
const DETACHED: Gfn = Gfn::new(4);

struct Host {
    entry: u64,
    pool: Vec<[u64; ENTRIES]>,
}

impl umbra_paging::Tables for Host {
    fn read_entry(&self, _: Gpa) -> u64 {
        self.entry
    }
}

impl GuestMemory for Host {
    fn backing(&self, gfn: Gfn) -> Backing {
        match gfn.raw() {
            0 => Backing::None,
            n if n < FRAMES => Backing::Ram { hfn: Hfn::new(n + 0x100), writable: n != 1 },
            _ => Backing::None,
        }
    }

    fn end(&self) -> Gfn {
        Gfn::new(FRAMES)
    }

    fn compare_exchange_entry(&mut self, _: Gpa, _: u64, _: u64) -> Result<(), u64> {
        unreachable!("nothing here is written")
    }

    fn write(&mut self, _: Gpa, _: &[u8]) {
        unreachable!("nothing here is written")
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

struct Setting {
    host: Host,
    basis: Basis,
}

impl Setting {
    fn new(encodings: Encodings, features: Features) -> Setting {
        let config = Config::new(features, encodings);
        let host = Host { entry: 0, pool: vec![[0; ENTRIES]; 64] };
        let tables = Tables::new(&config, 64, host.end(), 64);
        Setting { host, basis: Basis::new(tables, GuestFrames::new(Gfn::new(FRAMES), 1), config) }
    }

    fn page(&mut self, format: TableFormat, level: Level, nxe: bool, gfn: Gfn) -> ShadowFrame {
        let key = ShadowKey { role: Role::Guest { level, format, nxe, wp: Wp::On }, gfn };
        let Basis { tables, guest, .. } = &mut self.basis;
        let frame = tables.allocate(key).expect("the pool is large enough");
        guest.insert(tables, key, frame);
        tables.open(&mut self.host, frame, true);
        frame
    }

    /// Both ways for an entry of this page: the short one, if it knows, and the general one.
    fn both_ways(&mut self, page: ShadowFrame, raw: u64) -> (Option<ShadowEntry>, ShadowEntry) {
        self.host.entry = raw;
        let view = self.basis.view(&self.host);
        let slot = Slot::new(page, 0);
        let guest = view.guest_entry(slot).expect("a table of the guest");
        let plain = view.plain(self.basis.tables.key(page).role, guest);
        let general = view.encode(slot, view.target(slot, false));
        if let Some((_, list)) = plain {
            assert_eq!(list, general.1, "{raw:#x}");
        }
        (plain.map(|(entry, _)| entry), general.0)
    }
}

/// Every combination of the bits that an entry has, with frames of every kind.
fn entries() -> impl Iterator<Item = u64> {
    const BITS: [u64; 12] = [
        bits::P,
        bits::W,
        bits::U,
        bits::PWT,
        bits::PCD,
        bits::A,
        bits::D,
        bits::PS,
        bits::G,
        bits::NX,
        // Reserved in the features of the test.
        1 << 45,
        // Reserved in PAE paging.
        1 << 55,
    ];
    let flags = (0..1u32 << BITS.len()).map(|set| {
        (0..BITS.len()).filter(move |n| set & 1 << n != 0).fold(0, |all, n| all | BITS[n])
    });
    flags.flat_map(|flags| (0..FRAMES + 1).map(move |gfn| flags | gfn << 12))
}

/// Tables of every format and level that the short way knows, with NX and without.
fn tables() -> impl Iterator<Item = (TableFormat, Level, bool)> {
    let long4 = Level::ALL.map(|level| (TableFormat::LONG4, level));
    let pae = [Level::L1, Level::L2].map(|level| (TableFormat::PAE, level));
    let with_nx = long4
        .into_iter()
        .chain(pae)
        .flat_map(|(format, level)| [(format, level, false), (format, level, true)]);
    with_nx.chain([(TableFormat::legacy32(false, 1), Level::L1, false)])
}

/// The bits of a Mapped entry by which it chooses a memory type other than write-back.
fn memory_type(setting: &Setting, level: Level, entry: ShadowEntry) -> u64 {
    let pat = match level {
        Level::L1 => bits::PS,
        _ if entry.is_large() => 1 << 12,
        _ => 0,
    };
    let is_mapped = setting.basis.tables.encodings().is_mapped(entry);
    if is_mapped { entry.raw() & (bits::PWT | bits::PCD | pat) } else { 0 }
}

#[test]
fn the_short_way_gives_what_the_general_one_gives() {
    let features = Features::new(40, true);
    for encodings in [
        Encodings::reserved(features.maxphyaddr).unwrap(),
        Encodings::not_present(features.maxphyaddr),
    ] {
        for (format, level, nxe) in tables() {
            let mut setting = Setting::new(encodings, features);
            let page = setting.page(format, level, nxe, TABLE);
            if let Some(below) = level.below() {
                setting.page(format, below, nxe, LINKED);
                setting.page(format, below, nxe, DETACHED);
                setting.basis.guest.detach(DETACHED);
            }
            let (mut known, mut of) = (0, 0);
            for raw in entries() {
                let (plain, general) = setting.both_ways(page, raw);
                let mapped = |entry| setting.basis.tables.is_mapped(entry);
                assert!(
                    plain.is_none_or(|plain| plain == general),
                    "{format:?} {level:?} {raw:#x}: {plain:?} {general:?}"
                );
                assert_eq!(
                    memory_type(&setting, level, general),
                    0,
                    "{format:?} {level:?} {raw:#x}"
                );
                if level == Level::L1 {
                    // Cheap is what most entries are: not present, not accessed, or all is given.
                    let given = general.held() == Held::Nothing && raw >> 12 & 0xf != 1;
                    let is_plain =
                        raw & bits::P == 0 || raw & bits::A == 0 || mapped(general) && given;
                    assert_eq!(plain.is_some(), is_plain, "{format:?} {raw:#x}");
                } else if raw & bits::PS == 0 && mapped(general) {
                    assert!(plain.is_some(), "{format:?} {level:?} {raw:#x}: a table");
                }
                known += u32::from(plain.is_some());
                of += 1;
            }
            assert!(
                known * 2 > of,
                "{format:?} {level:?}: the short way knows only {known} of {of}"
            );
            // While a table is unsync the short way knows of no links.
            setting.basis.guest.unsync(TABLE, false);
            for raw in entries().filter(|raw| raw & bits::P != 0 && level != Level::L1) {
                assert_eq!(setting.both_ways(page, raw).0, None);
            }
        }
    }
}

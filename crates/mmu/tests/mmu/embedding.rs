//! What an embedder is told: why there is no MMU, how large it is, what it runs on.

use crate::common::*;
use umbra_mmu::{
    Backing, ConfigError, Encodings, FaultOutcome, GuestMemory, MIN_FRAMES_PER_VCPU, Mmu,
    ShadowFrame, ShadowFrames, Tlb, VcpuId,
};
use umbra_paging::{Access, Gfn, Gpa, Gva, Hfn, Hpa, Tables, bits};

/// Nothing but sizes: an MMU for it is refused.
struct Sizes {
    frames: u32,
    end: u64,
    /// Where the shadow frames begin.
    base: u64,
}

impl Tables for Sizes {
    fn read_entry(&self, _: Gpa) -> u64 {
        0
    }
}

impl GuestMemory for Sizes {
    fn backing(&self, gfn: Gfn) -> Backing {
        Backing::Ram { hfn: Hfn::new(gfn.raw()), writable: true }
    }
    fn end(&self) -> Gfn {
        Gfn::new(self.end)
    }
    fn compare_exchange_entry(&mut self, _: Gpa, _: u64, _: u64) -> Result<(), u64> {
        Ok(())
    }
    fn write(&mut self, _: Gpa, _: &[u8]) {}
}

impl ShadowFrames for Sizes {
    fn count(&self) -> u32 {
        self.frames
    }
    fn hpa(&self, frame: ShadowFrame) -> Hpa {
        Hpa::new(self.base + u64::from(frame.raw()) * 4096)
    }
    fn frame(&self, _: Hpa) -> ShadowFrame {
        ShadowFrame::new(0)
    }
    fn read_shadow(&self, _: ShadowFrame, _: usize) -> u64 {
        0
    }
    fn write_shadow(&mut self, _: ShadowFrame, _: usize, _: u64) {}
}

impl Tlb for Sizes {
    fn flush(&mut self) {}
    fn flush_page(&mut self, _: VcpuId, _: Gva) {}
}

#[test]
fn sizes_that_do_not_fit_are_refused_in_words() {
    const FEW: u32 = MIN_FRAMES_PER_VCPU;
    const TOP: u64 = 1 << 32;
    for (frames, end, base, error, said) in [
        (
            FEW - 1,
            64,
            0,
            ConfigError::TooFewFrames { frames: FEW - 1, needed: FEW },
            "47 shadow frames are too few: at least 48",
        ),
        (
            1 << 20 | 1,
            64,
            0,
            ConfigError::TooManyFrames { frames: 1 << 20 | 1 },
            "at most 2^20 are supported",
        ),
        (
            FEW,
            1 << 30 | 1,
            0,
            ConfigError::TooMuchMemory { end: Gfn::new(1 << 30 | 1) },
            "guest memory up to 0x40000001000",
        ),
        (
            FEW,
            64,
            TOP,
            ConfigError::FrameAbove4G { hpa: Hpa::new(TOP) },
            "shadow frame at 0x100000000 lies above",
        ),
        // The last of them.
        (
            FEW,
            64,
            TOP - u64::from(FEW - 1) * 4096,
            ConfigError::FrameAbove4G { hpa: Hpa::new(TOP) },
            "above 4 GiB",
        ),
    ] {
        let refused = Mmu::new(config(), &mut Sizes { frames, end, base }).err();
        assert_eq!(refused, Some(error));
        let sentence = error.to_string();
        assert!(sentence.contains(said), "{sentence}");
    }
}

#[test]
fn a_guest_wider_than_the_real_cpu_is_refused_in_words() {
    for (host, refused) in [(39, true), (40, false), (41, false)] {
        let narrow = config_with(|config| config.encodings = Encodings::reserved(host).unwrap());
        let error = Mmu::new(narrow, &mut Machine::new(64, 64)).err();
        assert_eq!(error, refused.then_some(ConfigError::WiderThanHost { guest: 40, host }));
    }
    let sentence = ConfigError::WiderThanHost { guest: 40, host: 39 }.to_string();
    assert!(sentence.contains("MAXPHYADDR 40") && sentence.contains("at most 39"), "{sentence}");
}

#[test]
fn an_embedder_that_cannot_swap_frames_need_not_say_so() {
    let mut sizes = Sizes { frames: 64, end: 64, base: 0 };
    assert!(!sizes.swap_frames(ShadowFrame::new(0), Gfn::new(1)));
}

#[test]
fn an_mmu_is_printed_by_its_figures() {
    let mmu = Mmu::new(config(), &mut Machine::new(64, 64)).unwrap();
    let printed = format!("{mmu:?}");
    assert!(printed.starts_with("Mmu { live_pages: ") && printed.len() < 400, "{printed}");
}

#[test]
fn the_size_of_the_metadata_follows_the_pages_in_use() {
    const LINKS: usize = 512 * 8;
    let bytes = |memory, pool| {
        Mmu::new(config(), &mut Machine::new(memory, pool)).unwrap().metadata_bytes()
    };
    // A frame without a page takes little; a guest frame, two words.
    let frames = bytes(64, 1064) - bytes(64, 64);
    assert!((8 * 1000..128 * 1000).contains(&frames), "{frames}");
    assert!(bytes(1024, 64) - bytes(512, 64) >= 512 * 8);

    const TABLES: u64 = 55;
    let mut machine = Machine::new(2048, 128);
    machine.chain();
    for n in 0..TABLES {
        machine.poke(3, n as usize, (100 + n) << 12 | P | W | U | A);
        machine.poke(100 + n, 0, 0x9000 | P | W | U | A);
    }
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    let (size, live) = (mmu.metadata_bytes(), mmu.live_pages());
    // The PAE root and its four identity pages.
    assert_eq!(live, 5);
    let paging = paging(1);
    mmu.load_paging(&mut machine, VCPU, paging);
    assert_eq!(mmu.paging(VCPU), &paging);
    (0..TABLES).for_each(|n| settle(&mut machine, &mut mmu, n << 21, Access::user_read()));
    // For the first of them there was room from the start.
    let live = live + 3 + TABLES as u32;
    let grown = size + (live - MIN_FRAMES_PER_VCPU) as usize * LINKS;
    assert_eq!((mmu.metadata_bytes(), mmu.live_pages()), (grown, live));
    // What the pages took that are gone the next ones get.
    mmu.zap_all(&mut machine);
    assert_eq!((mmu.metadata_bytes(), mmu.live_pages()), (grown, 1), "the root in use");
}

/// The ninth table that is let go of brings the first back.
#[test]
fn only_so_many_tables_are_unsync_at_once() {
    let mut machine = Machine::new(64, 64);
    machine.chain();
    for n in 0..9 {
        machine.poke(3, n, (0x10 + n as u64) << 12 | P | W | U | A);
        machine.poke(0x10 + n as u64, 0, 0x9000 | P | W | U | A);
    }
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    let gva = |n: u64| n << 21;
    (0..9).for_each(|n| settle(&mut machine, &mut mmu, gva(n), Access::user_read()));
    for n in 0..9 {
        mmu.release_frame(&mut machine, Gfn::new(0x10 + n));
        mmu.audit(&machine).unwrap();
        settle(&mut machine, &mut mmu, gva(n), Access::user_read());
    }
    // What the guest wrote into the first of them since is seen; an unsync table shows what was
    // built last.
    let entry = 0xa000 | P | U | A;
    store(&mut machine, &mut mmu, 0x10, 0, entry);
    settle(&mut machine, &mut mmu, gva(0), Access::user_read());
    machine.poke(0x18, 0, entry);
    assert_eq!(hardware(&machine, &mmu, gva(0)), Seen::Page { gfn: 10, user: true, write: false });
    assert_eq!(hardware(&machine, &mmu, gva(8)), Seen::Page { gfn: 9, user: true, write: false });
    assert_eq!(hardware(&machine, &mmu, gva(0) | 0x1000), Seen::NotPresent, "it is tracked");
    assert_eq!(hardware(&machine, &mmu, gva(8) | 0x1000), Seen::Reserved, "it is unsync");
    assert!(mmu.has_unsync_tables());
    mmu.flush_guest(&mut machine);
    mmu.audit(&machine).unwrap();
    assert!(!mmu.has_unsync_tables());
    settle(&mut machine, &mut mmu, gva(8), Access::user_read());
    assert_eq!(hardware(&machine, &mmu, gva(8)), Seen::Page { gfn: 10, user: true, write: false });
}

#[test]
fn a_large_page_of_a_region_without_memory_is_a_device() {
    let mut machine = Machine::new(2048, 64);
    machine.chain();
    machine.holes = (512..1024).collect();
    machine.poke(3, 1, 0x20_0000 | P | W | U | A | D | bits::PS);
    let mut mmu = Mmu::new(config(), &mut machine).unwrap();
    mmu.load_paging(&mut machine, VCPU, paging(1));
    let gpa = Gpa::new(0x21_2345);
    for access in [Access::user_read(), user_write()] {
        for _ in 0..2 {
            let outcome = fault(&mut machine, &mut mmu, 0x21_2345, access);
            assert_eq!(outcome, FaultOutcome::Mmio { gpa });
        }
    }
    assert_eq!(mmu.counters().splits, 0, "nothing is mapped by pieces");
}

//! What the MMU allocates after it was made, and that it does without.
//!
//! A program of its own without libtest, whose threads would allocate, too.

use std::alloc::System;

use cap::Cap;
use umbra_mmu::{
    Backing, Config, Encodings, FaultContext, FaultOutcome, GuestMemory, MIN_FRAMES_PER_VCPU, Mmu,
    ShadowFrame, ShadowFrames, Tlb, VcpuId,
};
use umbra_paging::{Access, ENTRIES, Features, Gfn, Gpa, Gva, Hfn, Hpa, Paging, Tables};

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

const VCPU: VcpuId = VcpuId::new(0);
/// More page tables than the reserve has room for, and fewer than there are shadow frames.
const TABLES: u64 = 200;
const SHADOW_FRAMES: usize = 256;
const FIRST_TABLE: u64 = 16;
/// Present, writable, of user mode, accessed and dirty.
const ALL: u64 = 0x67;

/// It allocates nothing while the MMU runs.
struct Host {
    memory: Vec<[u64; ENTRIES]>,
    shadow: Vec<[u64; ENTRIES]>,
}

impl Tables for Host {
    fn read_entry(&self, at: Gpa) -> u64 {
        self.memory[at.gfn().raw() as usize][at.page_offset() as usize / 8]
    }
}

impl GuestMemory for Host {
    fn backing(&self, gfn: Gfn) -> Backing {
        match gfn < self.end() {
            true => Backing::Ram { hfn: Hfn::new(0x1000) + gfn.raw(), writable: true },
            false => Backing::None,
        }
    }

    fn end(&self) -> Gfn {
        Gfn::new(self.memory.len() as u64)
    }

    fn compare_exchange_entry(&mut self, at: Gpa, _: u64, new: u64) -> Result<(), u64> {
        self.write(at, &new.to_le_bytes());
        Ok(())
    }

    fn write(&mut self, at: Gpa, bytes: &[u8]) {
        let entry = u64::from_le_bytes(bytes.try_into().expect("whole entries are written"));
        self.memory[at.gfn().raw() as usize][at.page_offset() as usize / 8] = entry;
    }
}

impl ShadowFrames for Host {
    fn count(&self) -> u32 {
        self.shadow.len() as u32
    }

    fn hpa(&self, frame: ShadowFrame) -> Hpa {
        Hpa::new(u64::from(frame.raw()) << 12)
    }

    fn frame(&self, hpa: Hpa) -> ShadowFrame {
        ShadowFrame::new(hpa.hfn().raw() as u32)
    }

    fn read_shadow(&self, frame: ShadowFrame, index: usize) -> u64 {
        self.shadow[frame.index()][index]
    }

    fn write_shadow(&mut self, frame: ShadowFrame, index: usize, value: u64) {
        self.shadow[frame.index()][index] = value;
    }
}

impl Tlb for Host {
    fn flush(&mut self) {}

    fn flush_page(&mut self, _: VcpuId, _: Gva) {}
}

/// A guest with many page tables, each of which maps one page.
fn start() -> (Host, Mmu) {
    let mut memory = vec![[0; ENTRIES]; 512];
    (memory[1][0], memory[2][0]) = (2 << 12 | ALL, 3 << 12 | ALL);
    for n in 0..TABLES {
        memory[3][n as usize] = (FIRST_TABLE + n) << 12 | ALL;
        memory[(FIRST_TABLE + n) as usize][0] = 9 << 12 | ALL;
    }
    let mut host = Host { memory, shadow: vec![[0; ENTRIES]; SHADOW_FRAMES] };
    let features = Features::new(40, true);
    let config =
        Config::new(features, Encodings::reserved(40).expect("40 bits leave reserved ones"));
    let mut mmu = Mmu::new(config, &mut host).expect("there are enough frames");
    let paging = Paging::from_registers(0x8001_0001, 0x1000, 0x20, 0x500).expect("4-level paging");
    mmu.load_paging(&mut host, VCPU, paging);
    (host, mmu)
}

/// The guest uses each of its tables, and then frees some and makes new ones of them.
fn work(host: &mut Host, mmu: &mut Mmu) {
    let context = FaultContext::at(Gva::new(0x1000));
    for round in 0..3 {
        for n in 0..TABLES {
            let (gva, access) = (Gva::new(n << 21), Access::user_read());
            let outcome = mmu.page_fault(host, VCPU, gva, access, &context);
            assert!(matches!(outcome, FaultOutcome::Resume(_)), "{round} {n}: {outcome:?}");
            if n % 3 == round {
                let (link, page) =
                    (Gfn::new(3).entry(n as usize), Gfn::new(FIRST_TABLE + n).entry(0));
                mmu.write_guest(host, link, &[0; 8]);
                mmu.write_guest(host, page, &(10 << 12 | ALL).to_le_bytes());
                mmu.write_guest(host, link, &((FIRST_TABLE + n) << 12 | ALL).to_le_bytes());
            }
        }
        mmu.flush_guest(host);
    }
}

fn what_it_takes_is_told() {
    let heap = HEAP.allocated();
    let (host, mmu) = start();
    let hosts = size_of_val(&*host.memory) + size_of_val(&*host.shadow);
    let (taken, told) = (HEAP.allocated() - heap - hosts, mmu.metadata_bytes());
    // The rest is what is remembered of a vCPU.
    assert!((told..told + 2048).contains(&taken), "{taken} bytes, and {told} are told");
}

fn only_links_of_pages_in_use_are_allocated() {
    let (mut host, mut mmu) = start();
    let (heap, metadata) = (HEAP.allocated(), mmu.metadata_bytes());
    work(&mut host, &mut mmu);
    assert!(mmu.live_pages() as u64 > TABLES, "a frame for each table, and those above");
    assert_eq!(HEAP.allocated() - heap, mmu.metadata_bytes() - metadata);
    assert_eq!(mmu.counters().reclaimed, 0);
}

fn an_exhausted_heap_costs_speed_only() {
    let (mut host, mut mmu) = start();
    HEAP.set_limit(HEAP.allocated()).expect("that much is allocated");
    work(&mut host, &mut mmu);
    HEAP.set_limit(usize::MAX).expect("there is a heap");
    assert!(mmu.live_pages() <= MIN_FRAMES_PER_VCPU, "{} pages live", mmu.live_pages());
    assert!(mmu.counters().reclaimed > TABLES, "{:?}", mmu.counters());
    mmu.audit(&host).expect("the shadow is as it should be");
    // Once there is memory, it is used.
    work(&mut host, &mut mmu);
    assert!(mmu.live_pages() as u64 > TABLES, "{} pages live", mmu.live_pages());
}

fn main() {
    what_it_takes_is_told();
    only_links_of_pages_in_use_are_allocated();
    an_exhausted_heap_costs_speed_only();
    println!("after creation the MMU allocates links only, and does without");
}

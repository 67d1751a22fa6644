// What the examples of the documentation run on: a guest of 64 frames, and shadow frames from
// host-physical 1 MiB on.

use umbra_mmu::{Backing, Config, Encodings, FaultContext, GuestMemory, MIN_FRAMES_PER_VCPU, Mmu};
use umbra_mmu::{ShadowFrame, ShadowFrames, Tlb, VcpuId};
use umbra_paging::{Access, Features, Gfn, Gpa, Gva, Hfn, Hpa, Paging, Tables};

/// The guest's only vCPU.
const VCPU: VcpuId = VcpuId::new(0);

struct Host {
    memory: Vec<[u64; 512]>,
    shadow: Vec<[u64; 512]>,
    /// The host frames behind the guest's, and of the shadow frames.
    places: (Vec<u64>, Vec<u64>),
    flushes: u32,
}

impl Tables for Host {
    fn read_entry(&self, gpa: Gpa) -> u64 {
        self.memory[gpa.gfn().raw() as usize][gpa.page_offset() as usize / 8]
    }
}

impl GuestMemory for Host {
    fn backing(&self, gfn: Gfn) -> Backing {
        match self.places.0.get(gfn.raw() as usize) {
            Some(&hfn) => Backing::Ram { hfn: Hfn::new(hfn), writable: true },
            None => Backing::None,
        }
    }

    fn end(&self) -> Gfn {
        Gfn::new(64)
    }

    fn compare_exchange_entry(&mut self, gpa: Gpa, old: u64, new: u64) -> Result<(), u64> {
        match self.read_entry(gpa) {
            found if found != old => Err(found),
            _ => Ok(self.write(gpa, &new.to_le_bytes())),
        }
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        let entry = u64::from_le_bytes(bytes.try_into().expect("this guest writes entries only"));
        self.memory[gpa.gfn().raw() as usize][gpa.page_offset() as usize / 8] = entry;
    }
}

impl ShadowFrames for Host {
    fn count(&self) -> u32 {
        MIN_FRAMES_PER_VCPU + 1
    }

    fn hpa(&self, frame: ShadowFrame) -> Hpa {
        Hfn::new(self.places.1[frame.index()]).base()
    }

    fn frame(&self, hpa: Hpa) -> ShadowFrame {
        ShadowFrame::new((hpa.hfn().raw() - 256) as u32)
    }

    fn read_shadow(&self, frame: ShadowFrame, index: usize) -> u64 {
        self.shadow[frame.index()][index]
    }

    fn write_shadow(&mut self, frame: ShadowFrame, index: usize, value: u64) {
        self.shadow[frame.index()][index] = value;
    }

    fn swap_frames(&mut self, frame: ShadowFrame, gfn: Gfn) -> bool {
        let (guest, shadow) = &mut self.places;
        std::mem::swap(&mut guest[gfn.raw() as usize], &mut shadow[frame.index()]);
        true
    }
}

impl Tlb for Host {
    fn flush(&mut self) {
        self.flushes += 1;
    }

    fn flush_page(&mut self, _vcpu: VcpuId, _gva: Gva) {
        self.flushes += 1;
    }
}

/// CR0.PG, CR0.WP and CR0.PE; CR4.PAE; EFER.LME and EFER.LMA; the root in frame 1.
fn paging() -> Paging {
    Paging::from_registers(0x8001_0001, 0x1000, 0x20, 0x500).expect("4-level paging")
}

/// A guest whose tables in frames 1 to 4 map 0x9000 at 0, writable.
fn host() -> Host {
    let mut memory = vec![[0; 512]; 64];
    let frames = [2, 3, 4, 9];
    frames.iter().enumerate().for_each(|(n, frame)| memory[n + 1][0] = frame << 12 | 3);
    let places = ((0..64).collect(), (256..).take(MIN_FRAMES_PER_VCPU as usize + 1).collect());
    let shadow = vec![[0; 512]; MIN_FRAMES_PER_VCPU as usize + 1];
    Host { memory, shadow, places, flushes: 0 }
}

/// The same guest and its MMU.
fn start() -> (Host, Mmu) {
    let mut host = host();
    let encodings = Encodings::reserved(40).expect("40 bits leave reserved ones");
    let mut config = Config::new(Features::new(40, true), encodings);
    config.loadable_roots = 1;
    let mut mmu = Mmu::new(config, &mut host).expect("there are enough frames");
    mmu.load_paging(&mut host, VCPU, paging());
    (host, mmu)
}

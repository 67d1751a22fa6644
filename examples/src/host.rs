//! What the MMU asks of a hypervisor, in three traits on one type: guest memory, frames for shadow
//! tables, TLBs.

use umbra_mmu::{
    Backing, GuestMemory, MIN_FRAMES_PER_VCPU, ShadowFrame, ShadowFrames, Tlb, VcpuId,
};
use umbra_paging::{Gfn, Gpa, Gva, Hfn, Hpa, Tables};
use umbra_reference::hardware::PagingUnit;
use umbra_reference::memory::{PhysAddr, PhysicalMemory, Ram};
use umbra_reference::universe::END;

use crate::Mistake;

/// Shadow frames lie above the guest's: guest frame X is host frame X, as in Umbra's own
/// hypervisor.
const SHADOW: u64 = END;

/// How many there are: the least for three virtual CPUs, so the MMU has to reclaim some now and
/// then.
const FRAMES: u32 = 3 * MIN_FRAMES_PER_VCPU;

/// Host-physical memory: the guest's, and above it the shadow tables.
pub struct Memory {
    /// The guest's.
    pub guest: Ram,
    /// 512 entries to a frame.
    pub shadow: Vec<u64>,
}

/// The host: its memory and its CPUs.
pub struct Host {
    /// The memory.
    pub memory: Memory,
    /// The real CPU under each virtual one: it walks tables and caches what it finds.
    pub units: Vec<PagingUnit>,
    /// The PCID that each runs under.
    pub pcids: Vec<u16>,
    /// What is done wrong, if anything.
    pub mistake: Option<Mistake>,
}

impl Host {
    /// A host for this guest memory, with these CPUs.
    pub fn new(guest: Ram, units: Vec<PagingUnit>, mistake: Option<Mistake>) -> Host {
        let pcids = vec![0; units.len()];
        let memory = Memory { guest, shadow: vec![0; FRAMES as usize * 512] };
        Host { memory, units, pcids, mistake }
    }
}

/// The address as the reference machine writes it. Guest-physical and host-physical are the same
/// number here.
pub fn phys(gpa: Gpa) -> PhysAddr {
    PhysAddr::new(gpa.raw())
}

/// The MMU reads the guest's page tables. Reads where there is no memory give ones.
impl Tables for Host {
    fn read_entry(&self, gpa: Gpa) -> u64 {
        self.memory.guest.read(phys(gpa))
    }
}

impl GuestMemory for Host {
    // The gpa->hpa map. This one never changes; if it did, `Mmu::revoke` would be called before.
    fn backing(&self, gfn: Gfn) -> Backing {
        if self.memory.guest.contains(phys(gfn.base())) {
            Backing::Ram { hfn: Hfn::new(gfn.raw()), writable: true }
        } else {
            Backing::None
        }
    }

    fn end(&self) -> Gfn {
        let ends = self.memory.guest.pieces().map(|frames| frames.end);
        Gfn::new(ends.max().expect("a guest has memory"))
    }

    // For accessed and dirty bits. With CPUs that run at the same time, this is a locked
    // instruction.
    fn compare_exchange_entry(&mut self, gpa: Gpa, old: u64, new: u64) -> Result<(), u64> {
        let found = self.memory.guest.read(phys(gpa));
        if found != old {
            return Err(found);
        }
        self.memory.guest.write(phys(gpa), new);
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        self.memory.guest.write_bytes(phys(gpa), bytes);
    }
}

impl ShadowFrames for Host {
    fn count(&self) -> u32 {
        FRAMES
    }

    fn hpa(&self, frame: ShadowFrame) -> Hpa {
        Hpa::new((SHADOW + u64::from(frame.raw())) << 12)
    }

    fn frame(&self, hpa: Hpa) -> ShadowFrame {
        ShadowFrame::new(((hpa.raw() >> 12) - SHADOW) as u32)
    }

    fn read_shadow(&self, frame: ShadowFrame, index: usize) -> u64 {
        self.memory.shadow[frame.index() * 512 + index]
    }

    fn write_shadow(&mut self, frame: ShadowFrame, index: usize, value: u64) {
        self.memory.shadow[frame.index() * 512 + index] = value;
    }
}

// ANCHOR: tlb
impl Tlb for Host {
    // On real hardware: INVVPID of the guest's VPID, on every CPU that may hold something of it.
    fn flush(&mut self) {
        if self.mistake == Some(Mistake::ForgetsFlush) {
            return;
        }
        let one = self.mistake == Some(Mistake::FlushesOneCpu);
        let reached = if one { 1 } else { self.units.len() };
        self.units[..reached].iter_mut().for_each(|unit| unit.caches_mut().clear());
    }

    fn flush_page(&mut self, vcpu: VcpuId, gva: Gva) {
        self.units[vcpu.index()].caches_mut().invlpg(self.pcids[vcpu.index()], gva);
    }
}
// ANCHOR_END: tlb

impl Memory {
    /// Where an address stands among the shadow tables, if it does.
    fn of_shadow(&self, at: PhysAddr) -> Option<usize> {
        let index = at.raw().checked_sub(SHADOW << 12)? as usize / 8;
        (index < self.shadow.len()).then_some(index)
    }
}

/// Host-physical memory as the CPU's page walker sees it.
impl PhysicalMemory for Memory {
    fn read(&self, at: PhysAddr) -> u64 {
        self.of_shadow(at).map_or_else(|| self.guest.read(at), |index| self.shadow[index])
    }

    fn set_bits(&mut self, at: PhysAddr, bits: u64) {
        match self.of_shadow(at) {
            None => self.guest.set_bits(at, bits),
            Some(index) => self.shadow[index] |= bits,
        }
    }
}

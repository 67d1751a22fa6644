//! What the shadow MMU works on: guest memory, shadow frames and the TLB, as the one type it asks
//! for.

use umbra_mmu::{Backing, Event, GuestMemory, ShadowFrame, ShadowFrames, Tlb, VcpuId};
use umbra_paging::{Gfn, Gpa, Gva, Hpa, Tables};
use umbra_vcpu::mmu_events::EventLog;

use crate::hw::phys::{FramePool, GuestRam};

/// The parts, each of which stays usable by itself.
pub struct Env<T> {
    /// The guest's memory.
    pub ram: GuestRam,
    /// The shadow frames.
    pub pool: FramePool,
    /// The backend's flushes.
    pub tlb: T,
    /// What the MMU did, for the trace.
    pub events: EventLog,
}

impl<T> Tables for Env<T> {
    fn read_entry(&self, gpa: Gpa) -> u64 {
        self.ram.read_entry(gpa)
    }
}

impl<T> GuestMemory for Env<T> {
    fn backing(&self, gfn: Gfn) -> Backing {
        self.ram.map().backing(gfn)
    }

    fn end(&self) -> Gfn {
        self.ram.map().end()
    }

    fn read_entries(&self, gfn: Gfn, first: usize) -> [u64; 8] {
        self.ram.read_entries(gfn, first)
    }

    fn compare_table(&self, gfn: Gfn, known: &[[u64; 8]; 64]) -> u64 {
        self.ram.compare_table(gfn, known)
    }

    fn compare_exchange_entry(&mut self, gpa: Gpa, old: u64, new: u64) -> Result<(), u64> {
        self.ram.compare_exchange_entry(gpa, old, new)
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        self.ram.write(gpa, bytes);
    }
}

impl<T> ShadowFrames for Env<T> {
    fn count(&self) -> u32 {
        self.pool.count()
    }

    fn hpa(&self, frame: ShadowFrame) -> Hpa {
        self.pool.hpa(frame)
    }

    fn frame(&self, hpa: Hpa) -> ShadowFrame {
        self.pool.frame(hpa)
    }

    fn read_shadow(&self, frame: ShadowFrame, index: usize) -> u64 {
        self.pool.read(frame, index)
    }

    fn write_shadow(&mut self, frame: ShadowFrame, index: usize, value: u64) {
        self.pool.write(frame, index, value);
    }

    fn read_shadow_entries(&self, frame: ShadowFrame, first: usize) -> [u64; 8] {
        self.pool.read_entries(frame, first)
    }

    fn fill_shadow(&mut self, frame: ShadowFrame, value: u64) {
        self.pool.fill(frame, value);
    }

    fn swap_frames(&mut self, frame: ShadowFrame, gfn: Gfn) -> bool {
        self.pool.swap_frames(frame, &mut self.ram, gfn)
    }

    fn observe(&mut self, event: Event) {
        self.events.push(event);
    }
}

impl<T: Tlb> Tlb for Env<T> {
    fn flush(&mut self) {
        self.tlb.flush();
    }

    fn flush_page(&mut self, vcpu: VcpuId, gva: Gva) {
        self.tlb.flush_page(vcpu, gva);
    }

    fn flush_fault(&mut self, vcpu: VcpuId, gva: Gva) {
        self.tlb.flush_fault(vcpu, gva);
    }
}

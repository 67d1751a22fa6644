//! The short way for instructions with one operand, of which the page fault has told where it is:
//! no walk of the guest's tables, no decoder proper.

use umbra_emulator::{Effect, Gpr, Recent, Simple};
use umbra_paging::{Gpa, Gva};
use umbra_vcpu::backend::Backend;

use super::Vcpu;

impl<B: Backend> Vcpu<B> {
    /// Carries out a write to the tracked table at `gpa`, behind `gva`, if the instruction at RIP
    /// is a simple one. An event under way has none.
    pub(super) fn simple_table_write(&mut self, gva: Gva, gpa: Gpa) -> bool {
        let Some(bytes) = self.plain_code() else { return false };
        let Some(simple) = simple(&mut self.recent, &self.backend, bytes, gva) else {
            return false;
        };
        if !simple.writes() {
            return false;
        }
        let old = if simple.reads() {
            let offset = gpa.raw() % 8;
            self.env.ram.read_entry(Gpa::new(gpa.raw() - offset)) >> (8 * offset)
        } else {
            0
        };
        let effect = effect(simple, &self.backend, old);
        let (size, next_rip) = (simple.width(), simple.next_rip());
        self.mmu.write_guest(&mut self.env, gpa, &effect.memory.to_le_bytes()[..size]);
        self.retire_simple(next_rip, &effect);
        true
    }

    /// Carries out an access to the device at `gpa` likewise.
    pub(super) fn simple_mmio(&mut self, gva: Gva, gpa: Gpa, write: bool) -> bool {
        // Memory that cannot be written counts as a device to the MMU.
        if self.is_ram(gpa.raw()) {
            return false;
        }
        let Some(bytes) = self.plain_code() else { return false };
        let Some(simple) = simple(&mut self.recent, &self.backend, bytes, gva) else {
            return false;
        };
        if simple.writes() != write {
            return false;
        }
        let (now, size) = (self.time.now(), simple.width() as u8);
        let old = if simple.reads() { self.platform.mmio_read(now, gpa.raw(), size) } else { 0 };
        let effect = effect(simple, &self.backend, old);
        let next_rip = simple.next_rip();
        if write {
            let value = effect.memory & u64::MAX >> (64 - 8 * size);
            let event = self.platform.mmio_write(now, gpa.raw(), size, value);
            self.platform_event(event);
        }
        self.retire_simple(next_rip, &effect);
        true
    }

    /// The bytes of the instruction at RIP, if nothing stands against the short way.
    #[inline(always)]
    fn plain_code(&mut self) -> Option<u128> {
        if !self.settings.fast_emulation || self.events.under_way() || !self.backend.is_plain() {
            return None;
        }
        let rip = Gva::new(self.backend.rip());
        self.env.ram.code(self.mmu.code(&self.env, 0, rip)?)
    }

    fn retire_simple(&mut self, next_rip: u64, effect: &Effect) {
        if let Some((gpr, value)) = effect.register {
            self.backend.set_gpr(gpr as u8, value);
        }
        self.backend.set_rflags(effect.rflags);
        self.backend.set_rip(next_rip);
        self.backend.retire(0);
        self.faults.progress_made();
    }
}

/// The instruction at RIP, which starts with `bytes`, if it is a simple one whose operand lies at
/// `gva`.
#[inline(always)]
fn simple<'a>(
    recent: &'a mut Recent,
    backend: &impl Backend,
    bytes: u128,
    gva: Gva,
) -> Option<&'a Simple> {
    let simple = recent.decode(bytes, backend.rip())?;
    simple.is_at(gva.raw(), |gpr| backend.gpr(gpr as u8)).then_some(simple)
}

fn effect(simple: &Simple, backend: &impl Backend, old: u64) -> Effect {
    simple.effect(old, backend.rflags(), |gpr: Gpr| backend.gpr(gpr as u8))
}

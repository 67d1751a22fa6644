//! The short way for instructions with one operand, of which the page fault has told where it is: no walk of the guest's
//! tables, no decoder proper.

use umbra_emulator::{Effect, Gpr, Simple};
use umbra_paging::{Gpa, Gva};

use super::Vcpu;
use super::backend::Backend;

impl<B: Backend> Vcpu<B> {
    /// Carries out a write to the tracked table at `gpa`, behind `gva`, if the instruction at RIP is a simple one. An
    /// event under way has none.
    pub(super) fn simple_table_write(&mut self, gva: Gva, gpa: Gpa) -> bool {
        let Some(simple) = self.simple_instruction(gva, true) else { return false };
        let old = if simple.reads() {
            let offset = gpa.raw() % 8;
            self.env.ram.read_entry(Gpa::new(gpa.raw() - offset)) >> (8 * offset)
        } else {
            0
        };
        let effect = self.effect(&simple, old);
        self.mmu.write_guest(&mut self.env, gpa, &effect.memory.to_le_bytes()[..simple.width()]);
        self.retire_simple(&simple, &effect);
        true
    }

    /// Carries out an access to the device at `gpa` likewise.
    pub(super) fn simple_mmio(&mut self, gva: Gva, gpa: Gpa, write: bool) -> bool {
        // Memory that cannot be written counts as a device to the MMU.
        if self.is_ram(gpa.raw()) {
            return false;
        }
        let Some(simple) = self.simple_instruction(gva, write) else { return false };
        let (now, size) = (self.clock.now(), simple.width() as u8);
        let old = if simple.reads() { self.platform.mmio_read(now, gpa.raw(), size) } else { 0 };
        let effect = self.effect(&simple, old);
        if write {
            let event = self.platform.mmio_write(now, gpa.raw(), size, effect.memory);
            self.platform_event(event);
        }
        self.retire_simple(&simple, &effect);
        true
    }

    /// The instruction at RIP, if it is a simple one whose operand lies at `gva`, aligned, and is written or not.
    fn simple_instruction(&mut self, gva: Gva, write: bool) -> Option<Simple> {
        if !self.quick_stores || self.pending.is_some() || !self.backend.is_plain() {
            return None;
        }
        let rip = self.backend.rip();
        let bytes = self.env.ram.code(self.mmu.code(&self.env, 0, Gva::new(rip))?)?;
        let simple = self.recent.decode(bytes, rip)?;
        let fits = simple.address(|gpr| self.backend.gpr(gpr as u8)) == gva.raw()
            && gva.raw().is_multiple_of(simple.width() as u64)
            && simple.writes() == write;
        fits.then_some(simple)
    }

    fn effect(&self, simple: &Simple, old: u64) -> Effect {
        simple.effect(old, self.backend.rflags(), |gpr: Gpr| self.backend.gpr(gpr as u8))
    }

    fn retire_simple(&mut self, simple: &Simple, effect: &Effect) {
        if let Some((gpr, value)) = effect.register {
            self.backend.set_gpr(gpr as u8, value);
        }
        self.backend.set_rflags(effect.rflags);
        self.backend.set_rip(simple.next_rip());
        self.backend.retire(0);
        self.progress.made();
    }
}

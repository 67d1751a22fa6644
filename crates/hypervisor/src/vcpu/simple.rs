//! The short way for instructions with one operand, of which the page fault has told where it is:
//! no walk of the guest's tables, no decoder proper.

use umbra_emulator::{Effect, Gpr, Recent, Segment, Simple};
use umbra_paging::{Gpa, Gva, Mode};
use umbra_vcpu::backend::{Backend, CodeMode};

use super::{VCPU, Vcpu};
use crate::hw::phys::GuestRam;

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
        let old = if simple.reads() { word_at(&self.env.ram, gpa) } else { 0 };
        let effect = effect(simple, &self.backend, old);
        let (size, next_rip) = (simple.width(), simple.next_rip());
        self.mmu.write_guest(&mut self.env, gpa, &effect.memory.to_le_bytes()[..size]);
        self.retire_simple(next_rip, &effect);
        true
    }

    /// A 32-bit kernel stores an entry of 8 bytes in two halves, one right behind the other. The
    /// first, at `gva`, exited and was carried out. So are the instructions behind it that access
    /// the other half, up to the one that writes it: that is an exit less for each entry.
    pub(super) fn other_half(&mut self, gva: Gva, gpa: Gpa) {
        let (gva, gpa) = (gva.raw() ^ 4, Gpa::new(gpa.raw() ^ 4));
        // One reads what was there, as in clearing an entry.
        for _ in 0..2 {
            let Some(bytes) = self.flat_code() else { return };
            let Some(simple) = Simple::decode_32(&bytes.to_le_bytes(), self.backend.rip()) else {
                return;
            };
            if simple.width() != 4 || !simple.is_at(gva, |gpr| self.backend.gpr(gpr as u8)) {
                return;
            }
            let effect = effect(&simple, &self.backend, word_at(&self.env.ram, gpa));
            if simple.writes() {
                self.mmu.write_guest(&mut self.env, gpa, &(effect.memory as u32).to_le_bytes());
            }
            self.retire_simple(simple.next_rip(), &effect);
            if simple.writes() {
                return;
            }
        }
    }

    /// The bytes of the instruction at RIP, if it is one of a kernel's in flat 32-bit code under
    /// PAE paging, and nothing stands against the short way.
    fn flat_code(&mut self) -> Option<u128> {
        let pae = matches!(self.mmu.paging(VCPU).mode, Mode::Pae { .. });
        let code = self.backend.code_mode() == CodeMode::Bits32 && self.backend.cpl() == 0;
        if !pae || !code || !self.settings.fast_emulation || !self.backend.is_untraced() {
            return None;
        }
        let flat = |segment| {
            let register = self.backend.segment(segment);
            let grows_up = register.rights.is_code() || !register.rights.is_expand_down();
            register.base == 0 && register.limit == u32::MAX && grows_up
        };
        if ![Segment::Cs, Segment::Ds, Segment::Ss].into_iter().all(flat) {
            return None;
        }
        self.mapped_code()
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
    pub(super) fn plain_code(&mut self) -> Option<u128> {
        if !self.settings.fast_emulation || self.events.under_way() || !self.is_plain() {
            return None;
        }
        self.mapped_code()
    }

    /// The bytes at RIP, if the shadow maps them. Segments that do not start at 0 do not count.
    #[inline(always)]
    fn mapped_code(&mut self) -> Option<u128> {
        let rip = Gva::new(self.backend.rip());
        self.env.ram.code(self.mmu.code(&self.env, VCPU, rip)?)
    }

    /// Whether the guest runs 64-bit code, and no trap can be due behind an instruction.
    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.backend.code_mode() == CodeMode::Bits64 && self.backend.is_untraced()
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

/// The word of which the byte at `gpa` is the lowest, as far as its 8 aligned bytes reach.
fn word_at(ram: &GuestRam, gpa: Gpa) -> u64 {
    let offset = gpa.raw() % 8;
    ram.read_entry(Gpa::new(gpa.raw() - offset)) >> (8 * offset)
}

fn effect(simple: &Simple, backend: &impl Backend, old: u64) -> Effect {
    simple.effect(old, backend.rflags(), |gpr: Gpr| backend.gpr(gpr as u8))
}

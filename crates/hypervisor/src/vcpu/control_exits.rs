//! Exits that read or write control registers, and INVLPG and its like.

use umbra_emulator::Segment;
use umbra_paging::{Access, AccessKind, Gva, cr4};
use umbra_telemetry::ExitCause;
use umbra_vcpu::backend::{Backend, CodeMode};
use umbra_vcpu::control::Context;
use umbra_vcpu::event::Event;

use super::{VCPU, Vcpu};

impl<B: Backend> Vcpu<B> {
    /// CR0 and CR4 have bits that the guest changes without an exit.
    pub(super) fn refresh_controls(&mut self) {
        let controls = self.cpu.controls_mut();
        controls.cr0 = self.backend.cr0();
        controls.cr4 = self.backend.cr4();
    }

    pub(super) fn context(&self) -> Context {
        Context {
            cs_long: self.backend.segment(Segment::Cs).rights.is_long(),
            tss_16: self.backend.has_16_bit_tss(),
        }
    }

    /// The operand in a register, which has 32 bits outside 64-bit mode.
    fn operand(&self, register: u64) -> u64 {
        match self.backend.code_mode() {
            CodeMode::Bits64 => register,
            CodeMode::Bits16 | CodeMode::Bits32 => register & 0xffff_ffff,
        }
    }

    pub(super) fn write_cr_exit(&mut self, cr: u8, gpr: u8) -> ExitCause {
        self.refresh_controls();
        let value = self.operand(self.backend.gpr(gpr));
        let (old, known) = (*self.cpu.controls(), self.cpu.known());
        let (cause, written) = match cr {
            0 => (
                ExitCause::Cr0,
                old.write_cr0(value, self.context())
                    .and_then(|new| old.then_pdptes(new, &self.env, known))
                    .ok()
                    .map(|new| {
                        let paging = (old.cr0 ^ new.cr0) & umbra_paging::cr0::PG != 0;
                        (new, paging)
                    }),
            ),
            3 => {
                let written = old
                    .write_cr3(value, known)
                    .and_then(|(new, flushes)| Ok((new.load_pdptes(&self.env, known)?, flushes)));
                (ExitCause::Cr3Write, written.ok())
            }
            4 => (
                ExitCause::Cr4,
                old.write_cr4(value, known)
                    .and_then(|new| old.then_pdptes(new, &self.env, known))
                    .ok()
                    .map(|new| (new, old.cr4_write_flushes(&new))),
            ),
            _ => {
                match self.platform.set_cr8(value) {
                    Ok(()) => self.skip(),
                    Err(_) => self.raise(Event::general_protection()),
                }
                return ExitCause::Other;
            }
        };
        match written {
            Some((new, flushes)) => {
                self.load_controls(new);
                if cr == 3 {
                    // What is cached for the same PCID under another root stays allowed, but a
                    // large page of it may be cached by smaller ones, of which the guest's INVLPG
                    // would drop one.
                    if self.follow_cr3_write(old.cr3, value) || flushes {
                        self.mmu.flush(&mut self.env);
                    }
                } else if flushes {
                    self.mmu.flush_guest(&mut self.env);
                }
                self.skip();
            }
            None => self.raise(Event::general_protection()),
        }
        cause
    }

    pub(super) fn read_cr_exit(&mut self, cr: u8, gpr: u8) -> ExitCause {
        let (cause, value) = match cr {
            0 => (ExitCause::Cr0, self.backend.cr0()),
            3 => {
                self.follow_cr3_read();
                (ExitCause::Cr3Read, self.cpu.controls().cr3)
            }
            4 => (ExitCause::Cr4, self.backend.cr4()),
            _ => (ExitCause::Other, self.platform.cr8()),
        };
        self.backend.set_gpr(gpr, value);
        self.skip();
        cause
    }

    pub(super) fn clts_exit(&mut self) -> ExitCause {
        self.refresh_controls();
        self.load_controls(self.cpu.controls().clear_task_switched());
        self.skip();
        ExitCause::Cr0
    }

    pub(super) fn lmsw_exit(&mut self, value: u16) -> ExitCause {
        self.refresh_controls();
        match self.cpu.controls().load_machine_status_word(value, self.context()) {
            Ok(new) => {
                self.load_controls(new);
                self.skip();
            }
            Err(_) => self.raise(Event::general_protection()),
        }
        ExitCause::Cr0
    }

    pub(super) fn invlpg_exit(&mut self, gva: Gva) -> ExitCause {
        self.mmu.invlpg(&mut self.env, VCPU, gva);
        self.skip();
        ExitCause::Invlpg
    }

    /// INVPCID.
    pub(super) fn invpcid_exit(&mut self, kind: u64, descriptor: Gva) -> ExitCause {
        let kind = self.operand(kind);
        // The SDM lets #GP for the privilege level come before the exit; Bochs 2.7 does not.
        if self.backend.cpl() != 0 || !descriptor.is_canonical() {
            self.raise(Event::general_protection());
            return ExitCause::Invlpg;
        }
        let mut bytes = [0; 16];
        if let Err(fault) = self.read_linear(descriptor.raw(), &mut bytes, AccessKind::Read) {
            self.raise_page_fault(fault);
            return ExitCause::Invlpg;
        }
        if self.flush_pcid(kind, bytes) {
            self.skip();
        } else {
            self.raise(Event::general_protection());
        }
        ExitCause::Invlpg
    }

    /// What INVPCID of this type does with this descriptor (SDM, "INVPCID - Invalidate
    /// Process-Context Identifier"). False if it is refused.
    pub(super) fn flush_pcid(&mut self, kind: u64, descriptor: [u8; 16]) -> bool {
        const INDIVIDUAL_ADDRESS: u64 = 0;
        const SINGLE_CONTEXT: u64 = 1;
        const ALL: u64 = 3;
        let descriptor = u128::from_le_bytes(descriptor);
        let (pcid, gva) = (descriptor as u64, (descriptor >> 64) as u64);
        let pcids = self.backend.cr4() & cr4::PCIDE != 0;
        let refused = kind > ALL
            || pcid >> 12 != 0
            || (kind <= SINGLE_CONTEXT && pcid != 0 && !pcids)
            || (kind == INDIVIDUAL_ADDRESS && !Gva::new(gva).is_canonical());
        if !refused {
            self.mmu.flush_guest(&mut self.env);
        }
        !refused
    }

    /// The rights of a data access that an instruction makes for itself.
    pub(super) fn access(&self, kind: AccessKind) -> Access {
        self.access_at(self.backend.cpl(), kind)
    }

    /// The rights of an explicit data access by code at another privilege level.
    pub(super) fn access_at(&self, cpl: u8, kind: AccessKind) -> Access {
        let user = cpl == 3;
        let smap_override = !user && self.backend.rflags() & umbra_vcpu::backend::rflags::AC != 0;
        Access { kind, user, smap_override }
    }
}

//! The virtual CPU's system registers, as the emulator sees them.

use umbra_emulator::{
    DescriptorTable, Exception, Privilege, Segment, SegmentRegister, SystemCpu, SystemSegment,
    TableRegister,
};
use umbra_paging::{Access, AccessKind, GuestFault, Gva};
use umbra_vcpu::backend::Backend;
use umbra_vcpu::event::Event;

use super::{VCPU, Vcpu};

impl<B: Backend> Vcpu<B> {
    fn access_as(&self, privilege: Privilege, kind: AccessKind) -> Access {
        match privilege {
            Privilege::Explicit(cpl) => self.access_at(cpl, kind),
            Privilege::Implicit => Access { kind, user: false, smap_override: false },
        }
    }
}

impl<B: Backend> SystemCpu for Vcpu<B> {
    fn set_segment(&mut self, segment: Segment, value: SegmentRegister) {
        self.backend.set_segment(segment, value);
    }

    fn system_segment(&self, segment: SystemSegment) -> SegmentRegister {
        self.backend.system_segment(segment)
    }

    fn set_system_segment(&mut self, segment: SystemSegment, value: SegmentRegister) {
        self.backend.set_system_segment(segment, value);
    }

    fn descriptor_table(&self, table: DescriptorTable) -> TableRegister {
        self.backend.descriptor_table(table)
    }

    fn set_descriptor_table(&mut self, table: DescriptorTable, value: TableRegister) {
        self.backend.set_descriptor_table(table, value);
    }

    fn cr3(&self) -> u64 {
        self.cpu.controls().cr3
    }

    fn efer(&self) -> u64 {
        self.cpu.controls().efer
    }

    fn load_machine_status_word(&mut self, value: u16) -> Result<(), Exception> {
        self.refresh_controls();
        let new = self
            .cpu
            .controls()
            .load_machine_status_word(value, self.context())
            .map_err(|_| Exception::GENERAL_PROTECTION)?;
        self.load_controls(new);
        Ok(())
    }

    fn set_task_switched(&mut self, set: bool) {
        self.refresh_controls();
        let old = *self.cpu.controls();
        self.load_controls(if set { old.set_task_switched() } else { old.clear_task_switched() });
    }

    fn load_task_cr3(&mut self, cr3: u32) -> Result<(), Exception> {
        self.refresh_controls();
        let (old, known) = (*self.cpu.controls(), self.cpu.known());
        let written = old.write_cr3(cr3.into(), known).and_then(|(new, flushes)| {
            let changes = new.cr3 != old.cr3;
            Ok((if changes { new.load_pdptes(&self.env, known)? } else { new }, flushes))
        });
        let (new, flushes) = written.map_err(|_| Exception::GENERAL_PROTECTION)?;
        self.load_controls(new);
        if flushes {
            self.mmu.flush_guest(&mut self.env);
        }
        Ok(())
    }

    fn clear_local_breakpoints(&mut self) {
        self.backend.clear_local_breakpoints();
    }

    fn trap_task_switch(&mut self) {
        self.backend.report_task_switch_trap();
        self.events.replace(Event::debug());
    }

    fn invalidate_page(&mut self, gva: u64) {
        self.mmu.invlpg(&mut self.env, VCPU, Gva::new(gva));
    }

    fn invalidate_pcid(&mut self, kind: u64, descriptor: [u8; 16]) -> Result<(), Exception> {
        if self.flush_pcid(kind, descriptor) { Ok(()) } else { Err(Exception::GENERAL_PROTECTION) }
    }

    fn unblock_nmis(&mut self) {
        self.backend.block_nmis(false);
    }

    fn block_interrupts(&mut self) {
        self.instruction.load_ss();
    }

    fn read_as(
        &mut self,
        privilege: Privilege,
        gva: u64,
        buf: &mut [u8],
    ) -> Result<(), GuestFault> {
        self.read_with(gva, buf, self.access_as(privilege, AccessKind::Read))
    }

    fn probe_write(
        &mut self,
        privilege: Privilege,
        gva: u64,
        length: usize,
    ) -> Result<(), GuestFault> {
        self.pieces(gva, length, self.access_as(privilege, AccessKind::Write)).map(drop)
    }

    fn write_as(&mut self, privilege: Privilege, gva: u64, bytes: &[u8]) -> Result<(), GuestFault> {
        self.write_with(gva, bytes, self.access_as(privilege, AccessKind::Write))
    }
}

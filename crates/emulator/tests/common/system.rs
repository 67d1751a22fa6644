//! The machine has no descriptors and no system registers: tests of what needs them are in the
//! folder `system`.

use umbra_emulator::{
    Cpu, DescriptorTable, Exception, Privilege, Rights, Segment, SegmentRegister, SystemCpu,
    SystemSegment, TableRegister,
};

use super::{Access, Kind, Machine};

impl SystemCpu for Machine {
    fn set_segment(&mut self, _segment: Segment, _value: SegmentRegister) {}

    fn system_segment(&self, _segment: SystemSegment) -> SegmentRegister {
        SegmentRegister { selector: 0, base: 0, limit: 0, rights: Rights::UNUSABLE }
    }

    fn set_system_segment(&mut self, _segment: SystemSegment, _value: SegmentRegister) {}

    fn descriptor_table(&self, _table: DescriptorTable) -> TableRegister {
        TableRegister { base: 0, limit: 0 }
    }

    fn set_descriptor_table(&mut self, _table: DescriptorTable, _value: TableRegister) {}

    fn cr3(&self) -> u64 {
        0
    }

    fn efer(&self) -> u64 {
        0
    }

    fn load_machine_status_word(&mut self, _value: u16) -> Result<(), Exception> {
        Ok(())
    }

    fn set_task_switched(&mut self, _set: bool) {}

    fn load_task_cr3(&mut self, cr3: u32) -> Result<(), Exception> {
        panic!("CR3 := {cr3:#x}")
    }

    fn clear_local_breakpoints(&mut self) {
        panic!("DR7")
    }

    fn trap_task_switch(&mut self) {
        panic!("DR6.BT")
    }

    fn invalidate_page(&mut self, _gva: u64) {}

    fn invalidate_pcid(&mut self, _kind: u64, _descriptor: [u8; 16]) -> Result<(), Exception> {
        Ok(())
    }

    fn unblock_nmis(&mut self) {}

    fn block_interrupts(&mut self) {}

    fn read_as(&mut self, _privilege: Privilege, gva: u64, buf: &mut [u8]) -> Result<(), Access> {
        self.load(Kind::Read, gva, buf)
    }

    fn probe_write(
        &mut self,
        _privilege: Privilege,
        gva: u64,
        length: usize,
    ) -> Result<(), Access> {
        self.access(Kind::ReadModify, gva, length)
    }

    fn write_as(&mut self, _privilege: Privilege, gva: u64, bytes: &[u8]) -> Result<(), Access> {
        // What was probed does not fail.
        let probed = Access { kind: Kind::ReadModify, gva, length: bytes.len() };
        if self.accesses.contains(&probed) {
            self.store(gva, bytes);
            return Ok(());
        }
        Cpu::write(self, gva, bytes)
    }
}

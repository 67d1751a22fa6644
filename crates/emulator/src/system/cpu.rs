//! The processor state that system instructions, event delivery and task switches work on.

use crate::{
    Cpu, DescriptorTable, Exception, Segment, SegmentRegister, SystemSegment, TableRegister,
};

/// Whose rights a memory access has (SDM volume 3, "Determination of Access Mode").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// An explicit access by code at this privilege level: user mode at 3.
    Explicit(u8),
    /// The processor's own access to GDT, LDT, IDT or TSS: supervisor mode at every CPL, and
    /// RFLAGS.AC does not lift SMAP.
    Implicit,
}

/// A processor with its system registers.
///
/// Three rules go beyond those of [`Cpu`]. The privilege level is the DPL of SS, also while SS is
/// unusable. [`Cpu::mode`] follows CS and EFER.LMA at once. The addresses of accesses are canonical
/// in IA-32e mode (compatibility mode, too) and below 4 GiB outside of it.
pub trait SystemCpu: Cpu {
    /// Loads a segment register with its hidden part.
    fn set_segment(&mut self, segment: Segment, value: SegmentRegister);

    /// LDTR or TR with its hidden part.
    fn system_segment(&self, segment: SystemSegment) -> SegmentRegister;

    /// Loads LDTR or TR.
    fn set_system_segment(&mut self, segment: SystemSegment, value: SegmentRegister);

    /// GDTR or IDTR.
    fn descriptor_table(&self, table: DescriptorTable) -> TableRegister;

    /// Loads GDTR or IDTR.
    fn set_descriptor_table(&mut self, table: DescriptorTable, value: TableRegister);

    /// CR3 as the guest sees it.
    fn cr3(&self) -> u64;

    /// IA32_EFER as the guest sees it.
    fn efer(&self) -> u64;

    /// Carries out LMSW with this operand; the privilege level is checked.
    ///
    /// # Errors
    /// The processor refuses the value.
    fn load_machine_status_word(&mut self, value: u16) -> Result<(), Exception>;

    /// Sets or clears CR0.TS.
    fn set_task_switched(&mut self, set: bool);

    /// Loads CR3 out of a 32-bit TSS. Paging is on.
    ///
    /// # Errors
    /// The processor refuses the value.
    fn load_task_cr3(&mut self, cr3: u32) -> Result<(), Exception>;

    /// Clears the local enable bits of DR7, as a task switch does.
    fn clear_local_breakpoints(&mut self);

    /// Sets DR6.BT, and makes #DB due before the next instruction.
    fn trap_task_switch(&mut self);

    /// Drops the translations of an address, as INVLPG does.
    fn invalidate_page(&mut self, gva: u64);

    /// Carries out INVPCID of this type with this descriptor; the privilege level is checked.
    ///
    /// # Errors
    /// The processor refuses type or descriptor.
    fn invalidate_pcid(&mut self, kind: u64, descriptor: [u8; 16]) -> Result<(), Exception>;

    /// IRET ends the blocking of NMIs.
    fn unblock_nmis(&mut self);

    /// SS was loaded by MOV or POP: the next instruction boundary takes no interrupts and no debug
    /// traps.
    fn block_interrupts(&mut self);

    /// Reads `buf.len()` bytes (1 to 16) with explicit rights.
    ///
    /// # Errors
    /// The access faults.
    fn read_as(
        &mut self,
        privilege: Privilege,
        gva: u64,
        buf: &mut [u8],
    ) -> Result<(), Self::Fault>;

    /// Whether a write of `length` bytes (1 to 16) would succeed; touches neither memory nor
    /// devices.
    ///
    /// # Errors
    /// The write would fault.
    fn probe_write(
        &mut self,
        privilege: Privilege,
        gva: u64,
        length: usize,
    ) -> Result<(), Self::Fault>;

    /// Writes `bytes` (1 to 16): all of them, or none and a fault.
    ///
    /// # Errors
    /// The access faults.
    fn write_as(&mut self, privilege: Privilege, gva: u64, bytes: &[u8])
    -> Result<(), Self::Fault>;

    /// Sets and clears bits of one byte of a descriptor in one locked access: accessed and busy
    /// bits.
    ///
    /// # Errors
    /// The access faults.
    fn update_descriptor(&mut self, gva: u64, set: u8, clear: u8) -> Result<(), Self::Fault> {
        let mut byte = [0];
        self.probe_write(Privilege::Implicit, gva, 1)?;
        self.read_as(Privilege::Implicit, gva, &mut byte)?;
        self.write_as(Privilege::Implicit, gva, &[byte[0] & !clear | set])
    }
}

//! The virtual machine control block (APM, "VMCB Layout"): what VMRUN reads and #VMEXIT writes.

use core::fmt;

/// Intercepts of the first word of instruction intercepts (offset 00Ch).
pub mod intercept1 {
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    pub const INIT: u32 = 1 << 3;
    pub const VINTR: u32 = 1 << 4;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const RSM: u32 = 1 << 19;
    pub const IRET: u32 = 1 << 20;
    pub const INT_N: u32 = 1 << 21;
    pub const INVD: u32 = 1 << 22;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPG: u32 = 1 << 25;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IO: u32 = 1 << 27;
    pub const MSR: u32 = 1 << 28;
    pub const TASK_SWITCH: u32 = 1 << 29;
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Intercepts of the second word (offset 010h).
pub mod intercept2 {
    pub const VMRUN: u32 = 1 << 0;
    pub const VMMCALL: u32 = 1 << 1;
    pub const VMLOAD: u32 = 1 << 2;
    pub const VMSAVE: u32 = 1 << 3;
    pub const STGI: u32 = 1 << 4;
    pub const CLGI: u32 = 1 << 5;
    pub const SKINIT: u32 = 1 << 6;
    pub const ICEBP: u32 = 1 << 8;
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const MWAIT_ARMED: u32 = 1 << 12;
    pub const XSETBV: u32 = 1 << 13;
    pub const RDPRU: u32 = 1 << 14;
}

/// Intercepts of the third word (offset 014h).
pub mod intercept3 {
    pub const INVLPGB: u32 = 1 << 0;
    pub const ILLEGAL_INVLPGB: u32 = 1 << 1;
    pub const INVPCID: u32 = 1 << 2;
    pub const MCOMMIT: u32 = 1 << 3;
    pub const TLBSYNC: u32 = 1 << 4;
}

/// The virtual interrupt control word (offset 060h).
pub mod interrupt {
    /// A virtual interrupt is pending.
    pub const V_IRQ: u64 = 1 << 8;
    /// It comes whatever V_TPR is.
    pub const V_IGN_TPR: u64 = 1 << 20;
    /// RFLAGS.IF and CR8 of the guest mask virtual interrupts only.
    pub const V_INTR_MASKING: u64 = 1 << 24;
}

/// TLB_CONTROL (APM, "TLB Control").
pub mod flush {
    /// Nothing.
    pub const NOTHING: u8 = 0;
    /// Everything, of every ASID.
    pub const ALL: u8 = 1;
    /// Everything of the guest's ASID.
    pub const ASID: u8 = 3;
}

/// The parts of the VMCB that the CPU may keep (APM, "VMCB Clean Bits").
pub mod part {
    /// Intercepts, TSC offset.
    pub const INTERCEPTS: u32 = 1 << 0;
    /// The virtual interrupt control word.
    pub const INTERRUPTS: u32 = 1 << 3;
    /// CR0, CR3, CR4, EFER.
    pub const CONTROL_REGISTERS: u32 = 1 << 5;
    /// DR6, DR7.
    pub const DEBUG_REGISTERS: u32 = 1 << 6;
    /// GDTR, IDTR.
    pub const TABLES: u32 = 1 << 7;
    /// CS, DS, SS, ES, CPL.
    pub const SEGMENTS: u32 = 1 << 8;
    /// CR2.
    pub const CR2: u32 = 1 << 9;
    /// All that are defined.
    pub const ALL: u32 = 0xfff;
}

/// A segment register, or (base and limit alone) GDTR and IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Register {
    pub selector: u16,
    pub attributes: u16,
    pub limit: u32,
    pub base: u64,
}

/// Bytes that mean nothing here.
pub struct Reserved<const N: usize>([u8; N]);

impl<const N: usize> fmt::Debug for Reserved<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{N} bytes")
    }
}

impl<const N: usize> Default for Reserved<N> {
    fn default() -> Reserved<N> {
        Reserved([0; N])
    }
}

/// The control area.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Control {
    pub cr_reads: u16,
    pub cr_writes: u16,
    pub dr_accesses: u32,
    pub exceptions: u32,
    pub intercept1: u32,
    pub intercept2: u32,
    pub intercept3: u32,
    _reserved_018: Reserved<0x28>,
    pub io_map: u64,
    pub msr_map: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u8,
    _reserved_05d: Reserved<3>,
    pub interrupt: u64,
    pub shadow: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_interrupt: u64,
    pub nested_paging: u64,
    _reserved_098: Reserved<0x10>,
    pub event: u64,
    _reserved_0b0: Reserved<0x10>,
    pub clean: u32,
    _reserved_0c4: Reserved<4>,
    pub next_rip: u64,
    _reserved_0d0: Reserved<0x330>,
}

/// The state-save area.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Save {
    pub es: Register,
    pub cs: Register,
    pub ss: Register,
    pub ds: Register,
    pub fs: Register,
    pub gs: Register,
    pub gdtr: Register,
    pub ldtr: Register,
    pub idtr: Register,
    pub tr: Register,
    _reserved_0a0: Reserved<0x2b>,
    pub cpl: u8,
    _reserved_0cc: Reserved<4>,
    pub efer: u64,
    _reserved_0d8: Reserved<0x70>,
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    _reserved_180: Reserved<0x58>,
    pub rsp: u64,
    _reserved_1e0: Reserved<0x18>,
    pub rax: u64,
    _reserved_200: Reserved<0x40>,
    pub cr2: u64,
    _reserved_248: Reserved<0x9b8>,
}

/// The whole block: one page.
#[derive(Debug, Default)]
#[repr(C, align(4096))]
pub struct Vmcb {
    pub control: Control,
    pub save: Save,
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    /// The offsets as APM, "Layout of VMCB", has them.
    #[test]
    fn the_layout_is_the_manuals() {
        let control = [
            (offset_of!(Control, cr_writes), 0x002),
            (offset_of!(Control, dr_accesses), 0x004),
            (offset_of!(Control, exceptions), 0x008),
            (offset_of!(Control, intercept1), 0x00c),
            (offset_of!(Control, intercept3), 0x014),
            (offset_of!(Control, io_map), 0x040),
            (offset_of!(Control, msr_map), 0x048),
            (offset_of!(Control, tsc_offset), 0x050),
            (offset_of!(Control, asid), 0x058),
            (offset_of!(Control, tlb_control), 0x05c),
            (offset_of!(Control, interrupt), 0x060),
            (offset_of!(Control, shadow), 0x068),
            (offset_of!(Control, exit_code), 0x070),
            (offset_of!(Control, exit_info2), 0x080),
            (offset_of!(Control, exit_interrupt), 0x088),
            (offset_of!(Control, nested_paging), 0x090),
            (offset_of!(Control, event), 0x0a8),
            (offset_of!(Control, clean), 0x0c0),
            (offset_of!(Control, next_rip), 0x0c8),
            (size_of::<Control>(), 0x400),
        ];
        let save = [
            (offset_of!(Save, fs), 0x040),
            (offset_of!(Save, gdtr), 0x060),
            (offset_of!(Save, tr), 0x090),
            (offset_of!(Save, cpl), 0x0cb),
            (offset_of!(Save, efer), 0x0d0),
            (offset_of!(Save, cr4), 0x148),
            (offset_of!(Save, cr0), 0x158),
            (offset_of!(Save, dr6), 0x168),
            (offset_of!(Save, rip), 0x178),
            (offset_of!(Save, rsp), 0x1d8),
            (offset_of!(Save, rax), 0x1f8),
            (offset_of!(Save, cr2), 0x240),
            (offset_of!(Vmcb, save) + size_of::<Save>(), 0x1000),
        ];
        for (have, want) in control.into_iter().chain(save) {
            assert_eq!(have, want, "{want:#x}");
        }
    }
}

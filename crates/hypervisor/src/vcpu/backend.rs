//! What a vendor's virtualization extension does for one virtual CPU. Nothing outside the implementing folder
//! asks which vendor it is.

use alloc::string::String;

use umbra_emulator::{DescriptorTable, Segment, SegmentRegister, Source, SystemSegment, TableRegister};
use umbra_mmu::{GuestFaults, Root, Tlb};
use umbra_paging::{Gva, Pfec};

use super::breakpoints::Breakpoints;
use super::control::Controls;
use super::event::Event;
use super::sandbox::{Page, Space};

/// Why the guest left. Instruction exits come before the instruction has changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// #PF, undelivered; the error code is that of the shadow tables.
    PageFault {
        /// The address.
        gva: Gva,
        /// The error code's raw bits.
        error_code: u32,
    },
    /// An exception that is the guest's, to be delivered: intercepted because a guest that raises it within its own
    /// delivery would never leave (#DB and #AC).
    Reflect(Event),
    /// #MC: the physical machine is broken.
    MachineCheck,
    /// A physical interrupt, still pending.
    Interrupt,
    /// A physical NMI, taken.
    Nmi,
    /// The guest can take interrupts now.
    InterruptWindow,
    /// The guest can take NMIs now.
    NmiWindow,
    /// A fault while delivering #DF.
    TripleFault,
    /// A hardware task switch, which has not changed anything yet.
    TaskSwitch {
        /// The selector of the new task's TSS.
        selector: u16,
        /// What asked for it. If that is an event, it counts as interrupted.
        source: Source,
    },
    /// CPUID.
    Cpuid,
    /// HLT.
    Halt,
    /// INVLPG of an address.
    Invlpg(Gva),
    /// INVPCID.
    Invpcid {
        /// The register operand, which holds the type.
        kind: u64,
        /// Where the descriptor is.
        descriptor: Gva,
    },
    /// MOV to a control register.
    MovToCr {
        /// Which: 0, 3, 4 or 8.
        cr: u8,
        /// Number of the source register.
        gpr: u8,
    },
    /// MOV from CR3 or CR8.
    MovFromCr {
        /// Which.
        cr: u8,
        /// Number of the destination register.
        gpr: u8,
    },
    /// CLTS.
    Clts,
    /// LMSW with its operand.
    Lmsw(u16),
    /// IN or OUT.
    Io {
        /// The port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
        /// IN.
        input: bool,
    },
    /// INS or OUTS.
    StringIo,
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// XSETBV.
    Xsetbv,
    /// WBINVD or INVD.
    CacheControl,
    /// RDPMC.
    ReadCounter,
    /// An instruction that the guest's CPUID does not show.
    Undefined,
    /// An exit without effect for the guest, such as an INIT signal to the machine.
    Nothing,
    /// An exit that was not asked for: its number.
    Unexpected(u32),
}

/// Why the hardware does not run the guest, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The guest has got itself into a state that no processor runs: it shuts down.
    Guest(String),
    /// The hypervisor's own doing: it cannot go on.
    Host(String),
}

/// The code segment's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeMode {
    /// 16-bit.
    Bits16,
    /// 32-bit.
    Bits32,
    /// 64-bit.
    Bits64,
}

/// Which events wait until the guest can take them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Exit as soon as the guest can take interrupts.
    pub interrupt: bool,
    /// Exit as soon as the guest can take NMIs.
    pub nmi: bool,
}

/// RFLAGS bits (SDM, "EFLAGS Register").
pub mod rflags {
    /// Trap flag.
    pub const TF: u64 = 1 << 8;
    /// Interrupts on.
    pub const IF: u64 = 1 << 9;
    /// Resume: no instruction breakpoints at the next instruction.
    pub const RF: u64 = 1 << 16;
    /// Alignment check; also: explicit supervisor accesses may touch user pages under SMAP.
    pub const AC: u64 = 1 << 18;
}

/// One virtual CPU in hardware.
pub trait Backend {
    /// How the shadow MMU flushes what hardware has cached for this guest.
    type Tlb: Tlb;

    /// The flushes, for the MMU's environment.
    fn tlb(&self) -> Self::Tlb;

    /// Runs the guest until it leaves.
    ///
    /// # Errors
    /// The hardware refuses to run it.
    fn enter(&mut self) -> Result<Exit, Refusal>;

    /// The event whose delivery the last exit interrupted.
    fn interrupted_event(&self) -> Option<Event>;

    /// A general-purpose register by its number in instruction encodings.
    fn gpr(&self, number: u8) -> u64;
    /// Writes a general-purpose register.
    fn set_gpr(&mut self, number: u8, value: u64);
    /// The instruction pointer.
    fn rip(&self) -> u64;
    /// Sets the instruction pointer.
    fn set_rip(&mut self, rip: u64);
    /// The flags.
    fn rflags(&self) -> u64;
    /// Sets the flags.
    fn set_rflags(&mut self, rflags: u64);
    /// The current privilege level.
    fn cpl(&self) -> u8;
    /// The code segment's mode.
    fn code_mode(&self) -> CodeMode;
    /// Bits of the stack pointer.
    fn stack_mode(&self) -> CodeMode;
    /// A segment register with its hidden part.
    fn segment(&self, segment: Segment) -> SegmentRegister;
    /// Loads a segment register.
    fn set_segment(&mut self, segment: Segment, value: SegmentRegister);
    /// Where a segment starts: zero for those that 64-bit mode takes to start there.
    fn segment_base(&self, segment: Segment) -> u64;
    /// LDTR or TR with its hidden part.
    fn system_segment(&self, segment: SystemSegment) -> SegmentRegister;
    /// Loads LDTR or TR.
    fn set_system_segment(&mut self, segment: SystemSegment, value: SegmentRegister);
    /// GDTR or IDTR.
    fn descriptor_table(&self, table: DescriptorTable) -> TableRegister;
    /// Loads GDTR or IDTR.
    fn set_descriptor_table(&mut self, table: DescriptorTable, value: TableRegister);
    /// Whether TR holds a 16-bit TSS, which long mode does not know.
    fn has_16_bit_tss(&self) -> bool;

    /// CR0 as the guest reads it; it may have changed parts of it without an exit.
    fn cr0(&self) -> u64;
    /// CR4 as the guest reads it, likewise.
    fn cr4(&self) -> u64;
    /// Gives the guest new control registers, which run on the shadow `root`. It is loadable if the guest's own CR3 is
    /// the right one for it.
    fn set_controls(&mut self, controls: &Controls, root: Root, loadable: bool);
    /// Sets CR2.
    fn set_cr2(&mut self, gva: Gva);

    /// Which of the MSRs that hardware keeps for the guest this is: reads it.
    fn read_msr(&self, msr: u32) -> Option<u64>;
    /// Writes an MSR that hardware keeps for the guest; false if it is none or does not take the value.
    fn write_msr(&mut self, msr: u32, value: u64) -> bool;
    /// Sets an extended control register to a value that was checked.
    fn set_xcr0(&mut self, value: u64);
    /// From now on the guest's time-stamp counter is the machine's plus `offset`.
    fn set_tsc_offset(&mut self, offset: u64);

    /// Whether the guest runs 64-bit code, and no trap can be due behind an instruction: neither single steps nor
    /// breakpoints are on.
    fn is_plain(&self) -> bool;

    /// Length of the instruction that exited.
    fn instruction_length(&self) -> u8;
    /// The breakpoints that the guest has set.
    fn breakpoints(&self) -> Breakpoints;
    /// An instruction retired (RIP stands behind it already), and met the breakpoints `met` (bits B0 to B3 of DR6):
    /// ends what it ends, and starts a debug trap if one is due.
    fn retire(&mut self, met: u8);
    /// The instruction that retired last has loaded SS: the next instruction comes before any interrupt or debug trap.
    fn block_by_mov_ss(&mut self);
    /// Blocks NMIs, as the delivery of one does, or ends that.
    fn block_nmis(&mut self, blocked: bool);
    /// Clears the local enable bits of DR7.
    fn clear_local_breakpoints(&mut self);
    /// Sets DR6.BT.
    fn report_task_switch_trap(&mut self);
    /// Whether a debug trap comes at the next entry, before the next instruction.
    fn debug_trap_due(&self) -> bool;
    /// Delivers an event at the next entry.
    fn inject(&mut self, event: Event);
    /// Whether the guest could take an interrupt at the next instruction. A debug trap comes before it.
    fn interruptible(&self) -> bool;
    /// Whether the guest could take an NMI at the next instruction. A debug trap comes before it.
    fn nmi_ready(&self) -> bool;
    /// Asks for exits when pending events can be taken.
    fn set_windows(&mut self, windows: Windows);
    /// Decides which page faults exit.
    fn set_page_fault_filter(&mut self, filter: Filter);

    /// How many values of CR3 the guest can be allowed to load without an exit; zero if its reads of CR3 cannot be, as
    /// well.
    fn cr3_targets(&self) -> usize;
    /// The guest may load these values into CR3 without an exit, no others; and read CR3 if `reads`.
    fn set_cr3_targets(&mut self, values: &[u64], reads: bool);
    /// The real CR3, which the guest may have loaded by itself.
    fn cr3(&self) -> u64;
    /// From now on the guest runs in this address space: no traps and no interrupts come, and every exception and CPUID
    /// exit.
    fn isolate<P: Page>(&mut self, space: &Space<P>);
    /// Undoes that; RIP, general-purpose registers and flags stay, but for RFLAGS.TF.
    fn end_isolation(&mut self);

    /// Whether INVLPG, INVPCID and changes of CR4.PGE exit.
    fn set_flush_exits(&mut self, exit: bool);
}

/// Which page faults exit (SDM, "Exceptions" in "Other Causes of VM Exits"): those whose error code, as far as `mask` says, is
/// `matched`, if `bitmap_bit`, and all others if not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Bit 14 of the exception bitmap.
    pub bitmap_bit: bool,
    /// The page-fault error-code mask.
    pub mask: Pfec,
    /// The page-fault error-code match.
    pub matched: Pfec,
}

impl Filter {
    /// The filter that carries out what the MMU asks for. There are no others.
    pub fn of(guest_faults: GuestFaults) -> Filter {
        let none = Pfec::empty();
        match guest_faults {
            GuestFaults::Trap => Filter { bitmap_bit: true, mask: none, matched: none },
            GuestFaults::Present => Filter { bitmap_bit: true, mask: Pfec::PRESENT, matched: Pfec::PRESENT },
            GuestFaults::User => {
                Filter { bitmap_bit: false, mask: Pfec::USER | Pfec::RSVD, matched: Pfec::USER }
            }
        }
    }
}

/// The name of a filter in reports.
pub fn filter_name(guest_faults: GuestFaults) -> &'static str {
    match guest_faults {
        GuestFaults::Trap => "trap",
        GuestFaults::Present => "present",
        GuestFaults::User => "user",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Host faults are those on Pending entries (RSVD), on tracked tables and on clean pages (P and W, of a supervisor
    /// or, without I4, of user mode), and those of a supervisor where a walk must tell. All of them exit.
    #[test]
    fn the_filters_for_every_error_code() {
        for raw in 0..64 {
            let code = Pfec::from_bits_truncate(raw);
            let exits = |guest_faults| {
                let Filter { bitmap_bit, mask, matched } = Filter::of(guest_faults);
                (code & mask == matched) == bitmap_bit
            };
            let (present, user) = (code.contains(Pfec::PRESENT), code.contains(Pfec::USER));
            let reserved = code.contains(Pfec::RSVD);
            assert!(exits(GuestFaults::Trap));
            assert_eq!(exits(GuestFaults::Present), present, "{code:?}");
            assert_eq!(exits(GuestFaults::User), !user || reserved, "{code:?}");
            // RSVD comes with P always (SDM, "Page-Fault Exceptions").
            if reserved && present {
                assert!(exits(GuestFaults::Present) && exits(GuestFaults::User), "{code:?}");
            }
        }
    }
}

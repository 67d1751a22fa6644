//! Why the guest left.

use alloc::string::String;

use umbra_emulator::Source;
use umbra_paging::Gva;

use crate::event::Event;

/// Why the guest left. Instruction exits come before the instruction has changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// #PF, undelivered: the guest's CR2 is as it was. The error code is that of the shadow tables.
    PageFault {
        /// The address.
        gva: Gva,
        /// The error code's raw bits.
        error_code: u32,
    },
    /// An exception that is the guest's, to be delivered: intercepted because a guest that raises
    /// it within its own delivery would never leave (#DB and #AC).
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
    /// An instruction of which the hardware tells nothing but that it exits: a move to or from a
    /// control register, CLTS, LMSW, SMSW, INVLPG, INVPCID or a software interrupt. The shared code
    /// decodes it.
    Undecoded,
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
    /// MOV from a control register.
    MovFromCr {
        /// Which: 3 or 8, and 0 or 4 where the CPU has no read shadows of them.
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
    Unexpected(u64),
}

impl Exit {
    /// Whether answering it ends with the instruction behind the one at RIP: then its length
    /// matters.
    pub fn skips_instruction(&self) -> bool {
        match self {
            Exit::Cpuid
            | Exit::Halt
            | Exit::Invlpg(_)
            | Exit::Invpcid { .. }
            | Exit::MovToCr { .. }
            | Exit::MovFromCr { .. }
            | Exit::Clts
            | Exit::Lmsw(_)
            | Exit::Io { .. }
            | Exit::ReadMsr
            | Exit::WriteMsr
            | Exit::Xsetbv
            | Exit::CacheControl => true,
            Exit::TaskSwitch { source, .. } => !matches!(source, Source::Gate { .. }),
            Exit::PageFault { .. }
            | Exit::Reflect(_)
            | Exit::MachineCheck
            | Exit::Interrupt
            | Exit::Nmi
            | Exit::InterruptWindow
            | Exit::NmiWindow
            | Exit::TripleFault
            | Exit::Undecoded
            | Exit::StringIo
            | Exit::ReadCounter
            | Exit::Undefined
            | Exit::Nothing
            | Exit::Unexpected(_) => false,
        }
    }
}

/// Why the hardware does not run the guest, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The guest has got itself into a state that no processor runs: it shuts down.
    Guest(String),
    /// The hypervisor's own doing: it cannot go on.
    Host(String),
}

//! Basic exit reasons (SDM, "VMX Basic Exit Reasons").

pub const EXCEPTION_OR_NMI: u32 = 0;
pub const EXTERNAL_INTERRUPT: u32 = 1;
pub const TRIPLE_FAULT: u32 = 2;
pub const INIT_SIGNAL: u32 = 3;
pub const STARTUP_IPI: u32 = 4;
pub const IO_SMI: u32 = 5;
pub const OTHER_SMI: u32 = 6;
pub const INTERRUPT_WINDOW: u32 = 7;
pub const NMI_WINDOW: u32 = 8;
pub const TASK_SWITCH: u32 = 9;
pub const CPUID: u32 = 10;
pub const GETSEC: u32 = 11;
pub const HLT: u32 = 12;
pub const INVD: u32 = 13;
pub const INVLPG: u32 = 14;
pub const RDPMC: u32 = 15;
/// VMCALL is the first of the VMX instructions ...
pub const VMCALL: u32 = 18;
/// ... and VMXON the last, but for those that came later.
pub const VMXON: u32 = 27;
pub const CONTROL_REGISTER: u32 = 28;
pub const IO: u32 = 30;
pub const RDMSR: u32 = 31;
pub const WRMSR: u32 = 32;
pub const INVALID_GUEST_STATE: u32 = 33;
pub const MSR_LOADING: u32 = 34;
pub const MWAIT: u32 = 36;
pub const MONITOR: u32 = 39;
pub const MACHINE_CHECK_DURING_ENTRY: u32 = 41;
pub const INVEPT: u32 = 50;
pub const RDTSCP: u32 = 51;
pub const INVVPID: u32 = 53;
pub const WBINVD: u32 = 54;
pub const XSETBV: u32 = 55;
pub const INVPCID: u32 = 58;
pub const XSAVES: u32 = 63;
pub const XRSTORS: u32 = 64;

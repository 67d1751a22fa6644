//! Tries page-table entries on the CPU: what MAXPHYADDR makes reserved is a promise that only an
//! access can test, above all under another hypervisor.

use alloc::boxed::Box;
use core::arch::global_asm;

use umbra_mmu::Encodings;
use umbra_paging::{Level, Pfec, efer};
use x86::msr::IA32_EFER;

use super::cpu;
use super::phys::{HostPage, host_table};

global_asm!(
    // Returns -1, or what the page-fault handler puts into RAX when it goes on at `probe_faulted`.
    ".text",
    ".global probe_access, probe_faulted",
    "probe_access:",
    "movb (%rdi), %al",
    "movl $-1, %eax",
    "probe_faulted:",
    "ret",
    options(att_syntax)
);

unsafe extern "C" {
    fn probe_access(va: u64) -> i32;
    fn probe_faulted();
}

/// A region of 512 GiB that the hypervisor maps nothing in: PML4 entry 288.
const REGION: u64 = 0xffff_9000_0000_0000;

/// P, W, A of the entries above the one that is tried.
const TABLE_ENTRY: u64 = 0x23;

/// CPUID.80000001H:EDX.NX.
const CPUID_NX: u32 = 1 << 20;

/// The error code of a supervisor read at reserved bits.
const EXPECTED: u32 = Pfec::PRESENT.union(Pfec::RSVD).bits();

/// Where to go on after a page fault at `rip`, if it is the probe's.
pub(super) fn fixup(rip: u64) -> Option<u64> {
    (rip == probe_access as *const () as u64).then_some(probe_faulted as *const () as u64)
}

/// The error code of a read through `entry` in a structure of `level`; `None` if the read went
/// through.
fn read_through(level: Level, entry: u64) -> Option<u32> {
    let mut tables: [Box<HostPage>; 3] = core::array::from_fn(|_| HostPage::new());
    // From the top: the root, then as many of the tables as lie above the entry.
    let slot = (REGION >> Level::L4.shift()) as usize & 511;
    let mut next = entry;
    for table in tables.iter_mut().take(Level::L4 as usize - level as usize) {
        table.bytes_mut()[..8].copy_from_slice(&next.to_le_bytes());
        next = table.hpa().raw() | TABLE_ENTRY;
    }
    let root = host_table(cpu::cr3());
    // SAFETY: the slot is unused, and so is the region below it; what the read may reach if no
    // fault comes is thrown away.
    let code = unsafe {
        root.add(slot).write_volatile(next);
        let code = probe_access(REGION);
        root.add(slot).write_volatile(0);
        // Drops what was cached of the region before its tables go away.
        x86::controlregs::cr3_write(cpu::cr3());
        code
    };
    u32::try_from(code).ok()
}

/// What the CPU did at an entry that it should have faulted at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeFailure {
    /// No fault.
    #[error("an access through the level-{} entry {entry:#x} raises no fault", *.level as u8)]
    NoFault {
        /// Where the entry stood.
        level: Level,
        /// The entry.
        entry: u64,
    },
    /// A fault that does not say that reserved bits are the reason.
    #[error("the fault at the level-{} entry {entry:#x} has error code {code:#x} instead of 0x9", *.level as u8)]
    OtherCode {
        /// Where the entry stood.
        level: Level,
        /// The entry.
        entry: u64,
        /// The fault's error code.
        code: u32,
    },
}

/// Tests that an access through each Trapping entry of `encodings`, at each level, raises a page
/// fault that the CPU reports as one of reserved bits.
///
/// # Errors
/// What the CPU did instead.
pub fn trapping(encodings: &Encodings) -> Result<(), ProbeFailure> {
    let efer_before = cpu::read_msr(IA32_EFER);
    let nx = cpu::cpuid(0x8000_0001, 0).edx & CPUID_NX != 0;
    let efer_with_nx = efer_before | if nx { efer::NXE } else { 0 };
    // SAFETY: no entry of the hypervisor's page tables has bit 63 set, so NXE changes nothing for
    // it.
    unsafe { cpu::write_msr(IA32_EFER, efer_with_nx) };
    let result = encodings.probes().into_iter().try_for_each(|entry| {
        Level::ALL.into_iter().try_for_each(|level| match read_through(level, entry) {
            None => Err(ProbeFailure::NoFault { level, entry }),
            Some(code) if code != EXPECTED => Err(ProbeFailure::OtherCode { level, entry, code }),
            Some(_) => Ok(()),
        })
    });
    // SAFETY: as before.
    unsafe { cpu::write_msr(IA32_EFER, efer_before) };
    result
}

//! Instructions and registers of virtualization extensions, which the guest's CPU does not have. A
//! host's may have them, and live ones would hand the guest the machine: VMLOAD and VMSAVE take
//! physical addresses, CLGI stops all interrupts.

use guest_kernels::check;
use guest_kernels::entries::PAGE;
use guest_kernels::kit::context::Context;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::space::{self, Space};
use guest_kernels::kit::traps::{self, vector};
use guest_kernels::kit::{cpu, snippets, unpaged};
use umbra_paging::{ENTRIES, Level, efer};

use crate::setting::Setting;

/// The last byte of instructions that start with 0F 01, and their names. All but the last three are
/// those of virtualization.
const INSTRUCTIONS: [(u8, &str); 17] = [
    (0xd8, "VMRUN"),
    (0xd9, "VMMCALL"),
    (0xda, "VMLOAD"),
    (0xdb, "VMSAVE"),
    (0xdc, "STGI"),
    (0xdd, "CLGI"),
    (0xde, "SKINIT"),
    (0xdf, "INVLPGA"),
    (0xfe, "INVLPGB"),
    (0xff, "TLBSYNC"),
    (0xc1, "VMCALL"),
    (0xc2, "VMLAUNCH"),
    (0xc3, "VMRESUME"),
    (0xc4, "VMXOFF"),
    (0xc8, "MONITOR"),
    (0xc9, "MWAIT"),
    (0xfd, "RDPRU"),
];

/// Each is undefined in both rings, with addresses of the machine's memory in its operands.
pub fn instructions(setting: &mut Setting, space: &Space, report: &mut Report) {
    let frame = setting.pool.frame();
    let gva = space::slot(70);
    space.map(&mut setting.pool, gva, Level::L1, frame.address() | PAGE);
    let beyond = setting.memory_end.next_multiple_of(1 << 20) + (2 << 20);
    for (last, name) in INSTRUCTIONS {
        for prefix in [None, Some(0x67), Some(0x48)] {
            let code: [u8; 6] = match prefix {
                Some(prefix) => [prefix, 0x0f, 0x01, last, 0xcd, 0x80],
                None => [0x0f, 0x01, last, 0xcd, 0x80, 0x90],
            };
            frame.write_bytes(0, &code);
            for user in [false, true] {
                for rax in [0, frame.address(), beyond] {
                    let mut start =
                        if user { Context::user(gva.raw()) } else { Context::kernel(gva.raw()) };
                    (start.rax, start.rcx) = (rax, 0);
                    let trap = traps::run(&start);
                    let found = (trap.vector, trap.error_code, trap.context.rip);
                    check!(
                        report,
                        found == (vector::UD, 0, gva.raw()),
                        "{name} with prefix {prefix:x?}, user {user}, RAX {rax:#x}: {found:x?} instead of #UD"
                    );
                    // Bochs leaves at the next exit to the page that VMSAVE named. The exit before
                    // is then taken for that one, and it may have been #UD.
                    let stored = (1..ENTRIES).find(|&word| frame.read(word) != 0);
                    check!(
                        report,
                        stored.is_none(),
                        "{name} with prefix {prefix:x?}, user {user}, RAX {rax:#x}: stored at word {stored:?}"
                    );
                }
            }
        }
    }
}

/// The registers that switch the extensions on, or hold their state, are not there, and EFER takes
/// no bit of theirs.
pub fn registers(setting: &mut Setting, _: &Space, report: &mut Report) {
    /// VM_CR, IGNNE, SMM_CTL, VM_HSAVE_PA, SVM_KEY; IA32_VMX_BASIC and IA32_VMX_MISC.
    const MSRS: [u32; 7] =
        [0xc001_0114, 0xc001_0115, 0xc001_0116, 0xc001_0117, 0xc001_0118, 0x480, 0x485];
    for msr in MSRS {
        for (what, snippet) in [("RDMSR", snippets::read_msr()), ("WRMSR", snippets::write_msr())] {
            let mut start = snippet.kernel();
            (start.rcx, start.rax) = (msr.into(), setting.memory_end);
            let trap = traps::run(&start);
            check!(
                report,
                (trap.vector, trap.error_code) == (vector::GP, 0),
                "{what} of {msr:#x}: {trap:x?} instead of #GP"
            );
        }
    }
    const SVME: u64 = 1 << 12;
    let before = cpu::read_msr(cpu::EFER);
    check!(report, before & SVME == 0, "EFER is {before:#x}");
    let mut start = snippets::write_msr().kernel();
    (start.rcx, start.rax) = (cpu::EFER.into(), before | SVME);
    let trap = traps::run(&start);
    check!(report, trap.vector == vector::GP, "EFER.SVME: {trap:x?} instead of #GP");
    check!(report, cpu::read_msr(cpu::EFER) == before, "EFER has changed");
    check!(report, cpu::cr4() & 1 << 13 == 0 && before & efer::LMA != 0, "CR4.VMXE is set");
}

/// With paging off, physical addresses are the guest's all the same, whatever CR3 and CR4.PAE are
/// then: no word of the machine beyond the guest's memory shows or changes.
pub fn paging_off(setting: &mut Setting, _: &Space, report: &mut Report) {
    let frame = setting.pool.frame();
    frame.write(0, 0x1234_5678);
    let end = setting.memory_end.next_multiple_of(1 << 20) as u32;
    let garbage = [0, end, end + (1 << 20), frame.address() as u32, 0xffff_f000];
    for cr3 in garbage {
        for pae in [true, false] {
            let found = unpaged::read_under(frame.address() as u32, cr3, pae);
            check!(
                report,
                found == 0x1234_5678,
                "CR3 {cr3:#x}, PAE {pae}: the guest's word is {found:#x}"
            );
            for mib in 0..24 {
                let address = end + (mib << 20) + 0x100;
                let found = unpaged::read_under(address, cr3, pae);
                check!(
                    report,
                    found == u32::MAX,
                    "CR3 {cr3:#x}, PAE {pae}: {found:#x} at {address:#x}, where the guest has no memory"
                );
            }
        }
    }
}

//! The least that a kernel finds on the platform.

use guest_kernels::check;
use guest_kernels::kit::access::{self, Fault};
use guest_kernels::kit::apic::{self, register};
use guest_kernels::kit::report::Report;
use guest_kernels::kit::{cpu, port, snippets};
use guest_kernels::say;

use crate::setting::Setting;

/// QEMU's fw_cfg (QEMU, docs/specs/fw_cfg): an item is selected, then read byte by byte.
const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const SIGNATURE: u16 = 0;
const RAM_SIZE: u16 = 3;
const CPU_COUNT: u16 = 5;

fn item<const SIZE: usize>(selector: u16) -> [u8; SIZE] {
    port::write_u16(SELECTOR, selector);
    core::array::from_fn(|_| port::read_u8(DATA))
}

/// Signature, RAM size, number of CPUs.
pub fn fw_cfg(setting: &mut Setting, report: &mut Report) {
    let signature: [u8; 4] = item(SIGNATURE);
    if signature == [0xff; 4] && !setting.options.has("fw_cfg") {
        say!("  this machine has no fw_cfg");
        return;
    }
    check!(report, &signature == b"QEMU", "the signature is {signature:x?}");
    let size = u64::from_le_bytes(item(RAM_SIZE));
    check!(
        report,
        size >= setting.memory_end && size < setting.memory_end + (2 << 20),
        "the RAM size is {size:#x}, the loader said {:#x}",
        setting.memory_end
    );
    let cpus = u16::from_le_bytes(item(CPU_COUNT));
    check!(report, cpus == 1, "{cpus} CPUs");
    let again: [u8; 4] = item(SIGNATURE);
    check!(report, again == signature, "the signature is {again:x?} the second time");
}

/// The loader passes as many modules as the option `modules=` says.
pub fn modules(setting: &mut Setting, report: &mut Report) {
    let found = u64::from(setting.modules);
    match setting.options.number("modules") {
        Ok(wanted) => {
            check!(
                report,
                found == wanted.unwrap_or(found),
                "{found} modules instead of {wanted:?}"
            )
        }
        Err(bad) => check!(report, false, "{bad:?}"),
    }
}

/// Configuration mechanism 1 finds a host bridge in slot 0 of bus 0, and nothing in slot 31.
pub fn pci(_: &mut Setting, report: &mut Report) {
    const ADDRESS: u16 = 0xcf8;
    const DATA: u16 = 0xcfc;
    const CLASS: u32 = 0x8000_0008;
    port::write_u32(ADDRESS, CLASS);
    let back = port::read_u32(ADDRESS);
    check!(report, back == CLASS, "the address reads back as {back:#x}");
    let (class, base) = (port::read_u32(DATA) >> 16, port::read_u8(DATA + 3));
    check!(report, (class, base) == (0x0600, 6), "slot 0 is of class {class:#x} and {base:#x}");
    port::write_u32(ADDRESS, CLASS & !(1 << 31));
    let found = port::read_u32(DATA);
    check!(report, found == u32::MAX, "without the enable bit, the data reads {found:#x}");
    port::write_u32(ADDRESS, 0x8000_0000 | 31 << 11);
    let found = port::read_u32(DATA);
    check!(report, found == u32::MAX, "an empty slot reads {found:#x}");
    port::write_u32(ADDRESS, 0);
}

/// A VGA in text mode: registers and memory hold what is written, and the retrace comes and goes.
pub fn vga(_: &mut Setting, report: &mut Report) {
    const CRTC: u16 = 0x3d4;
    const STATUS: u16 = 0x3da;
    const TEXT: u64 = 0xb_8000;
    /// Two frames at 50 Hz and 1 GHz.
    const PATIENCE: u64 = 40_000_000;
    let register = |index: u8| {
        port::write_u8(CRTC, index);
        port::read_u8(CRTC + 1)
    };
    let before = [0x0e, 0x0f].map(register);
    for place in [0x0123_u16, 0x07cf] {
        let [high, low] = place.to_be_bytes();
        for (index, value) in [(0x0e, high), (0x0f, low)] {
            port::write_u16(CRTC, u16::from_le_bytes([index, value]));
        }
        let found = u16::from_be_bytes([0x0e, 0x0f].map(register));
        check!(report, found == place, "the cursor is at {found:#x} instead of {place:#x}");
    }
    for (index, value) in [0x0e, 0x0f].into_iter().zip(before) {
        port::write_u16(CRTC, u16::from_le_bytes([index, value]));
    }
    for cell in [TEXT, TEXT + 2 * (80 * 25 - 2), TEXT + 0x7ffc] {
        for value in [0x0741_0742_u32, 0x0720_0720] {
            let (mut write, mut read) = (snippets::write_4().kernel(), snippets::read_4().kernel());
            (write.rdi, write.rsi, read.rdi) = (cell, value.into(), cell);
            let outcome =
                access::run(&write).and_then(|_| access::run(&read)).map(|end| end.rax as u32);
            check!(
                report,
                outcome == Ok(value),
                "{cell:#x} holds {outcome:x?} instead of {value:#x}"
            );
        }
    }
    let (start, mut seen) = (cpu::tsc(), [false; 2]);
    while seen != [true; 2] && cpu::tsc() - start < PATIENCE {
        seen[usize::from(port::read_u8(STATUS) >> 3 & 1)] = true;
    }
    check!(report, seen == [true; 2], "the vertical retrace does not come and go: {seen:?}");
}

/// The clock's periodic flag comes at its rate, says that it interrupts, and goes when it is read.
pub fn rtc(_: &mut Setting, report: &mut Report) {
    const INDEX: u16 = 0x70;
    const DATA: u16 = 0x71;
    /// 50 periods at 1 GHz.
    const PATIENCE: u64 = 50_000_000;
    let select = |register: u8| port::write_u8(INDEX, register);
    let status_c = || {
        select(0x0c);
        port::read_u8(DATA)
    };
    select(0x0b);
    let before = port::read_u8(DATA);
    port::write_u8(DATA, before | 1 << 6);
    status_c();
    let start = cpu::tsc();
    let mut flags = 0;
    while flags == 0 && cpu::tsc() - start < PATIENCE {
        flags = status_c();
    }
    let again = status_c();
    select(0x0b);
    port::write_u8(DATA, before);
    check!(
        report,
        flags & 0xc0 == 0xc0,
        "the flags are {flags:#x} with the periodic interrupt enabled"
    );
    check!(report, again & 0xc0 == 0, "the flags are {again:#x} after they were read");
}

/// The APIC goes off and on by its base register, and off is empty memory.
pub fn apic_base(_: &mut Setting, report: &mut Report) {
    let before = cpu::read_msr(apic::BASE_MSR);
    check!(
        report,
        before & !0xfff == apic::BASE && before & apic::BASE_ENABLE != 0,
        "the base register is {before:#x}"
    );
    let version = apic::read(register::VERSION);
    for _ in 0..3 {
        apic::set_base(before & !apic::BASE_ENABLE);
        let shown = cpu::cpuid(1, 0).edx >> 9 & 1;
        check!(report, shown == 0, "CPUID shows an APIC that is off");
        apic::set_base(before);
        check!(
            report,
            cpu::read_msr(apic::BASE_MSR) == before,
            "the base register is {:#x}",
            cpu::read_msr(apic::BASE_MSR)
        );
        let found = apic::read(register::VERSION);
        check!(report, found == version, "the version is {found:#x} instead of {version:#x}");
        apic::init();
    }
}

/// The APIC moves by its base register; the base takes no bits that do not exist.
pub fn apic_moved(setting: &mut Setting, report: &mut Report) {
    const ELSEWHERE: u64 = 0xfed4_0000;
    let before = cpu::read_msr(apic::BASE_MSR);
    let version = apic::read(register::VERSION);
    let at = |base: u64| {
        let mut context = snippets::read_4().kernel();
        context.rdi = base + register::VERSION;
        access::run(&context).map(|end| end.rax as u32)
    };
    apic::set_base(ELSEWHERE | before & 0xfff);
    let (here, there) = (at(apic::BASE), at(ELSEWHERE));
    apic::set_base(before);
    check!(report, there == Ok(version), "the APIC's version is {there:x?} where it was moved to");
    check!(report, here != Ok(version), "the APIC is still where it was");
    let back = apic::read(register::VERSION);
    check!(
        report,
        back == version,
        "the version is {back:#x} instead of {version:#x} after the move back"
    );
    apic::init();
    for bit in u32::from(setting.cpu.features.maxphyaddr)..64 {
        let value = before | 1 << bit;
        let outcome = access::write_msr(apic::BASE_MSR, value);
        check!(
            report,
            outcome == Err(Fault::general_protection(0)),
            "base bit {bit}: {outcome:x?}"
        );
    }
}

//! What 32-bit kernels do with segments, gates and modes of 16 bits; the same with paging off and
//! in both formats.

use guest_kernels::base::report::Report;
use guest_kernels::check;

use crate::kit::descriptors::{self, descriptor, kind, selector};
use crate::kit::run::{self, Context};
use crate::kit::{cpu, memory};
use crate::space::{DATA, DIRECTORY_32, MODES, Mode, Space, TABLES, WINDOW, name};
use crate::walk::Format;

const OVERFLOW: u32 = 4;
const STACK_FAULT: u32 = 12;
const GENERAL_PROTECTION: u32 = 13;
const PAGE: u32 = 0x1000;

/// Low memory for code and data of virtual-8086 mode.
const V86_CODE: u32 = 0x9000;
const V86_DATA: u32 = 0x1_0000;

const VM: u32 = 1 << 17;
const IOPL_3: u32 = 3 << 12;

/// Runs a test in each mode.
pub fn in_all_modes(space: &mut Space, report: &mut Report, test: fn(&mut Report, Mode)) {
    for mode in MODES {
        space.enter(mode);
        test(report, mode);
    }
}

/// Base and limit, up and down, in both rings; the LDT.
pub fn limits(report: &mut Report, mode: Mode) {
    let ldt = TABLES + PAGE;
    descriptors::set(selector::LDT, descriptor(ldt, 0xff, kind::LDT, false, false));
    descriptors::load_ldt(selector::LDT);
    let test = selector::TEST[0];
    for user in [false, true] {
        let segment = |base, limit, data| {
            let of_ring = if user { data | kind::RING_3 } else { data };
            descriptor(base, limit, of_ring, true, false)
        };
        let through = |selector: u32, offset: u32| {
            let registers = Context::ring(user, run::through_fs());
            Context { ecx: offset, fs: selector | if user { 3 } else { 0 }, ..registers }.run()
        };
        for from_ldt in [false, true] {
            let (at, fs) = if from_ldt { (ldt + 8, 8 | 4) } else { (0, test) };
            let set = |descriptor: u64| {
                if from_ldt {
                    memory::write(at, descriptor as u32);
                    memory::write(at + 4, (descriptor >> 32) as u32);
                } else {
                    descriptors::set(test, descriptor);
                }
            };
            set(segment(DATA, 0xfff, kind::DATA));
            let ends = through(fs, 0);
            check!(
                report,
                (ends.vector, ends.eax) == (run::INTERRUPT, name(DATA)),
                "{mode:?}, user {user}, LDT {from_ldt}: {ends:x?}"
            );
            let ends = through(fs, 0xffc);
            check!(report, ends.vector == run::INTERRUPT, "{mode:?}, the last word: {ends:x?}");
            let ends = through(fs, 0xffd);
            check!(
                report,
                (ends.vector, ends.error) == (GENERAL_PROTECTION, 0),
                "{mode:?}, user {user}, beyond the limit: {ends:x?}"
            );
            set(segment(DATA - 0x1000, 0xfff, kind::DATA_DOWN));
            let ends = through(fs, 0x1000);
            check!(
                report,
                (ends.vector, ends.eax) == (run::INTERRUPT, name(DATA)),
                "{mode:?}, user {user}, expanding down: {ends:x?}"
            );
            let ends = through(fs, 0xfff);
            check!(
                report,
                (ends.vector, ends.error) == (GENERAL_PROTECTION, 0),
                "{mode:?}, user {user}, within the limit: {ends:x?}"
            );
        }
    }
    // A stack that ends.
    descriptors::set(test, descriptor(TABLES, 0xfff, kind::DATA | kind::RING_3, true, false));
    let stack = |esp: u32| {
        let registers = Context::user(run::stack());
        Context { esp, ss: test | 3, edx: 0x1234_5678, ..registers }.run()
    };
    let ends = stack(0x1000);
    check!(
        report,
        (ends.vector, ends.eax) == (run::INTERRUPT, 0x1234_5678)
            && memory::read(TABLES + 0xffc) == 0x1234_5678,
        "{mode:?}, a stack with a base: {ends:x?}"
    );
    let ends = stack(0x1002);
    check!(
        report,
        (ends.vector, ends.error) == (STACK_FAULT, 0),
        "{mode:?}, beyond the stack's limit: {ends:x?}"
    );
    // A segment that is not present.
    descriptors::set(test, descriptor(DATA, 0xfff, kind::DATA & !0x80, true, false));
    let registers = Context::kernel(run::through_cs());
    let ends = Context { ecx: run::start(), ..registers }.run();
    check!(report, ends.vector == run::INTERRUPT, "{mode:?}, through CS: {ends:x?}");
}

/// 16-bit code behind a far call, in both rings; instructions that 64-bit code lacks.
pub fn code_16(report: &mut Report, mode: Mode) {
    let pointer = DATA + 0x40;
    for user in [false, true] {
        let (test, ring) = if user { (selector::TEST[1], 3) } else { (selector::TEST[2], 0) };
        let code = if user { kind::CODE | kind::RING_3 } else { kind::CODE };
        descriptors::set(test, descriptor(run::start(), 0xfff, code, false, false));
        memory::write(pointer, run::code_16() - run::start());
        memory::write(pointer + 4, test | ring);
        let registers = Context::ring(user, run::far_call());
        let ends = Context { ecx: pointer, eax: 0xabcd_0000, ebx: 0x1234_0000, ..registers }.run();
        check!(
            report,
            (ends.vector, ends.eax, ends.ebx) == (run::INTERRUPT, 0xabcd_0010, 0x1234_0010),
            "{mode:?}, user {user}, 16-bit code: {ends:x?}"
        );
        // DAA of 0x79 + 0x35; INTO where ADD has overflowed.
        let ends = Context { ecx: pointer, eax: 0, ..Context::ring(user, run::arithmetic()) }.run();
        check!(
            report,
            (ends.vector, memory::read(pointer)) == (OVERFLOW, 0x8000_0013),
            "{mode:?}, user {user}, DAA, PUSHA, INTO: {ends:x?}, {:#x}",
            memory::read(pointer)
        );
    }
}

/// Virtual-8086 mode, with and without IOPL 3.
pub fn v86(report: &mut Report, mode: Mode) {
    let code = run::bytes(run::v86(), 16);
    for (at, &byte) in (V86_CODE..).zip(code) {
        memory::write_byte(at, byte);
    }
    for (at, &byte) in (V86_CODE + 0x100..).zip(run::bytes(run::v86_privileged(), 4)) {
        memory::write_byte(at, byte);
    }
    memory::write(V86_DATA + 0x20, 0xbeef);
    let start = |eip: u32, eflags: u32| {
        let registers =
            Context { eip, cs: V86_CODE >> 4, eflags: 2 | VM | eflags, ..Context::default() };
        let data = V86_DATA >> 4;
        let stack = Context { ss: 0xa00, esp: 0x100, ..registers };
        Context { ds: data, es: data, fs: 0x12, gs: 0x34, esi: 0x20, ..stack }.run()
    };
    let ends = start(0, 0);
    check!(
        report,
        (ends.vector, ends.error, ends.eip) == (GENERAL_PROTECTION, 0, 2)
            && ends.eax & 0xffff == 0xbeef,
        "{mode:?}, PUSHF without IOPL 3: {ends:x?}"
    );
    check!(
        report,
        (ends.ds, ends.fs, ends.gs, ends.eflags & VM) == (V86_DATA >> 4, 0x12, 0x34, VM),
        "{mode:?}, the frame: {ends:x?}"
    );
    let ends = start(0, IOPL_3);
    check!(
        report,
        ends.vector == run::INTERRUPT
            && ends.ebx & (IOPL_3 | 2) == IOPL_3 | 2
            && ends.eflags & VM != 0,
        "{mode:?}, INT n with IOPL 3: {ends:x?}"
    );
    let ends = start(0x100, IOPL_3);
    check!(
        report,
        (ends.vector, ends.error, ends.eip) == (GENERAL_PROTECTION, 0, 0x100),
        "{mode:?}, MOV from CR0: {ends:x?}"
    );
}

/// SYSENTER from ring 3 and SYSEXIT back.
pub fn sysenter(report: &mut Report, mode: Mode) {
    const SEP: u32 = 1 << 11;
    if cpu::cpuid(1)[3] & SEP == 0 {
        return;
    }
    let ends = Context { eax: 0x1111, edx: 0x2222, ..Context::user(run::sysenter()) }.run();
    check!(
        report,
        (ends.vector, ends.cs, ends.ss, ends.eax, ends.edx)
            == (run::SYSENTER, selector::CODE, selector::DATA, 0x1111, 0x2222),
        "{mode:?}, SYSENTER: {ends:x?}"
    );
    let registers = Context::kernel(run::sysexit());
    let ends = Context { ecx: run::USER_STACK, edx: run::sysenter(), ..registers }.run();
    check!(
        report,
        (ends.vector, ends.cs) == (run::SYSENTER, selector::CODE),
        "{mode:?}, SYSEXIT to SYSENTER: {ends:x?}"
    );
    let registers = Context::kernel(run::sysexit());
    let ends = Context { ecx: run::USER_STACK, edx: run::stack(), ..registers }.run();
    check!(
        report,
        (ends.vector, ends.cs, ends.ss, ends.esp)
            == (run::INTERRUPT, selector::USER_CODE, selector::USER_DATA, run::USER_STACK),
        "{mode:?}, SYSEXIT: {ends:x?}"
    );
}

/// Descriptor tables in pages that are tables, too: what loads of segments write there is a table
/// write.
pub fn in_tables(space: &mut Space, report: &mut Report) {
    for mode in [Mode::Paged(Format::Bits32), Mode::Paged(Format::Pae)] {
        space.enter(mode);
        space.clear();
        space.map(WINDOW, DATA);
        // The LDT lies at the end of a page table that is in use.
        let ldt = TABLES + PAGE + 0xf00;
        let entry = descriptor(DATA, 0xfff, kind::DATA & !1, true, false);
        memory::write(ldt + 8, entry as u32);
        memory::write(ldt + 12, (entry >> 32) as u32);
        descriptors::set(selector::LDT, descriptor(ldt, 0xff, kind::LDT, false, false));
        descriptors::load_ldt(selector::LDT);
        let ends = Context { fs: 8 | 4, ..Context::kernel(run::through_fs()) }.run();
        check!(
            report,
            (ends.vector, ends.eax) == (run::INTERRUPT, name(DATA)),
            "{mode:?}, an LDT in a page table: {ends:x?}"
        );
        let accessed = memory::read(ldt + 12) >> 8 & 1;
        check!(report, accessed == 1, "{mode:?}: the descriptor is not accessed");
        let registers = Context::kernel(run::read());
        let ends = Context { ecx: WINDOW, ..registers }.run();
        check!(report, ends.eax == name(DATA), "{mode:?}, the table still maps: {ends:x?}");
    }
    memory::write(DIRECTORY_32 + 4 * (WINDOW >> 22), 0);
}

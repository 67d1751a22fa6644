//! PDPTEs are registers; large pages and modes that change under them.

use guest_kernels::base::report::Report;
use guest_kernels::check;

use crate::kit::run::{self, Context};
use crate::kit::{cpu, memory};
use crate::space::{DATA, DIRECTORY_32, MODES, Mode, PDPT, ROOTS, Space, TABLES, WINDOW, name};
use crate::walk::{Format, code};

const GENERAL_PROTECTION: u32 = 13;
const PAGE_FAULT: u32 = 14;
const PAGE: u32 = 0x1000;

fn read(linear: u32) -> Context {
    Context { ecx: linear, ..Context::kernel(run::read()) }.run()
}

/// Reads an address, which must have this value.
fn expect(report: &mut Report, words: &str, linear: u32, value: u32) {
    let ends = read(linear);
    check!(
        report,
        (ends.vector, ends.eax) == (run::INTERRUPT, value),
        "{words}: {linear:#x} gives {ends:x?} instead of {value:#x}"
    );
}

/// Reads an address, which must fault.
fn expect_fault(report: &mut Report, words: &str, linear: u32, error: u32) {
    let ends = read(linear);
    check!(
        report,
        (ends.vector, ends.error, ends.cr2) == (PAGE_FAULT, error, linear),
        "{words}: {linear:#x} gives {ends:x?} instead of a fault {error:#x}"
    );
}

/// A load of CR3, CR0 or CR4 by this snippet.
fn load(snippet: u32, value: u32) -> Context {
    Context { ecx: value, ..Context::kernel(snippet) }.run()
}

/// Memory's PDPTEs change, the CPU's do not, until it loads them.
pub fn sampled(space: &mut Space, report: &mut Report) {
    space.enter(Mode::Paged(Format::Pae));
    space.clear();
    let value = name(DATA);
    space.map(WINDOW, DATA);
    expect(report, "before the change", WINDOW, value);
    for (words, pdpte) in
        [("not present", 0), ("of another directory", TABLES + 2 * PAGE | 1), ("reserved", 0x1e7)]
    {
        memory::write(PDPT + 8, pdpte);
        expect(report, words, WINDOW, value);
        cpu::invlpg(WINDOW);
        expect(report, words, WINDOW, value);
        // A page that was used never.
        memory::write(TABLES + PAGE + 8, DATA + PAGE | 7);
        expect(report, words, WINDOW + PAGE, name(DATA + PAGE));
        memory::write(TABLES + PAGE + 8, 0);
        cpu::invlpg(WINDOW + PAGE);
    }
    memory::write(PDPT + 8, 0);
    space.flush();
    expect_fault(report, "after a load of nothing", WINDOW, 0);
    // There is no table to walk, so setting P needs a load, too.
    memory::write(PDPT + 8, TABLES | 1);
    expect_fault(report, "before the load", WINDOW, 0);
    space.flush();
    expect(report, "after the load", WINDOW, value);
}

/// Reserved bits in a PDPTE refuse the load, and nothing has changed then.
pub fn reserved(space: &mut Space, report: &mut Report) {
    space.enter(Mode::Paged(Format::Pae));
    space.clear();
    space.map(WINDOW, DATA);
    let other = PDPT + 0x20;
    let copy = |index: u32| {
        for word in 0..8 {
            memory::write(other + 4 * word, memory::read(PDPT + 4 * word));
        }
        memory::write(other + 8 * index, memory::read(PDPT) & !0xfff | 1);
    };
    let maxphyaddr = space.controls.maxphyaddr;
    for bit in (1..3).chain(5..9).chain(maxphyaddr..64) {
        for index in [1, 2, 3] {
            copy(index);
            let at = other + 8 * index + bit / 32 * 4;
            memory::write(at, memory::read(at) | 1 << (bit % 32));
            let old = cpu::cr3();
            let ends = load(run::load_cr3(), other);
            check!(
                report,
                (ends.vector, ends.error) == (GENERAL_PROTECTION, 0) && cpu::cr3() == old,
                "bit {bit} of PDPTE {index}: {ends:x?}, CR3 {:#x}",
                cpu::cr3()
            );
            expect(report, "after a refused load", WINDOW, name(DATA));
            // One that is not present has no reserved bits.
            memory::write(other + 8 * index, memory::read(other + 8 * index) & !1);
            let ends = load(run::load_cr3(), other);
            check!(
                report,
                ends.vector == run::INTERRUPT,
                "bit {bit} of PDPTE {index}, not present: {ends:x?}"
            );
            if index == 1 {
                expect_fault(report, "not present", WINDOW, 0);
            }
            space.flush();
        }
    }
    // PWT and PCD are allowed, and what is ignored.
    copy(3);
    memory::write(other + 8, TABLES | 0xe19);
    let ends = load(run::load_cr3(), other | 0x18);
    check!(report, ends.vector == run::INTERRUPT, "PWT, PCD and ignored bits: {ends:x?}");
    check!(report, cpu::cr3() == other | 0x18, "CR3 reads as {:#x}", cpu::cr3());
    expect(report, "by another PDPT", WINDOW, name(DATA));
    space.flush();
}

/// Two roots that are loaded in turn, so often that a hypervisor may let their loads pass. What is
/// loaded is what memory says at that moment.
pub fn in_turn(space: &mut Space, report: &mut Report) {
    space.enter(Mode::Paged(Format::Pae));
    space.clear();
    space.map(WINDOW, DATA);
    memory::write(TABLES + 2 * PAGE, TABLES + 3 * PAGE | 7);
    memory::write(TABLES + 3 * PAGE, DATA + 5 * PAGE | 7);
    let [one, other] = ROOTS;
    for (root, directory) in [(one, TABLES), (other, TABLES + 2 * PAGE)] {
        for word in 0..8 {
            memory::write(root + 4 * word, memory::read(PDPT + 4 * word));
        }
        memory::write(root + 8, directory | 1);
    }
    let values = [(one, name(DATA)), (other, name(DATA + 5 * PAGE))];
    let loads = |report: &mut Report, cr3: u32, value: u32| {
        let ends = load(run::load_cr3(), cr3);
        check!(report, ends.vector == run::INTERRUPT, "CR3 {cr3:#x}: {ends:x?}");
        check!(report, cpu::cr3() == cr3, "CR3 reads as {:#x} instead of {cr3:#x}", cpu::cr3());
        expect(report, "in turn", WINDOW, value);
    };
    for round in 0..60 {
        // PWT and PCD are part of the value.
        let flags = [0, 0x18][round / 12 % 2];
        for (root, value) in values {
            loads(report, root | flags, value);
        }
        match round % 12 {
            // Memory changes under the CPU.
            7 => {
                memory::write(other + 8, TABLES | 1);
                expect(report, "changed in use", WINDOW, values[1].1);
                cpu::invlpg(WINDOW);
                expect(report, "changed in use, INVLPG", WINDOW, values[1].1);
                loads(report, other | flags, values[0].1);
                memory::write(other + 8, TABLES + 2 * PAGE | 1);
                expect(report, "changed back in use", WINDOW, values[0].1);
            }
            // What is not in use changes.
            9 => {
                memory::write(one + 8, 0);
                let ends = load(run::load_cr3(), one | flags);
                check!(report, ends.vector == run::INTERRUPT, "a PDPTE with P=0: {ends:x?}");
                expect_fault(report, "not present", WINDOW, 0);
                memory::write(one + 8, TABLES | 1);
                expect_fault(report, "present, not loaded", WINDOW, 0);
            }
            11 => {
                memory::write(one + 8, TABLES | 3);
                let ends = load(run::load_cr3(), one | flags);
                let refused = (ends.vector, ends.error) == (GENERAL_PROTECTION, 0);
                check!(report, refused, "a reserved bit: {ends:x?}");
                check!(report, cpu::cr3() == other | flags, "CR3 reads as {:#x}", cpu::cr3());
                expect(report, "refused", WINDOW, values[1].1);
                memory::write(one + 8, TABLES | 1);
            }
            // Data behind the PDPTEs, and an entry of a directory that they reference.
            3 => {
                memory::write(one + 0x800, round as u32);
                memory::write(TABLES + 2 * PAGE, 0);
                cpu::invlpg(WINDOW);
                expect_fault(report, "no page table", WINDOW, 0);
                memory::write(TABLES + 2 * PAGE, TABLES + 3 * PAGE | 7);
                expect(report, "a page table again", WINDOW, values[1].1);
                check!(report, memory::read(one + 0x800) == round as u32, "data is lost");
            }
            _ => (),
        }
    }
    space.flush();
}

/// Writes to CR4 and CR0 that load PDPTEs again, and are refused as MOV CR3 is.
pub fn control_registers(space: &mut Space, report: &mut Report) {
    space.enter(Mode::Paged(Format::Pae));
    space.clear();
    space.map(WINDOW, DATA);
    memory::write(TABLES + 2 * PAGE, TABLES + 3 * PAGE | 7);
    memory::write(TABLES + 3 * PAGE, DATA + 5 * PAGE | 7);
    let cr4 = cpu::cr4();
    let toggled = cr4 ^ cpu::bit::CR4_PSE;
    memory::write(PDPT + 8, TABLES + 2 * PAGE | 1);
    expect(report, "before CR4.PSE", WINDOW, name(DATA));
    let ends = load(run::load_cr4(), toggled);
    check!(report, ends.vector == run::INTERRUPT, "CR4.PSE: {ends:x?}");
    expect(report, "after CR4.PSE", WINDOW, name(DATA + 5 * PAGE));
    // Refused: nothing changes.
    memory::write(PDPT + 8, TABLES | 3);
    let ends = load(run::load_cr4(), cr4);
    check!(
        report,
        (ends.vector, ends.error) == (GENERAL_PROTECTION, 0) && cpu::cr4() == toggled,
        "CR4.PSE with a reserved bit: {ends:x?}, CR4 {:#x}",
        cpu::cr4()
    );
    expect(report, "after a refused CR4", WINDOW, name(DATA + 5 * PAGE));
    // Paging off and on loads them, too.
    let cr0 = cpu::cr0();
    cpu::set_cr0(cr0 & !cpu::bit::CR0_PG);
    let ends = load(run::load_cr0(), cr0);
    check!(
        report,
        (ends.vector, ends.error) == (GENERAL_PROTECTION, 0) && cpu::cr0() & cpu::bit::CR0_PG == 0,
        "CR0.PG with a reserved bit: {ends:x?}, CR0 {:#x}",
        cpu::cr0()
    );
    memory::write(PDPT + 8, TABLES | 1);
    let ends = load(run::load_cr0(), cr0);
    check!(report, ends.vector == run::INTERRUPT, "CR0.PG: {ends:x?}");
    expect(report, "after CR0.PG", WINDOW, name(DATA));
    cpu::set_cr4(cr4);
    space.flush();
}

/// 4 MiB pages: whole, beyond 4 GiB, with the reserved bit, and as a table once PSE is off.
pub fn large_pages(space: &mut Space, report: &mut Report) {
    space.enter(Mode::Paged(Format::Bits32));
    space.clear();
    let entry = DIRECTORY_32 + 4 * (WINDOW >> 22);
    // As a table it is the frame of the page's base.
    let large = (DATA | 0x80 | 7, DATA);
    memory::write(DATA + 4, DATA + 9 * PAGE | 7);
    for round in 0..8 {
        memory::write(entry, large.0);
        space.flush();
        for page in [0, 1, 0x1ff, 0x200, 0x3ff] {
            let frame = DATA + page * PAGE;
            expect(report, "a 4 MiB page", WINDOW + page * PAGE, name(frame));
        }
        // INVLPG of one address drops all of it.
        memory::write(entry, large.0 ^ 0xc0_0000 ^ 0x80_0000);
        cpu::invlpg(WINDOW + (round * 0x123 % 0x400) * PAGE);
        for page in [0, 0x3ff] {
            expect(
                report,
                "another 4 MiB page",
                WINDOW + page * PAGE,
                name(0xc0_0000 + page * PAGE),
            );
        }
        memory::write(entry, large.0);
        let (wp, nxe) = (space.controls.wp, space.controls.nxe);
        space.set_bits(wp, false, nxe);
        expect(report, "without PSE", WINDOW + PAGE, name(DATA + 9 * PAGE));
        expect_fault(report, "without PSE", WINDOW + 2 * PAGE, 0);
        space.set_bits(wp, true, nxe);
        expect(report, "with PSE again", WINDOW + PAGE, name(DATA + PAGE));
        memory::write(entry, large.0 | 1 << 21);
        space.flush();
        expect_fault(report, "bit 21", WINDOW, code::P | code::RSVD);
        if space.controls.maxphyaddr >= 36 {
            // Nothing is there, and the other half of the machine reads as all ones.
            memory::write(entry, large.0 | 8 << 13);
            space.flush();
            let ends = read(WINDOW);
            check!(
                report,
                ends.vector == run::INTERRUPT && ends.eax != name(DATA),
                "bit 35 of the address: {ends:x?}"
            );
        }
    }
    // The word served as an entry.
    memory::write(DATA + 4, 0);
    memory::write(entry, 0);
    space.flush();
}

/// The same address through all modes, again and again, by the same frames as tables.
pub fn modes(space: &mut Space, report: &mut Report, rounds: u32) {
    space.enter(Mode::Unpaged);
    space.clear();
    for round in 0..rounds {
        for mode in MODES {
            space.enter(mode);
            // What the last mode has left in the tables is not this one's.
            if let Mode::Paged(_) = mode {
                let frame = DATA + PAGE * (round % 64);
                let linear = WINDOW + PAGE * (round % 16);
                space.map(linear, frame);
                expect(report, "in turn", linear, name(frame));
            }
            expect(
                report,
                "identity",
                DATA + PAGE * (round % 512),
                name(DATA + PAGE * (round % 512)),
            );
        }
        // The format changes while the directory of one is the PDPT of the other.
        if round % 16 == 0 {
            shared_root(space, report);
        }
    }
}

/// One frame is the directory of 32-bit paging and holds the PDPTEs of PAE paging.
fn shared_root(space: &mut Space, report: &mut Report) {
    space.enter(Mode::Unpaged);
    let linear = WINDOW;
    let pdptes: [u32; 8] = core::array::from_fn(|word| memory::read(PDPT + 4 * word as u32));
    space.controls.format = Format::Pae;
    space.map(linear, DATA + 7 * PAGE);
    // Behind the identity map, which ends at 16 MiB: words 8 to 15 are another GiB's of 32-bit
    // paging.
    let shared = DIRECTORY_32 + 0x20;
    for (word, pdpte) in (0..).zip(pdptes) {
        memory::write(shared + 4 * word, pdpte);
    }
    cpu::set_cr4(cpu::cr4() | cpu::bit::CR4_PAE);
    cpu::set_cr3(shared);
    cpu::set_cr0(cpu::cr0() | cpu::bit::CR0_PG);
    expect(report, "PDPTEs in a directory", linear, name(DATA + 7 * PAGE));
    cpu::set_cr0(cpu::cr0() & !cpu::bit::CR0_PG);
    cpu::set_cr4(cpu::cr4() & !cpu::bit::CR4_PAE);
    cpu::set_cr3(DIRECTORY_32);
    cpu::set_cr0(cpu::cr0() | cpu::bit::CR0_PG);
    // The PDPTE of the second GiB is the entry of the 40th MiB, and what was a directory is a
    // table: the page is the table of the other format.
    let ends = read(10 << 22);
    check!(
        report,
        (ends.vector, ends.eax) == (run::INTERRUPT, memory::read(TABLES + PAGE)),
        "a PDPTE as an entry of a directory: {ends:x?}"
    );
    cpu::set_cr0(cpu::cr0() & !cpu::bit::CR0_PG);
    for word in 0..8 {
        memory::write(shared + 4 * word, 0);
    }
}

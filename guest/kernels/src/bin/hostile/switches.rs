//! Address spaces that are switched to all the time, so that a hypervisor lets the loads of CR3
//! pass: the guest must always be where its own CR3 says, read back what it wrote, and see its
//! flushes take effect.

use guest_kernels::check;
use guest_kernels::entries::{PAGE, TABLE};
use guest_kernels::kit::access::{self, Fault};
use guest_kernels::kit::cpu;
use guest_kernels::kit::frames::Frame;
use guest_kernels::kit::oracle::Judge;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::snippets;
use guest_kernels::kit::space::{self, Space};
use umbra_paging::{Access, AccessKind, Gva, Level, Paging, bits};

use crate::setting::Setting;

/// More than any CPU has CR3-target values.
const ROOTS: usize = 7;
/// PWT and PCD.
const CACHING: u64 = 0x18;
const NO_FLUSH: u64 = 1 << 63;

const READ: Access = Access { kind: AccessKind::Read, user: true, smap_override: false };

/// An address, its page in each space, and the spaces.
struct Switches {
    gva: Gva,
    spaces: [Space; ROOTS],
    pages: Frame,
}

impl Switches {
    /// Page n holds n, and space n maps it.
    fn new(setting: &mut Setting, space: &Space) -> Switches {
        let gva = space::slot(6);
        let pages = setting.pool.frames(ROOTS as u64, 4096);
        let spaces = core::array::from_fn(|n| {
            let page = pages.after(n as u64);
            page.write(0, n as u64);
            let space = space.sibling(&mut setting.pool);
            space.map(&mut setting.pool, gva, Level::L1, page.address() | PAGE);
            space
        });
        Switches { gva, spaces, pages }
    }

    /// Loads a space with these other bits in the operand, and looks where the guest is.
    fn visit(&self, report: &mut Report, n: usize, with: u64, what: &str) {
        self.spaces[n].activate_with(with);
        self.look(report, n, with, what);
    }

    fn look(&self, report: &mut Report, n: usize, with: u64, what: &str) {
        let expected = self.spaces[n].root().address() | with & !NO_FLUSH;
        let (cr3, found) = (cpu::cr3(), access::access(READ, self.gva, 0));
        check!(
            report,
            cr3 == expected && found == Ok(n as u64),
            "space {n} {what}, CR3 loaded with {with:#x}: CR3 is {cr3:#x} instead of {expected:#x}, its page {found:x?}"
        );
    }

    /// So often that the loads pass, if they ever do.
    fn heat(&self, report: &mut Report, hot: &[usize]) {
        for _ in 0..6 {
            hot.iter().for_each(|&n| self.visit(report, n, 0, "while it gets hot"));
        }
    }
}

fn load(value: u64) -> Result<(), Fault> {
    let mut context = snippets::write_cr3().kernel();
    context.rsi = value;
    access::run(&context).map(|_| ())
}

/// Hot roots and cold ones, with all that an operand can have beside the root, under changing
/// control bits.
pub fn switches(setting: &mut Setting, space: &Space, report: &mut Report) {
    let judge = setting.judge(space, true, false, false, true);
    let switches = Switches::new(setting, space);
    let write = READ.with_kind(AccessKind::Write);
    for round in 0..setting.times(40) {
        let hot = [0, 1, 2].map(|n| (round as usize + n) % ROOTS);
        switches.heat(report, &hot);
        // One bit that is not in the list, or must not be there at all.
        for n in hot {
            for with in [CACHING, 0x8, 0, 0x10] {
                switches.visit(report, n, with, "with PWT or PCD");
            }
            let root = switches.spaces[n].root().address();
            for bit in [63, u32::from(setting.cpu.features.maxphyaddr), 62] {
                let outcome = load(root | 1 << bit);
                check!(
                    report,
                    outcome == Err(Fault::general_protection(0)),
                    "CR3 with bit {bit} of a root that is hot: {outcome:x?}"
                );
            }
            switches.look(report, n, 0x10, "after CR3 was refused");
        }
        for n in 0..ROOTS {
            switches.visit(report, n, 0, "in turn");
            let n = setting.random.index(ROOTS);
            switches.visit(report, n, 0, "at random");
        }
        if setting.cpu.pcid {
            with_pcids(setting, &switches, report, hot);
        }
        // The same roots under other control bits.
        for (wp, smep, smap, nxe) in [
            (false, false, false, true),
            (true, true, false, true),
            (true, false, true, false),
            (true, false, false, true),
        ] {
            let n = hot[0];
            let judge = Judge {
                paging: setting.judge(&switches.spaces[n], wp, smep, smap, nxe).paging,
                ..judge
            };
            for n in hot {
                switches.spaces[n].activate();
                let paging = Paging { root: switches.spaces[n].root().gfn(), ..judge.paging };
                let judge = Judge { paging, ..judge };
                for user in [true, false] {
                    judge.judge(&setting.pool, report, switches.gva, Access { user, ..READ }, 0);
                }
                judge.judge(&setting.pool, report, switches.gva, write, n as u64);
                let table = switches.spaces[n].table(&mut setting.pool, switches.gva, Level::L1);
                // Read-only for a while.
                table.write(
                    switches.gva.index(Level::L1),
                    switches.pages.after(n as u64).address() | PAGE & !bits::W,
                );
                for user in [true, false] {
                    let access = Access { user, ..write };
                    judge.flush_and_judge(&setting.pool, report, switches.gva, access, n as u64);
                }
                table.write(
                    switches.gva.index(Level::L1),
                    switches.pages.after(n as u64).address() | PAGE,
                );
                cpu::invlpg(switches.gva);
            }
        }
    }
    space.activate();
}

/// PCIDs beside the roots: every pair, kept and flushed.
fn with_pcids(setting: &mut Setting, switches: &Switches, report: &mut Report, hot: [usize; 3]) {
    switches.spaces[hot[0]].activate();
    cpu::set_pcide(true);
    for _ in 0..4 {
        for (n, pcid) in [(hot[0], 1), (hot[1], 2), (hot[2], 3), (hot[0], 4)] {
            // Everything that the PCID holds is of this root: it may be kept.
            switches.visit(report, n, pcid, "with its PCID");
            switches.visit(report, n, pcid | NO_FLUSH, "with its PCID, kept");
        }
    }
    for (n, pcid) in [(hot[1], 1), (hot[2], 2), (hot[0], 3), (hot[1], 4)] {
        switches.visit(report, n, pcid, "with the PCID of another");
        switches.visit(report, n, pcid | NO_FLUSH, "with the PCID of another, kept");
        let pcid = 5 + setting.random.below(8);
        switches.visit(report, n, pcid, "with any PCID");
    }
    switches.visit(report, hot[0], 0, "with PCID 0");
    cpu::set_pcide(false);
    switches.look(report, hot[0], 0, "without PCIDs again");
}

/// Hot roots that are freed and rewritten: as data, as tables of another space, as another root.
pub fn freed(setting: &mut Setting, space: &Space, report: &mut Report) {
    let judge = setting.judge(space, true, false, false, true);
    let switches = Switches::new(setting, space);
    let slot = switches.gva.index(Level::L4);
    // Where the frames of roots show as pages, in the last space.
    let shown = space::slot(9);
    let last = ROOTS - 1;
    for n in 0..last {
        let page = switches.spaces[n].root().address() | PAGE;
        switches.spaces[last].map(
            &mut setting.pool,
            Gva::new(shown.raw() + 4096 * n as u64),
            Level::L1,
            page,
        );
    }
    for round in 0..setting.times(60) {
        let hot = [0, 1, 2].map(|n| (round as usize + n) % last);
        switches.heat(report, &[hot[0], hot[1], hot[2], last]);
        let root = switches.spaces[hot[0]].root();
        let own = root.read(slot);
        let at = |index: u64| Gva::new(shown.raw() + 4096 * hot[0] as u64 + 8 * index);
        let paging = Paging { root: switches.spaces[last].root().gfn(), ..judge.paging };
        let judge = Judge { paging, ..judge };
        // Data, one word or a burst, from ring 3 through the page.
        for index in 0..[1, 3, 40][round as usize % 3] {
            let value = setting.random.number() | 1;
            judge.judge(
                &setting.pool,
                report,
                at(100 + index),
                READ.with_kind(AccessKind::Write),
                value,
            );
        }
        // Another one's tables; then it is loaded, for it is a root all the same.
        let other = switches.spaces[hot[1]].root().read(slot);
        root.write(slot, other);
        switches.spaces[hot[0]].activate();
        let found = access::access(READ, switches.gva, 0);
        check!(
            report,
            found == Ok(hot[1] as u64),
            "a hot root with the tables of another: {found:x?}"
        );
        // Nothing there: seen at the next flush at the latest.
        root.write(slot, 0);
        switches.spaces[hot[2]].activate();
        switches.spaces[hot[0]].activate();
        let found = access::access(READ, switches.gva, 0);
        let expected = Err(Fault::page(u64::from(READ.user) << 2, switches.gva.raw()));
        check!(report, found == expected, "a hot root with nothing in it: {found:x?}");
        // Below another root: its slots as entries of a page table.
        switches.spaces[last].activate();
        let below = Gva::new(shown.raw() + (1 << 30));
        switches.spaces[last].map(&mut setting.pool, below, Level::L2, root.address() | TABLE);
        cpu::invlpg(below);
        let page = Gva::new(below.raw() + 4096 * 300);
        root.write(300, switches.pages.address() | PAGE);
        cpu::invlpg(page);
        judge.judge(&setting.pool, report, page, READ, 0);
        root.write(300, 0);
        judge.flush_and_judge(&setting.pool, report, page, READ, 0);
        for index in 100..140 {
            root.update(index, 0);
        }
        root.write(slot, own);
        switches.visit(report, hot[0], 0, "after it was freed");
        switches.visit(report, hot[1], 0, "beside one that was freed");
        switches.visit(report, last, 0, "after all");
    }
    space.activate();
}

/// Flushes of all kinds in hot spaces: a page that was changed is seen as it is.
pub fn flushes(setting: &mut Setting, space: &Space, report: &mut Report) {
    setting.judge(space, true, false, false, true);
    let switches = Switches::new(setting, space);
    let large = setting.pool.frames(2 * 512, 2 << 20);
    large.write(0, 100);
    large.after(512).write(0, 101);
    let operand = setting.pool.frame();
    let gva = switches.gva;
    for round in 0..setting.times(80) {
        let n = round as usize % 3;
        switches.heat(report, &[0, 1, 2, n]);
        let table = switches.spaces[n].table(&mut setting.pool, gva, Level::L1);
        let directory = switches.spaces[n].table(&mut setting.pool, gva, Level::L2);
        let (index, link) = (gva.index(Level::L1), directory.read(gva.index(Level::L2)));
        let global = if round % 4 == 3 { bits::G } else { 0 };
        for step in 0..6u64 {
            // Other pages, none, one of 2 MiB in place of the table, another such.
            let (entry, expected) = match step {
                0 | 3 => (switches.pages.after(step).address() | PAGE | global, Ok(step)),
                _ => (0, Err(Fault::page(4, gva.raw()))),
            };
            let expected = match step {
                1 | 2 => {
                    let page = large.after(512 * (step - 1)).address();
                    directory.write(gva.index(Level::L2), page | PAGE | bits::PS | global);
                    Ok(99 + step)
                }
                _ => {
                    directory.write(gva.index(Level::L2), link);
                    table.write(index, entry);
                    expected
                }
            };
            match round % 3 {
                0 => cpu::invlpg(gva),
                1 if setting.cpu.invpcid => {
                    operand.write(1, gva.raw());
                    let mut context = snippets::invpcid().kernel();
                    // One address, everything.
                    (context.rdi, context.rsi) =
                        (operand.address(), if global == 0 && step < 3 { 0 } else { 2 });
                    let outcome = access::run(&context).map(|_| ());
                    check!(report, outcome == Ok(()), "INVPCID: {outcome:x?}");
                }
                _ => cpu::flush_all(),
            }
            let found = access::access(READ, gva, 0);
            check!(
                report,
                found == expected,
                "round {round}, step {step}, in space {n}: {found:x?} instead of {expected:x?}"
            );
        }
        directory.write(gva.index(Level::L2), link);
        table.write(index, switches.pages.after(n as u64).address() | PAGE);
        cpu::flush_all();
    }
    space.activate();
}

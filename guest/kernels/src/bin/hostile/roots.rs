//! Thousands of roots.

use guest_kernels::entries::{PAGE, TABLE};
use guest_kernels::kit::oracle::Judge;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::space::{self, Space};
use umbra_paging::{Access, AccessKind, Gva, Level};

use crate::setting::Setting;

const ROOTS: u64 = 3000;
/// Every so many roots have a page of their own.
const OWN: u64 = 16;

/// Loads them in turn and at random; frames that were roots become tables and pages of others.
pub fn roots(setting: &mut Setting, space: &Space, report: &mut Report) {
    let mut judge = setting.judge(space, true, false, false, true);
    let wanted = setting.times(ROOTS).min(ROOTS);
    let pool = &mut setting.pool;
    let (shared, own) = (space::slot(6), space::slot(7));
    let shared_page = pool.frame();
    space.map(pool, shared, Level::L1, shared_page.address() | PAGE);
    let shared_entry = space.root().read(shared.index(Level::L4));
    let count = wanted.min(pool.left() / 2);
    let frames = pool.frames(count, 4096);
    let kit = [space.root().read(0), space.root().read(1)];
    for index in 0..count {
        let root = frames.after(index);
        root.write(0, kit[0]);
        root.write(1, kit[1]);
        root.write(shared.index(Level::L4), shared_entry);
    }
    let read = Access { kind: AccessKind::Read, user: true, smap_override: false };
    let write = read.with_kind(AccessKind::Write);
    for round in 0..setting.times(2).max(2) {
        for step in 0..count {
            let index = if round == 0 { step } else { setting.random.below(count) };
            let root = Space::adopt(frames.after(index));
            root.activate();
            judge = Judge {
                paging: umbra_paging::Paging { root: root.root().gfn(), ..judge.paging },
                ..judge
            };
            judge.judge(
                &setting.pool,
                report,
                shared,
                if step % 2 == 0 { write } else { read },
                step,
            );
            if index % OWN == 0 && round == 0 {
                root.map(&mut setting.pool, own, Level::L1, shared_page.address() | PAGE);
            }
            judge.judge(&setting.pool, report, own, read, 0);
            if step % 64 == 5 {
                // A root that becomes a page table of this one: its slots show as pages of the
                // tables they name.
                let other = frames.after((index + 1) % count);
                let gva = Gva::new(own.raw() + (1 << 30));
                root.map(&mut setting.pool, gva, Level::L2, other.address() | TABLE);
                let page = Gva::new(gva.raw() + 4096 * shared.index(Level::L4) as u64);
                judge.judge(&setting.pool, report, page, read, 0);
            }
        }
    }
    space.activate();
}

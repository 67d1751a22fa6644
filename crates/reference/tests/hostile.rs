//! Hostile guests on the host: whatever they do to their tables, they see what bare hardware may
//! show, the auditor is content after every step, and the hardware can reach no host frame that is
//! not theirs.

mod attack;

use attack::*;
use umbra_paging::{AccessKind, Gfn};
use umbra_reference::program::HostEvent;
use umbra_reference::registers::Privileged;
use umbra_reference::universe::{END, HOLE, WINDOW_SLOT};

fn in_all_modes(attack: impl Fn(&Setting) -> Judged) {
    let plain = [true, false].map(Setting::plain);
    for setting in plain.into_iter().chain((0..12).step_by(2).map(Setting::all)) {
        attack(&setting).unwrap_or_else(|why| panic!("{setting:?}: {why}"));
    }
}

/// Every kind of access to every address.
fn everything(guest: &mut Attack, addresses: &[u64]) -> Judged {
    for &address in addresses {
        for user in [true, false] {
            guest.access(address, AccessKind::Read, user)?;
            guest.access(address, AccessKind::Fetch, user)?;
            guest.store(address | 0x808, &[0], user)?;
        }
    }
    Ok(())
}

#[test]
fn a_root_that_is_its_own_table_at_every_level() {
    in_all_modes(|setting| {
        let tables = vec![
            (ROOT, 2, ROOT << 12 | P | W | U),
            (ROOT, 0, 0x14 << 12 | ALL),
            (0x14, 0, 0x15 << 12 | ALL),
        ];
        let addresses =
            [gva(2, 2, 2, 2), gva(2, 2, 2, 0), gva(2, 2, 0, 0), gva(2, 0, 0, 0), gva(0, 0, 0, 0)];
        let mut guest = Attack::with(&tables, &addresses, [ROOT, 0x14, 0x15], setting);
        for round in 0..4u64 {
            everything(&mut guest, &addresses)?;
            // Through itself it changes itself: the slot that leads here, and those beside it.
            guest.store(gva(2, 2, 2, 2) + 2 * 8, &(ROOT << 12 | P | W | U).to_le_bytes(), false)?;
            guest.store(gva(2, 2, 2, 2) + 3 * 8, &(0x14 << 12 | ALL).to_le_bytes(), true)?;
            guest.store(
                gva(2, 2, 2, 2) + 2 * 8 + 4,
                &[0, 0, 0, if round == 2 { 0x80 } else { 0 }],
                true,
            )?;
            guest.set(ROOT, 2, ROOT << 12 | P | W | U)?;
            guest.invlpg(gva(2, 2, 2, 2))?;
        }
        Ok(())
    });
}

#[test]
fn tables_in_a_circle_and_one_frame_at_three_levels() {
    in_all_modes(|setting| {
        let tables = vec![
            (ROOT, 0, 0x14 << 12 | ALL),
            (0x14, 0, 0x15 << 12 | ALL),
            (0x15, 0, 0x16 << 12 | ALL),
            (0x16, 0, 0x14 << 12 | ALL),
            (0x14, 1, 0x14 << 12 | ALL),
            (0x15, 1, 0x14 << 12 | (ALL & !W)),
            (0x16, 1, 0x15 << 12 | (ALL & !U)),
        ];
        let addresses: Vec<u64> = (0..8).map(|n| gva(0, n & 1, n >> 1 & 1, n >> 2)).collect();
        let mut guest = Attack::with(&tables, &addresses, 0x14..0x17, setting);
        for (frame, index) in [(0x14, 0), (0x15, 0), (0x16, 0), (0x15, 1), (0x16, 1), (0x14, 1)] {
            for entry in [0, frame << 12 | ALL, 0x15 << 12 | P | W | U, PS | ALL, 0x14 << 12 | ALL]
            {
                everything(&mut guest, &addresses)?;
                guest.set(frame, index, entry)?;
            }
            guest.execute(Privileged::Wp(index == 0))?;
            guest.host(HostEvent::Release(Gfn::new(frame)))?;
            everything(&mut guest, &addresses)?;
            guest.invlpg(addresses[0])?;
        }
        Ok(())
    });
}

#[test]
fn a_page_table_that_maps_itself_is_written_in_every_width_and_across_its_end() {
    in_all_modes(|setting| {
        let tables = vec![
            (ROOT, 0, 0x14 << 12 | ALL),
            (0x14, 0, 0x15 << 12 | ALL),
            (0x15, 0, 0x16 << 12 | ALL),
            (0x16, 0, 0x16 << 12 | ALL),
            (0x16, 1, 0x15 << 12 | ALL),
            (0x16, 2, 0x1b << 12 | ALL),
        ];
        let addresses = [gva(0, 0, 0, 0), gva(0, 0, 0, 1), gva(0, 0, 0, 2), gva(0, 0, 0, 3)];
        let mut guest = Attack::with(&tables, &addresses, [0x15, 0x16], setting);
        let own = (0x16 << 12 | ALL).to_le_bytes();
        for width in [1, 2, 4, 8usize] {
            for offset in 0..9u64 {
                // Over the entries that map the table itself and the next page; then they are put
                // right again.
                guest.store(16 + offset, &[0xff; 8][..width], true)?;
                everything(&mut guest, &addresses[1..])?;
                guest.store(8 - offset.min(7), &[0x67; 8][..width], true)?;
                everything(&mut guest, &addresses)?;
                // The last bytes of the table and the first of the directory above it, in one
                // store.
                guest.store(4096 - offset, &[0x25; 8][..width], true)?;
                everything(&mut guest, &addresses)?;
                for (index, entry) in [0x16, 0x15, 0x1b].into_iter().enumerate() {
                    guest.set(0x16, index, entry << 12 | ALL)?;
                }
                guest.set(0x15, 0, 0x16 << 12 | ALL)?;
                guest.poke(0x16 << 12, &own)?;
                guest.invlpg(0)?;
            }
        }
        Ok(())
    });
}

#[test]
fn tables_and_roots_in_device_memory_and_beyond_all_memory() {
    in_all_modes(|setting| {
        let nowhere =
            [HOLE, END, END + 1, 0x700, 0xfee00, 1 << 20, (1 << 28) - 1, (1 << 28) - 8, 1 << 27];
        let tables = vec![
            (ROOT, 0, 0x14 << 12 | ALL),
            (0x14, 0, 0x15 << 12 | ALL),
            (0x15, 0, 0x16 << 12 | ALL),
            (0x16, 0, 0x1b << 12 | ALL),
        ];
        let addresses = [gva(0, 0, 0, 0), gva(0, 0, 0, 1), gva(0, 1, 0, 0), gva(1, 0, 0, 0)];
        let mut guest = Attack::with(&tables, &addresses, [ROOT, 0x14, 0x15, 0x16], setting);
        for frame in nowhere {
            for (table, level) in [(ROOT, 4), (0x14, 3), (0x15, 2), (0x16, 1)] {
                let right = tables.iter().find(|entry| entry.0 == table).map_or(0, |entry| entry.2);
                guest.set(table, 0, frame << 12 | ALL)?;
                everything(&mut guest, &addresses)?;
                if level == 2 || level == 3 {
                    guest.set(table, 0, (frame << 12) & !0x3fff_ffff | PS | ALL)?;
                    everything(&mut guest, &addresses)?;
                }
                guest.set(table, 0, right)?;
                guest.invlpg(0)?;
            }
            // With paging on there it cannot even fault in the right way.
            guest.load_root(frame)?;
            everything(&mut guest, &addresses)?;
            guest.device_write(0x16, 0, 0x1b << 12 | ALL)?;
            guest.load_root(ROOT)?;
            everything(&mut guest, &addresses)?;
        }
        Ok(())
    });
}

#[test]
fn tables_of_ones() {
    in_all_modes(|setting| {
        let tables = vec![
            (ROOT, 0, 0x14 << 12 | ALL),
            (0x14, 0, 0x15 << 12 | ALL),
            (0x15, 0, 0x16 << 12 | ALL),
            (0x16, 0, 0x1b << 12 | ALL),
        ];
        let addresses = [gva(0, 0, 0, 0), gva(0, 1, 0, 0)];
        let mut guest = Attack::with(&tables, &addresses, [ROOT, 0x14, 0x15, 0x16], setting);
        for table in [0x16, 0x15, 0x14, ROOT] {
            for ones in [u64::MAX, !NX, (1 << 40) - 1, ((1 << 40) - 1) & !PS] {
                for nxe in [false, true] {
                    guest.execute(Privileged::Nxe(nxe))?;
                    (0..2).try_for_each(|index| guest.set(table, index, ones))?;
                    guest.invlpg(0)?;
                    everything(&mut guest, &addresses)?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn thousands_of_roots() {
    in_all_modes(|setting| {
        let tables = vec![(ROOT, 0, 0x14 << 12 | ALL), (0x14, 0, 0x15 << 12 | ALL)];
        let addresses = [gva(0, 0, 0, 0)];
        let mut guest = Attack::with(&tables, &addresses, [0x14, 0x15], setting);
        guest.audit_every = 61;
        for round in 0..2u64 {
            for frame in 0..END + 8 {
                guest.load_root(frame)?;
                if frame % 16 == 0 {
                    guest.execute(Privileged::Wp(frame % 32 == 0))?;
                    guest.execute(Privileged::Nxe(frame % 64 == 0))?;
                    guest.execute(Privileged::Paging(false))?;
                    guest.execute(Privileged::Paging(true))?;
                    guest.read(0, true)?;
                    guest.device_write(frame % END, 0, 0x14 << 12 | ALL | round)?;
                    guest.read(0, true)?;
                }
            }
        }
        guest.execute(Privileged::Wp(true))?;
        guest.load_root(ROOT)?;
        everything(&mut guest, &addresses)?;
        assert!(guest.met("mmu: reclaims in load_paging") > 500);
        Ok(())
    });
}

#[test]
fn tables_are_rewritten_by_the_walk_that_reads_them() {
    in_all_modes(|setting| {
        // The same entry on the way down, as a leaf, and as the word that the access writes; A and
        // D clear.
        let loose = P | W | U;
        let tables = vec![
            (ROOT, 0, ROOT << 12 | loose),
            (ROOT, 1, 0x14 << 12 | loose),
            (0x14, 1, 0x14 << 12 | loose),
            (0x14, 0, 0x15 << 12 | loose),
            (0x15, 1, 0x15 << 12 | loose),
        ];
        let addresses =
            [gva(0, 0, 0, 0), gva(1, 1, 1, 1), gva(1, 1, 1, 0), gva(1, 1, 0, 1), gva(1, 0, 1, 1)];
        let mut guest = Attack::with(&tables, &addresses, [ROOT, 0x14, 0x15], setting);
        for &address in &addresses {
            for word in 0..3 {
                for &(table, index, entry) in &tables {
                    guest.set(table, index, entry)?;
                }
                guest.invlpg(address)?;
                guest.store(address + 8 * word, &(0x15 << 12 | loose).to_le_bytes(), true)?;
                guest.access(address, AccessKind::Fetch, true)?;
                guest.set(ROOT, 0, ROOT << 12 | loose)?;
                guest.invlpg(address)?;
                guest.host(HostEvent::Release(Gfn::new(0x14)))?;
                guest.store(address + 8 * word + 4, &[1; 8], true)?;
                guest.load_root(ROOT)?;
            }
        }
        Ok(())
    });
}

#[test]
fn the_host_takes_frames_away_that_are_tables() {
    in_all_modes(|setting| {
        let tables = vec![
            (ROOT, 0, 0x14 << 12 | ALL),
            (0x14, 0, 0x15 << 12 | ALL),
            (0x15, 0, 0x16 << 12 | ALL),
            (0x15, 1, PS | ALL),
            (0x16, 0, 0x1b << 12 | ALL),
            (0x16, 1, 0x16 << 12 | ALL),
        ];
        let addresses = [gva(0, 0, 0, 0), gva(0, 0, 0, 1), gva(0, 0, 1, 0x16)];
        let mut guest = Attack::with(&tables, &addresses, 0x14..0x17, setting);
        for frame in [ROOT, ROOT + 2, 0x14, 0x15, 0x16, 0x1b] {
            let gfn = Gfn::new(frame);
            for event in [
                HostEvent::Remap(gfn),
                HostEvent::WriteProtect(gfn),
                HostEvent::SwapOut(gfn),
                HostEvent::Release(gfn),
                HostEvent::ZapAll,
            ] {
                guest.host(event)?;
                everything(&mut guest, &addresses)?;
                guest.set(0x16, 0, 0x1c << 12 | ALL)?;
                guest.host(event)?;
                guest.set(0x16, 0, 0x1b << 12 | ALL)?;
                guest.invlpg(0)?;
                everything(&mut guest, &addresses)?;
            }
        }
        Ok(())
    });
}

/// Root `OTHER` maps the same addresses by other frames; both have the window.
const OTHER: u64 = 0x18;

fn two_roots() -> Tables {
    vec![
        (ROOT, 0, 0x14 << 12 | ALL),
        (0x14, 0, 0x15 << 12 | ALL),
        // The region that the tables lie in, by a large page: it is mapped by small ones.
        (0x15, 0, PS | ALL),
        (OTHER, WINDOW_SLOT, (ROOT + 1) << 12 | P | W | A),
        (OTHER, 0, 0x19 << 12 | ALL),
        (0x19, 0, 0x1a << 12 | ALL),
        (0x1a, 0, 0x1b << 12 | ALL),
        (0x1b, 0x100, 0x210 << 12 | ALL),
        (0x1b, 0x101, 0x211 << 12 | ALL),
    ]
}

/// What is cached of one root may be used under the other, page by page, but by no other root and
/// after no flush.
#[test]
fn a_pcid_that_is_kept_while_the_root_changes() {
    for seed in 0..16 {
        let addresses = [gva(0, 0, 0, 0x100), gva(0, 0, 0, 0x101)];
        let setting = Setting { pcide: true, ..Setting::all(seed) };
        let mut guest = Attack::with(&two_roots(), &addresses, [0x1b], &setting);
        let judged = [(ROOT, OTHER), (OTHER, ROOT)].into_iter().try_for_each(|(first, second)| {
            // Once for the tables to be there: whatever is built is followed by a flush.
            for pcid in [0, 1, 0, 1] {
                // Both are loaded with a flush, and listed; so the next load does not exit.
                guest.load_cr3(first, pcid, false)?;
                guest.load_cr3(second, pcid, false)?;
                guest.load_cr3(first, pcid, false)?;
                addresses.iter().try_for_each(|&address| guest.read(address, true))?;
                guest.load_cr3(second, pcid, true)?;
                guest.invlpg(addresses[0])?;
                addresses.iter().try_for_each(|&address| guest.read(address, true))?;
            }
            Ok(())
        });
        judged.unwrap_or_else(|why: String| panic!("seed {seed}: {why}"));
        assert!(guest.met("shadow: CR3 loaded without exit") > 0);
    }
}

/// Three roots beside the first one, that map two addresses by different frames, so that every
/// access tells which root it went through; and a frame that is none.
const ROOTS: [u64; 3] = [0x18, 0x19, 0x1a];
const SEEN: [u64; 2] = [gva(0, 0, 0, 0), gva(0, 0, 0, 1)];

/// Root n of [`ROOTS`] has tables of its own: 0x100 + 4 n and the next two. All have the window.
fn several_roots() -> Tables {
    let mut tables =
        vec![(ROOT, 0, 0x14 << 12 | ALL), (0x14, 0, 0x15 << 12 | ALL), (0x15, 0, 0x16 << 12 | ALL)];
    tables.extend([(0x16, 0, 0x1b << 12 | ALL), (0x16, 1, 0x1c << 12 | ALL)]);
    for (n, root) in ROOTS.into_iter().enumerate() {
        let own = own_tables(n);
        tables.extend([
            (root, WINDOW_SLOT, (ROOT + 1) << 12 | P | W | A),
            (root, 0, own << 12 | ALL),
        ]);
        tables.extend([(own, 0, (own + 1) << 12 | ALL), (own + 1, 0, (own + 2) << 12 | ALL)]);
        // Also of the supervisor, not writable, without A and D.
        tables.extend([
            (own + 2, 0, (own + 3) << 12 | ALL),
            (own + 2, 1, (own + 4) << 12 | P | U | NX),
        ]);
    }
    tables
}

const fn own_tables(n: usize) -> u64 {
    0x100 + 8 * n as u64
}

fn rootkit(setting: &Setting) -> Attack {
    let window = ROOTS
        .into_iter()
        .chain([ROOT, ROOT + 2, 0x14, 0x15, 0x16])
        .chain((0..3).flat_map(|n| (0..4).map(move |m| own_tables(n) + m)));
    let mut guest = Attack::with(&several_roots(), &SEEN, window, setting);
    // In between what changed is audited.
    guest.audit_every = 11;
    guest
}

/// With and without PCIDs, on a hypervisor that lets CR3 loads pass. What was attempted must have
/// happened.
fn on_targets(least: u64, attack: impl Fn(&mut Attack, bool) -> Judged) {
    let mut passed = 0;
    for seed in 0..6 {
        let pcide = seed % 2 == 0;
        let mut guest = rootkit(&Setting { pcide, ..Setting::all(seed) });
        attack(&mut guest, pcide).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        passed += guest.met("shadow: CR3 loaded without exit");
    }
    assert!(passed >= least, "{passed} loads passed");
}

fn look(guest: &mut Attack) -> Judged {
    for address in SEEN {
        guest.read(address, true)?;
        guest.access(address, AccessKind::Fetch, true)?;
        guest.store(address + 0x808, &[1], true)?;
        guest.read(address, false)?;
    }
    Ok(())
}

/// Loads all roots, with all operands, until those that can be are listed.
fn warm_up(guest: &mut Attack) -> Judged {
    for root in [ROOT].into_iter().chain(ROOTS).cycle().take(12) {
        guest.load_root(root)?;
        look(guest)?;
    }
    Ok(())
}

#[test]
fn roots_that_the_guest_was_not_given() {
    on_targets(50, |guest, _| {
        warm_up(guest)?;
        for garbage in [
            0,
            1,
            0x14,
            0x16,
            0x1b,
            own_tables(0),
            HOLE,
            END,
            END + 0x20,
            0x800,
            0x810,
            0xe00,
            (1 << 28) - 1,
        ] {
            // Host frames of shadow tables and of others are no secret; as guest frames they are
            // what they are.
            guest.load_root(garbage)?;
            look(guest)?;
            guest.load_root(ROOTS[0])?;
            look(guest)?;
        }
        Ok(())
    });
}

#[test]
fn operands_that_differ_in_a_pcid_or_in_bit_63_only() {
    on_targets(100, |guest, _| {
        warm_up(guest)?;
        for round in 0..3u64 {
            for (n, root) in [ROOT].into_iter().chain(ROOTS).enumerate() {
                for (pcid, no_flush) in [
                    (0, false),
                    (1, true),
                    (1, false),
                    (2, false),
                    (2, true),
                    (0, true),
                    (0, false),
                ] {
                    guest.load_cr3(root, pcid, no_flush)?;
                    look(guest)?;
                    if round == 1 {
                        // Without a flush what was there may be seen, and nothing else.
                        guest.set(0x16, 0, [0x1b, 0x1c, 0][n % 3] << 12 | ALL)?;
                        guest.read(SEEN[0], true)?;
                    }
                }
                guest.load_cr3(ROOTS[n % 3], 1, false)?;
                guest.load_cr3(ROOTS[n % 3], 1, false)?;
                guest.invlpg(SEEN[0])?;
                look(guest)?;
            }
        }
        Ok(())
    });
}

/// A root that may be loaded is freed, and its frame used as data, as a table of another level, and
/// as a root again.
#[test]
fn a_freed_root_is_rewritten_and_loaded() {
    on_targets(50, |guest, _| {
        for round in 0..4u64 {
            warm_up(guest)?;
            guest.load_root(ROOT)?;
            for (n, root) in ROOTS.into_iter().enumerate() {
                // Data, in a burst.
                for index in 0..8 {
                    guest.set(root, index, 0x5a5a_5a5a_5a5a_5a5a ^ round << index)?;
                }
                guest.load_root(root)?;
                guest.load_root(ROOT)?;
                // The page directory of the root in use.
                guest.set(root, 0, 0x16 << 12 | ALL)?;
                guest.set(0x14, 0, root << 12 | ALL)?;
                guest.invlpg(SEEN[0])?;
                look(guest)?;
                guest.set(root, 0, own_tables(n) << 12 | ALL)?;
                look(guest)?;
                guest.set(0x14, 0, 0x15 << 12 | ALL)?;
                guest.set(root, WINDOW_SLOT, (ROOT + 1) << 12 | P | W | A)?;
                // Another root's tables; loaded by itself, if it is still listed.
                guest.set(root, 0, own_tables((n + 1) % 3) << 12 | ALL)?;
                guest.load_root(root)?;
                look(guest)?;
                guest.set(root, 0, own_tables(n) << 12 | ALL)?;
                guest.load_root(root)?;
                look(guest)?;
            }
        }
        Ok(())
    });
}

#[test]
fn roots_that_are_listed_while_the_control_bits_change() {
    on_targets(50, |guest, _| {
        for bits in 0..5 {
            for on in [false, true] {
                warm_up(guest)?;
                guest.execute(match bits {
                    0 => Privileged::Wp(on),
                    1 => Privileged::Nxe(on),
                    2 => Privileged::Smep(!on),
                    3 => Privileged::Smap(!on),
                    _ => Privileged::Pge(on),
                })?;
                for root in ROOTS {
                    guest.load_root(root)?;
                    look(guest)?;
                }
            }
        }
        guest.execute(Privileged::Paging(false))?;
        guest.load_root(ROOTS[0])?;
        look(guest)?;
        guest.execute(Privileged::Paging(true))?;
        look(guest)?;
        guest.load_root(ROOTS[1])?;
        look(guest)
    });
}

/// The host takes the frame of a listed root, or its tables: nothing may pass that leads there.
#[test]
fn listed_roots_whose_frames_the_host_takes() {
    on_targets(50, |guest, _| {
        for frame in [ROOTS[0], ROOT, ROOT + 2, 0x14] {
            let gfn = Gfn::new(frame);
            for event in [
                HostEvent::Remap(gfn),
                HostEvent::WriteProtect(gfn),
                HostEvent::SwapOut(gfn),
                HostEvent::Release(gfn),
                HostEvent::ZapAll,
                HostEvent::RemapRange(Gfn::new(ROOT), Gfn::new(0x1c)),
            ] {
                warm_up(guest)?;
                guest.host(event)?;
                for root in [ROOTS[0], ROOT, ROOTS[1], ROOTS[0]] {
                    guest.load_root(root)?;
                    look(guest)?;
                }
                guest.set(frame, 5, 0)?;
                guest.load_root(ROOTS[0])?;
            }
        }
        Ok(())
    });
}

/// Flushes that do not exit flush: pages of all sizes, plain and global, also after their tables
/// were detached.
#[test]
fn flushes_without_exit() {
    on_targets(20, |guest, pcide| {
        warm_up(guest)?;
        guest.load_root(ROOT)?;
        for round in 0..4usize {
            for (page, flags) in [(0x1b, 0), (0x1c, G), (0x1b, G), (0, 0), (0x1c, 0)] {
                let entry = if page == 0 { 0 } else { page << 12 | ALL | flags };
                // A page of the table and one of 2 MiB in its place, in turn.
                guest.set(0x16, 0, entry)?;
                if round % 2 == 1 {
                    let large = if flags == 0 { PS | ALL } else { 0x16 << 12 | ALL };
                    guest.set(0x15, 0, large)?;
                }
                match round {
                    0 | 1 => SEEN.into_iter().try_for_each(|address| guest.invlpg(address))?,
                    2 => guest.execute(Privileged::FlushAll)?,
                    _ => {
                        guest.execute(Privileged::Pge(false))?;
                        guest.execute(Privileged::Pge(true))?;
                    }
                }
                look(guest)?;
                // To another address space and back, the PCID kept where there is one.
                guest.load_cr3(ROOTS[1], u16::from(pcide), false)?;
                look(guest)?;
                guest.load_cr3(ROOT, 0, true)?;
                look(guest)?;
            }
        }
        guest.set(0x15, 0, 0x16 << 12 | ALL)
    });
}

//! Address spaces: the kit's own half and a test's.
//!
//! PML4 slot 0 is the kit: 4 GiB identity, for ring 0. Slot [`USER_SLOT`] shows the snippets to
//! ring 3. All other slots are the test's.

use umbra_paging::{ENTRIES, Gpa, GuestEntry, Gva, Level, Tables, bits};

use super::cpu;
use super::frames::{Frame, Pool};
use crate::entries::TABLE;

/// The slot where ring 3 has the snippets and a stack.
pub const USER_SLOT: u64 = 1;
/// The first slot that is the test's.
pub const FIRST_TEST_SLOT: u64 = 2;

/// Where the snippets begin for ring 3.
const USER_SNIPPETS: u64 = USER_SLOT << 39;
/// The top of ring 3's stack.
pub const USER_STACK: u64 = USER_SNIPPETS + (1 << 30);

/// Where 32-bit code of ring 3 has the snippets, after [`Space::open_low`].
pub const LOW: Gva = Gva::new(2 << 30);

unsafe extern "C" {
    static boot_pml4: u8;
    static boot_pdpt: u8;
    static snippets_start: u8;
    static snippets_end: u8;
}

/// The address of a PML4 slot.
///
/// # Panics
/// If the slot is not one of the lower half that belong to tests.
pub const fn slot(slot: u64) -> Gva {
    assert!(slot >= FIRST_TEST_SLOT && slot < 256, "not a test's slot");
    Gva::new(slot << 39)
}

/// Where ring 3 sees a snippet that ring 0 sees at `address`.
pub fn user_address(address: u64) -> u64 {
    USER_SNIPPETS + (address - (&raw const snippets_start) as u64)
}

/// Where 32-bit code of ring 3 sees a snippet that ring 0 sees at `address`.
pub fn low_address(address: u64) -> u64 {
    LOW.raw() + (address - (&raw const snippets_start) as u64)
}

/// Slot 0 of every root, as in the boot tables: P, W, A, and not U.
fn kit_entry() -> u64 {
    (&raw const boot_pdpt) as u64 | bits::P | bits::W | bits::A
}

/// A root of four levels.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    root: Frame,
}

impl Space {
    /// A space with nothing in the test's slots.
    pub fn new(pool: &mut Pool) -> Space {
        let space = Space { root: pool.frame() };
        space.root.write(0, kit_entry());
        let (start, end) = ((&raw const snippets_start) as u64, (&raw const snippets_end) as u64);
        for page in (start..end).step_by(4096) {
            let entry = page | bits::P | bits::U | bits::A;
            space.map(pool, Gva::new(user_address(page)), Level::L1, entry);
        }
        let stack = pool.frame();
        space.map(
            pool,
            Gva::new(USER_STACK - 4096),
            Level::L1,
            stack.address() | crate::entries::PAGE,
        );
        space
    }

    /// Gives the gigabyte at [`LOW`], where the kit maps no memory that it uses, to ring 3, and
    /// shows the snippets there. What was cached of it must be flushed.
    pub fn open_low(&self, pool: &mut Pool) {
        let kit = (&raw const boot_pdpt) as *const u64;
        let table = pool.frame();
        for index in (0..4).filter(|&index| index != LOW.index(Level::L3)) {
            // SAFETY: four entries, which are never written.
            table.write(index, unsafe { kit.add(index).read_volatile() });
        }
        self.root.write(0, table.address() | TABLE);
        let (start, end) = ((&raw const snippets_start) as u64, (&raw const snippets_end) as u64);
        for page in (start..end).step_by(4096) {
            self.map(
                pool,
                Gva::new(low_address(page)),
                Level::L1,
                page | bits::P | bits::U | bits::A,
            );
        }
    }

    /// Another root with the same slots 0 and [`USER_SLOT`].
    pub fn sibling(&self, pool: &mut Pool) -> Space {
        let root = pool.frame();
        for slot in 0..FIRST_TEST_SLOT as usize {
            root.write(slot, self.root.read(slot));
        }
        Space { root }
    }

    /// A root that was written by hand: its first two slots must be those of another space.
    pub fn adopt(root: Frame) -> Space {
        assert!(root.read(0) == kit_entry(), "slot 0 is the kit's");
        Space { root }
    }

    /// The root's frame. Its slots from [`FIRST_TEST_SLOT`] on are the test's.
    pub fn root(&self) -> Frame {
        self.root
    }

    /// Loads CR3.
    pub fn activate(&self) {
        // SAFETY: slot 0 of every space maps the kit.
        unsafe { cpu::write_cr3(self.root.address()) };
    }

    /// Loads CR3 with more than the root: PWT, PCD, a PCID, bit 63. They must be bits that the CPU
    /// takes.
    pub fn activate_with(&self, bits: u64) {
        // SAFETY: as in `activate`; a bit that is refused raises #GP, which ends the kernel with a
        // message.
        unsafe { cpu::write_cr3(self.root.address() | bits) };
    }

    /// The table of `level` that translates `gva`; tables on the way are made.
    ///
    /// # Panics
    /// If a large page or a foreign table is in the way.
    pub fn table(&self, pool: &mut Pool, gva: Gva, level: Level) -> Frame {
        let mut table = self.root;
        let mut at = Level::L4;
        while at != level {
            let entry = GuestEntry::new(table.read(gva.index(at)));
            let next = if entry.present() {
                assert!(!entry.is_leaf(at), "a large page is in the way");
                pool.at(entry.frame().base().raw()).expect("a foreign table is in the way")
            } else {
                let next = pool.frame();
                table.write(gva.index(at), next.address() | TABLE);
                next
            };
            at = at.below().expect("level is below the root's");
            table = next;
        }
        table
    }

    /// Sets the entry of `level` that translates `gva`, and returns its table. Flushes nothing.
    pub fn map(&self, pool: &mut Pool, gva: Gva, level: Level, entry: u64) -> Frame {
        let table = self.table(pool, gva, level);
        table.write(gva.index(level), entry);
        table
    }
}

/// Goes back to the tables that the kernel started on.
pub fn leave() {
    // SAFETY: the boot tables are never changed.
    unsafe { cpu::write_cr3((&raw const boot_pml4) as u64) };
}

/// Test memory as a walk sees it.
#[derive(Debug)]
pub struct Memory<'a> {
    /// Where memory is.
    pub pool: &'a Pool,
    /// What the bus gives where none is.
    pub beyond: u64,
}

impl Tables for Memory<'_> {
    fn read_entry(&self, gpa: Gpa) -> u64 {
        match self.pool.at(gpa.raw()) {
            Some(frame) => frame.read(gpa.page_offset() as usize / 8 % ENTRIES),
            None => self.beyond,
        }
    }
}

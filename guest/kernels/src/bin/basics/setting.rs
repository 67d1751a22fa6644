//! What every test gets.

use guest_kernels::kit::apic;
use guest_kernels::kit::cpu::Cpu;
use guest_kernels::kit::frames::{Frame, Pool};
use guest_kernels::kit::space::{self, Space};
use guest_kernels::options::Options;
use guest_kernels::random::Random;
use umbra_paging::{Gva, Level, bits};

use guest_kernels::entries::{PAGE, TABLE};

/// What every test gets.
pub struct Setting {
    /// Memory; what a test takes is taken back after it.
    pub pool: Pool,
    /// The CPU.
    pub cpu: Cpu,
    /// A space with nothing in the test's slots, loaded.
    pub space: Space,
    /// The first address beyond memory.
    pub memory_end: u64,
    /// How many modules the loader passed.
    pub modules: u32,
    /// Random numbers.
    pub random: Random,
    /// The command line.
    pub options: Options<'static>,
}

/// Where stores can go that look the same to the program.
pub struct Targets {
    /// A plain page.
    pub plain: Gva,
    /// A page table in use.
    pub table: Gva,
    /// The local APIC's page.
    pub device: Gva,
    /// The page table's frame.
    pub table_frame: Frame,
    /// The plain page's frame.
    pub plain_frame: Frame,
}

impl Setting {
    /// Maps the three, for everybody.
    pub fn targets(&mut self) -> Targets {
        let (plain, table, device) = (space::slot(10), space::slot(11), space::slot(12));
        let (plain_frame, table_frame) = (self.pool.frame(), self.pool.frame());
        self.space.map(&mut self.pool, plain, Level::L1, plain_frame.address() | PAGE);
        self.space.map(&mut self.pool, table, Level::L1, table_frame.address() | PAGE);
        self.space.map(
            &mut self.pool,
            device,
            Level::L1,
            apic::BASE | PAGE | bits::PCD | bits::PWT,
        );
        let translated = space::slot(13);
        self.space.map(&mut self.pool, translated, Level::L2, table_frame.address() | TABLE);
        // It is walked once, at an entry that nobody writes.
        table_frame.write(511, plain_frame.address() | PAGE);
        let last = Gva::new(translated.raw() + 511 * 4096);
        let _ = guest_kernels::kit::access::read(last);
        Targets { plain, table, device, table_frame, plain_frame }
    }
}

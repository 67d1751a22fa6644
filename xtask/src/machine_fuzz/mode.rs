//! Modes of code.

use umbra_forms::program::World;

/// The mode of a program: paging, width of code, ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mode {
    /// How it is called.
    pub name: &'static str,
    world: u8,
    /// 16, 32 or 64.
    pub bits: u32,
    /// 0 or 3.
    pub ring: u8,
    /// Virtual-8086 mode.
    pub virtual_8086: bool,
}

const fn mode(name: &'static str, world: u8, bits: u32, ring: u8) -> Mode {
    Mode { name, world, bits, ring, virtual_8086: false }
}

const fn virtual_8086(name: &'static str, world: u8) -> Mode {
    Mode { name, world, bits: 16, ring: 3, virtual_8086: true }
}

const LONG: u8 = 0;
const PAE: u8 = 1;
const BITS32: u8 = 2;

/// All modes.
pub const MODES: [Mode; 16] = [
    mode("64-bit, ring 0", LONG, 64, 0),
    mode("64-bit, ring 3", LONG, 64, 3),
    mode("compatibility 32-bit, ring 0", LONG, 32, 0),
    mode("compatibility 32-bit, ring 3", LONG, 32, 3),
    mode("compatibility 16-bit, ring 0", LONG, 16, 0),
    mode("compatibility 16-bit, ring 3", LONG, 16, 3),
    mode("PAE 32-bit, ring 0", PAE, 32, 0),
    mode("PAE 32-bit, ring 3", PAE, 32, 3),
    mode("PAE 16-bit, ring 0", PAE, 16, 0),
    mode("PAE 16-bit, ring 3", PAE, 16, 3),
    virtual_8086("PAE virtual-8086", PAE),
    mode("two-level 32-bit, ring 0", BITS32, 32, 0),
    mode("two-level 32-bit, ring 3", BITS32, 32, 3),
    mode("two-level 16-bit, ring 0", BITS32, 16, 0),
    mode("two-level 16-bit, ring 3", BITS32, 16, 3),
    virtual_8086("two-level virtual-8086", BITS32),
];

impl Mode {
    /// The paging.
    pub fn world(&self) -> World {
        match self.world {
            LONG => World::Long,
            PAE => World::Pae,
            _ => World::Bits32,
        }
    }
}

//! From the multiboot loader to the kernel's own function.

use core::arch::global_asm;
use core::ops::Range;

use super::frames::Pool;
use super::{console, descriptors, power};
use crate::base::loader;
use crate::options::Options;

global_asm!(include_str!("entry.s"), options(att_syntax));

/// Flags of the boot information: which fields are there.
mod flag {
    pub const MEMORY: u32 = 1 << 0;
    pub const COMMAND_LINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
}

/// The first fields of the boot information (Multiboot specification, "Boot information format").
#[derive(Clone, Copy)]
#[repr(C)]
struct Information {
    flags: u32,
    mem_lower: u32,
    mem_upper: u32,
    boot_device: u32,
    cmdline: u32,
    mods_count: u32,
    mods_addr: u32,
}

/// One module: where it begins and ends, its string, a reserved word.
#[derive(Clone, Copy)]
#[repr(C)]
struct Module {
    start: u32,
    end: u32,
    string: u32,
    reserved: u32,
}

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
}

unsafe extern "Rust" {
    /// Every kernel has one, by [`kernel!`](crate::kernel).
    safe fn kernel_main(boot: Boot) -> u8;
}

/// The pages of the kernel's own image, by their numbers.
pub fn image() -> Range<u64> {
    const PAGE: u64 = 4096;
    (&raw const image_start as u64) / PAGE..(&raw const image_end as u64).div_ceil(PAGE)
}

/// What a kernel starts with.
#[derive(Debug)]
pub struct Boot {
    /// The command line.
    pub options: Options<'static>,
    /// Memory beyond the image and the modules.
    pub pool: Pool,
    /// The first address beyond memory, in bytes.
    pub memory_end: u64,
    /// How many modules the loader passed.
    pub modules: u32,
    /// Where the loader's list of them is.
    module_list: u32,
}

impl Boot {
    /// The contents of a module.
    pub fn module(&self, index: u32) -> Option<&'static [u8]> {
        let module = (index < self.modules).then(|| read_module(self.module_list, index))?;
        // SAFETY: the loader vouches for it; the pool begins behind all modules, so nothing writes
        // there.
        Some(unsafe {
            core::slice::from_raw_parts(
                module.start as *const u8,
                (module.end - module.start) as usize,
            )
        })
    }
}

fn read_module(list: u32, index: u32) -> Module {
    let address = list as usize + index as usize * size_of::<Module>();
    // SAFETY: the loader vouches for the list, and the first 4 GiB are mapped.
    unsafe { (address as *const Module).read_unaligned() }
}

/// Makes a function the kernel: it takes [`Boot`](crate::kit::boot::Boot) and returns the value for
/// the exit port.
#[macro_export]
macro_rules! kernel {
    ($main:path) => {
        #[allow(unsafe_code, reason = "the one name that the kit calls")]
        #[unsafe(no_mangle)]
        fn kernel_main(boot: $crate::kit::boot::Boot) -> u8 {
            $main(boot)
        }
    };
}

/// # Safety
/// Only `entry.s` calls it, once, with what the loader left in EBX and EAX.
#[unsafe(no_mangle)]
unsafe extern "C" fn kit_start(information: u32, magic: u32) -> ! {
    console::init();
    loader::check_magic(magic);
    // SAFETY: the loader vouches for the structure, and the first 4 GiB are mapped.
    let information = unsafe { (information as *const Information).read_unaligned() };
    assert!(information.flags & flag::MEMORY != 0, "the loader says nothing about memory");
    let memory_end = (1 << 20) + (u64::from(information.mem_upper) << 10);
    let mut used = &raw const image_end as u64;
    let mut modules = 0;
    if information.flags & flag::MODULES != 0 {
        modules = information.mods_count;
        for index in 0..modules {
            used = used.max(read_module(information.mods_addr, index).end.into());
        }
    }
    let line = information.flags & flag::COMMAND_LINE != 0;
    // SAFETY: as above; this function is called once.
    let options = unsafe { loader::options(line.then_some(information.cmdline)) };
    descriptors::load();
    // SAFETY: memory from `used` on belongs to nobody: image and modules end before, what the
    // loader left elsewhere was copied.
    let pool = unsafe { Pool::new(used, memory_end) };
    let module_list = information.mods_addr;
    let status = kernel_main(Boot { options, pool, memory_end, modules, module_list });
    power::exit(status)
}

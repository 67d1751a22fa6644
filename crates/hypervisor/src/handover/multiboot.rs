//! What GRUB left: the memory map and the modules (Multiboot2 specification, "Boot information").

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use umbra_telemetry::BootConfig;

use crate::hw::phys::DirectMap;

/// A file that GRUB loaded.
pub struct Module {
    /// What the boot image calls it.
    pub name: String,
    /// Where it lies in physical memory.
    pub range: Range<u64>,
}

/// A copy of GRUB's boot information.
pub struct BootInformation {
    /// Available memory.
    pub ram: Vec<Range<u64>>,
    /// The modules in the order of the boot image.
    pub modules: Vec<Module>,
}

/// Why there is no boot information.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// Another boot protocol.
    #[error(
        "the hypervisor was started with magic {0:#x}; start it by multiboot2 from GRUB, as `umbra run` does"
    )]
    Magic(u32),
    /// Damaged boot information.
    #[error("the boot loader's multiboot2 information is damaged ({0})")]
    Damaged(String),
    /// A missing tag or module.
    #[error("the boot loader passed no {0}; start the hypervisor with `umbra run`")]
    Missing(&'static str),
}

impl BootInformation {
    /// Copies the information out of GRUB's memory.
    ///
    /// # Errors
    /// Wrong magic, damaged information, or no memory map.
    pub fn read(
        map: &DirectMap,
        information: u32,
        magic: u32,
    ) -> Result<BootInformation, LoaderError> {
        if magic != multiboot2::MAGIC {
            return Err(LoaderError::Magic(magic));
        }
        let pointer = map.pointer(information.into()).cast();
        // SAFETY: with this magic the register holds the address of boot information
        // (specification, "Machine state"); nothing writes to it while it is borrowed.
        let information = unsafe { multiboot2::BootInformation::load(pointer) }
            .map_err(|e| LoaderError::Damaged(alloc::format!("{e:?}")))?;
        let ram = information
            .memory_map_tag()
            .ok_or(LoaderError::Missing("memory map"))?
            .memory_areas()
            .iter()
            .filter(|area| area.typ() == multiboot2::MemoryAreaType::Available)
            .map(|area| area.start_address()..area.start_address().saturating_add(area.size()))
            .collect();
        let modules = information
            .module_tags()
            .map(|module| Module {
                name: module.cmdline().map(String::from).unwrap_or_default(),
                range: module.start_address().into()..module.end_address().into(),
            })
            .collect();
        Ok(BootInformation { ram, modules })
    }

    /// The module of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn module(&self, name: &str, what: &'static str) -> Result<Range<u64>, LoaderError> {
        self.modules
            .iter()
            .find(|m| m.name == name)
            .map(|m| m.range.clone())
            .ok_or(LoaderError::Missing(what))
    }

    /// A copy of the module of that name; of a larger one than a configuration is, its start.
    ///
    /// # Errors
    /// There is none.
    pub fn copy_module(
        &self,
        map: &DirectMap,
        name: &str,
        what: &'static str,
    ) -> Result<Vec<u8>, LoaderError> {
        let range = self.module(name, what)?;
        let end = range.end.min(range.start + BootConfig::MAX_BYTES as u64 + 1);
        // SAFETY: GRUB has put the module there, in RAM; nothing else has memory yet but the heap
        // of the image.
        Ok(unsafe { map.copy(range.start..end) })
    }
}

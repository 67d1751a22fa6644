//! From the options to what goes into a boot image.

use umbra_telemetry::{Audit, BootConfig, PROTOCOL};

use super::{
    Image, Module, Options, check_configuration, check_files, check_memory, command_line, in_order,
    read_initrd, read_kernel, read_module,
};
use crate::error::Error;
use crate::machine::{BootFiles, System};

/// A guest that has been looked at, and that the hypervisor can boot.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The kernel's file.
    pub kernel: Vec<u8>,
    /// Linux's initrd.
    pub initrd: Option<Vec<u8>>,
    /// A multiboot kernel's modules.
    pub modules: Vec<Module>,
    /// What the hypervisor is told.
    pub config: BootConfig,
    /// What the kernel is.
    pub image: Image,
    /// Memory of the machine that holds guest and hypervisor, in MiB.
    pub machine_mib: u32,
}

impl Guest {
    /// Reads the files and checks that everything fits. With `trace` the hypervisor sends a trace.
    ///
    /// # Errors
    /// A file cannot be read or does not boot here, or something is too large; one sentence with
    /// the way out.
    pub fn read(options: &Options, trace: bool) -> Result<Guest, Error> {
        let (kernel, image) = read_kernel(&options.kernel)?;
        let initrd = options.initrd.as_deref().map(read_initrd).transpose()?;
        let modules =
            options.modules.iter().map(|text| read_module(text)).collect::<Result<Vec<_>, _>>()?;
        check_files(&image, initrd.as_deref(), &modules)?;
        let initrd_bytes = initrd.as_ref().map_or(0, |file| file.len() as u64);
        let shadow_frames = options.shadow_frames;
        let append = command_line(&options.kernel, &image, options.append.as_deref())?;
        let machine_mib =
            check_memory(options.memory, shadow_frames, &image, initrd_bytes, &modules)?;
        let version = match &image {
            Image::Linux(linux) => linux.version.clone(),
            Image::Multiboot(_) => None,
        };
        let name = version.unwrap_or_else(|| options.kernel.display().to_string());
        let config = BootConfig {
            protocol: PROTOCOL,
            memory_mib: options.memory,
            guest_faults: options.guest_faults.into(),
            without: in_order(&options.without),
            shadow_frames,
            audit: options.audit.map(|every| Audit { every }),
            trace,
            screen: options.screen,
            kernel: name,
            append,
            modules: modules.iter().map(|module| module.string.clone()).collect(),
        };
        check_configuration(&config)?;
        Ok(Guest { kernel, initrd, modules, config, image, machine_mib })
    }

    /// What goes into the boot image that starts `system` with it.
    pub fn files<'a>(&'a self, system: System<'a>) -> BootFiles<'a> {
        BootFiles {
            system,
            config: &self.config,
            kernel: &self.kernel,
            initrd: self.initrd.as_deref(),
            modules: &self.modules,
        }
    }
}

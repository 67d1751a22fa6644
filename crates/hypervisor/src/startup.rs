//! The order of boot, up to the machine that it hands to the virtual CPU.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::error::Error;
use core::ops::Range;

use umbra_devices::{ACPI_TABLES_GPA, Platform, PlatformConfig, RamLayout, acpi_tables};
use umbra_machine::canary::Canary;
use umbra_machine::memory::{FRAME, Layout, TEXT};
use umbra_machine::screen;
use umbra_paging::Gpa;
use umbra_telemetry::{BootConfig, Message, PROTOCOL, module_name};

use crate::guest::{self, Files};
use crate::handover::{self, BootInformation, LoaderError};
use crate::hw::phys::DirectMap;
use crate::hw::{apic, console, cpu, descriptors, heap, heartbeat, image, pic, rtc, timer};
use crate::machine::{Machine, TSC_DEADLINE};
use crate::svm::Svm;
use crate::telemetry::{self, info};
use crate::vcpu;
use crate::vmx::Vmx;

/// Where the guest finds the ACPI root pointer: at the start of the firmware area.
const RSDP: Gpa = Gpa::new(ACPI_TABLES_GPA);

/// Continues the boot from the first Rust function to the guest.
pub fn start(map: DirectMap, information: u32, magic: u32) -> ! {
    telemetry::send(&Message::Hello { protocol: PROTOCOL });
    match boot(map, information, magic) {
        Ok(machine) => run(machine),
        Err(sentence) => telemetry::fail(sentence),
    }
}

/// Runs the guest by this CPU's virtualization extension: the one place where a vendor is chosen.
fn run(machine: Machine) -> ! {
    if Svm::is_candidate() { vcpu::run(machine, Svm::new) } else { vcpu::run(machine, Vmx::new) }
}

fn boot(map: DirectMap, information: u32, magic: u32) -> Result<Machine, Box<dyn Error>> {
    cpu::normalize_control_registers();
    let tables = descriptors::load();

    let information = BootInformation::read(&map, information, magic)?;
    let config = read_config(&information.copy_module(&map, "config", "config module")?)?;
    let cpu = cpu_name();
    telemetry::send(&Message::Setup { config: config.clone(), cpu: cpu.clone() });
    let occupied: Vec<_> =
        information.modules.iter().map(|m| (m.name.as_str(), m.range.clone())).collect();
    let linked = image::virtual_range();
    let layout = Layout::new(
        &information.ram,
        &occupied,
        config.memory_mib,
        linked.end - linked.start,
        config.shadow_frames,
    )?;
    let free = handover::relocate(&map, &layout);
    heap::add(&map, free);

    pic::init(console::IRQ);
    apic::init(&map)?;
    let tsc_hz = timer::calibrate()?;
    console::init()?;
    heartbeat::start(&map);
    describe(&layout, &information, &cpu, tsc_hz);

    let (mut ram, pool, spare) = map.hand_out(&layout);
    let canary = Canary::plant(spare);
    let files = files(&information, &config)?;
    let entry = guest::load(&mut ram, &files, &config.append, RSDP)?;
    ram.load(RSDP, &acpi_tables(RSDP.raw()));
    ram.load(Gpa::new(TEXT.start), &screen::blank());
    let platform = Platform::new(&PlatformConfig {
        ram: RamLayout { below_4g: layout.guest_end(), above_4g: size(&layout.above()) },
        tsc_hz,
        // A clock that does not run is no reason not to boot.
        wall_clock_unix_seconds: rtc::unix_seconds().unwrap_or(0),
        physical_address_bits: cpu::physical_address_bits(),
        tsc_deadline: TSC_DEADLINE,
    });
    Ok(Machine { config, ram, pool, canary, entry, platform, tsc_hz, tables })
}

fn files(information: &BootInformation, config: &BootConfig) -> Result<Files, LoaderError> {
    let modules = config.modules.iter().enumerate().map(|(index, string)| {
        let place =
            information.module(&module_name(index), "module that the configuration names")?;
        Ok((place, string.clone()))
    });
    Ok(Files {
        kernel: information.module("kernel", "kernel")?,
        initrd: information.module("initrd", "initrd").unwrap_or(0..0),
        modules: modules.collect::<Result<_, _>>()?,
    })
}

fn read_config(module: &[u8]) -> Result<BootConfig, Box<dyn Error>> {
    const UNREADABLE: &str = "the boot image's configuration is not readable; build the image with the `umbra run` of this version";
    if module.len() > BootConfig::MAX_BYTES {
        return Err(UNREADABLE.into());
    }
    let config = BootConfig::from_bytes(module).map_err(|_| UNREADABLE)?;
    if config.protocol != PROTOCOL {
        return Err(alloc::format!(
            "the boot image was made for protocol {}, the hypervisor speaks {PROTOCOL}; use tool and hypervisor \
             of one version",
            config.protocol
        )
        .into());
    }
    Ok(config)
}

fn size(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// What the CPU calls itself; empty if it has no name.
fn cpu_name() -> String {
    let name = raw_cpuid::CpuId::new().get_processor_brand_string();
    name.map_or(String::new(), |name| String::from(name.as_str().trim()))
}

fn describe(layout: &Layout, information: &BootInformation, cpu: &str, tsc_hz: u64) {
    info!(
        "CPU: {}, TSC at {} MHz",
        if cpu.is_empty() { "without a name" } else { cpu },
        (tsc_hz + 500_000) / 1_000_000
    );
    info!(
        "memory: guest {} MiB, hypervisor at {:#x}, {} shadow frames, heap {} MiB",
        (layout.guest_end() + size(&layout.above())) >> 20,
        layout.image().start,
        (layout.pool().end - layout.pool().start) / FRAME,
        (layout.heap().end - layout.heap().start) >> 20
    );
    for module in &information.modules {
        info!(
            "module {}: {} KiB",
            module.name,
            (module.range.end - module.range.start).div_ceil(1024)
        );
    }
}

//! From the machine to the guest's first instruction.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::error::Error;

use umbra_machine::upkeep::Upkeep;
use umbra_mmu::policy::EmulateReachable;
use umbra_mmu::{Config, Encodings, FilterPolicy, MIN_FRAMES_PER_VCPU, Mmu};
use umbra_paging::{Features, Pdptes, cr0, cr4, efer};
use umbra_telemetry::memory::MIN_SHADOW_FRAMES;
use umbra_telemetry::{BootConfig, GuestFaults, Mechanism, Message};
use umbra_vcpu::arch_capabilities::IA32_ARCH_CAPABILITIES;
use umbra_vcpu::backend::{Backend, Capabilities};
use umbra_vcpu::control::{Controls, efer_more};
use umbra_vcpu::cpuid::{Backing, Cpuid};
use umbra_vcpu::entry::{Entry, Mode};
use umbra_vcpu::mmu_events::EventLog;

use super::audit::Auditor;
use super::console::Console;
use super::policy::Writes;
use super::run::{Parts, Settings, Vcpu};
use super::trace::Tracer;
use crate::env::Env;
use crate::hw::descriptors::Tables;
use crate::hw::{cpu, probe};
use crate::machine::{Machine, TSC_DEADLINE};
use crate::telemetry::{self, info, warning};

/// Where all loads of CR3 exit: so many roots lie where the guest can read CR3 without an exit. Two
/// processes with two each, as with CR3-target values.
const READABLE_ROOTS: usize = 4;

/// The tool takes no number of shadow frames that the MMU would refuse.
const _: () = assert!(MIN_SHADOW_FRAMES == MIN_FRAMES_PER_VCPU);

/// Switches a vendor's extension on and makes a virtual CPU that starts as an [`Entry`] says; the
/// error is a sentence for the user.
pub type NewBackend<B> = fn(&Tables, &Entry) -> Result<B, String>;

/// Runs the guest to its end, and ends the machine.
pub fn run<B: Backend>(machine: Machine, new_backend: NewBackend<B>) -> ! {
    match prepare(machine, new_backend) {
        Ok(vcpu) => {
            telemetry::send(&Message::GuestEntered);
            vcpu.run()
        }
        Err(sentence) => telemetry::fail(sentence),
    }
}

fn prepare<B: Backend>(
    machine: Machine,
    new_backend: NewBackend<B>,
) -> Result<Vcpu<B>, Box<dyn Error>> {
    let Machine { config, ram, pool, canary, entry, platform, tsc_hz, tables } = machine;
    let backend = new_backend(&tables, &entry)?;
    let capabilities = backend.capabilities();
    let cpuid = Cpuid::new(
        cpu::cpuid,
        Backing {
            rdtscp: capabilities.rdtscp,
            invpcid: capabilities.invpcid,
            tsc_deadline: TSC_DEADLINE,
        },
        || cpu::read_msr(IA32_ARCH_CAPABILITIES),
    );
    let features = cpuid.features();
    check_options(&config, capabilities)?;
    let encodings = choose_encodings(config.guest_faults, features, capabilities);
    let mut env = Env { ram, pool, tlb: backend.tlb(), events: EventLog::new(config.trace) };
    let on = |mechanism| !config.without.contains(&mechanism);
    let cr3_loads_exit = capabilities.cr3_targets == 0;
    let loadable_roots = match (on(Mechanism::Cr3), cr3_loads_exit) {
        (true, false) => capabilities.cr3_targets,
        (true, true) if capabilities.cr3_reads => READABLE_ROOTS,
        _ => 0,
    };
    let mut mmu_config = Config::new(features, encodings);
    mmu_config.filter = match config.guest_faults {
        GuestFaults::Trap | GuestFaults::Present => FilterPolicy::Present,
        GuestFaults::User => FilterPolicy::User,
        GuestFaults::Auto => FilterPolicy::Auto,
    };
    mmu_config.loadable_roots = loadable_roots;
    mmu_config.cr3_loads_exit = cr3_loads_exit;
    mmu_config.eager = on(Mechanism::Eager);
    mmu_config.prefetch_tables = on(Mechanism::PrefetchTables);
    mmu_config.prefetch_accessed = on(Mechanism::PrefetchAccessed);
    mmu_config.shadow_walk = on(Mechanism::ShadowWalk);
    mmu_config.log_changes = config.audit.is_some();
    let policy = match on(Mechanism::Detach) {
        true => Writes::Predict(Box::default()),
        false => Writes::Emulate(EmulateReachable),
    };
    let mmu = Mmu::with_policy(mmu_config, &mut env, policy)
        .map_err(|e| alloc::format!("{e}; give another --shadow-frames or --memory"))?;
    info!("{}", backend.describe());
    let controls = controls(entry.mode);
    let guest_faults =
        if encodings.separates_guest_faults() { config.guest_faults } else { GuestFaults::Trap };
    let settings = Settings {
        guest_faults,
        cr3_loads_exit,
        native_flushes: capabilities.native_flushes && on(Mechanism::Invlpg),
        fast_emulation: on(Mechanism::FastEmulation),
    };
    let auditor = config.audit.map(Auditor::new);
    let tracer = config.trace.then(Tracer::default);
    let console = Console::new(Upkeep::new(tsc_hz, config.screen));
    Ok(Vcpu::new(Parts {
        backend,
        mmu,
        env,
        canary,
        platform,
        console,
        cpuid,
        tsc_hz,
        controls,
        settings,
        auditor,
        tracer,
    }))
}

/// The control registers that a boot protocol promises; NE and ET as the CPU has them.
fn controls(mode: Mode) -> Controls {
    const NE_ET: u64 = 1 << 5 | 1 << 4;
    match mode {
        // Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol".
        Mode::Long { cr3 } => Controls {
            cr0: cr0::PE | cr0::PG | cr0::WP | NE_ET,
            cr3,
            cr4: cr4::PAE,
            efer: efer::LMA | efer_more::LME,
            pdptes: Pdptes::NONE,
        },
        // Multiboot specification, "Machine state"; boot.rst, "32-bit Boot Protocol".
        Mode::Protected => {
            Controls { cr0: cr0::PE | NE_ET, cr3: 0, cr4: 0, efer: 0, pdptes: Pdptes::NONE }
        }
    }
}

/// Refuses what this CPU has not.
fn check_options(config: &BootConfig, capabilities: Capabilities) -> Result<(), &'static str> {
    if !capabilities.fault_filter
        && matches!(config.guest_faults, GuestFaults::Present | GuestFaults::User)
    {
        return Err(
            "this CPU intercepts all page faults or none; leave --guest-faults out, or choose a machine whose CPU \
             filters them, such as penryn",
        );
    }
    if capabilities.cr3_targets == 0
        && !capabilities.cr3_reads
        && config.without.contains(&Mechanism::Cr3)
    {
        return Err(
            "this CPU lets no access to CR3 through, so there is nothing to switch off; leave cr3 out of --without, or \
             choose a machine with CR3-target values, such as penryn",
        );
    }
    Ok(())
}

/// Trapping entries as the user wants them, if the CPU takes them.
fn choose_encodings(
    wanted: GuestFaults,
    features: Features,
    capabilities: Capabilities,
) -> Encodings {
    let off = Encodings::not_present(features.maxphyaddr);
    if wanted == GuestFaults::Trap {
        info!("guest faults are trapped: chosen by the user");
        return off;
    }
    if !capabilities.fault_filter {
        info!("guest faults are trapped: this CPU intercepts all page faults or none");
        return off;
    }
    let Some(encodings) = Encodings::reserved(features.maxphyaddr) else {
        warning!(
            "guest faults are trapped: with MAXPHYADDR 52 this CPU's page-table entries have no reserved bit to spare"
        );
        return off;
    };
    match probe::trapping(&encodings) {
        Ok(()) => encodings,
        Err(failure) => {
            warning!(
                "guest faults are trapped: the test of the Trapping entries failed: {}",
                failure.to_string()
            );
            off
        }
    }
}

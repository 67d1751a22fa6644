//! Which part of the hypervisor uses which, and that no part that need not knows the vendor.

use std::path::{Path, PathBuf};

use umbra_layers::{Layer, Modules};

/// From the hardware up to the first Rust function.
const LAYERS: &[Layer] = &[
    ("hw", &[]),
    ("telemetry", &["hw"]),
    ("panic", &["hw", "telemetry"]),
    ("env", &["hw"]),
    ("guest", &["hw"]),
    ("handover", &["hw"]),
    ("machine", &["hw"]),
    ("vmx", &["hw"]),
    ("svm", &["hw"]),
    ("vcpu", &["env", "hw", "machine", "telemetry"]),
    ("startup", &["guest", "handover", "hw", "machine", "svm", "telemetry", "vcpu", "vmx"]),
    ("boot", &["hw", "startup"]),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn modules_use_only_what_the_table_allows() {
    Modules::read(&source(), "").assert_layers(LAYERS);
}

/// The crates that the guest's way through the hypervisor leads to.
const CRATES: &[&str] = &[
    "bzimage",
    "devices",
    "emulator",
    "hypervisor",
    "machine",
    "mmu",
    "multiboot",
    "paging",
    "vcpu",
];

/// Where a vendor may be named: the backends, where one of them is chosen, and the tables of what
/// a vendor's CPU is like.
const PLACES: &[&str] = &[
    "hypervisor/src/svm",
    "hypervisor/src/vmx",
    "hypervisor/src/main.rs",
    "hypervisor/src/startup.rs",
    "vcpu/src/svm",
    "vcpu/src/lib.rs",
    "vcpu/src/arch_capabilities.rs",
    "vcpu/src/cpuid.rs",
];

/// What vendors, and their extensions, are called stands in the backends and the tables.
#[test]
fn no_vendor_is_named_elsewhere() {
    const NAMES: &[&str] = &[
        "vmx", "Vmx", "VMX", "vmcs", "Vmcs", "VMCS", "svm", "Svm", "SVM", "vmcb", "Vmcb", "VMCB",
        "Intel", "INTEL", "AMD", "Amd",
    ];
    let crates = source().join("../..");
    for name in CRATES {
        for (_, file) in Modules::read(&crates.join(name).join("src"), "").files() {
            let may = PLACES.iter().any(|place| file.path.to_string_lossy().contains(place));
            // RAMDISK names nobody.
            let code = file.code.replace("RAMDISK", "");
            let named = NAMES.iter().find(|name| code.contains(**name));
            assert!(may || named.is_none(), "{} names {named:?}", file.path.display());
        }
    }
    for place in PLACES {
        assert!(crates.join(place).exists(), "{place} is not there any more");
    }
}

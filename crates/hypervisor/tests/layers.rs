//! Which part of the hypervisor uses which, and that none knows the vendor but the startup.

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

/// What a vendor's extension is called stands in its folder, and where it is chosen.
#[test]
fn no_vendor_is_named_outside_its_folder() {
    const NAMES: &[&str] =
        &["vmx", "Vmx", "VMX", "vmcs", "Vmcs", "VMCS", "svm", "Svm", "SVM", "vmcb", "VMCB"];
    for (module, file) in Modules::read(&source(), "").files() {
        let named = NAMES.iter().find(|name| file.code.contains(**name));
        let may = ["vmx", "svm", "startup"].contains(&module);
        assert!(may || named.is_none(), "{} names {named:?}", file.path.display());
    }
}

//! The folders of the tree in which no modules use each other, by whatever way.

use std::path::Path;

use umbra_layers::Modules;

/// Sources, and a folder in them; the crate's root is `""`.
const WITHOUT_CIRCLES: &[(&str, &str)] = &[
    ("crates/bzimage/src", ""),
    ("crates/devices/src", ""),
    ("crates/devices/src", "lapic"),
    ("crates/emulator/src", "system"),
    ("crates/fuzz/src", ""),
    ("crates/hypervisor/src", ""),
    ("crates/hypervisor/src", "handover"),
    ("crates/hypervisor/src", "hw"),
    ("crates/hypervisor/src", "vmx"),
    ("crates/machine/src", ""),
    ("crates/machine/src", "linux"),
    ("crates/msrs/src", ""),
    ("crates/multiboot/src", ""),
    ("crates/reference/src", "machine"),
    ("crates/telemetry/src", ""),
    ("crates/umbra/src", "bench"),
    ("crates/umbra/src", "compare"),
    ("crates/umbra/src", "console"),
    ("crates/umbra/src", "doctor"),
    ("crates/umbra/src", "machine"),
    ("crates/umbra/src", "trace"),
    ("crates/vcpu/src", ""),
    ("crates/vcpu/src", "backend"),
    ("guest/init/src", "phases"),
    ("guest/kernels/src", ""),
    ("guest/kernels/src/bin/basics", ""),
    ("guest/kernels/src/bin/exact", ""),
    ("guest/kernels/src/bin/exhaustive", ""),
    ("guest/kernels/src/bin/forms", ""),
    ("guest/kernels/src/bin/hostile", ""),
    ("guest/legacy/src", ""),
    ("guest/kvm-peer/src", ""),
    ("xtask/src", "setup"),
    ("xtask/src", "test"),
];

#[test]
fn no_modules_use_each_other() {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (source, folder) in WITHOUT_CIRCLES {
        let modules = Modules::read(&tree.join(source), folder);
        assert!(modules.files().count() > 1, "{source} {folder}: nothing was read");
        modules.assert_no_circles();
    }
}

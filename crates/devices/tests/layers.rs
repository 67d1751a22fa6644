//! No device uses one that uses it.

use std::path::Path;

use umbra_layers::Modules;

#[test]
fn no_modules_use_each_other() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    Modules::read(&source, "").assert_no_circles();
    Modules::read(&source, "lapic").assert_no_circles();
}

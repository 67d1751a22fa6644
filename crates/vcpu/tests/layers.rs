//! No module of the virtual CPU uses one that uses it.

use std::path::Path;

use umbra_layers::Modules;

#[test]
fn no_modules_use_each_other() {
    Modules::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "").assert_no_circles();
}

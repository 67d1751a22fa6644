//! Builds the small guest kernels into a folder: `cargo run -p umbra-build --example guest_kernels
//! -- FOLDER`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("name the folder that the kernels shall be written to");
        return ExitCode::FAILURE;
    };
    let folder = Path::new(&folder);
    // At compile time it may have been another checkout, which this one was copied from with its
    // build folder.
    let Some(package) = std::env::var_os("CARGO_MANIFEST_DIR") else {
        eprintln!("start this by `cargo run`, which says where the checkout is");
        return ExitCode::FAILURE;
    };
    let workspace = Path::new(&package).join("../..");
    match umbra_build::guest_kernels(&workspace, &folder.join("bare-metal"), folder) {
        Ok(kernels) => {
            kernels.iter().for_each(|kernel| println!("{}", kernel.display()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

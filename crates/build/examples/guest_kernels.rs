//! Builds the small guest kernels into a folder: `cargo run -p umbra-build --example guest_kernels -- FOLDER`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("name the folder that the kernels shall be written to");
        return ExitCode::FAILURE;
    };
    let folder = Path::new(&folder);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
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

//! The exhaustive set through the shadow MMU, on all cores.

mod arguments;

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use arguments::exhaustive::Arguments;
use clap::Parser;
use umbra_reference::exhaustive::{Counts, Part};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let start = Instant::now();
    let parts = Mutex::new(Part::all(arguments.spare, arguments.stride, arguments.offset));
    let results = Mutex::new((Counts::default(), 0));
    let next = || parts.lock().ok()?.pop();
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.unwrap_or(cores) {
            scope.spawn(|| {
                while let Some(part) = next() {
                    let outcome = part.run();
                    let mut results = results.lock().expect("no thread panics with the lock");
                    match outcome {
                        Ok(counts) => {
                            println!("{part:?}: {} cases", counts.cases);
                            results.0.add(&counts);
                        }
                        Err(why) => {
                            println!("difference: {why}");
                            results.1 += 1;
                        }
                    }
                }
            });
        }
    });
    let (counts, differences) = results.into_inner().expect("no thread panics with the lock");
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", counts.coverage);
    println!(
        "{} cases ({} faults delivered by the CPU, {} injected, {} accesses after P was set without a flush) \
         in {seconds:.0} s, {:.0} cases/s, {differences} differences",
        counts.cases,
        counts.native,
        counts.injected,
        counts.unflushed,
        counts.cases as f64 / seconds
    );
    ExitCode::from(u8::from(differences != 0 || counts.cases == 0))
}

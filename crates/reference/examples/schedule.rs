//! Small programs for two CPUs through the shadow MMU, one CPU preempted everywhere by the other.

mod arguments;

use std::process::ExitCode;
use std::time::Instant;

use arguments::schedule::Arguments;
use clap::Parser;
use umbra_reference::machine::Protocol;
use umbra_reference::schedule::{Order, Small};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // What goes wrong by a panic is reported as everything else.
    std::panic::set_hook(Box::new(|_| ()));
    let start = Instant::now();
    let (mut orders, mut wrong, mut programs) = (0, 0, 0);
    for program in Small::all().iter().filter(|program| program.name.contains(&arguments.program)) {
        programs += 1;
        for seed in 1..=arguments.seeds {
            let verdict = match &arguments.at {
                Some(points) => {
                    let order =
                        Order { points: points.clone(), entering: arguments.entering, seed };
                    program.judge(Protocol::PublishFirst, order).map(|_| 1)
                }
                None => program.explore(
                    Protocol::PublishFirst,
                    arguments.preemptions,
                    seed,
                    arguments.points,
                ),
            };
            match verdict {
                Ok(count) => {
                    orders += count;
                    println!("{count:9} orders: {}, seed {seed}", program.name);
                }
                Err(found) => {
                    wrong += 1;
                    println!("{found}");
                }
            }
        }
    }
    println!(
        "{programs} programs, {orders} orders in {:.0} s, {wrong} wrong",
        start.elapsed().as_secs_f64()
    );
    ExitCode::from(u8::from(wrong != 0 || programs == 0))
}

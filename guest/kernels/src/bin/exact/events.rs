//! Events of every kind, in every state that decides what becomes of them.
//!
//! A case is an instruction that raises something, or after which something comes, behind MOV SS or
//! STI or neither; with and without a single step and breakpoints; in ring 0 and 3; with a stack
//! that is memory, a page table or nothing. What handlers saw, and how it ended, makes a hash.

mod source;
mod stage;

use guest_kernels::kit::console;
use guest_kernels::kit::frames::Pool;
use guest_kernels::kit::observe::Observer;
use guest_kernels::options::Options;
use guest_kernels::say;

use source::SOURCES;
use stage::{Breakpoint, Case, Prefix, Stack, Stage};

/// The cases of one line, in order.
fn cases(source: usize, prefix: Prefix, user: bool) -> impl Iterator<Item = Case> {
    let steps = [false, true].into_iter();
    steps.flat_map(move |step| {
        Breakpoint::ALL.into_iter().flat_map(move |breakpoint| {
            Stack::ALL.into_iter().map(move |stack| Case {
                source,
                prefix,
                user,
                step,
                breakpoint,
                stack,
            })
        })
    })
}

/// Whether `shown` is the name of a line, with `_` for blanks.
fn is_shown(shown: &str, source: &str, prefix: &str, ring: &str) -> bool {
    let name = [source, prefix, "ring", ring].into_iter();
    let mut words = name.flat_map(str::split_ascii_whitespace);
    shown.split('_').eq(&mut words)
}

/// Prints a line for each instruction, prefix and ring: the hashes of its cases. With the option
/// `show=line`, words.
pub fn run(pool: &mut Pool, options: &Options<'_>) -> u64 {
    let mut stage = Stage::new(pool);
    let mut lines = 0;
    for (index, source) in SOURCES.iter().enumerate() {
        for prefix in Prefix::ALL {
            for user in [false, true] {
                let ring = if user { "3" } else { "0" };
                if let Some(shown) = options.value("show") {
                    if is_shown(shown, source.name, prefix.name(), ring) {
                        for case in cases(index, prefix, user) {
                            say!("case {case:?}");
                            stage.run(&case, &mut Observer::Words);
                        }
                    }
                    continue;
                }
                lines += 1;
                console::print(format_args!(
                    "events: {} {} ring {ring} =",
                    source.name,
                    prefix.name()
                ));
                for case in cases(index, prefix, user) {
                    let mut observer = Observer::Hash(0);
                    stage.run(&case, &mut observer);
                    console::print(format_args!(" {:08x}", observer.hash().unwrap_or(0)));
                }
                say!("");
            }
        }
    }
    stage.leave();
    lines
}

//! Runs the rows.

use guest_kernels::kit::boot::Boot;
use guest_kernels::kit::cpu;
use guest_kernels::kit::frames::Pool;
use guest_kernels::kit::{apic, pic};
use guest_kernels::options::Options;
use guest_kernels::say;

use crate::{events, msrs};

/// A row prints lines, and says how many.
type Row = fn(&mut Pool, &Options<'_>) -> u64;

const ROWS: &[(&str, Row)] = &[("msrs", |_, _| msrs::run()), ("events", events::run)];

pub fn main(mut boot: Boot) -> u8 {
    cpu::enable_sse();
    cpu::set_paging_bits(true, false, false, false);
    pic::init();
    apic::init();
    let mut lines = 0;
    for (name, row) in ROWS {
        if boot.options.lists("only", name) {
            lines += row(&mut boot.pool, &boot.options);
        }
    }
    say!("exact END: {lines} lines");
    0
}

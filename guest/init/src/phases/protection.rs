//! Rights that are taken away and given back.

use anyhow::{Result, ensure};

use super::{Run, WARM_UP_ROUNDS};
use crate::sys::mapping::{Mapping, Rights};
use crate::sys::segv;

/// A page made read-only, written, and made writable by the SIGSEGV handler.
pub fn segv(run: &Run) -> Result<()> {
    let rounds = run.count(500);
    let mut memory = Mapping::anonymous(1)?;
    let mut last = 0;
    let refused = segv::count_refused_writes(&mut memory, |memory| {
        run.repeated("mprotect_segv", rounds, || {
            memory.protect(Rights::ReadOnly)?;
            last = last % 255 + 1;
            memory.write(0, last);
            Ok(())
        })
    })?;
    let expected = rounds as usize + WARM_UP_ROUNDS;
    ensure!(refused == expected, "SIGSEGV came {refused} times instead of {expected}");
    let found = memory.read(0);
    ensure!(found == last, "the page holds {found:#x} instead of {last:#x}");
    Ok(())
}

/// A page made read-only and read, made writable and written.
pub fn toggle(run: &Run) -> Result<()> {
    let mut memory = Mapping::anonymous(1)?;
    let mut last = 0;
    run.repeated("mprotect_toggle", run.count(500), || {
        memory.protect(Rights::ReadOnly)?;
        let found = memory.read(0);
        ensure!(found == last, "the page holds {found:#x} instead of {last:#x}");
        memory.protect(Rights::ReadWrite)?;
        last = last % 255 + 1;
        memory.write(0, last);
        Ok(())
    })
}

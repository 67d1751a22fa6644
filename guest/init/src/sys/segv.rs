//! A SIGSEGV handler that makes the refused page writable, as garbage collectors and checkpointers
//! do.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use libc::{c_int, c_void, siginfo_t};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::mapping::{Mapping, PAGE_SIZE};
use crate::power;

/// The page that may fault.
static PAGE: AtomicUsize = AtomicUsize::new(0);
/// How often it did.
static FAULTS: AtomicUsize = AtomicUsize::new(0);

/// Runs `body` while a write to the first page of `mapping` that its rights refuse makes that page
/// writable; returns how many writes were refused. Any other fault ends the machine.
pub fn count_refused_writes(
    mapping: &mut Mapping,
    body: impl FnOnce(&mut Mapping) -> Result<()>,
) -> Result<usize> {
    PAGE.store(mapping.address(), Ordering::Relaxed);
    FAULTS.store(0, Ordering::Relaxed);
    let action =
        SigAction::new(SigHandler::SigAction(allow_write), SaFlags::SA_SIGINFO, SigSet::empty());
    // SAFETY: the handler touches atomics and makes one system call; where it does more, the
    // program ends.
    let previous = unsafe { sigaction(Signal::SIGSEGV, &action) }.context("sigaction")?;
    let outcome = body(mapping);
    // SAFETY: this is the handler that was there before.
    unsafe { sigaction(Signal::SIGSEGV, &previous) }.context("sigaction")?;
    outcome.map(|()| FAULTS.load(Ordering::Relaxed))
}

extern "C" fn allow_write(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel hands a valid siginfo to an SA_SIGINFO handler, and SIGSEGV fills its
    // address.
    let address = unsafe { (*info).si_addr() };
    let page = PAGE.load(Ordering::Relaxed);
    if address.addr() != page {
        power::fail(&format!("SIGSEGV at {:#x} instead of {page:#x}", address.addr()));
    }
    FAULTS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the page belongs to the `Mapping` that `count_refused_writes` borrows for as long as
    // this is the handler, and is only reached by single-byte accesses. mprotect is a bare system
    // call.
    if unsafe { libc::mprotect(address, PAGE_SIZE, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
        power::fail("mprotect in the SIGSEGV handler");
    }
}

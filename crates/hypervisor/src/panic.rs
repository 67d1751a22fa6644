//! A panic ends the machine with a sentence; it never hangs.

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::hw::{heap, power};
use crate::telemetry::{self, Raw};

static PANICKING: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // A frame needs the heap, which does not serve a panic within it.
    if PANICKING.swap(true, Ordering::Relaxed) || heap::is_busy() {
        // Writing to a port does not fail.
        let _ = writeln!(Raw, "umbra: {info}");
        power::off();
    }
    let message = info.message();
    match info.location() {
        Some(at) => telemetry::fail(format_args!(
            "the hypervisor stopped at a bug of its own ({}:{}): {message}",
            at.file(),
            at.line()
        )),
        None => {
            telemetry::fail(format_args!("the hypervisor stopped at a bug of its own: {message}"))
        }
    }
}

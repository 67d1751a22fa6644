//! Console input: the machine's COM1, with the host's commands in it.

use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::IER;
use uart_16550::{Config, Uart16550};

use umbra_telemetry::command::{Commands, Input};

/// The PIC line of COM1.
pub const IRQ: u8 = 4;

const COM1: u16 = 0x3f8;

/// Bytes taken at a time: one FIFO, so that a flood of input cannot hold up the guest.
const BATCH: usize = 16;

static RECEIVED: AtomicBool = AtomicBool::new(false);
static FINISH_REQUESTED: AtomicBool = AtomicBool::new(false);
static COUNT_REQUESTED: AtomicBool = AtomicBool::new(false);

struct Console {
    uart: Uart16550<PioBackend>,
    commands: Commands,
}

static CONSOLE: Mutex<Option<Console>> = Mutex::new(None);

/// Starts reception by interrupt.
///
/// # Errors
/// A sentence, if there is no UART.
pub fn init() -> Result<(), &'static str> {
    const NO_UART: &str = "the machine has no serial port COM1, which carries the console input";
    // SAFETY: a PC has COM1 at this port or nothing.
    let mut uart = unsafe { Uart16550::new_port(COM1) }.map_err(|_| NO_UART)?;
    uart.init(Config { interrupts: IER::DATA_READY, ..Config::default() }).map_err(|_| NO_UART)?;
    *CONSOLE.lock() = Some(Console { uart, commands: Commands::new() });
    Ok(())
}

/// COM1's interrupt handler. The line stays high until the bytes are read, and only its next rise
/// interrupts.
pub(super) fn interrupt() {
    RECEIVED.store(true, Ordering::Relaxed);
}

/// Whether there may be input to [`poll`].
pub fn has_input() -> bool {
    RECEIVED.load(Ordering::Relaxed)
}

/// Hands what was typed to `guest`. Cheap when there is nothing.
pub fn poll(guest: &mut impl FnMut(u8)) {
    if !RECEIVED.swap(false, Ordering::Relaxed) {
        return;
    }
    let mut console = CONSOLE.lock();
    let Some(console) = console.as_mut() else { return };
    for _ in 0..BATCH {
        let Ok(byte) = console.uart.try_receive_byte() else { return };
        match console.commands.push(byte) {
            Input::Console(byte) => guest(byte),
            Input::Finish => FINISH_REQUESTED.store(true, Ordering::Relaxed),
            Input::Count => COUNT_REQUESTED.store(true, Ordering::Relaxed),
            Input::Nothing => (),
        }
    }
    RECEIVED.store(true, Ordering::Relaxed);
}

/// Whether the host has asked for the end.
pub fn finish_requested() -> bool {
    FINISH_REQUESTED.load(Ordering::Relaxed)
}

/// Whether the host has asked for what was counted, since the last call.
pub fn take_count_request() -> bool {
    COUNT_REQUESTED.swap(false, Ordering::Relaxed)
}

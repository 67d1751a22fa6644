//! Exceptions and interrupts: to handlers, or as the end of a context.
//!
//! [`run`] loads a [`Context`], in any ring, and comes back with the vector that ended it: a fault,
//! or `INT 0x80`, which every snippet ends with. Vectors with a handler ([`handle`]) go to it
//! instead.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::context::Context;
use super::{cpu, descriptors};

global_asm!(include_str!("traps.s"), options(att_syntax));

/// The vectors of exceptions.
pub mod vector {
    /// Divide error.
    pub const DE: u8 = 0;
    /// Debug exception.
    pub const DB: u8 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// Breakpoint.
    pub const BP: u8 = 3;
    /// Overflow.
    pub const OF: u8 = 4;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// Double fault.
    pub const DF: u8 = 8;
    /// Invalid TSS.
    pub const TS: u8 = 10;
    /// Segment not present.
    pub const NP: u8 = 11;
    /// Stack fault.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// Alignment check.
    pub const AC: u8 = 17;
    /// The end of a snippet.
    pub const STOP: u8 = super::descriptors::STOP;
}

/// How a context ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Trap {
    /// The vector that ended it.
    pub vector: u8,
    /// The error code; zero for vectors without one.
    pub error_code: u64,
    /// CR2, for page faults; else zero.
    pub cr2: u64,
    /// The registers at the end.
    pub context: Context,
}

impl Trap {
    /// Whether the context ended on purpose, by `INT 0x80`.
    pub fn is_stop(&self) -> bool {
        self.vector == vector::STOP
    }
}

impl fmt::Debug for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "vector {} error {:#x} cr2 {:#x} rip {:#x}",
            self.vector, self.error_code, self.cr2, self.context.rip
        )
    }
}

unsafe extern "C" {
    fn enter_context(context: *const Context);
    fn leave_context() -> !;
}

/// A handler: it may change the registers that the interrupted code goes on with.
pub type Handler = fn(&mut Context);

static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];
static RUNNING: AtomicBool = AtomicBool::new(false);

const CONTEXT_STACK: usize = 16 << 10;

#[repr(C, align(4096))]
struct Cell<T>(UnsafeCell<T>);

// SAFETY: one CPU. ENDED is written by the trap handler and read by `run`, which waits for it; the
// stack is only used by contexts, and handed out as an address.
unsafe impl<T> Sync for Cell<T> {}

static ENDED: Cell<Trap> = Cell(UnsafeCell::new(Trap {
    vector: 0,
    error_code: 0,
    cr2: 0,
    context: Context {
        r15: 0,
        r14: 0,
        r13: 0,
        r12: 0,
        r11: 0,
        r10: 0,
        r9: 0,
        r8: 0,
        rbp: 0,
        rdi: 0,
        rsi: 0,
        rdx: 0,
        rcx: 0,
        rbx: 0,
        rax: 0,
        vector: 0,
        error_code: 0,
        rip: 0,
        cs: 0,
        rflags: 0,
        rsp: 0,
        ss: 0,
    },
}));

static STACK: Cell<[u8; CONTEXT_STACK]> = Cell(UnsafeCell::new([0; CONTEXT_STACK]));

/// The top of the stack that contexts of ring 0 have.
pub fn context_stack() -> u64 {
    STACK.0.get() as u64 + CONTEXT_STACK as u64
}

/// Sends a vector to a handler instead of ending the context (or the kernel).
pub fn handle(vector: u8, handler: Handler) {
    HANDLERS[usize::from(vector)].store(handler as usize, Ordering::Relaxed);
}

/// Takes the handler of a vector away.
pub fn unhandle(vector: u8) {
    HANDLERS[usize::from(vector)].store(0, Ordering::Relaxed);
}

/// Runs `context` until a vector without a handler comes.
///
/// The code that it runs is a snippet of the kit, or bytes that a test wrote into its own frames:
/// if these touch the kit's own memory, the test is broken, and so is what it says.
pub fn run(context: &Context) -> Trap {
    let nested = RUNNING.swap(true, Ordering::Relaxed);
    // SAFETY: all vectors come back to `trap_handler`, which leaves by `leave_context`; segments
    // and stack are as before then. Snippets touch test memory only, as said above.
    unsafe { enter_context(context) };
    RUNNING.store(nested, Ordering::Relaxed);
    // SAFETY: `trap_handler` wrote it before it left, and nothing else runs.
    unsafe { ENDED.0.get().read_volatile() }
}

/// # Safety
/// Only `traps.s` calls it, with interrupts off.
#[unsafe(no_mangle)]
unsafe extern "C" fn trap_handler(frame: &mut Context) {
    let vector = frame.vector as u8;
    let handler = HANDLERS[usize::from(vector)].load(Ordering::Relaxed);
    if handler != 0 {
        // SAFETY: only `handle` stores there, and it stores a `Handler`.
        let handler = unsafe { core::mem::transmute::<usize, Handler>(handler) };
        return handler(frame);
    }
    let cr2 = if vector == vector::PF { cpu::cr2() } else { 0 };
    let trap = Trap { vector, error_code: frame.error_code, cr2, context: *frame };
    if !RUNNING.load(Ordering::Relaxed) {
        panic!("unexpected {trap:x?}");
    }
    // SAFETY: as said at `ENDED`; `run` is waiting.
    unsafe {
        ENDED.0.get().write_volatile(trap);
        leave_context()
    }
}

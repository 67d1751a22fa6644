//! Runs a snippet until an exception, INT n or SYSENTER ends it, wherever it runs.

use core::arch::global_asm;

use super::descriptors::selector;

global_asm!(include_str!("legacy.s"), options(att_syntax));

/// What [`Context::vector`] says of INT n, and of SYSENTER.
pub const INTERRUPT: u32 = 0x80;
pub const SYSENTER: u32 = 0x100;

/// Registers, before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Context {
    pub eax: u32,
    pub ecx: u32,
    pub edx: u32,
    pub ebx: u32,
    pub esi: u32,
    pub edi: u32,
    pub ebp: u32,
    pub eip: u32,
    pub cs: u32,
    pub eflags: u32,
    pub esp: u32,
    pub ss: u32,
    pub es: u32,
    pub ds: u32,
    pub fs: u32,
    pub gs: u32,
    pub vector: u32,
    pub error: u32,
    pub cr2: u32,
}

unsafe extern "C" {
    fn legacy_run(context: *mut Context);
}

macro_rules! snippets {
    ($($name:ident: $symbol:ident;)*) => {
        unsafe extern "C" { $(static $symbol: u8;)* }
        $(
            /// Where the snippet is.
            pub fn $name() -> u32 {
                &raw const $symbol as u32
            }
        )*
    };
}

snippets! {
    start: snippets;
    end: snippets_end;
    read: snippet_read;
    write: snippet_write;
    write8: snippet_write8;
    write16: snippet_write16;
    write64: snippet_write64;
    jump: snippet_jump;
    sysenter: snippet_sysenter;
    stack: snippet_stack;
    through_cs: snippet_cs;
    through_fs: snippet_fs;
    far_call: snippet_far_call;
    code_16: snippet_16;
    v86: snippet_v86;
    v86_privileged: snippet_v86_privileged;
    load_cr3: snippet_load_cr3;
    load_cr4: snippet_load_cr4;
    load_cr0: snippet_load_cr0;
    sysexit: snippet_sysexit;
    arithmetic: snippet_arithmetic;
    write_fs: snippet_write_fs;
}

/// The bytes of a snippet, to put them elsewhere.
pub fn bytes(at: u32, count: usize) -> &'static [u8] {
    assert!((start()..end()).contains(&at) && end() - at >= count as u32, "no snippet there");
    // SAFETY: the snippets are part of the image and never change.
    unsafe { core::slice::from_raw_parts(at as *const u8, count) }
}

/// Where ring 3 has its stack.
pub const USER_STACK: u32 = 0x5f_f000;

impl Context {
    /// In ring 0, flat.
    pub fn kernel(eip: u32) -> Context {
        let data = selector::DATA;
        Context { eip, cs: selector::CODE, eflags: 2, ds: data, es: data, ..Context::default() }
    }

    /// In ring 3, flat.
    pub fn user(eip: u32) -> Context {
        let data = selector::USER_DATA;
        let flat = Context {
            eip,
            cs: selector::USER_CODE,
            eflags: 2,
            ds: data,
            es: data,
            ..Context::default()
        };
        Context { ss: data, esp: USER_STACK, ..flat }
    }

    /// In either.
    pub fn ring(user: bool, eip: u32) -> Context {
        if user { Context::user(eip) } else { Context::kernel(eip) }
    }

    /// Runs; what the registers are at its end.
    pub fn run(mut self) -> Context {
        // SAFETY: snippets touch test memory only, and every way out of them leads back.
        unsafe { legacy_run(&raw mut self) };
        // What a push of a selector leaves above it depends on the CPU.
        for selector in
            [&mut self.cs, &mut self.ss, &mut self.ds, &mut self.es, &mut self.fs, &mut self.gs]
        {
            *selector &= 0xffff;
        }
        self
    }
}

/// An exception outside a snippet.
///
/// # Safety
/// Only `legacy.s` calls it, with its context.
#[unsafe(no_mangle)]
unsafe extern "C" fn legacy_unexpected(context: *const Context) -> ! {
    // SAFETY: the caller says so.
    let context = unsafe { context.read_volatile() };
    panic!("unexpected: {context:x?}");
}

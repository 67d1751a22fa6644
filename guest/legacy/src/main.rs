//! A small multiboot-1 kernel that stays in 32-bit mode: segments, SYSENTER, virtual-8086 mode, and
//! both formats of 32-bit page tables, the same frames in turn as tables of either.
//!
//! It knows nothing of a hypervisor: what it expects is what bare hardware does. Options on its
//! command line: `quick` (a tenth of the random steps), `seed=N`, `only=` and `except=` with names
//! of tests.
#![cfg_attr(target_arch = "x86", no_std, no_main)]

// The host only tests what is pure.
#[cfg(any(target_arch = "x86", test))]
mod random;
#[cfg(any(target_arch = "x86", test))]
mod walk;

#[cfg(target_arch = "x86")]
mod formats;
#[cfg(target_arch = "x86")]
mod kit;
#[cfg(target_arch = "x86")]
mod pdptes;
#[cfg(target_arch = "x86")]
mod segments;
#[cfg(target_arch = "x86")]
mod space;
#[cfg(target_arch = "x86")]
mod tests;

#[cfg(target_arch = "x86")]
kit::kernel!(tests::run);

#[cfg(not(target_arch = "x86"))]
fn main() {
    eprintln!(
        "this is a kernel for 32-bit machines: `cargo xtask guests legacy` builds and runs it"
    );
    std::process::exit(2);
}

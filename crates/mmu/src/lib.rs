//! A shadow MMU to embed in a hypervisor: guest page tables in, shadow page tables out.
//!
//! It lets a hypervisor run x86 guests without EPT or NPT. The embedder implements three small
//! traits ([`GuestMemory`], [`ShadowFrames`], [`Tlb`]) on one type, and calls:
//!
//! | when | call |
//! |---|---|
//! | CR0, CR3, CR4 or EFER of the guest change | [`Mmu::load_paging`] |
//! | before the guest runs | [`Mmu::entry_state`], for the real CR3 and what has to exit |
//! | #PF exit | [`Mmu::page_fault`] |
//! | an instruction is emulated | [`Mmu::translate`] for its accesses, [`Mmu::write_guest`] for its writes |
//! | a write to a table cannot be emulated | [`Mmu::release`], with the ticket of the write |
//! | INVLPG exit; other flushes of the guest | [`Mmu::invlpg`]; [`Mmu::flush_guest`] |
//! | before the gpa->hpa map changes | [`Mmu::revoke`] |
//! | the guest may load its current root by itself from now on | [`Mmu::allow_native_load`] |
//! | it is likely to load another one soon | [`Mmu::allow_native_load_of`], if it [may be offered](Mmu::may_allow_native_load) |
//! | it has loaded one by itself | [`Mmu::switched`], before any other call |
//! | before the guest runs, if it may load roots | [`EntryState::loadable_epoch`]: whether some may not be loaded any more |
//!
//! What the real CPU must be set to while the guest runs: CR0.PG, CR0.WP and CR4.PAE are set.
//! EFER.NXE, CR4.SMEP, CR4.SMAP and CR4.PGE equal the guest's. But SMEP and SMAP are clear while
//! the guest's paging is off, and NXE while it uses 32-bit paging, which does not report fetches.
//! EFER.LMA is as the root's format says. Page faults exit as [`Mmu::entry_state`] says, asked
//! before each entry. The guest's PAT, PCD and PWT bits are not shadowed: all of its memory is
//! write-back.
//!
//! How the MMU of a guest is made, with a host that has the three traits (the crate's README shows
//! one whole):
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let mut host = host();
//! let (host_maxphyaddr, guest_maxphyaddr) = (40, 40);
//! // What tells host faults from guest faults. Without reserved bits every page fault exits.
//! let encodings = Encodings::reserved(host_maxphyaddr)
//!     .unwrap_or_else(|| Encodings::not_present(host_maxphyaddr));
//! let mut config = Config::new(Features::new(guest_maxphyaddr, true), encodings);
//! config.vcpus = 1;
//! let mut mmu = Mmu::new(config, &mut host)?;
//! let vcpu = VcpuId::new(0);
//! // The guest's CR0, CR3, CR4 and EFER.
//! let paging = Paging::from_registers(0x8001_0001, 0x1000, 0x20, 0x500)?;
//! mmu.load_paging(&mut host, vcpu, paging);
//! let entry = mmu.entry_state(&host, vcpu);
//! assert_eq!(entry.root.format(), umbra_mmu::RootFormat::Long4);
//! # Ok(())
//! # }
//! ```
//!
//! A page-fault exit:
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/host.rs"));
//! # fn main() {
//! use umbra_mmu::FaultOutcome;
//!
//! let (mut host, mut mmu) = start();
//! let (cr2, rip, access) = (Gva::new(0x123), Gva::new(0x1_0000), Access::supervisor_read());
//! let answer = match mmu.page_fault(&mut host, VCPU, cr2, access, &FaultContext::at(rip)) {
//!     FaultOutcome::Resume(_) => "enter the guest again",
//!     FaultOutcome::Guest(_) => "inject the fault",
//!     FaultOutcome::Mmio { .. } => "emulate an access to a device",
//!     FaultOutcome::TableWrite { .. } => "emulate a write to a page table, or release the table",
//!     FaultOutcome::Override { .. } => "emulate the instruction",
//! };
//! assert_eq!(answer, "enter the guest again");
//! let entry = mmu.entry_state(&host, VCPU);
//! let (root, filter) = (entry.root, entry.guest_faults.pfec_filter());
//! assert!(root.hpa().raw() != 0 && filter.bitmap_bit, "for the real CR3 and the VMCS");
//! # }
//! ```
//!
//! An embedder must handle every [`FaultOutcome`], [`GuestFaults`] and [`RootFormat`], so these are
//! exhaustive. What it fills in or only reads may grow, and is `#[non_exhaustive]`.
//!
//! # The work in one call
//! A guest can map one frame, or link one table, from every entry that there is, and then make the
//! MMU visit them all. So the bound of every call is a multiple of E = 512 x shadow frames,
//! whatever the guest's tables look like. One unit of work is one call of the embedder's traits. S
//! is the number of shadows of one guest frame: at most one for each role, and never more than
//! there are shadow frames. There are 274 roles: 112 of 4-level paging, 54 of PAE paging, and 108
//! of 32-bit paging. Beside each unit there is a search among S pages at most.
//!
//! | call | at most | because of |
//! |---|---|---|
//! | [`Mmu::page_fault`] | 26 E + 80,000 | four rounds of a walk of 4 entries, each followed in S shadows; up to 8 unsync frames refreshed, if a reference is made, or tracked again, if the guest has faulted (11 E); 4 tables built or attached, for each of which a 16th of the pool (at most 16 pages) is reclaimed or its shadows of other roles zapped (6 E), and all that maps its frame protected (9 E); up to 12 more tables below the root, while no table is unsync; or up to 32 tables detached, whose parents are unlinked; or, for a fault of the guest that builds nothing, A set in 32 entries ahead, each followed in S shadows (2 E), and a change of the filter |
//! | [`Mmu::load_paging`] | 26 E + 80,000 | the same, with 5 tables |
//! | [`Mmu::translate`], [`Mmu::invlpg`], [`Mmu::flush_guest`] | 11 E + 30,000 | 8 unsync frames tracked again: every page zapped at most once, every entry unlinked or protected at most once |
//! | [`Mmu::release`], [`Mmu::release_frame`] | 12 E + 30,000 | one unsync frame tracked again, one zapped |
//! | [`Mmu::write_guest`] | 32 S for each entry that the bytes touch, + 200 | each entry is followed in S shadows; a table that nothing leads to any more is detached. The first write to a frame of PDPTEs that a vCPU may load: 9 E + 30,000, their page moves back and goes |
//! | [`Mmu::allow_native_load`] | 9 E + 30,000 | the root, and before it one of another role that lies in its place, moves: every entry that maps its frame is unlinked once, the first four are made anew; under PAE paging as the next |
//! | [`Mmu::allow_native_load_of`] | 26 E + 80,000 | before that, its table is built or attached |
//! | [`Mmu::switched`], [`Mmu::withdraw_root`] | none | only numbers change |
//! | [`Mmu::revoke`] of n frames | 9 E + 8 n + 30,000; every 2048th call 20 E | every entry is unlinked at most once; a wrap of the generation throws everything away |
//! | [`Mmu::zap_all`] | 9 E + 10,000 | every page zapped, every entry unlinked |
//! | [`Mmu::root`], [`Mmu::guest_faults`] and other queries | 1; [`Mmu::code`] 7 | a walk of the shadow |
//!
//! To each comes, once after a frame's region (2 MiB) was revoked and at the start, one question
//! about the backing of each frame of the region. Flushes are among the units: one for each page
//! zapped at most, so `zap_all` may flush as often as there are shadow frames. The auditor is left
//! out: it is quadratic in the length of a list of mappings. The tests in `tests/mmu/bound.rs`
//! count.
//!
//! The invariants (I1 to I6) are those of Umbra's ARCHITECTURE.md; [`Mmu::audit`] checks them.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod advice;
mod audit;
mod config;
mod derive;
mod env;
mod event;
mod fault;
mod format;
mod guest;
mod id;
mod lifecycle;
mod mmu;
mod outcome;
pub mod policy;
mod roots;
mod sync;
mod tables;

pub use advice::Predictor;
pub use audit::{Invariant, Violation};
pub use config::{Config, ConfigError, FilterPolicy, GuestFaults, MIN_FRAMES_PER_VCPU, PfecFilter};
pub use env::{Backing, Env, GuestMemory, ShadowFrames, Tlb};
pub use event::{Counters, Event, Shadowed};
pub use format::Encodings;
pub use id::{ShadowFrame, VcpuId};
pub use mmu::Mmu;
pub use outcome::{
    EntryState, FaultOutcome, LoadableRoot, Root, RootFormat, TableTicket, TranslateError, Work,
};
pub use policy::FaultContext;

/// Makes the example in the read-me a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadMe;

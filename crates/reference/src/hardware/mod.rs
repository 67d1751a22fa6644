//! A paging unit as hardware has it: it walks raw entries in physical memory, checks rights, makes
//! error codes, sets accessed and dirty bits, and caches translations in the most hostile way that
//! the SDM allows.
//!
//! Nothing here knows the walk of `umbra_paging` or the shadow MMU: this is what they are judged
//! by. Sections cited are those of the Intel SDM, volume 3, chapter "Paging".

mod cache;
mod control;
mod filter;
mod format;
mod unit;
mod walk;

pub use cache::{Caches, Structure, Translation};
pub use control::{Control, PagingMode};
pub use filter::Filter;
pub(crate) use format::{A, D};
pub use format::{Rights, Width};
pub(crate) use unit::judge;
pub use unit::{PageFault, PagingUnit, Reached, Temper, UnitCounters};
pub use walk::{End, Page, Start, Visit, Walk, walk, walk_from};
pub(crate) use walk::{root, step, step_at};

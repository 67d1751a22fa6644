//! What shadow entries look like, and what a shadow page is known by.

mod entry;
mod key;
mod table;

pub use entry::Encodings;
pub(crate) use entry::{GENERATIONS, Held, ShadowEntry, State};
pub(crate) use key::{Role, ShadowKey, Wp, index};
pub(crate) use table::TableFormat;

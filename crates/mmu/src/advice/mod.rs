//! What is worth doing beside what must be done: every proposal could be ignored, and costs exits
//! or time when it is wrong, nothing else. Nothing here changes the shadow.

mod address_space;
mod call_site;
mod fault_filter;
mod prefetch_accessed;
mod prefetch_tables;
mod write_predictor;

pub(crate) use address_space::{InactiveAddressSpaces, tables_of_space};
pub(crate) use call_site::call_site;
pub(crate) use fault_filter::Regret;
pub(crate) use prefetch_accessed::{PrefetchAccessed, unaccessed};
pub(crate) use prefetch_tables::{PrefetchTables, Step};
pub use write_predictor::Predictor;

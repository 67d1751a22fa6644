//! The steps of a page fault: look in the shadow, walk the guest's tables, map.

mod map;
mod progress;
mod shadow_walk;
mod walk;

pub(crate) use map::{Mapped, map};
pub(crate) use progress::Detaches;
pub(crate) use shadow_walk::{Answered, WalkCache};
pub(crate) use walk::{is_bypassed, is_lost_to_unsync, resync_address, resync_leaf_entry, walk};

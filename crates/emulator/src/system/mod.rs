//! Segments, descriptor tables, far transfers, events and tasks.
//!
//! Each part does its checks in the manual's order, then makes sure that its writes will succeed,
//! then writes, and changes registers last: a fault leaves nothing changed. Task switches are the
//! exception that the manual makes: a fault behind their commit point belongs to the new task.

mod code;
mod cpu;
mod deliver;
mod descriptor;
mod far;
mod inner;
mod instruction;
mod iret;
mod load;
mod ret;
mod stack;
mod table;
mod task;
mod tss;
mod verify;

pub use cpu::{Privilege, SystemCpu};
pub use deliver::{Event, EventKind, deliver};
pub use task::{Source, task_switch};

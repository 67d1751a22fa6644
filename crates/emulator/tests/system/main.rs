//! Segments, descriptor tables, far transfers, events and tasks, each success and each refusal in
//! its order.

mod deliver;
mod entry;
mod far;
mod iret;
mod load;
mod machine;
mod random;
mod ret;
mod task;
mod verify;

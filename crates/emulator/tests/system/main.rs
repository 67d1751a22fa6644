//! Segments, descriptor tables, far transfers, events and tasks, each success and each refusal in
//! its order.

mod deliver;
mod far;
mod iret;
mod load;
mod machine;
mod ret;
mod task;
mod verify;

//! Commands to the hypervisor inside the console input (the machine's COM1).
//!
//! Console bytes go as they are, except [`ESCAPE`], which is doubled. `ESCAPE FINISH` asks the hypervisor to
//! end the guest and report.

/// Starts a command; doubled, it is the console byte itself.
pub const ESCAPE: u8 = 0xff;

/// End the guest now and send the final report ([`GuestExit::Stopped`](crate::GuestExit::Stopped)).
pub const FINISH: u8 = 0x01;

//! Terminals.

use std::os::fd::{AsFd, AsRawFd};

use nix::Result;

nix::ioctl_write_int_bad!(set_controlling, libc::TIOCSCTTY);

/// Makes a terminal the controlling one of this session, which must have none yet.
pub fn make_controlling(terminal: impl AsFd) -> Result<()> {
    // SAFETY: TIOCSCTTY takes a plain number (0: do not steal the terminal from another session).
    unsafe { set_controlling(terminal.as_fd().as_raw_fd(), 0) }.map(drop)
}

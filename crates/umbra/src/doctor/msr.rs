//! Model-specific registers, through the kernel module `msr`.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

/// Reads the MSRs of the first CPU.
#[derive(Debug)]
pub struct Msrs(File);

impl Msrs {
    /// Opens the device for reading.
    ///
    /// # Errors
    /// Why it cannot be read, and how it could, in a clause.
    pub fn open() -> Result<Msrs, String> {
        File::open("/dev/cpu/0/msr").map(Msrs).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                String::from("/dev/cpu/0/msr is not there; run `modprobe msr` as root and try again as root")
            }
            ErrorKind::PermissionDenied => {
                String::from("/dev/cpu/0/msr is for root; run `sudo umbra doctor`")
            }
            _ => {
                format!("/dev/cpu/0/msr cannot be opened ({error}); run `modprobe msr` as root and try again")
            }
        })
    }

    /// The value of a register.
    ///
    /// # Errors
    /// The CPU does not have it, or a hypervisor below does not show it.
    pub fn read(&self, register: u32) -> Result<u64, String> {
        let mut bytes = [0; 8];
        let read = self.0.read_exact_at(&mut bytes, u64::from(register));
        read.map_err(|error| format!("MSR {register:#x} cannot be read ({error})"))?;
        Ok(u64::from_le_bytes(bytes))
    }
}

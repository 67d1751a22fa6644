//! Physical memory above the image, which lies at the same linear addresses.

/// Where tests may use memory: from here on.
pub const START: u32 = 0x40_0000;
/// The end of what this kernel maps to itself.
pub const END: u32 = 0x100_0000;

fn checked(address: u32, bytes: u32) -> usize {
    let low = (0x9000..0xb000).contains(&address) || (0x1_0000..0x1_1000).contains(&address);
    assert!(low || (START..=END - bytes).contains(&address), "{address:#x} is not test memory");
    address as usize
}

/// Reads four bytes.
pub fn read(address: u32) -> u32 {
    // SAFETY: it is test memory.
    unsafe { (checked(address, 4) as *const u32).read_volatile() }
}

/// Writes four bytes.
pub fn write(address: u32, value: u32) {
    // SAFETY: it is test memory.
    unsafe { (checked(address, 4) as *mut u32).write_volatile(value) }
}

/// Writes one byte.
pub fn write_byte(address: u32, value: u8) {
    // SAFETY: it is test memory.
    unsafe { (checked(address, 1) as *mut u8).write_volatile(value) }
}

/// Writes two bytes.
pub fn write_half(address: u32, value: u16) {
    // SAFETY: it is test memory.
    unsafe { (checked(address, 2) as *mut u16).write_volatile(value) }
}

/// Reads four or eight bytes, if all of them are test memory.
pub fn entry(address: u64, bytes: u64) -> Option<u64> {
    let low = u32::try_from(address).ok().filter(|low| (START..END).contains(low))?;
    let first = u64::from(read(low));
    Some(if bytes == 8 { first | u64::from(read(low + 4)) << 32 } else { first })
}

//! Out of long mode and back.

use super::frames::Frame;

unsafe extern "C" {
    fn unpaged_exchange(address: u32, value: u32) -> u32;
    fn unpaged_read_under(address: u32, cr3: u32, cr4_off: u32) -> u32;
}

/// Turns paging off, and with it long mode; exchanges the low half of word `index` of `frame` at
/// its physical address; turns paging on again with the same CR3. Returns what stood there.
pub fn exchange(frame: Frame, index: usize, value: u32) -> u32 {
    assert!(index < 512, "a frame has 512 words");
    let address = frame.address() as u32 + 8 * index as u32;
    // SAFETY: image and stack lie at their physical addresses; CR0.PG comes back before the return;
    // the word is test memory, below 4 GiB.
    unsafe { unpaged_exchange(address, value) }
}

/// Turns paging off, loads CR3 with `cr3`, switches CR4.PAE off unless `pae`, and reads the word at
/// the physical address `address`; then all is as it was.
pub fn read_under(address: u32, cr3: u32, pae: bool) -> u32 {
    const PAE: u32 = 1 << 5;
    // SAFETY: image and stack lie at their physical addresses, where nothing needs CR3 while paging
    // is off; CR3, CR4 and CR0 come back before the return. The word is only read.
    unsafe { unpaged_read_under(address, cr3, if pae { 0 } else { PAE }) }
}

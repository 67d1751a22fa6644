//! PCI configuration mechanism 1 in front of a bus that has nothing but its host bridge.
//!
//! Software finds the mechanism by reading back what it wrote to CONFIG_ADDRESS, and trusts it once
//! a host bridge answers. The mechanism forwards accesses to CONFIG_DATA only while the enable bit
//! is set; where no function answers, the read ends in a master abort, all ones (PCI Local Bus
//! Specification 3.0, "Software Generation of Configuration Transactions").

/// The CONFIG_ADDRESS register, and the host bridge behind it.
#[derive(Default)]
pub(crate) struct ConfigMechanism1 {
    address: u32,
}

/// The enable bit, bus, device, function and register; the rest reads zero.
const IMPLEMENTED: u32 = 0x80ff_fffc;
const ENABLE: u32 = 1 << 31;

/// Bus, device and function of the host bridge: all zero.
const HOST_BRIDGE: u32 = 0;

/// The host bridge's registers: "Type 00h Configuration Space Header". All are read-only, as there
/// is nothing to configure; those beyond are zero.
const HEADER: [u32; 4] = [
    // QEMU's generic host bridge: no operating system knows errata of it.
    0x0008_1b36,
    // Command: memory space and bus master, hard-wired. Status: medium DEVSEL, fast back-to-back.
    0x0280_0006,
    // Class: bridge device, host bridge. Revision 0.
    0x0600_0000,
    // A single function with a header of type 0.
    0,
];

impl ConfigMechanism1 {
    pub(crate) fn address(&self) -> u32 {
        self.address
    }

    /// A write of all four bytes of CONFIG_ADDRESS; narrower ones do not reach the register.
    pub(crate) fn set_address(&mut self, value: u32) {
        self.address = value & IMPLEMENTED;
    }

    /// A byte of CONFIG_DATA, from 0xcfc on.
    pub(crate) fn read(&self, byte: u16) -> u8 {
        let function = self.address >> 8 & 0xffff;
        if self.address & ENABLE == 0 || function != HOST_BRIDGE {
            return u8::MAX;
        }
        let register = HEADER.get(usize::from(self.address as u8 / 4)).copied().unwrap_or(0);
        register.to_le_bytes()[usize::from(byte % 4)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(address: u32, byte: u16) -> u8 {
        let mut pci = ConfigMechanism1::default();
        pci.set_address(address);
        pci.read(byte)
    }

    #[test]
    fn the_host_bridge_is_all_there_is() {
        let class =
            [0x80_00_00_08, 0x80_00_00_0b].map(|address| [1, 2, 3].map(|byte| read(address, byte)));
        assert_eq!(class, [[0, 0, 6]; 2], "the two lowest bits of the address are zero");
        assert_eq!([0, 1].map(|byte| read(ENABLE, byte)), [0x36, 0x1b]);
        for function in 1..=0xffff {
            assert_eq!(read(ENABLE | function << 8, 0), 0xff, "{function:#x}");
        }
        assert_eq!(read(ENABLE | 0x10, 0), 0, "no base address");
        assert_eq!(read(ENABLE | 0xfc, 3), 0);
    }

    #[test]
    fn nothing_answers_without_the_enable_bit() {
        assert_eq!(read(0x08, 3), 0xff);
    }
}

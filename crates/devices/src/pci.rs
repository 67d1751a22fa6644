//! PCI configuration mechanism 1 in front of an empty bus.
//!
//! Software finds the mechanism by reading back what it wrote to CONFIG_ADDRESS; every configuration read then
//! ends in a master abort, all ones (PCI Local Bus Specification 3.0, 3.2.2.3.2 "Software Generation of
//! Configuration Transactions").

/// The CONFIG_ADDRESS register.
#[derive(Default)]
pub(crate) struct ConfigMechanism1 {
    address: u32,
}

/// The enable bit, bus, device, function and register; the rest reads zero.
const IMPLEMENTED: u32 = 0x80ff_fffc;

impl ConfigMechanism1 {
    pub(crate) fn address(&self) -> u32 {
        self.address
    }

    pub(crate) fn set_address(&mut self, value: u32) {
        self.address = value & IMPLEMENTED;
    }
}

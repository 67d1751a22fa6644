//! QEMU's firmware configuration device, as far as a guest asks it for memory and CPUs.
//!
//! The selector is a word at port 0x510, the data a stream of bytes at port 0x511 (QEMU, "QEMU
//! Firmware Configuration (fw_cfg) Device"). There is no DMA interface and no file.

use alloc::vec::Vec;

use crate::config::RamLayout;

const KEY_SIGNATURE: u16 = 0x00;
const KEY_ID: u16 = 0x01;
const KEY_RAM_SIZE: u16 = 0x03;
const KEY_CPU_COUNT: u16 = 0x05;
const KEY_MAX_CPUS: u16 = 0x0f;
/// The number of files in big endian, then their entries. Zero bytes, as for every unknown key, say
/// it is empty.
#[cfg(test)]
const KEY_FILE_DIRECTORY: u16 = 0x19;

/// The traditional interface is there, DMA is not.
const ID_TRADITIONAL: u32 = 1 << 0;
const CPUS: u16 = 1;

pub(crate) struct FwCfg {
    ram_bytes: u64,
    /// What remains to be read of the selected item, the next byte last; zeros follow.
    rest: Vec<u8>,
}

impl FwCfg {
    pub(crate) fn new(ram: &RamLayout) -> FwCfg {
        let mut fw_cfg = FwCfg { ram_bytes: ram.total(), rest: Vec::new() };
        fw_cfg.select(KEY_SIGNATURE);
        fw_cfg
    }

    pub(crate) fn select(&mut self, key: u16) {
        self.rest.clear();
        match key {
            KEY_SIGNATURE => self.rest.extend(b"QEMU"),
            KEY_ID => self.rest.extend(ID_TRADITIONAL.to_le_bytes()),
            KEY_RAM_SIZE => self.rest.extend(self.ram_bytes.to_le_bytes()),
            KEY_CPU_COUNT | KEY_MAX_CPUS => self.rest.extend(CPUS.to_le_bytes()),
            _ => {}
        }
        self.rest.reverse();
    }

    pub(crate) fn read(&mut self) -> u8 {
        self.rest.pop().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item<const N: usize>(fw_cfg: &mut FwCfg, key: u16) -> [u8; N] {
        fw_cfg.select(key);
        core::array::from_fn(|_| fw_cfg.read())
    }

    #[test]
    fn items_read_as_qemu_has_them() {
        let mut fw_cfg = FwCfg::new(&RamLayout { below_4g: 0x1000_0000, above_4g: 0x2_0000_0000 });
        assert_eq!(&item::<4>(&mut fw_cfg, KEY_SIGNATURE), b"QEMU");
        assert_eq!(u32::from_le_bytes(item(&mut fw_cfg, KEY_ID)), 1);
        assert_eq!(u64::from_le_bytes(item(&mut fw_cfg, KEY_RAM_SIZE)), 0x2_1000_0000);
        assert_eq!(u16::from_le_bytes(item(&mut fw_cfg, KEY_CPU_COUNT)), 1);
        assert_eq!(u16::from_le_bytes(item(&mut fw_cfg, KEY_MAX_CPUS)), 1);
        assert_eq!(item::<6>(&mut fw_cfg, KEY_FILE_DIRECTORY), [0; 6]);
        assert_eq!(&item::<6>(&mut fw_cfg, KEY_SIGNATURE), b"QEMU\0\0");
    }
}

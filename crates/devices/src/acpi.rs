//! The ACPI tables that describe the platform.
//!
//! ACPI Specification 6.5, chapter 5 "ACPI Software Programming Model". Nothing is described that
//! is not there: no keyboard controller. The VGA needs no description, only no flag that denies it.
//! The PCI bus is left out, too: it has only its host bridge, so there is nothing to enumerate, and
//! neither resources nor interrupts to hand out.

use alloc::vec;
use alloc::vec::Vec;

use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, Package, ResourceTemplate, Scope};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, Checksum};

use crate::interrupts::Irq;
use crate::ioapic::IOAPIC_GPA;
use crate::lapic::LAPIC_DEFAULT_GPA;
use crate::pm::{PM_TIMER_PORT, PM1A_CONTROL_PORT, PM1A_EVENT_PORT, SLEEP_TYPE_S5};
use crate::rtc;

/// A good place for [`acpi_tables()`]: guests search the BIOS area from here for the RSDP.
pub const ACPI_TABLES_GPA: u64 = 0xe_0000;

const OEM_ID: [u8; 6] = *b"UMBRA ";
const OEM_TABLE_ID: [u8; 8] = *b"UMBRAPC ";
const OEM_REVISION: u32 = 1;

/// Table header: signature to creator revision.
const HEADER: u32 = 36;

/// The tables as one image to be copied to `base`; the RSDP is its first bytes, less than 4 KiB
/// follow.
///
/// The guest's memory map must not show the image as usable memory. For the guest to find the RSDP
/// by itself, `base` must be in 0xe0000..0xff000.
///
/// # Panics
/// If `base` is not a multiple of 64 below 2 GiB.
pub fn acpi_tables(base: u64) -> Vec<u8> {
    assert!(base.is_multiple_of(64) && base < 1 << 31, "ACPI tables cannot stand at {base:#x}");
    let mut image = Image { base, bytes: vec![0; Rsdp::len()] };
    let facs = image.append(&FACS::new(), 64);
    let dsdt = image.append(&dsdt(), 16);
    let fadt = image.append(&fadt(facs, dsdt), 16);
    let madt = image.append(&madt(), 16);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = image.append(&xsdt, 16);
    let mut rsdt = Sdt::new(*b"RSDT", HEADER, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    rsdt.append_slice(&[fadt as u32, madt as u32].map(u32::to_le_bytes).concat());
    let rsdt = image.append(&rsdt, 16);
    let rsdp = rsdp(rsdt, xsdt);
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    image.bytes
}

/// The RSDP with an RSDT too, which is all that small kernels look at.
fn rsdp(rsdt: u64, xsdt: u64) -> Vec<u8> {
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    rsdp[16..20].copy_from_slice(&(rsdt as u32).to_le_bytes());
    for (checksum, end) in [(8, 20), (32, rsdp.len())] {
        let mut sum = Checksum::default();
        sum.append(&rsdp[..end]);
        sum.delete(&[rsdp[checksum]]);
        rsdp[checksum] = sum.value();
    }
    rsdp
}

/// Tables one after the other.
struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and returns its gpa.
    fn append(&mut self, table: &dyn Aml, align: usize) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(align), 0);
        let gpa = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        gpa
    }
}

fn io_register(port: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8 * bytes, 0, access, port.into())
}

fn fadt(facs: u64, dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        // Below 4 GiB the 32-bit fields are the ones that every guest reads.
        .firmware_ctrl_32(facs as u32)
        .dsdt_32(dsdt as u32)
        // HLT is the only idle state. The buttons are not fixed hardware, that is: there are none.
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.sci_int = u16::from(Irq::SCI.line()).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVENT_PORT).into();
    fadt.pm1a_cnt_blk = u32::from(PM1A_CONTROL_PORT).into();
    fadt.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    fadt.x_pm1a_evt_blk = io_register(PM1A_EVENT_PORT, 4, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io_register(PM1A_CONTROL_PORT, 2, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = io_register(PM_TIMER_PORT, 4, AccessSize::DwordAccess);
    // Above these there is no C2 and no C3.
    fadt.p_lvl2_lat = 0xffff.into();
    fadt.p_lvl3_lat = 0xffff.into();
    fadt.century = rtc::CENTURY;
    fadt.iapc_boot_arch = BOOT_LEGACY_DEVICES.into();
    fadt.reset_reg = io_register(0xcf9, 1, AccessSize::ByteAccess);
    fadt.reset_value = 0x06;
    fadt.finalize()
}

/// IAPC_BOOT_ARCH: devices on an ISA bus (the UART); the 8042 bit is left out.
const BOOT_LEGACY_DEVICES: u16 = 1 << 0;

/// Both 8259s are there too.
const MADT_PCAT_COMPAT: u32 = 1;

fn madt() -> impl Aml {
    let mut madt = Sdt::new(*b"APIC", HEADER + 8, 5, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.write_u32(36, LAPIC_DEFAULT_GPA as u32);
    madt.write_u32(40, MADT_PCAT_COMPAT);
    let mut structures = Vec::new();
    ProcessorLocalApic::new(0, 0, EnabledStatus::Enabled).to_aml_bytes(&mut structures);
    IoApic::new(0, IOAPIC_GPA as u32, 0).to_aml_bytes(&mut structures);
    structures.extend(interrupt_override(Irq::TIMER, CONFORMS));
    structures.extend(interrupt_override(Irq::SCI, ACTIVE_HIGH_LEVEL));
    structures.extend(LOCAL_APIC_NMI);
    madt.append_slice(&structures);
    madt
}

/// MPS INTI flags: polarity in bits 1:0, trigger mode in bits 3:2.
const CONFORMS: u16 = 0;
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;

/// An interrupt source override structure of the MADT.
fn interrupt_override(irq: Irq, flags: u16) -> [u8; 10] {
    let [low, high] = flags.to_le_bytes();
    [2, 10, 0, irq.line(), irq.pin(), 0, 0, 0, low, high]
}

/// A local APIC NMI structure of the MADT: LINT1 of every processor, flags conforming to the bus.
const LOCAL_APIC_NMI: [u8; 6] = [4, 6, 0xff, 0, 0, 1];

fn dsdt() -> impl Aml {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut aml = Vec::new();
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_S5, &0u8, &0u8, &0u8]))
        .to_aml_bytes(&mut aml);
    Scope::new(
        "_SB_".into(),
        vec![
            &Device::new(
                "CPU0".into(),
                vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &0u8)],
            ),
            &Device::new(
                "COM1".into(),
                vec![
                    &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                    &Name::new("_UID".into(), &1u8),
                    &Name::new(
                        "_CRS".into(),
                        &ResourceTemplate::new(vec![
                            &IO::new(0x3f8, 0x3f8, 1, 8),
                            &Interrupt::new(true, true, false, false, Irq::COM1.pin().into()),
                        ]),
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(&mut aml);
    dsdt.append_slice(&aml);
    dsdt
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = ACPI_TABLES_GPA;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// The table at a gpa, up to its length; it must fit and sum up to zero.
    fn table(image: &[u8], gpa: u64) -> &[u8] {
        let start = (gpa - BASE) as usize;
        let length = number(&image[start + 4..start + 8]) as usize;
        let table = &image[start..start + length];
        if &table[..4] != b"FACS" {
            assert_eq!(sum(table), 0, "{:?}", &table[..4]);
        }
        table
    }

    #[test]
    fn every_table_is_reached_and_sums_up() {
        let image = acpi_tables(BASE);
        assert!(image.len() < 4096);
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!((sum(&image[..20]), sum(&image[..36])), (0, 0));
        let xsdt = table(&image, number(&image[24..32]));
        let rsdt = table(&image, number(&image[16..20]));
        assert!(rsdt[36..].chunks(4).map(number).eq(xsdt[36..].chunks(8).map(number)));
        let entries: Vec<&[u8]> =
            xsdt[36..].chunks(8).map(|entry| table(&image, number(entry))).collect();
        assert_eq!(entries.iter().map(|entry| &entry[..4]).collect::<Vec<_>>(), [b"FACP", b"APIC"]);
        let fadt = entries[0];
        let facs = number(&fadt[36..40]);
        assert_eq!((&table(&image, facs)[..4], facs % 64), (&b"FACS"[..], 0));
        assert_eq!(&table(&image, number(&fadt[40..44]))[..4], b"DSDT");
    }

    #[test]
    fn fadt_names_the_ports() {
        let image = acpi_tables(BASE);
        let fadt = table(&image, number(&image[24..32]));
        let fadt = table(&image, number(&fadt[36..44]));
        assert_eq!(number(&fadt[46..48]), 9, "SCI");
        assert_eq!(number(&fadt[48..52]), 0, "SMI_CMD");
        assert_eq!([56, 64, 76].map(|at| number(&fadt[at..at + 4])), [0x600, 0x604, 0x608]);
        assert_eq!([88, 89, 91].map(|at| fadt[at]), [4, 2, 4]);
        assert_eq!(fadt[108], 0x32, "century");
        assert_eq!(&fadt[116..129], &[1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 6], "reset");
    }

    #[test]
    fn madt_structures_fill_the_table() {
        let madt = madt();
        let mut bytes = Vec::new();
        madt.to_aml_bytes(&mut bytes);
        let (mut rest, mut kinds) = (&bytes[44..], Vec::new());
        while let [kind, length, ..] = *rest {
            kinds.push(kind);
            rest = &rest[usize::from(length)..];
        }
        assert_eq!(kinds, [0, 1, 2, 2, 4]);
        assert!(rest.is_empty());
    }
}

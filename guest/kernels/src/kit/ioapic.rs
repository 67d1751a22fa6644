//! The I/O APIC (82093AA data sheet).

const BASE: u64 = 0xfec0_0000;

/// Redirection entry: masked.
pub const MASKED: u32 = 1 << 16;

/// The pin that the PIT's line comes in at on PCs with ACPI.
pub const PIT_PIN: u8 = 2;

fn select(index: u8) {
    // SAFETY: mapped, and device memory of nobody else.
    unsafe { (BASE as *mut u32).write_volatile(index.into()) };
}

/// Reads an indexed register.
pub fn read(index: u8) -> u32 {
    select(index);
    // SAFETY: as in `select`.
    unsafe { ((BASE + 0x10) as *const u32).read_volatile() }
}

/// Writes an indexed register.
pub fn write(index: u8, value: u32) {
    select(index);
    // SAFETY: as in `select`.
    unsafe { ((BASE + 0x10) as *mut u32).write_volatile(value) };
}

/// Sends pin `pin` to `vector` of the APIC with the ID 0, edge-triggered; or masks it.
pub fn route(pin: u8, vector: Option<u8>) {
    let register = 0x10 + 2 * pin;
    write(register + 1, 0);
    write(register, vector.map_or(MASKED, u32::from));
}

/// Sends pin `pin` as an NMI to the APIC with the ID 0, edge-triggered.
pub fn route_nmi(pin: u8) {
    write(0x11 + 2 * pin, 0);
    write(0x10 + 2 * pin, 4 << 8);
}

/// Pins.
pub fn pins() -> u32 {
    (read(1) >> 16 & 0xff) + 1
}

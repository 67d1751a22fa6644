//! Breakpoints on data and ports (SDM, "Debug Registers"), for instructions that the hypervisor
//! carries out.
//!
//! Only where the CPU itself does the access does it look at DR0 to DR3. (Breakpoints on
//! instructions are met before anything exits.)

/// What an instruction does that a breakpoint may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// A read of memory.
    Read,
    /// A write to memory.
    Write,
    /// IN or OUT; the address is the port.
    Io,
}

/// The debug registers as far as they say what to wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breakpoints {
    addresses: [u64; 4],
    /// DR7; breakpoints on ports taken out unless CR4.DE is set.
    control: u64,
}

/// Any of L0 to L3 and G0 to G3.
const ENABLED: u64 = 0xff;

/// DR7's R/W field of breakpoint `number`.
const fn kind(control: u64, number: usize) -> u64 {
    control >> (16 + 4 * number) & 3
}

impl Breakpoints {
    /// Whether DR7 enables any breakpoint at all: if not, nothing else needs to be read.
    pub const fn enabled(dr7: u64) -> bool {
        dr7 & ENABLED != 0
    }

    /// From DR0 to DR3, DR7 and CR4.DE.
    pub fn new(addresses: [u64; 4], dr7: u64, extensions: bool) -> Breakpoints {
        let mut control = dr7;
        for number in 0..4 {
            // Without CR4.DE the encoding is undefined.
            if kind(dr7, number) == 2 && !extensions {
                control &= !(3 << (2 * number));
            }
        }
        Breakpoints { addresses, control }
    }

    /// L or G of breakpoint `number`.
    const fn is_enabled(&self, number: usize) -> bool {
        self.control >> (2 * number) & 3 != 0
    }

    /// Whether any waits for data or ports: such traps come behind an instruction, as a single step
    /// does.
    pub fn can_trap(&self) -> bool {
        (0..4).any(|number| self.is_enabled(number) && kind(self.control, number) != 0)
    }

    /// The breakpoints on the instruction at `address`: bits B0 to B3 of DR6.
    pub fn on_instruction(&self, address: u64) -> u8 {
        (0..4).fold(0, |met, number| {
            let on = self.is_enabled(number) && kind(self.control, number) == 0;
            met | if on && self.addresses[number] == address { 1 << number } else { 0 }
        })
    }

    /// The breakpoints that an access of `length` bytes at `address` meets: bits B0 to B3 of DR6.
    pub fn met(&self, what: Watched, address: u64, length: u64) -> u8 {
        let mut met = 0;
        if !Breakpoints::enabled(self.control) {
            return met;
        }
        for (number, &at) in self.addresses.iter().enumerate() {
            let waits = self.is_enabled(number);
            let fits = match kind(self.control, number) {
                1 => what == Watched::Write,
                2 => what == Watched::Io,
                3 => matches!(what, Watched::Read | Watched::Write),
                _ => false,
            };
            let covered = [1, 2, 8, 4][(self.control >> (18 + 4 * number) & 3) as usize];
            // The low bits of the address do not count.
            let at = at & !(covered - 1);
            let overlaps = at.wrapping_sub(address) < length || address.wrapping_sub(at) < covered;
            if waits && fits && overlaps {
                met |= 1 << number;
            }
        }
        met
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0xffff_8000_0000_1000;

    /// Breakpoint `number`, enabled by its L bit.
    fn dr7(number: usize, kind: u64, length: u64) -> u64 {
        1 << (2 * number) | kind << (16 + 4 * number) | length << (18 + 4 * number)
    }

    #[test]
    fn those_on_data_and_ports_can_trap() {
        for (kind, extensions, expected) in [
            (0, true, false),
            (1, false, true),
            (2, true, true),
            (2, false, false),
            (3, false, true),
        ] {
            let breakpoints = Breakpoints::new([0, 5, 0, 0], dr7(1, kind, 0), extensions);
            assert_eq!(breakpoints.can_trap(), expected, "kind {kind}");
        }
        assert!(!Breakpoints::new([0; 4], 3 << 16, true).can_trap(), "not enabled");
    }

    #[test]
    fn kinds_of_access_are_told_apart() {
        let all = [Watched::Read, Watched::Write, Watched::Io];
        for (kind, expected) in [(0, [0, 0, 0]), (1, [0, 2, 0]), (2, [0, 0, 2]), (3, [2, 2, 0])] {
            let breakpoints = Breakpoints::new([0, AT, 0, 0], dr7(1, kind, 0), true);
            assert_eq!(all.map(|what| breakpoints.met(what, AT, 1)), expected, "kind {kind}");
        }
    }

    #[test]
    fn instructions_are_met_at_their_first_byte() {
        let control = dr7(0, 0, 0) | dr7(1, 1, 0) | dr7(3, 0, 0);
        let breakpoints = Breakpoints::new([AT, AT, AT, AT + 1], control, false);
        assert_eq!([AT - 1, AT, AT + 1].map(|at| breakpoints.on_instruction(at)), [0, 1, 8]);
        assert_eq!(Breakpoints::default().on_instruction(0), 0);
    }

    #[test]
    fn one_common_byte_is_enough() {
        for (field, covered) in [(0, 1), (1, 2), (2, 8), (3, 4)] {
            let breakpoints = Breakpoints::new([AT, 0, 0, 0], dr7(0, 1, field), false);
            for length in [1, 2, 4, 8, 16] {
                for address in AT - 20..AT + 20 {
                    let common =
                        (address..address + length).any(|byte| (AT..AT + covered).contains(&byte));
                    let met = breakpoints.met(Watched::Write, address, length);
                    assert_eq!(
                        met,
                        u8::from(common),
                        "{length} bytes at {address:#x}, {covered} covered"
                    );
                }
            }
        }
    }

    #[test]
    fn the_address_is_aligned_to_the_length() {
        let breakpoints = Breakpoints::new([AT + 3, 0, 0, 0], dr7(0, 3, 3), false);
        assert_eq!(breakpoints.met(Watched::Read, AT, 1), 1);
        assert_eq!(breakpoints.met(Watched::Read, AT + 4, 1), 0);
    }

    #[test]
    fn several_are_met_at_once_and_those_that_are_off_never() {
        let control = dr7(0, 1, 0) | dr7(2, 3, 1) | dr7(3, 1, 0) & !ENABLED | 2 << 2 | 1 << 20;
        let breakpoints = Breakpoints::new([AT, AT, AT, AT], control, false);
        assert_eq!(breakpoints.met(Watched::Write, AT, 4), 0b0111);
        assert!(Breakpoints::enabled(control) && !Breakpoints::enabled(0x400 | 0xffff << 16));
    }

    #[test]
    fn ports_need_the_extensions() {
        let met = |extensions| {
            Breakpoints::new([0x80, 0, 0, 0], dr7(0, 2, 1), extensions).met(Watched::Io, 0x81, 1)
        };
        assert_eq!((met(false), met(true)), (0, 1));
    }
}

//! The table holds together, and registers do what it says.

use umbra_msrs::{
    Answer, Cpu, Markdown, Refused, Registers, Source, TABLE, Treatment, Vendor, row,
};

const SKYLAKE: Cpu =
    Cpu { vendor: Vendor::Intel, family: 6, model: 0x55, maxphyaddr: 40, ratio: 20 };
const PENRYN: Cpu = Cpu { model: 0x17, ..SKYLAKE };
const RYZEN: Cpu = Cpu { vendor: Vendor::Amd, family: 0x17, model: 1, ..SKYLAKE };
const CPUS: [Cpu; 3] = [SKYLAKE, PENRYN, RYZEN];

/// All registers that some row speaks of, and their neighbours.
fn numbers() -> impl Iterator<Item = u32> {
    TABLE.iter().flat_map(|row| row.first.wrapping_sub(1)..=row.last + 1)
}

#[test]
fn each_register_of_a_cpu_has_one_row_and_the_lookup_finds_it() {
    assert!(TABLE.is_sorted_by_key(|row| row.first), "the lookup needs an order");
    for cpu in CPUS {
        let mut registers = Registers::new(&cpu);
        for msr in numbers() {
            let rows: Vec<_> =
                TABLE.iter().filter(|row| row.is_on(&cpu) && row.contains(msr)).collect();
            assert!(rows.len() <= 1, "{msr:#x}: {rows:?}");
            let found = row(msr, &cpu).map(|row| row.treatment);
            assert_eq!(found, rows.first().map(|row| row.treatment));
            let read = registers.read(msr);
            match found {
                None | Some(Treatment::Hidden) => {
                    assert_eq!(read, Err(Refused), "{msr:#x}");
                    assert_eq!(registers.write(msr, 0), Err(Refused), "{msr:#x}");
                }
                Some(Treatment::Ignored) => {
                    assert_eq!(read, Err(Refused), "{msr:#x}");
                    assert_eq!(registers.write(msr, 7), Ok(Answer::Done(())), "{msr:#x}");
                }
                Some(Treatment::Shown(source)) => {
                    assert_eq!(read, Ok(Answer::Ask(source)), "{msr:#x}")
                }
                Some(Treatment::Constant(value)) => {
                    assert_eq!(read, Ok(Answer::Done(value.on(&cpu))))
                }
                Some(Treatment::Stored { reset, .. }) => {
                    assert_eq!(read, Ok(Answer::Done(reset.on(&cpu))))
                }
            }
        }
    }
}

/// Each writable bit of a stored register holds, unless what it makes is refused; no other bit can
/// be changed.
#[test]
fn stored_registers_keep_what_may_be_written() {
    for cpu in CPUS {
        for row in TABLE.iter().filter(|row| row.is_on(&cpu)) {
            let Treatment::Stored { reset, check, dropped } = row.treatment else { continue };
            let (reset, writable) = (reset.on(&cpu), row.writable.on(&cpu));
            assert!(check.allows(reset), "{row}");
            for msr in row.registers() {
                let mut registers = Registers::new(&cpu);
                for bit in (0..64).map(|bit| 1 << bit) {
                    let value = reset ^ bit;
                    let (wanted, after) = match bit {
                        _ if bit & dropped != 0 => (Ok(Answer::Done(())), reset),
                        _ if bit & writable != 0 && check.allows(value) => {
                            (Ok(Answer::Done(())), value)
                        }
                        _ => (Err(Refused), reset),
                    };
                    assert_eq!(registers.write(msr, value), wanted, "{row} bit {bit:#x}");
                    assert_eq!(registers.value(msr), after, "{row} bit {bit:#x}");
                    assert_eq!(registers.write(msr, reset), Ok(Answer::Done(())));
                }
            }
        }
    }
}

#[test]
fn constants_take_no_other_value() {
    let mut registers = Registers::new(&SKYLAKE);
    assert_eq!(registers.write(0xfe, 0x508), Err(Refused), "IA32_MTRRCAP cannot be written");
    assert_eq!(
        registers.write(0x8b, 0),
        Ok(Answer::Done(())),
        "reading the revision begins with it"
    );
    assert_eq!(registers.read(0x8b), Ok(Answer::Done(1 << 32)));
    assert_eq!(registers.write(0x19c, 1 << 20), Err(Refused));
}

#[test]
fn flips_are_what_a_guest_sees() {
    let mut registers = Registers::new(&SKYLAKE);
    let flips = registers.flips(0x17a);
    assert_eq!((flips.kept, flips.refused), (7, !7));
    let flips = registers.flips(0x8b);
    assert_eq!((flips.kept, flips.refused), (0, 0), "all bits are dropped");
    let flips = registers.flips(0xfe);
    assert_eq!((flips.kept, flips.refused), (0, u64::MAX));
    assert_eq!(registers.read(0x17a), Ok(Answer::Done(0)), "flipped back");
}

#[test]
fn models_have_their_own() {
    let [skylake, penryn, ryzen] = CPUS.map(|cpu| Registers::new(&cpu));
    assert_eq!(penryn.read(0x40), Ok(Answer::Done(0)));
    assert_eq!(skylake.read(0x40), Err(Refused));
    assert_eq!(skylake.read(0x680), Ok(Answer::Done(0)));
    assert_eq!(ryzen.read(0x1a0), Err(Refused));
    assert_eq!(ryzen.read(0xc001_0015), Ok(Answer::Done(1 << 24)));
    assert_eq!(skylake.read(0xce), Ok(Answer::Done(20 << 8 | 20 << 40)));
    assert_eq!(skylake.read(0x1d9), Ok(Answer::Ask(Source::Hardware)));
}

#[test]
fn addresses_of_mtrrs_have_the_width_of_the_cpu() {
    for (maxphyaddr, bit) in [(36, 36), (40, 40), (52, 52)] {
        let mut registers = Registers::new(&Cpu { maxphyaddr, ..SKYLAKE });
        assert_eq!(registers.write(0x200, 1 << (bit - 1)), Ok(Answer::Done(())));
        assert_eq!(registers.write(0x200, 1 << bit), Err(Refused));
    }
}

#[test]
fn the_book_has_the_table() {
    let book = include_str!("../../../docs/book/src/msrs.md");
    assert!(
        book.contains(&Markdown.to_string()),
        "the table in docs/book/src/msrs.md is old: `cargo run -p umbra-msrs --example table` prints it"
    );
}

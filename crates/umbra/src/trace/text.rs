//! A trace for people: a line for each exit, and one for each thing that the MMU did in answer.

use std::fmt::Write;

use umbra_telemetry::ExitCause;
use umbra_telemetry::trace::{Exit, FILTER_NAMES, MmuEvent};

use super::symbols::{Place, Symbols};

/// The line over the exits.
pub const HEADING: &str =
    "        time   ticks  cause                          rip               cr3        about";

/// An exit; addresses of the kernel with their names, if there are symbols.
pub fn exit(exit: &Exit, symbols: Option<&Symbols>) -> String {
    let cause = exit.cause.map_or("(phase mark)", ExitCause::name);
    let mut line = format!(
        "{:>12} {:>7}  {cause:<29}  {:016x}  {:<9x}",
        exit.time, exit.ticks, exit.rip, exit.cr3
    );
    let (address, value) = names(exit.cause);
    let place = named(exit, symbols).map_or(String::new(), |place| format!(" ({place})"));
    for (name, value, place) in
        [(address, exit.address, place.as_str()), (value, exit.value, ""), ("gpa", exit.gpa, "")]
    {
        if let Some(value) = value {
            write!(line, "  {name} {value:#x}{place}").expect("a text takes everything");
        }
    }
    if let Some(vector) = exit.delivers {
        write!(line, "  delivers {}", vector_name(vector)).expect("a text takes everything");
    }
    if let Some(place) = symbols.and_then(|symbols| symbols.place(exit.rip)) {
        write!(line, "  by {place}").expect("a text takes everything");
    }
    line
}

/// What an exit is about, if that is a guest-virtual address with a name.
pub fn named<'a>(exit: &Exit, symbols: Option<&'a Symbols>) -> Option<Place<'a>> {
    let (address, _) = names(exit.cause);
    symbols?.place(exit.address.filter(|_| address == "gva")?)
}

/// What the MMU did in answer to the exit below.
pub fn mmu(event: MmuEvent) -> String {
    format!("{:>20}  {}", "", describe(event))
}

/// What the MMU did, in words.
pub fn describe(event: MmuEvent) -> String {
    let page = |table: u64, level: u8| {
        let (kind, level) = match level & MmuEvent::IDENTITY {
            0 => ("table", level),
            _ => ("identity page", level & !MmuEvent::IDENTITY),
        };
        format!("{kind} {:#x}, level {level}", table << 12)
    };
    match event {
        MmuEvent::Built { table, level } => format!("built {}", page(table, level)),
        MmuEvent::Zapped { table, level, reclaimed: false } => {
            format!("zapped {}", page(table, level))
        }
        MmuEvent::Zapped { table, level, reclaimed: true } => {
            format!("reclaimed {}", page(table, level))
        }
        MmuEvent::Split(gfn) => format!("split the large page at {:#x}", gfn << 12),
        MmuEvent::Flushed => "flushed everything".into(),
        MmuEvent::Unsynced(gfn) => format!("table {:#x} goes unsync", gfn << 12),
        MmuEvent::Resynced(gfn) => format!("tracks table {:#x} again", gfn << 12),
        MmuEvent::Detached(gfn) => format!("detached table {:#x}", gfn << 12),
        MmuEvent::Attached { table, level, changed } => {
            format!("attached {}, {changed} entries had changed", page(table, level))
        }
        MmuEvent::RootMoved(gfn) => format!("moved the root of table {:#x}", gfn << 12),
        MmuEvent::Filter(number) => match FILTER_NAMES.get(usize::from(number)) {
            Some(name) => format!("filters page faults by {name}"),
            None => format!("filters page faults by number {number}"),
        },
    }
}

/// What address and value of an exit are.
fn names(cause: Option<ExitCause>) -> (&'static str, &'static str) {
    match cause {
        Some(ExitCause::Io) | None => ("port", "value"),
        Some(ExitCause::Msr) => ("msr", "value"),
        Some(ExitCause::Cpuid) => ("leaf", "subleaf"),
        Some(ExitCause::Invlpg) => ("gva", "kind"),
        Some(ExitCause::Cr0 | ExitCause::Cr3Read | ExitCause::Cr3Write | ExitCause::Cr4) => {
            ("cr", "value")
        }
        Some(_) => ("gva", "pfec"),
    }
}

fn vector_name(vector: u8) -> String {
    match vector {
        1 => "#DB".into(),
        2 => "NMI".into(),
        3 => "#BP".into(),
        6 => "#UD".into(),
        8 => "#DF".into(),
        12 => "#SS".into(),
        13 => "#GP".into(),
        14 => "#PF".into(),
        17 => "#AC".into(),
        vector => format!("vector {vector:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_say_what_they_are_about() {
        let mut one = Exit {
            time: 1_234,
            ticks: 800,
            vcpu: 0,
            rip: 0xffff_ffff_8100_0000,
            cr3: 0x1f00_0000,
            cause: Some(ExitCause::HostFaultTableWrite),
            address: Some(0xffff_8880_0012_3ff8),
            value: Some(3),
            gpa: Some(0x12_3ff8),
            delivers: Some(14),
        };
        assert_eq!(
            exit(&one, None),
            "        1234     800  host_fault_table_write         ffffffff81000000  1f000000   gva \
             0xffff888000123ff8  pfec 0x3  gpa 0x123ff8  delivers #PF"
        );
        let symbols =
            "ffff888000123000 B table\nffffffff80000000 T fault\nffffffff82000000 B _end\n";
        let symbols = Symbols::parse(symbols).unwrap();
        let line = exit(&one, Some(&symbols));
        assert!(line.contains("gva 0xffff888000123ff8 (table+0xff8)  pfec 0x3"), "{line}");
        assert!(line.ends_with("  delivers #PF  by fault+0x1000000"), "{line}");
        one.cause = Some(ExitCause::Msr);
        assert!(exit(&one, Some(&symbols)).contains("msr 0xffff888000123ff8  value 0x3"));
    }

    #[test]
    fn tables_and_identity_pages_differ() {
        assert_eq!(
            mmu(MmuEvent::Built { table: 0x123, level: 1 }).trim(),
            "built table 0x123000, level 1"
        );
        assert!(
            describe(MmuEvent::Zapped { table: 0, level: 0x82, reclaimed: true })
                .contains("identity page 0x0, level 2")
        );
        assert_eq!(
            describe(MmuEvent::Attached { table: 1, level: 1, changed: 3 }),
            "attached table 0x1000, level 1, 3 entries had changed"
        );
        assert_eq!(describe(MmuEvent::Filter(2)), "filters page faults by user");
        assert_eq!(describe(MmuEvent::Filter(200)), "filters page faults by number 200");
    }
}

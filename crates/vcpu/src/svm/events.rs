//! Events as EVENTINJ and EXITINTINFO hold them (APM, "Event Injection").

use crate::event::{Event, EventKind};

const VECTOR: u64 = 0xff;
const TYPE_SHIFT: u32 = 8;
const TYPE_INTERRUPT: u64 = 0;
const TYPE_NMI: u64 = 2;
const TYPE_EXCEPTION: u64 = 3;
const ERROR_CODE: u64 = 1 << 11;
const VALID: u64 = 1 << 31;
const ERROR_CODE_SHIFT: u32 = 32;

/// #BP and #OF, which only INT3 and INTO raise.
const BREAKPOINT: u8 = 3;
const OVERFLOW: u8 = 4;

/// Whether the field holds an event.
pub fn is_valid(field: u64) -> bool {
    field & VALID != 0
}

/// The event in EXITINTINFO that is to be delivered again, if it holds one. What an instruction has
/// raised on purpose it raises again when it runs again: SVM tells its length to nobody, and RIP is
/// still before it.
pub fn interrupted(field: u64) -> Option<Event> {
    if !is_valid(field) {
        return None;
    }
    let vector = (field & VECTOR) as u8;
    let kind = match field >> TYPE_SHIFT & 7 {
        TYPE_INTERRUPT => EventKind::Interrupt,
        TYPE_NMI => EventKind::Nmi,
        TYPE_EXCEPTION if !matches!(vector, BREAKPOINT | OVERFLOW) => EventKind::Exception,
        // Type 4 is INT n; Bochs has 5 for INT1, and 6 for INT3 and INTO, as VMX does.
        _ => return None,
    };
    let error_code = (field & ERROR_CODE != 0).then_some((field >> ERROR_CODE_SHIFT) as u32);
    Some(Event { kind, vector, error_code })
}

/// EVENTINJ for `event`.
///
/// # Panics
/// An instruction has raised it on purpose: these run again, or are emulated.
pub fn injection(event: Event) -> u64 {
    let kind = match event.kind {
        EventKind::Interrupt => TYPE_INTERRUPT,
        EventKind::Nmi => TYPE_NMI,
        EventKind::Exception => TYPE_EXCEPTION,
        EventKind::Software { .. } => panic!("{event:?} is raised by its instruction"),
    };
    let code = event.error_code.map_or(0, |code| ERROR_CODE | u64::from(code) << ERROR_CODE_SHIFT);
    VALID | kind << TYPE_SHIFT | u64::from(event.vector) | code
}

#[cfg(test)]
mod tests {
    use umbra_paging::Pfec;

    use super::*;

    #[test]
    fn hardware_events_go_both_ways() {
        let events = [
            (Event::interrupt(0xef), 0x8000_00ef),
            (Event::nmi(), 0x8000_0202),
            (Event::debug(), 0x8000_0301),
            (Event::page_fault(Pfec::WRITE), 0x2_8000_0b0e),
            (Event::general_protection(), 0x8000_0b0d),
        ];
        for (event, field) in events {
            assert_eq!(injection(event), field, "{event:?}");
            assert_eq!(interrupted(field), Some(event));
        }
        assert_eq!(interrupted(0x302), None);
    }

    #[test]
    fn instructions_that_raise_events_run_again() {
        for field in [0x8000_0480, 0x8000_0403, 0x8000_0303, 0x8000_0304, 0x8000_0603, 0x8000_0501]
        {
            assert!(is_valid(field));
            assert_eq!(interrupted(field), None, "{field:#x}");
        }
    }
}

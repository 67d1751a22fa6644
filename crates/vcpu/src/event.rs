//! Events that are delivered to the guest through its IDT.

use umbra_emulator::Exception;
use umbra_paging::Pfec;

/// #DE.
pub const DIVIDE_ERROR: u8 = 0;
/// #DB.
pub const DEBUG: u8 = 1;
/// #UD.
pub const INVALID_OPCODE: u8 = 6;
/// #DF.
pub const DOUBLE_FAULT: u8 = 8;
/// #TS.
pub const INVALID_TSS: u8 = 10;
/// #GP.
pub const GENERAL_PROTECTION: u8 = 13;
/// #PF.
pub const PAGE_FAULT: u8 = 14;
/// #MF, an error of the x87 FPU.
pub const FPU_ERROR: u8 = 16;
/// #AC.
pub const ALIGNMENT_CHECK: u8 = 17;
/// #MC.
pub const MACHINE_CHECK: u8 = 18;
/// #VE.
pub const VIRTUALIZATION: u8 = 20;
/// #CP.
pub const CONTROL_PROTECTION: u8 = 21;

/// The instructions that raise an event on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raiser {
    /// INT n: the event is an interrupt, without the privileges of an external one.
    IntN,
    /// INT1.
    Int1,
    /// INT3 or INTO.
    Int3OrInto,
}

/// What kind of event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// An external interrupt.
    Interrupt,
    /// NMI.
    Nmi,
    /// An exception that an instruction raised in passing.
    Exception,
    /// An event that an instruction raised on purpose.
    Software {
        /// Which instruction.
        raiser: Raiser,
        /// Its length: delivery returns behind it.
        length: u8,
    },
}

/// An event on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What kind.
    pub kind: EventKind,
    /// The vector.
    pub vector: u8,
    /// The error code that is pushed, if one is.
    pub error_code: Option<u32>,
}

impl Event {
    /// An external interrupt.
    pub fn interrupt(vector: u8) -> Event {
        Event { kind: EventKind::Interrupt, vector, error_code: None }
    }

    /// An NMI.
    pub fn nmi() -> Event {
        Event { kind: EventKind::Nmi, vector: 2, error_code: None }
    }

    /// #UD.
    pub fn invalid_opcode() -> Event {
        Event { kind: EventKind::Exception, vector: INVALID_OPCODE, error_code: None }
    }

    /// #GP(0).
    pub fn general_protection() -> Event {
        Event { error_code: Some(0), vector: GENERAL_PROTECTION, ..Event::invalid_opcode() }
    }

    /// #PF; CR2 is the caller's.
    pub fn page_fault(error_code: Pfec) -> Event {
        Event { error_code: Some(error_code.bits()), vector: PAGE_FAULT, ..Event::invalid_opcode() }
    }

    /// #DB; DR6 is the caller's.
    pub fn debug() -> Event {
        Event { vector: DEBUG, ..Event::invalid_opcode() }
    }

    fn double_fault() -> Event {
        Event { error_code: Some(0), vector: DOUBLE_FAULT, ..Event::invalid_opcode() }
    }

    /// Whether it is #MF, which the x87 FPU raises before the next instruction that waits for it.
    pub fn is_fpu_error(self) -> bool {
        self.kind == EventKind::Exception && self.vector == FPU_ERROR
    }

    /// Whether its delivery may raise it again, without end: a benign exception is never promoted.
    /// On the CPU, too, a handler of #AC on a misaligned stack of user mode leads to #AC for ever.
    pub fn may_recur(self) -> bool {
        self.kind == EventKind::Exception && matches!(self.class(), Class::Benign)
    }

    /// How far the return address lies behind the instruction at RIP: behind an instruction that
    /// has raised the event on purpose.
    pub fn instruction_length(self) -> u8 {
        match self.kind {
            EventKind::Software { length, .. } => length,
            EventKind::Interrupt | EventKind::Nmi | EventKind::Exception => 0,
        }
    }

    fn class(self) -> Class {
        match (self.kind, self.vector) {
            (EventKind::Exception, DOUBLE_FAULT) => Class::DoubleFault,
            (EventKind::Exception, PAGE_FAULT | VIRTUALIZATION) => Class::PageFault,
            (
                EventKind::Exception,
                DIVIDE_ERROR | INVALID_TSS..=GENERAL_PROTECTION | CONTROL_PROTECTION,
            ) => Class::Contributory,
            _ => Class::Benign,
        }
    }
}

impl From<Exception> for Event {
    fn from(exception: Exception) -> Event {
        Event {
            vector: exception.vector,
            error_code: exception.error_code.map(u32::from),
            ..Event::invalid_opcode()
        }
    }
}

/// The classes of SDM, "Interrupt 8 - Double Fault Exception".
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

/// What comes of an exception that arises while another event is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combined {
    /// This is delivered. A benign first event is lost, as on the CPU: instructions that raise one
    /// are repeated.
    Deliver(Event),
    /// The CPU shuts down.
    TripleFault,
}

/// Combines the exception `second` with the event `first` whose delivery raised it.
pub fn combine(first: Option<Event>, second: Event) -> Combined {
    let Some(first) = first else { return Combined::Deliver(second) };
    match (first.class(), second.class()) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault) => Combined::TripleFault,
        (Class::Contributory, Class::Contributory)
        | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            Combined::Deliver(Event::double_fault())
        }
        _ => Combined::Deliver(second),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_fault() -> Event {
        Event::page_fault(Pfec::PRESENT)
    }

    #[test]
    fn the_double_fault_table() {
        let gp = Event::general_protection();
        let ud = Event::invalid_opcode();
        let df = Event::double_fault();
        let outcomes = [
            // (first, second #PF, second #GP)
            (ud, Combined::Deliver(page_fault()), Combined::Deliver(gp)),
            (Event::interrupt(14), Combined::Deliver(page_fault()), Combined::Deliver(gp)),
            (Event::nmi(), Combined::Deliver(page_fault()), Combined::Deliver(gp)),
            (gp, Combined::Deliver(page_fault()), Combined::Deliver(df)),
            (page_fault(), Combined::Deliver(df), Combined::Deliver(df)),
            (df, Combined::TripleFault, Combined::TripleFault),
        ];
        for (first, with_page_fault, with_gp) in outcomes {
            assert_eq!(combine(Some(first), page_fault()), with_page_fault, "{first:?}");
            assert_eq!(combine(Some(first), gp), with_gp, "{first:?}");
            assert_eq!(combine(Some(first), ud), Combined::Deliver(ud), "{first:?}");
        }
        assert_eq!(combine(None, gp), Combined::Deliver(gp));
    }

    /// All that a delivery can raise.
    fn raised() -> impl Iterator<Item = Event> {
        let exceptions = [
            Exception::INVALID_TSS,
            Exception::NOT_PRESENT,
            Exception::STACK_FAULT,
            Exception::GENERAL_PROTECTION,
            Exception::ALIGNMENT_CHECK,
        ];
        exceptions.into_iter().map(Event::from).chain([page_fault()])
    }

    #[test]
    fn deliveries_that_fail_come_to_an_end_or_to_an_event_that_may_recur() {
        let mut events =
            alloc::vec![Event::interrupt(32), Event::nmi(), Event::debug(), page_fault()];
        for failures in 0.. {
            assert!(failures <= 4, "{events:?}");
            let combined = events
                .iter()
                .flat_map(|first| raised().map(|second| combine(Some(*first), second)));
            let deliver = |combined| match combined {
                Combined::Deliver(event) if !event.may_recur() => Some(event),
                _ => None,
            };
            events = combined.filter_map(deliver).collect();
            if events.is_empty() {
                break;
            }
        }
        let again = Event::from(Exception::ALIGNMENT_CHECK);
        assert!(again.may_recur() && combine(Some(again), again) == Combined::Deliver(again));
    }

    #[test]
    fn only_the_exception_is_an_error_of_the_fpu() {
        let fpu_error = Event { vector: FPU_ERROR, ..Event::invalid_opcode() };
        assert!(fpu_error.is_fpu_error());
        assert!(!Event::interrupt(FPU_ERROR).is_fpu_error() && !Event::debug().is_fpu_error());
    }

    #[test]
    fn a_software_interrupt_is_benign_whatever_its_vector() {
        let int_14 = Event {
            kind: EventKind::Software { raiser: Raiser::IntN, length: 2 },
            ..Event::interrupt(14)
        };
        assert_eq!(combine(Some(int_14), page_fault()), Combined::Deliver(page_fault()));
    }
}

//! What the MMU did since the last exit, for the trace.

use alloc::vec::Vec;

use umbra_mmu::{Event, Shadowed};
use umbra_telemetry::trace::MmuEvent;

/// More events of one exit are dropped, and counted. Zapping a whole pool makes more.
const CAPACITY: usize = 1024;

/// A bounded list of events; empty for ever if nobody wants them.
#[derive(Debug, Default)]
pub struct EventLog {
    wanted: bool,
    /// The next page that is zapped makes room for another.
    reclaiming: bool,
    events: Vec<MmuEvent>,
    dropped: u64,
}

impl EventLog {
    /// A list, if the events are `wanted`.
    pub fn new(wanted: bool) -> EventLog {
        EventLog { wanted, ..EventLog::default() }
    }

    /// Takes note of an event.
    pub fn push(&mut self, event: Event) {
        if !self.wanted {
            return;
        }
        let event = match event {
            Event::Reclaimed => {
                self.reclaiming = true;
                return;
            }
            Event::Built(page) => {
                let (table, level) = describe(page);
                MmuEvent::Built { table, level }
            }
            Event::Zapped(page) => {
                let (table, level) = describe(page);
                MmuEvent::Zapped { table, level, reclaimed: core::mem::take(&mut self.reclaiming) }
            }
            Event::Split { gfn } => MmuEvent::Split(gfn.raw()),
            Event::Flushed => MmuEvent::Flushed,
            Event::Detached(gfn) => MmuEvent::Detached(gfn.raw()),
            Event::Attached { gfn, level, changed } => {
                let changed = changed.try_into().unwrap_or(u16::MAX);
                MmuEvent::Attached { table: gfn.raw(), level: level as u8, changed }
            }
            Event::RootMoved(gfn) => MmuEvent::RootMoved(gfn.raw()),
            Event::Filter(filter) => MmuEvent::Filter(filter as u8),
            Event::Unsynced(gfn) => MmuEvent::Unsynced(gfn.raw()),
            Event::Resynced(gfn) => MmuEvent::Resynced(gfn.raw()),
            // The trace format has no name for it.
            _ => return,
        };
        if self.events.len() < CAPACITY {
            self.events.push(event);
        } else {
            self.dropped += 1;
        }
    }

    /// The events since the last call, and how many more there were.
    pub fn take(&mut self) -> (impl Iterator<Item = MmuEvent> + '_, u64) {
        let dropped = core::mem::take(&mut self.dropped);
        (self.events.drain(..), dropped)
    }
}

fn describe(page: Shadowed) -> (u64, u8) {
    match page {
        Shadowed::Table { gfn, level } => (gfn.raw(), level as u8),
        Shadowed::Identity { gfn, level } => (gfn.raw(), level as u8 | MmuEvent::IDENTITY),
    }
}

#[cfg(test)]
mod tests {
    use umbra_paging::{Gfn, Level};

    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut log = EventLog::new(true);
        (0..CAPACITY + 7).for_each(|_| log.push(Event::Flushed));
        let (events, dropped) = log.take();
        assert_eq!((events.count(), dropped), (CAPACITY, 7));
        let (events, dropped) = log.take();
        assert_eq!((events.count(), dropped), (0, 0));
    }

    #[test]
    fn reclaiming_shows_in_what_is_zapped_next() {
        let mut log = EventLog::new(true);
        let page = Shadowed::Identity { gfn: Gfn::new(512), level: Level::L1 };
        [Event::Reclaimed, Event::Zapped(page), Event::Zapped(page)]
            .into_iter()
            .for_each(|e| log.push(e));
        let zapped = |reclaimed| MmuEvent::Zapped { table: 512, level: 0x81, reclaimed };
        assert_eq!(log.take().0.collect::<Vec<_>>(), [zapped(true), zapped(false)]);
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let mut log = EventLog::new(false);
        log.push(Event::Flushed);
        assert_eq!(log.take().0.count(), 0);
    }
}

//! The predictor: which instructions write tables in bursts.
//!
//! A burst of writes costs an exit each if they are emulated, and two in all if the table is
//! detached at the first of them. A lone write costs one and two. Guests have few sites in their
//! code that write tables, and a site mostly does next time what it did the last times. So there is
//! a small table, indexed by the site. Kernels write all entries by one small function. So the site
//! is the instruction, the first return addresses on the stack, and whether the next entry has the
//! same P bit as the one that is written. What the table says is never needed for correctness, and
//! it may be cleared at any time.
//!
//! A *burst* is a number of writes to entries of one table, each [back to
//! back](crate::FaultContext::back_to_back) after the one before; its site is that of the first.
//! (Writes to one entry again and again count as one: kernels map a page for a moment so.) While
//! they are emulated the predictor counts them; but the guest may have used the table between them.
//! When a table that was detached is used again, the number of entries that have changed tells what
//! the detach has saved. Where it did not pay, the next trials are put off, the longer the more
//! often.
//!
//! # Unsync
//! Some sites clear an entry, set it, and flush its address, again and again (the protection of a
//! page that is changed). Emulation costs two exits for that, and one while the table is unsync,
//! that of the flush. Others write an entry before or behind each load of a root, such as a kernel
//! that patches its own code through an address space of its own. If the load exits, the writes
//! need not. But while a table is unsync every flush of an address exits, whatever it is for. So
//! the predictor keeps an account for each site. A flush of an entry that has changed saves an
//! exit. One of an entry that was cleared saves none, since what sets it again is seen as a fault.
//! Any other flush loses an exit. So does each page fault of the guest that would have passed, and
//! each time that the table becomes unsync. Two more go if a load of a root finds it unchanged: the
//! table is tracked again, which is work. What does not pay ends, and is put off as above. Where
//! loads of roots pass without an exit, that would cost more, and it is not tried.

use core::fmt;

use umbra_paging::{Gfn, PAGE_SIZE};

use crate::VcpuId;
use crate::policy::{Answer, CallSite, TableWrite, Unsync, UnsyncFlush, WritePolicy};

/// Call sites remembered: direct-mapped.
const SITES: usize = 256;
/// Detached frames of which the site is remembered: direct-mapped.
const DETACHED: usize = 64;
/// A burst is worth a detach from this length on: two exits, and the work of attaching again.
const WORTH: u32 = 3;
/// Exits that a detach costs: the one by which it is done, and the one by which the table is
/// attached again.
const COST: i8 = 2;
/// Good detaches of a site make up for so many exits lost by later ones.
const MAX_BALANCE: i8 = 6;
/// A burst of a site of which nothing good is known yet is believed in from this write on.
const BELIEF: u32 = 3;
/// From here on the first write of a burst detaches.
const CONFIDENT: i8 = 1;
const MAX_CONFIDENCE: i8 = 2;
/// A trial is put off for at most 2 to this power bursts.
const MAX_FAILURES: u8 = 10;
/// But a burst that has become so long is one; twice as long after each of the first detaches in a
/// row that did not pay.
const LONG: u32 = 8;
const MAX_LONGER: u8 = 4;
/// A first trial of unsync that did not pay is followed by another after twice so many pairs: each
/// is the work of hundreds of writes.
const FIRST_WAIT: u16 = 8;
/// Which is doubled so often.
const MAX_UNSYNC_FAILURES: u8 = 7;
/// After so many pairs of writes to an entry, unsync is tried.
const PAIRS: u8 = 2;
/// Exits whose work it takes to track a table again that was unsync for nothing.
const TRACK_COST: i8 = 2;
/// The most that an account of unsync holds.
const MAX_GAIN: i8 = 4;
/// After so many flushes and faults in a row that saved nothing, tables are tracked again.
const MAX_USELESS: u8 = 4;
/// Of each so many flushes and faults, more must save an exit than cost one. (What comes to the
/// same is more work.)
const WINDOW: u8 = 8;
/// vCPUs of which the burst is known: direct-mapped.
const BURSTS: usize = 16;

/// What is known of one site.
#[derive(Clone, Copy, Default)]
struct History {
    site: CallSite,
    /// Whether its last bursts were long (positive) or short (negative).
    confidence: i8,
    /// Exits that its last detaches have saved, less those that they have cost.
    balance: i8,
    /// Detaches in a row that did not pay, since the balance was spent.
    failures: u8,
    /// Bursts to let pass before the next trial.
    wait: u16,
    /// Pairs of writes to one entry that were seen, up to [`PAIRS`].
    pairs: u8,
    /// Exits that unsync has saved, less those that it has cost.
    gain: i8,
    /// Trials of unsync in a row that did not pay.
    unsync_failures: u8,
    /// Pairs to let pass before the next trial of unsync.
    unsync_wait: u16,
}

/// The tables that are unsync because of one site.
#[derive(Clone, Copy, Default)]
struct UnsyncTables {
    site: CallSite,
    /// Flushes and faults in a row that saved nothing.
    useless: u8,
    /// Flushes and faults of this [`WINDOW`], and the exits that they have saved.
    events: u8,
    saved: i8,
    /// The guest's entry that was flushed last, and how many in a row lay behind each other.
    last: u64,
    run: u32,
}

/// The burst under way on a vCPU.
#[derive(Clone, Copy, Default)]
struct Burst {
    site: CallSite,
    /// The entry written last.
    gpa: u64,
    /// Entries written by writes that were emulated.
    length: u32,
    /// [`TableWrite::flushes`] at its first write.
    flushes: u64,
}

/// The [`WritePolicy`] that predicts bursts.
pub struct Predictor {
    sites: [History; SITES],
    /// (frame + 1, site) of what was detached.
    detached: [(u64, CallSite); DETACHED],
    /// By vCPU.
    bursts: [Burst; BURSTS],
    unsync: UnsyncTables,
}

impl fmt::Debug for Predictor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Predictor").finish_non_exhaustive()
    }
}

impl Default for Predictor {
    fn default() -> Predictor {
        Predictor {
            sites: [History::default(); SITES],
            detached: [(0, CallSite::default()); DETACHED],
            bursts: [Burst::default(); BURSTS],
            unsync: UnsyncTables::default(),
        }
    }
}

impl Predictor {
    fn known(&mut self, site: CallSite) -> &mut History {
        let code = site.rip ^ site.rip >> 8 ^ site.callers ^ site.callers >> 8 ^ site.callers >> 32;
        let hash = code ^ u64::from(site.same_presence) << 7;
        let known = &mut self.sites[hash as usize % SITES];
        if known.site != site {
            *known = History { site, ..History::default() };
        }
        known
    }

    fn learn(&mut self, site: CallSite, length: u32) {
        let known = self.known(site);
        let step = if length >= WORTH { 1 } else { -1 };
        known.confidence = (known.confidence + step).clamp(-MAX_CONFIDENCE, MAX_CONFIDENCE);
    }

    /// Whether the write goes on with the burst under way.
    fn continues(&self, write: &TableWrite) -> bool {
        let Burst { gpa, length, .. } = self.bursts[write.vcpu.index() % BURSTS];
        write.back_to_back
            && !write.inactive
            && length != 0
            && gpa / PAGE_SIZE == write.gpa.gfn().raw()
    }

    fn detach(&mut self, vcpu: VcpuId, gfn: u64, site: CallSite) -> Answer {
        self.detached[gfn as usize % DETACHED] = (gfn + 1, site);
        self.bursts[vcpu.index() % BURSTS] = Burst::default();
        Answer::Detach
    }

    /// Two writes of a site went to one entry: there may be a flush for them.
    fn pair(&mut self, site: CallSite) {
        let known = self.known(site);
        known.pairs = (known.pairs + 1).min(PAIRS);
        known.unsync_wait = known.unsync_wait.saturating_sub(1);
    }

    /// Whether a first write at this site is to be answered by unsync.
    fn tries_unsync(&mut self, write: &TableWrite) -> bool {
        let known = self.known(write.site);
        let worth = matches!(write.unsync, Unsync::OnlyFlushes | Unsync::FlushesAndFaults);
        if !worth || known.pairs < PAIRS || known.unsync_wait > 0 {
            return false;
        }
        if known.gain <= 0 {
            known.unsync_failures = (known.unsync_failures + 1).min(MAX_UNSYNC_FAILURES);
            known.unsync_wait = FIRST_WAIT << known.unsync_failures;
        }
        known.gain = (known.gain - 1).max(-1);
        self.unsync = UnsyncTables { site: write.site, ..UnsyncTables::default() };
        true
    }

    /// Counts exits saved (or lost) by tables that are unsync: whether they stay so.
    fn account(&mut self, gain: i8) -> bool {
        self.unsync.useless = if gain > 0 { 0 } else { self.unsync.useless + 1 };
        let useless = self.unsync.useless;
        self.unsync.events += 1;
        self.unsync.saved += gain;
        let pays = self.unsync.events < WINDOW || self.unsync.saved > 0;
        if self.unsync.events == WINDOW {
            (self.unsync.events, self.unsync.saved) = (0, 0);
        }
        let known = self.known(self.unsync.site);
        known.gain = (known.gain + gain).clamp(-MAX_GAIN, MAX_GAIN);
        if !pays {
            known.gain = known.gain.min(0);
        }
        if known.gain > 0 {
            (known.unsync_failures, known.unsync_wait) = (0, 0);
        }
        pays && known.gain > -MAX_GAIN && useless < MAX_USELESS
    }
}

impl WritePolicy for Predictor {
    fn needs_site(&self, write: &TableWrite) -> bool {
        write.reachable && !self.continues(write)
    }

    fn answer(&mut self, write: &TableWrite) -> Answer {
        let (site, gfn) = (write.site, write.gpa.gfn().raw());
        if !write.reachable {
            // Nobody will attach it for what is written now: most likely it is no table any more.
            return Answer::Detach;
        }
        if write.inactive {
            // Another site than the same one in the address space in use.
            let site = CallSite { callers: !site.callers, ..site };
            let known = self.known(site);
            if known.wait == 0 {
                return self.detach(write.vcpu, gfn, site);
            }
            known.wait -= 1;
        }
        let Burst { site: last, gpa, length, flushes } = self.bursts[write.vcpu.index() % BURSTS];
        if self.continues(write) {
            self.bursts[write.vcpu.index() % BURSTS].gpa = write.gpa.raw();
            if gpa == write.gpa.raw() {
                if length == 1 {
                    self.pair(last);
                }
                return Answer::Emulate;
            }
            let length = length + 1;
            self.bursts[write.vcpu.index() % BURSTS].length = length;
            if length < BELIEF {
                return Answer::Emulate;
            }
            let known = self.known(last);
            if known.wait > 0 && length < LONG << known.failures.min(MAX_LONGER) {
                if length == BELIEF {
                    known.wait -= 1;
                }
                return Answer::Emulate;
            }
            return self.detach(write.vcpu, gfn, last);
        }
        if length != 0 && length < WORTH {
            self.learn(last, length);
            if length == 1 && gpa == write.gpa.raw() && flushes != write.flushes {
                self.pair(last);
            }
        }
        if self.known(site).confidence >= CONFIDENT {
            return self.detach(write.vcpu, gfn, site);
        }
        if self.tries_unsync(write) {
            self.bursts[write.vcpu.index() % BURSTS] = Burst::default();
            return Answer::Unsync;
        }
        self.bursts[write.vcpu.index() % BURSTS] =
            Burst { site, gpa: write.gpa.raw(), length: 1, flushes: write.flushes };
        Answer::Emulate
    }

    fn attached(&mut self, gfn: Gfn, changed: u32) {
        let (detached, site) = core::mem::take(&mut self.detached[gfn.raw() as usize % DETACHED]);
        if detached != gfn.raw() + 1 {
            return;
        }
        self.learn(site, changed);
        let known = self.known(site);
        let spared = changed.min(MAX_BALANCE as u32) as i8 - COST;
        known.balance = (known.balance + spared).clamp(-1, MAX_BALANCE);
        if known.balance >= 0 {
            known.failures = 0;
        } else {
            known.failures = (known.failures + 1).min(MAX_FAILURES);
            known.wait = 1 << known.failures;
        }
    }

    fn flushed(&mut self, flush: UnsyncFlush) -> bool {
        let (gain, at) = match flush {
            UnsyncFlush::Elsewhere => return self.account(-1),
            UnsyncFlush::Fault => {
                // A flush behind it is none of a burst.
                self.unsync.run = 0;
                return self.account(-1);
            }
            // It would have exited in any case. What has changed was a write; what has not costs
            // more to look at than the next write does.
            UnsyncFlush::All(_, 0) => {
                self.account(-TRACK_COST);
                return false;
            }
            UnsyncFlush::All(..) => return self.account(1),
            UnsyncFlush::Unchanged(at) => (-1, at),
            UnsyncFlush::Cleared(at) => (0, at),
            UnsyncFlush::Changed(at) => (1, at),
        };
        let UnsyncTables { site, last, run, .. } = self.unsync;
        // Entries of 32-bit paging have 4 bytes.
        let behind = matches!(at.raw().wrapping_sub(last), 4 | 8);
        let run = if behind && run != 0 { run + 1 } else { 1 };
        (self.unsync.last, self.unsync.run) = (at.raw(), run);
        if run == WORTH {
            // A burst: without unsync it would have been two exits in all.
            self.learn(site, run);
            return false;
        }
        self.account(gain)
    }
}

#[cfg(test)]
mod tests {
    use umbra_paging::Gpa;

    use super::*;

    const VCPU: VcpuId = VcpuId::new(0);

    fn site(rip: u64) -> CallSite {
        CallSite { rip, callers: 0, same_presence: true }
    }

    /// Writes of these sites in turn to entries of frame 7: how many were answered by a detach.
    /// The table is used again after `burst` writes.
    fn writes(
        predictor: &mut Predictor,
        rips: &[u64],
        times: u32,
        back_to_back: bool,
        burst: u32,
    ) -> usize {
        let (mut detached, mut unseen) = (0, None::<u32>);
        for n in 0..times {
            for &rip in rips {
                let used = n % burst == 0;
                if let Some(changed) = unseen.take_if(|_| used) {
                    predictor.attached(Gfn::new(7), changed);
                }
                if let Some(changed) = &mut unseen {
                    *changed += 1;
                    continue;
                }
                let gpa = Gfn::new(7).entry(n as usize % 512);
                let write = TableWrite {
                    site: site(rip),
                    back_to_back: back_to_back && !used,
                    ..TableWrite::new(VCPU, gpa)
                };
                if predictor.answer(&write) == Answer::Detach {
                    detached += 1;
                    unseen = Some(1);
                }
            }
        }
        if let Some(changed) = unseen {
            predictor.attached(Gfn::new(7), changed);
        }
        detached
    }

    #[test]
    fn bursts_detach_at_the_third_write_and_then_at_the_first() {
        let mut predictor = Predictor::default();
        assert_eq!(writes(&mut predictor, &[1], 2, true, 16), 0);
        assert_eq!(writes(&mut predictor, &[1], 160, true, 16), 10);
        let first = TableWrite { site: site(1), ..TableWrite::new(VCPU, Gfn::new(9).entry(0)) };
        assert_eq!(predictor.answer(&first), Answer::Detach);
    }

    #[test]
    fn lone_writes_in_a_row_are_emulated() {
        assert_eq!(writes(&mut Predictor::default(), &[1], 1024, false, 1), 0);
    }

    #[test]
    fn one_entry_written_again_and_again_is_no_burst() {
        let mut predictor = Predictor::default();
        for n in 0..1000 {
            let write = TableWrite {
                site: site(1),
                back_to_back: n > 0,
                ..TableWrite::new(VCPU, Gfn::new(7).entry(3))
            };
            assert_eq!(predictor.answer(&write), Answer::Emulate);
        }
    }

    #[test]
    fn a_long_burst_detaches_whatever_was_learned() {
        let mut predictor = Predictor::default();
        for _ in 0..20 {
            writes(&mut predictor, &[1], 3, true, 3);
            predictor.attached(Gfn::new(7), 1);
        }
        assert_eq!(writes(&mut predictor, &[1], 200, true, 200), 1);
    }

    #[test]
    fn a_burst_must_be_so_long_after_a_failure() {
        let mut predictor = Predictor::default();
        let mut burst = |length: usize| {
            let answers = (0..length).map(|n| {
                let write = TableWrite::new(VCPU, Gfn::new(7).entry(n));
                predictor.answer(&TableWrite { site: site(1), back_to_back: n > 0, ..write })
            });
            let detached = answers.take_while(|&answer| answer == Answer::Emulate).count();
            predictor.attached(Gfn::new(7), 1);
            detached
        };
        assert_eq!(burst(512), BELIEF as usize - 1);
        assert_eq!(burst(512), 2 * LONG as usize - 1);
    }

    #[test]
    fn pairs_of_writes_are_no_burst() {
        let mut predictor = Predictor::default();
        for n in 0..1000 {
            let mut write = |rip, back_to_back| {
                let gpa = Gfn::new(7).entry(n % 512);
                predictor.answer(&TableWrite {
                    site: site(rip),
                    back_to_back,
                    ..TableWrite::new(VCPU, gpa)
                })
            };
            assert_eq!([write(1, false), write(2, true)], [Answer::Emulate; 2]);
        }
    }

    #[test]
    fn what_was_a_burst_is_given_up_when_it_no_longer_is_one() {
        let mut predictor = Predictor::default();
        writes(&mut predictor, &[1], 200, true, 100);
        let detached = writes(&mut predictor, &[1], 100, false, 1);
        assert!(detached <= 2, "{detached}");
    }

    #[test]
    fn what_was_learned_of_inactive_spaces_is_not_held_against_the_one_in_use() {
        let mut predictor = Predictor::default();
        writes(&mut predictor, &[1], 160, true, 16);
        let gpa = Gfn::new(9).entry(0);
        let first = TableWrite { site: site(1), ..TableWrite::new(VCPU, gpa) };
        assert_eq!(predictor.answer(&first), Answer::Detach);
        predictor.attached(gpa.gfn(), 16);
        // The second is the first that its site in use answers for.
        for _ in 0..2 {
            let inactive = TableWrite { inactive: true, ..first };
            assert_eq!(predictor.answer(&inactive), Answer::Detach);
            predictor.attached(gpa.gfn(), 1);
        }
        assert_eq!(predictor.answer(&first), Answer::Detach);
    }

    #[test]
    fn a_space_that_nobody_runs_in_is_let_go_of_unless_that_did_not_pay() {
        let mut predictor = Predictor::default();
        let gpa = Gfn::new(7).entry(0);
        let write = TableWrite { site: site(1), inactive: true, ..TableWrite::new(VCPU, gpa) };
        assert_eq!(predictor.answer(&write), Answer::Detach);
        predictor.attached(Gfn::new(7), 1);
        // The next ones are not believed in, fewer and fewer.
        let mut tried = 0;
        for _ in 0..1000 {
            if predictor.answer(&write) == Answer::Detach {
                tried += 1;
                predictor.attached(Gfn::new(7), 1);
            }
        }
        assert!((4..12).contains(&tried), "{tried}");
    }

    #[test]
    fn a_place_whose_bursts_paid_may_fail_a_few_times() {
        let mut predictor = Predictor::default();
        let burst = |predictor: &mut Predictor, changed| {
            for n in 0..3 {
                let gpa = Gfn::new(7).entry(n);
                let write =
                    TableWrite { site: site(1), back_to_back: n > 0, ..TableWrite::new(VCPU, gpa) };
                if predictor.answer(&write) == Answer::Detach {
                    predictor.attached(Gfn::new(7), changed);
                    return true;
                }
            }
            false
        };
        assert!(burst(&mut predictor, 7));
        assert!((0..4).all(|_| burst(&mut predictor, 1)));
        let detached: alloc::vec::Vec<u32> = (0..40).filter(|_| burst(&mut predictor, 1)).collect();
        // The waits between double.
        assert_eq!(detached, [0, 3, 8, 17, 34]);
    }

    #[test]
    fn one_function_called_from_two_places_is_two_places() {
        let mut predictor = Predictor::default();
        let mut write = |n, caller, back_to_back| {
            let site = CallSite { rip: 1, callers: caller, same_presence: true };
            predictor.answer(&TableWrite {
                site,
                back_to_back,
                ..TableWrite::new(VCPU, Gfn::new(7).entry(n))
            })
        };
        let bursts: [Answer; 3] = core::array::from_fn(|n| write(n, 5, n > 0));
        assert_eq!(bursts, [Answer::Emulate, Answer::Emulate, Answer::Detach]);
        predictor.attached(Gfn::new(7), 9);
        let mut first = |caller| {
            let site = CallSite { rip: 1, callers: caller, same_presence: true };
            predictor.answer(&TableWrite { site, ..TableWrite::new(VCPU, Gfn::new(7).entry(0)) })
        };
        assert_eq!([first(6), first(5)], [Answer::Emulate, Answer::Detach]);
    }

    /// Two vCPUs that write the same table by turns, each an entry of its own again and again: no
    /// burst, though together they write entry after entry.
    #[test]
    fn what_two_vcpus_write_by_turns_is_no_burst() {
        let mut predictor = Predictor::default();
        for n in 0..100 {
            for vcpu in [VCPU, VcpuId::new(1)] {
                let gpa = Gfn::new(7).entry(vcpu.index());
                let write =
                    TableWrite { site: site(1), back_to_back: n > 0, ..TableWrite::new(vcpu, gpa) };
                assert_eq!(predictor.answer(&write), Answer::Emulate);
            }
        }
    }

    /// Pairs of writes to one entry, each followed by a flush that finds this; unsync or emulated.
    /// The guest loads another root after `each` of them. How many exits that takes, and how often
    /// the table becomes unsync.
    fn pairs(
        predictor: &mut Predictor,
        times: u32,
        each: u32,
        flush: fn(Gpa) -> UnsyncFlush,
    ) -> (u32, u32) {
        let (mut exits, mut tries, mut unsync) = (0, 0, false);
        let gpa = Gfn::new(7).entry(3);
        for n in 0..times {
            unsync &= n % each != 0;
            for (rip, back_to_back) in [(1, false), (2, true)] {
                let write = TableWrite {
                    site: site(rip),
                    back_to_back,
                    unsync: Unsync::OnlyFlushes,
                    ..TableWrite::new(VCPU, gpa)
                };
                if !unsync {
                    exits += 1;
                    unsync = predictor.answer(&write) == Answer::Unsync;
                    tries += u32::from(unsync);
                }
            }
            if unsync {
                exits += 1;
                unsync = predictor.flushed(flush(gpa));
            }
        }
        (exits, tries)
    }

    #[test]
    fn an_entry_that_is_changed_and_flushed_again_and_again_costs_one_exit() {
        let (exits, tries) = pairs(&mut Predictor::default(), 1000, u32::MAX, UnsyncFlush::Changed);
        assert!((1000..1008).contains(&exits) && tries == 1, "{exits} {tries}");
    }

    /// Two flushes that spare an exit each, and a fault that loses one: the guest writes to a page
    /// that it has made read-only.
    #[test]
    fn a_fault_that_exits_for_unsync_counts_against_it() {
        let mut predictor = Predictor::default();
        pairs(&mut predictor, 8, u32::MAX, UnsyncFlush::Changed);
        let at = Gfn::new(7).entry(3);
        let mut round = |flushes: usize| {
            let stays = (0..flushes).all(|_| predictor.flushed(UnsyncFlush::Changed(at)));
            stays & predictor.flushed(UnsyncFlush::Fault)
        };
        assert!((0..100).all(|_| round(2)));
        // As many as are saved: it is not worth the work.
        assert!((0..10).any(|_| !round(1)));
    }

    /// The guest copies one page after the other at write faults.
    #[test]
    fn flushes_with_faults_between_them_are_no_burst() {
        let mut predictor = Predictor::default();
        pairs(&mut predictor, 8, u32::MAX, UnsyncFlush::Changed);
        let mut round = |n: usize| {
            let at = Gfn::new(7).entry(n);
            predictor.flushed(UnsyncFlush::Changed(at)) & predictor.flushed(UnsyncFlush::Fault)
        };
        assert!((10..20).map(&mut round).position(|stays| !stays) > Some(1), "a window, at least");
        let first = TableWrite { site: site(1), ..TableWrite::new(VCPU, Gfn::new(7).entry(20)) };
        assert_eq!(predictor.answer(&first), Answer::Emulate, "it is not taken for a burst");
    }

    #[test]
    fn unsync_that_pays_is_tried_again_at_once() {
        let (exits, tries) = pairs(&mut Predictor::default(), 1000, 10, UnsyncFlush::Changed);
        assert!((1100..1120).contains(&exits) && tries == 100, "{exits} {tries}");
    }

    #[test]
    fn some_flushes_that_spare_nothing_end_unsync_that_has_paid() {
        for flush in [UnsyncFlush::Elsewhere, UnsyncFlush::Unchanged(Gfn::new(7).entry(3))] {
            let mut predictor = Predictor::default();
            pairs(&mut predictor, 100, u32::MAX, UnsyncFlush::Changed);
            let flushes = (0..20).map(|_| predictor.flushed(flush));
            let stays = flushes.take_while(|&stays| stays).count();
            assert_eq!(stays, usize::from(MAX_USELESS) - 1, "{flush:?}");
        }
    }

    #[test]
    fn unsync_that_does_not_pay_is_tried_more_and_more_rarely() {
        for (each, flush) in [
            (1, UnsyncFlush::Changed as fn(Gpa) -> UnsyncFlush),
            (u32::MAX, UnsyncFlush::Cleared),
            (u32::MAX, UnsyncFlush::Unchanged),
            (u32::MAX, |_| UnsyncFlush::Elsewhere),
            (u32::MAX, |_| UnsyncFlush::Fault),
            (u32::MAX, |at| UnsyncFlush::All(at.gfn(), 0)),
        ] {
            let (exits, tries) = pairs(&mut Predictor::default(), 10_000, each, flush);
            assert!(exits < 20_020 && tries < 20, "{exits} {tries} for {each}");
        }
    }

    #[test]
    fn unsync_is_not_tried_where_it_switches_something_off() {
        let mut predictor = Predictor::default();
        for unsync in [Unsync::SwitchesOff, Unsync::Impossible] {
            for n in 0..1000 {
                let write = TableWrite {
                    site: site(n % 2),
                    back_to_back: n % 2 == 1,
                    unsync,
                    ..TableWrite::new(VCPU, Gfn::new(7).entry(3))
                };
                assert_eq!(predictor.answer(&write), Answer::Emulate);
            }
        }
    }

    /// Lone writes to an entry, each followed by a load of a root: how many exits beside the loads.
    fn writes_before_loads(predictor: &mut Predictor, times: u64, seen: bool) -> u64 {
        let (gpa, mut unsync, mut exits) = (Gfn::new(7).entry(3), false, 0);
        for n in 0..times {
            if !unsync {
                exits += 1;
                let write = TableWrite {
                    site: site(n % 2),
                    unsync: Unsync::OnlyFlushes,
                    flushes: if seen { n } else { 0 },
                    ..TableWrite::new(VCPU, gpa)
                };
                unsync = predictor.answer(&write) == Answer::Unsync;
            }
            unsync &= predictor.flushed(UnsyncFlush::All(gpa.gfn(), 1));
        }
        exits
    }

    #[test]
    fn an_entry_that_is_written_before_each_load_of_a_root_costs_no_exit() {
        let mut predictor = Predictor::default();
        assert!(writes_before_loads(&mut predictor, 1000, true) < 12);
        assert!(!predictor.flushed(UnsyncFlush::All(Gfn::new(7), 0)), "not written: tracked again");
        assert_eq!(writes_before_loads(&mut Predictor::default(), 1000, false), 1000);
    }

    /// Flushes of one entry after the other are a burst, which a detach answers better.
    #[test]
    fn a_burst_of_flushes_ends_unsync() {
        for bytes in [4, 8] {
            let mut predictor = Predictor::default();
            pairs(&mut predictor, 8, u32::MAX, UnsyncFlush::Changed);
            let at = |n: u64| Gpa::new(Gfn::new(7).base().raw() + n * bytes);
            let flushes = (10..20).map(|n| predictor.flushed(UnsyncFlush::Changed(at(n))));
            assert_eq!(flushes.take_while(|&stays| stays).count(), 2, "entries of {bytes} bytes");
        }
    }
}

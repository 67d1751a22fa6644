//! Hardware task switches.

use umbra_emulator::{
    Cpu, Error, Event, EventKind, Outcome, Privilege, Segment, Source, SystemCpu, SystemSegment,
    deliver, task_switch,
};

use crate::machine::{
    BEYOND, CODE, CODE_0, CODE_3, DATA, DATA_0, DATA_3, Entry, FREE, FREE_2, GATE, GDT, IF, LDT,
    LDT_SELECTOR, Machine, NT, OTHER, OTHER_TSS, PageFault, RF, STACK_0, TARGET, TF, TSS,
    TSS_SELECTOR, VM, Verdict, available_tss, code, data, gate, gp, np, refuses, stack_fault,
    system, ts, v86,
};

const OTHER_STACK: u64 = 0xf000;
const SEGMENTS: [Segment; 6] = Segment::ALL;

/// What a 32-bit TSS holds of a task.
#[derive(Clone, Copy)]
struct Task {
    link: u16,
    cr3: u32,
    eip: u64,
    eflags: u64,
    segments: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Task {
    /// In ring 0, all registers at values of their own.
    fn ring_0() -> Task {
        Task {
            link: 0,
            cr3: 0x7000,
            eip: TARGET,
            eflags: 2 | IF,
            segments: [DATA_0, CODE_0, DATA_0, DATA_0, DATA_0, DATA_0],
            ldt: 0,
            trap: false,
        }
    }

    fn with(mut self, segment: Segment, selector: u16) -> Task {
        self.segments[segment as usize] = selector;
        self
    }

    fn place(self, machine: &mut Machine) {
        machine.poke(OTHER_TSS, &self.link.to_le_bytes());
        machine.poke(OTHER_TSS + 28, &self.cr3.to_le_bytes());
        machine.poke_all(OTHER_TSS + 32, 4, &[self.eip, self.eflags]);
        machine.poke_all(
            OTHER_TSS + 40,
            4,
            &[0xa0, 0xa1, 0xa2, 0xa3, OTHER_STACK, 0xa5, 0xa6, 0xa7],
        );
        machine.poke_all(OTHER_TSS + 72, 4, &self.segments.map(u64::from));
        machine.poke(OTHER_TSS + 96, &self.ldt.to_le_bytes());
        machine.poke(OTHER_TSS + 100, &[u8::from(self.trap)]);
    }

    fn of(self, mut machine: Machine) -> Machine {
        self.place(&mut machine);
        machine
    }
}

/// Ring 0 of the first task; the other task is as given.
fn machine(task: Task) -> Machine {
    task.of(Machine::protected(0))
}

fn switch(machine: &mut Machine, source: Source) -> Result<(), Error<PageFault>> {
    task_switch(machine, OTHER, source, CODE + 7)
}

const GATE_SOURCE: Source = Source::Gate { error_code: None };

#[test]
fn what_each_source_does_to_both_tasks() {
    for (source, nests) in
        [(Source::Jmp, false), (Source::Call, true), (GATE_SOURCE, true), (Source::Iret, false)]
    {
        let mut m = machine(Task { link: 0x5555, ..Task::ring_0() });
        m.rflags = 2 | IF | NT | RF;
        if source == Source::Iret {
            m.gdt(OTHER, system(11, OTHER_TSS, 0x67));
        }
        let old = m.clone();
        assert_eq!(switch(&mut m, source), Ok(()));
        // The old task.
        let flags = if source == Source::Iret { old.rflags & !NT } else { old.rflags };
        assert_eq!((m.peek(TSS + 32, 4), m.peek(TSS + 36, 4)), (CODE + 7, flags));
        let gprs: Vec<u64> = (0..8).map(|number| m.peek(TSS + 40 + 4 * number, 4)).collect();
        assert_eq!(gprs, old.gprs[..8]);
        let segments = SEGMENTS.map(|segment| m.peek(TSS + 72 + 4 * segment as u64, 2));
        assert_eq!(segments, SEGMENTS.map(|segment| u64::from(old.selector(segment))));
        assert_eq!(
            m.rights_in_gdt(TSS_SELECTOR),
            if nests { 0x8b } else { 0x89 },
            "busy while it waits"
        );
        // The new one.
        assert_eq!((m.rip, m.rflags), (TARGET, 2 | IF | if nests { NT } else { 0 }));
        assert_eq!(m.gprs[..8], [0xa0, 0xa1, 0xa2, 0xa3, OTHER_STACK, 0xa5, 0xa6, 0xa7]);
        assert_eq!(SEGMENTS.map(|segment| m.selector(segment)), Task::ring_0().segments);
        assert!(SEGMENTS.iter().all(|segment| !m.segment(*segment).rights.is_unusable()));
        assert_eq!(m.peek(OTHER_TSS, 2), if nests { TSS_SELECTOR.into() } else { 0x5555 });
        assert_eq!(m.rights_in_gdt(OTHER), 0x8b);
        assert_eq!((m.tr.selector, m.tr.base, m.tr.rights.0), (OTHER, OTHER_TSS, 0x8b));
        assert_eq!((m.cr0 & 8, m.local_breakpoints, m.task_trap), (8, false, false));
        assert_eq!(m.cr3, 0, "paging is off");
        assert!(m.ldtr.rights.is_unusable());
        assert!(m.writes.iter().all(|(_, privilege)| *privilege == Privilege::Implicit));
    }
}

#[test]
fn paging_the_local_table_the_trap_bit_and_an_outer_ring() {
    let local = 0x14 | 3;
    let task = Task { ldt: LDT_SELECTOR, trap: true, ..Task::ring_0() };
    let segments = [0, CODE_3, DATA_3, local, 0, 0];
    let mut m = machine(Task { segments, ..task });
    m.ldt(local, data(3).limit(0x777));
    m.cr0 |= 1 << 31;
    assert_eq!(switch(&mut m, Source::Jmp), Ok(()));
    assert_eq!((m.cr3, m.task_trap, m.cpl()), (0x7000, true, 3));
    assert_eq!(m.system_segment(SystemSegment::Ldtr).base, LDT);
    assert_eq!(m.segment(Segment::Ds).limit, 0x777);
    assert!(m.segment(Segment::Es).rights.is_unusable());
}

#[test]
fn refusals_of_the_new_tss_change_nothing() {
    for (source, fault, wrong) in [
        (Source::Jmp, gp as fn(u16) -> Error<PageFault>, 11),
        (Source::Call, gp, 11),
        (GATE_SOURCE, gp, 11),
        (Source::Iret, ts, 9),
    ] {
        let good = if source == Source::Iret { 11 } else { 9 };
        let m = machine(Task::ring_0());
        for selector in [0, OTHER | 4, BEYOND] {
            refuses(&m, fault(selector), |m| task_switch(m, selector, source, 0));
        }
        let set = |entry: Entry| {
            let mut m = m.clone();
            m.gdt(OTHER, entry);
            m
        };
        for entry in [system(wrong, OTHER_TSS, 0x67), data(0), system(2, OTHER_TSS, 0x67)] {
            refuses(&set(entry), fault(OTHER), |m| switch(m, source));
        }
        refuses(&set(system(good, OTHER_TSS, 0x66).absent()), np(OTHER), |m| switch(m, source));
        refuses(&set(system(good, OTHER_TSS, 0x66)), ts(OTHER), |m| switch(m, source));
        refuses(&set(system(good - 8, OTHER_TSS, 0x2a)), ts(OTHER), |m| switch(m, source));
        let mut m = set(system(good, OTHER_TSS, 0x67));
        m.tr.limit = 0x66;
        refuses(&m, ts(TSS_SELECTOR), |m| switch(m, source));
    }
}

#[test]
fn page_faults_before_the_commit_point_change_nothing() {
    let mut m = machine(Task::ring_0());
    m.tr.base = 0xe000;
    for (page, write, gva) in [
        (OTHER_TSS, false, OTHER_TSS),
        (OTHER_TSS, true, OTHER_TSS),
        (0xe000, true, 0xe020),
        (GDT, true, GDT + u64::from(OTHER) + 5),
    ] {
        let mut m = m.clone();
        if write {
            m.read_only.insert(page >> 12)
        } else {
            m.absent.insert(page >> 12)
        };
        let fault = PageFault { gva, write, privilege: Privilege::Implicit };
        refuses(&m, Error::Fault(fault), |m| switch(m, Source::Call));
    }
}

/// The fault belongs to the new task: everything but the segments is its own already.
#[track_caller]
fn fails_in_the_new_task(m: &Machine, error: Error<PageFault>) {
    let mut m = m.clone();
    assert_eq!(switch(&mut m, Source::Jmp), Err(error));
    assert_eq!((m.tr.selector, m.rip, m.rights_in_gdt(OTHER)), (OTHER, TARGET, 0x8b));
    assert_eq!(m.gprs[0], 0xa0);
    assert!(!m.task_trap);
}

#[test]
fn segments_of_the_new_task_in_their_order() {
    let task = Task::ring_0();
    let bad_data = task.with(Segment::Ds, BEYOND);
    let bad_stack = bad_data.with(Segment::Ss, BEYOND | 3);
    let bad_code = bad_stack.with(Segment::Cs, 3);
    fails_in_the_new_task(&machine(Task { ldt: BEYOND, ..bad_code }), ts(BEYOND));
    fails_in_the_new_task(
        &machine(Task { ldt: LDT_SELECTOR | 4, ..bad_code }),
        ts(LDT_SELECTOR | 4),
    );
    fails_in_the_new_task(&machine(Task { ldt: DATA_0, ..bad_code }), ts(DATA_0));
    let mut m = machine(Task { ldt: LDT_SELECTOR, ..bad_code });
    m.gdt(LDT_SELECTOR, system(2, LDT, 7).absent());
    fails_in_the_new_task(&m, ts(LDT_SELECTOR));

    fails_in_the_new_task(&machine(bad_code), ts(0));
    let with_code = |entry| {
        let mut m = machine(bad_stack.with(Segment::Cs, FREE));
        m.gdt(FREE, entry);
        m
    };
    fails_in_the_new_task(&machine(bad_stack.with(Segment::Cs, BEYOND)), ts(BEYOND));
    fails_in_the_new_task(&with_code(data(0)), ts(FREE));
    fails_in_the_new_task(&with_code(code(3)), ts(FREE));
    fails_in_the_new_task(&with_code(code(3).conforming()), ts(FREE));
    fails_in_the_new_task(&with_code(code(0).absent()), np(FREE));

    let with_stack = |selector, entry| {
        let mut m = machine(bad_data.with(Segment::Ss, selector));
        m.gdt(FREE, entry);
        m
    };
    fails_in_the_new_task(&machine(bad_stack), ts(BEYOND));
    fails_in_the_new_task(&with_stack(0, data(0)), ts(0));
    fails_in_the_new_task(&with_stack(FREE, code(0)), ts(FREE));
    fails_in_the_new_task(&with_stack(FREE, data(0).closed()), ts(FREE));
    fails_in_the_new_task(&with_stack(FREE, data(0).absent()), stack_fault(FREE));
    fails_in_the_new_task(&with_stack(FREE, data(3)), ts(FREE));
    fails_in_the_new_task(&with_stack(FREE | 3, data(0)), ts(FREE));

    for segment in [Segment::Ds, Segment::Es, Segment::Fs, Segment::Gs] {
        let with_data = |selector, entry| {
            let mut m = machine(task.with(segment, selector));
            m.gdt(FREE, entry);
            m
        };
        fails_in_the_new_task(&with_data(BEYOND, data(0)), ts(BEYOND));
        fails_in_the_new_task(&with_data(FREE, code(0).closed()), ts(FREE));
        fails_in_the_new_task(&with_data(FREE | 3, data(0)), ts(FREE));
        fails_in_the_new_task(&with_data(FREE, data(0).absent()), np(FREE));
    }
    let mut m = machine(task.with(Segment::Cs, FREE));
    m.gdt(FREE, code(0).limit(TARGET - 1));
    fails_in_the_new_task(&m, gp(0));
}

#[test]
fn a_segment_that_was_not_loaded_is_unusable_and_the_ring_is_the_new_one() {
    let mut m = machine(Task::ring_0().with(Segment::Cs, CODE_3).with(Segment::Ss, DATA_0));
    assert_eq!(switch(&mut m, Source::Jmp), Err(ts(DATA_0)));
    assert_eq!((m.cpl(), m.selector(Segment::Cs), m.selector(Segment::Ss)), (3, CODE_3, DATA_0));
    assert!(
        m.segment(Segment::Ss).rights.is_unusable() && m.segment(Segment::Ds).rights.is_unusable()
    );
    // A handler in ring 0 gets out of it.
    m.poke(OTHER_TSS + 4, &(STACK_0 as u32).to_le_bytes());
    m.poke(OTHER_TSS + 8, &DATA_0.to_le_bytes());
    m.idt(10, gate(14, CODE_0, TARGET + 1));
    let event = Event {
        kind: EventKind::Exception,
        vector: 10,
        error_code: Some(DATA_0.into()),
        return_rip: m.rip,
    };
    assert_eq!(deliver(&mut m, event), Ok(()));
    assert_eq!(
        m.stack(4, 6),
        [DATA_0.into(), TARGET, CODE_3.into(), 2 | IF, OTHER_STACK, DATA_0.into()]
    );
}

#[test]
fn to_virtual_8086_mode() {
    let segments = [0x100, 0x200, 0x300, 0x400, 0x500, 0x600];
    let mut m = machine(Task { eip: 0x123, eflags: 2 | VM | IF, segments, ..Task::ring_0() });
    assert_eq!(switch(&mut m, Source::Jmp), Ok(()));
    assert_eq!(SEGMENTS.map(|segment| m.segment(segment)), segments.map(v86));
    assert_eq!((m.cpl(), m.rflags, m.rip), (3, 2 | VM | IF, 0x123));
}

#[test]
fn tasks_of_16_bits() {
    let mut m = Machine::protected(0);
    m.gdt(OTHER, system(1, OTHER_TSS, 0x2b));
    m.poke_all(OTHER_TSS + 14, 2, &[0x1234, 2 | IF]);
    m.poke_all(OTHER_TSS + 18, 2, &[0xa0, 0xa1, 0xa2, 0xa3, 0xf000, 0xa5, 0xa6, 0xa7]);
    m.poke_all(OTHER_TSS + 34, 2, &[DATA_0, CODE_0, DATA_0, DATA_0, 0].map(u64::from));
    m.cr0 |= 1 << 31;
    assert_eq!(switch(&mut m, Source::Call), Ok(()));
    assert_eq!((m.rip, m.rflags, m.cr3), (0x1234, 2 | IF | NT, 0), "no CR3 in it");
    assert_eq!((m.gprs[0], m.gprs[7]), (0xffff_00a0, 0xffff_00a7));
    assert!(
        m.segment(Segment::Fs).rights.is_unusable() && m.segment(Segment::Gs).rights.is_unusable()
    );
    assert_eq!((m.tr.rights.0, m.rights_in_gdt(OTHER)), (0x83, 0x83));
    // And back, as IRET does.
    m.rip = 0x1300;
    assert_eq!(m.execute(&[0xcf]), Ok(Outcome::Transferred));
    assert_eq!((m.rip, m.tr.selector), (CODE + 7, TSS_SELECTOR));
    assert_eq!((m.peek(OTHER_TSS + 14, 2), m.peek(OTHER_TSS + 16, 2)), (0x1301, 2 | IF));
    assert_eq!((m.peek(OTHER_TSS + 18, 2), m.peek(OTHER_TSS + 36, 2)), (0xa0, CODE_0.into()));
    assert_eq!(m.peek(OTHER_TSS + 42, 2), 0, "the selector of the local table is not saved");
}

/// JMP or CALL by a far pointer of 32 bits in memory.
fn go(m: &mut Machine, call: bool, selector: u16) -> Verdict {
    m.poke(DATA, &0x7777u32.to_le_bytes());
    m.poke(DATA + 4, &selector.to_le_bytes());
    m.execute(&[0xff, if call { 0x1d } else { 0x2d }, 0, 0, 3, 0])
}

#[test]
fn far_jumps_and_calls_to_a_tss_or_a_task_gate() {
    for call in [false, true] {
        for selector in [OTHER, GATE] {
            let mut m = machine(Task::ring_0());
            m.gdt(GATE, gate(5, OTHER, 0));
            assert_eq!(go(&mut m, call, selector), Ok(Outcome::Transferred));
            assert_eq!((m.rip, m.peek(TSS + 32, 4), m.tr.selector), (TARGET, CODE + 6, OTHER));
            assert_eq!(m.rflags & NT != 0, call);

            let mut m = machine(Task::ring_0());
            m.gdt(GATE, gate(5, OTHER, 0));
            m.poke(DATA, &0x7777u32.to_le_bytes());
            m.poke(DATA + 4, &(selector | 1).to_le_bytes());
            refuses(&m, gp(selector), |m| go(m, call, selector | 1));
        }
        let mut m = machine(Task::ring_0());
        m.poke(DATA, &0x7777u32.to_le_bytes());
        m.poke(DATA + 4, &GATE.to_le_bytes());
        m.gdt(GATE, gate(5, OTHER, 0).absent());
        refuses(&m, np(GATE), |m| go(m, call, GATE));
        m.gdt(GATE, gate(5, TSS_SELECTOR, 0));
        refuses(&m, gp(TSS_SELECTOR), |m| go(m, call, GATE));
    }
}

#[test]
fn iret_of_a_nested_task() {
    let mut m = machine(Task::ring_0());
    m.rflags |= NT;
    m.poke(TSS, &OTHER.to_le_bytes());
    refuses(&m, ts(OTHER), |m| m.execute(&[0xcf]));
    m.gdt(OTHER, system(11, OTHER_TSS, 0x67));
    assert_eq!(m.execute(&[0xcf]), Ok(Outcome::Transferred));
    assert_eq!((m.tr.selector, m.peek(TSS + 32, 4)), (OTHER, CODE + 1));
    assert_eq!(m.peek(TSS + 36, 4) & NT, 0);
    assert!(!m.nmis_blocked);
}

#[test]
fn events_through_a_task_gate() {
    let event = |kind, error_code| Event { kind, vector: 14, error_code, return_rip: CODE };
    let mut m = machine(Task::ring_0());
    m.idt(14, gate(5, OTHER, 0));
    m.rflags |= TF | RF;
    let before = m.clone();
    assert_eq!(deliver(&mut m, event(EventKind::Exception, Some(0xabcd))), Ok(()));
    assert_eq!((m.rip, m.gprs[4], m.peek(OTHER_STACK - 4, 4)), (TARGET, OTHER_STACK - 4, 0xabcd));
    assert_eq!((m.peek(TSS + 32, 4), m.peek(TSS + 36, 4)), (CODE, 2 | IF | TF | RF));
    assert_eq!(m.rflags & NT, NT);

    let mut m = before.clone();
    assert_eq!(deliver(&mut m, event(EventKind::Interrupt, None)), Ok(()));
    assert_eq!(m.gprs[4], OTHER_STACK);

    // No room for the error code.
    let mut m = before.clone();
    m.gdt(FREE_2, data(0).limit(OTHER_STACK - 2));
    Task::ring_0().with(Segment::Ss, FREE_2).place(&mut m);
    assert_eq!(deliver(&mut m, event(EventKind::Exception, Some(1))), Err(stack_fault(1)));
    assert_eq!(m.tr.selector, OTHER);

    let mut m = before.clone();
    Task::ring_0().with(Segment::Es, BEYOND).place(&mut m);
    assert_eq!(deliver(&mut m, event(EventKind::Exception, Some(1))), Err(ts(BEYOND | 1)));
    let mut m = before;
    m.gdt(OTHER, available_tss(OTHER_TSS).absent());
    refuses(&m, np(OTHER | 1), |m| deliver(m, event(EventKind::Nmi, None)));
    refuses(&m, np(OTHER), |m| deliver(m, event(EventKind::Software, None)));
}

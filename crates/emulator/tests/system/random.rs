//! Random instructions, events and task switches with random descriptor tables. None panics, and
//! each ends in a state that VM entry takes: at once, or when what it raised has been delivered.

use std::collections::BTreeMap;

use umbra_emulator::{
    Cpu, Error, Event, EventKind, Exception, Rights, Segment, Source, deliver, task_switch,
};

use crate::entry;
use crate::machine::*;

const VIF: u64 = 1 << 19;
const VIP: u64 = 1 << 20;
const AC: u64 = 1 << 18;
/// A third TSS.
const THIRD_TSS: u64 = 0x7000;

/// xorshift64*: any sequence will do, if it is the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Mostly one in the tables.
    fn selector(&mut self) -> u16 {
        let known = [CODE_0, DATA_0, CODE_3, DATA_3, TSS_SELECTOR, LDT_SELECTOR, OTHER];
        match self.below(8) {
            0 => self.next() as u16,
            1..=3 => self.one_of(&known),
            _ => self.below(u64::from(BEYOND) + 8) as u16,
        }
    }

    fn address(&mut self) -> u64 {
        let places =
            [GDT, LDT, TSS, OTHER_TSS, STACK_0, STACK_3, CODE, TARGET, DATA, 0xfff8, 0xffff_fff8];
        match self.below(16) {
            0 => self.next() << 16 | self.next(),
            1 => {
                self.one_of(&[0x7fff_ffff_fff8, 0x8000_0000_0000, 0xffff_8000_0000_0000, u64::MAX])
            }
            _ => self.one_of(&places) + self.below(3) * 4 - self.below(2) * self.below(9),
        }
    }

    fn flags(&mut self) -> u64 {
        [IF, TF, NT, RF, IOPL_3, AC, VIF, VIP, 1]
            .into_iter()
            .fold(2, |flags, flag| if self.one_in(4) { flags | flag } else { flags })
    }

    fn descriptor(&mut self) -> [u8; 16] {
        if self.one_in(16) {
            return std::array::from_fn(|_| self.next() as u8);
        }
        let dpl = self.one_of(&[0, 0, 0, 3, 3, 1, 2]);
        let entry = match self.below(4) {
            0 => {
                let (selector, offset) = (self.selector(), self.address());
                gate(self.one_of(&[4, 5, 6, 7, 12, 12, 14, 14, 15]), selector, offset)
                    .with(self.below(8))
            }
            1 => {
                let base = self.one_of(&[TSS, OTHER_TSS, THIRD_TSS, LDT]);
                system(
                    self.one_of(&[1, 2, 3, 9, 9, 9, 11, 11]),
                    base,
                    self.one_of(&[0x67, 0xff, 0x2b, 0x20]),
                )
            }
            2 => code(0),
            _ => data(0),
        };
        let mut bytes = if self.one_in(8) { entry.absent() } else { entry }.dpl(dpl).bytes();
        if bytes[5] & 0x10 != 0 {
            bytes[5] = bytes[5] & !7 | self.one_of(&[0, 1, 2, 2, 3, 3, 3, 4, 6, 7]);
            bytes[6] =
                bytes[6] & 0x1f | self.one_of(&[0xc0, 0xc0, 0xa0, 0xa0, 0xe0, 0x40, 0x80, 0]);
        }
        bytes
    }

    /// A word that fits somewhere in a frame or a TSS.
    fn word(&mut self) -> u64 {
        match self.below(4) {
            0 => self.address(),
            1 => self.flags() | if self.one_in(4) { VM } else { 0 },
            _ => self.selector().into(),
        }
    }

    fn machine(&mut self) -> Machine {
        let ring = self.one_of(&[0, 3]);
        let mut machine = match self.below(8) {
            0..=2 => Machine::protected(ring),
            3 | 4 => Machine::long(ring),
            5 => Machine::compatible(ring),
            _ => Machine::virtual_8086(),
        };
        let long = machine.efer != 0;
        for table in [GDT, LDT] {
            for entry in 1..32 {
                // What the machine has already mostly stays, so that most handlers can be reached.
                let known = table == GDT && entry <= u64::from(OTHER >> 3);
                if self.one_in(if known { 24 } else { 2 }) {
                    let bytes = self.descriptor();
                    machine.poke(
                        table + 8 * entry,
                        &bytes[..if long && self.one_in(2) { 16 } else { 8 }],
                    );
                }
            }
        }
        for vector in 0..48 {
            let wild = self.one_in(4);
            let kind = if wild { self.one_of(&[15, 5, 5, 6, 12]) } else { 14 };
            let selector =
                if wild { self.selector() } else { self.one_of(&[CODE_0, CODE_0, CODE_3]) };
            let target = if wild { self.address() } else { TARGET };
            let entry = gate(kind, selector, target).dpl(self.one_of(&[0, 3]));
            machine.idt(vector, entry.with(if long { self.below(3) } else { 0 }));
        }
        for tss in [OTHER_TSS, THIRD_TSS] {
            for field in 0..26 {
                let word = self.word();
                machine.poke(tss + 4 * field, &(word as u32).to_le_bytes());
            }
            // Where tasks mostly have them: EIP, EFLAGS, ESP, and the stack of ring 0.
            machine.poke_all(tss + 4, 4, &[STACK_0, DATA_0.into()]);
            machine.poke_all(tss + 32, 4, &[TARGET, self.flags()]);
            machine.poke_all(tss + 56, 4, &[STACK_3]);
            if self.one_in(2) {
                let (cs, data) = self.one_of(&[(CODE_0, DATA_0), (CODE_3, DATA_3)]);
                let last = if self.one_in(2) { self.selector() } else { data };
                machine.poke_all(tss + 72, 4, &[data, cs, data, data, data, last].map(u64::from));
                machine.poke_all(tss + 96, 4, &[0]);
            }
        }
        let link = self.selector();
        machine.poke(TSS, &link.to_le_bytes());
        machine.rflags |= self.flags();
        machine.cr4 |= self.below(2);
        machine.cr0 |= self.below(2) << 18;
        machine
            .gprs
            .iter_mut()
            .for_each(|gpr| *gpr = if self.one_in(2) { self.word() } else { *gpr });
        if self.one_in(4) {
            let rsp = self.one_of(&[0, 2, 7, 0xffff_fffc, STACK_3 - 3, u64::MAX]);
            machine.gprs[4] = rsp;
        } else if machine.rflags & VM == 0 {
            machine.gprs[4] = self.one_of(&[STACK_0, STACK_3]);
        }
        // Frames to return from.
        let step = self.one_of(&[2, 4, 8]);
        let frame = [TARGET, self.selector().into(), self.word(), STACK_3, self.selector().into()];
        for place in [STACK_0, STACK_3, 0x2000 + 0x800, DATA] {
            machine.poke_all(place, step, &frame);
            (0..6).for_each(|at| {
                machine.poke_all(place + 5 * step as u64 + at * 4, 4, &[self.word()])
            });
        }
        if self.one_in(4) {
            machine.absent.insert(self.below(0x40));
            machine.read_only.insert(self.below(0x40));
        }
        machine
    }

    fn program(&mut self) -> Vec<u8> {
        let opcodes: [&[u8]; 26] = [
            &[0xcf],
            &[0xcb],
            &[0xca, 8, 0],
            &[0xcd],
            &[0xcc],
            &[0xf1],
            &[0xce],
            &[0xea],
            &[0x9a],
            &[0xff, 0x2b],
            &[0xff, 0x1b],
            &[0xff, 0x2e],
            &[0x8e],
            &[0x0f, 0, 0xd0],
            &[0x0f, 0, 0xd8],
            &[0x0f, 0xb2],
            &[0x0f, 0xb4],
            &[0xc4],
            &[0x07],
            &[0x17],
            &[0x1f],
            &[0x0f, 0xa9],
            &[0x9d],
            &[0xc2],
            &[0xff],
            &[],
        ];
        let prefixes: [&[u8]; 5] = [&[], &[], &[0x66], &[0x48], &[0x36]];
        let mut program = self.one_of(&prefixes).to_vec();
        program.extend(self.one_of(&opcodes));
        let offset = (TARGET as u32).to_le_bytes();
        if matches!(program.last(), Some(0xea | 0x9a)) {
            program.extend(&offset[..if self.one_in(4) { 2 } else { 4 }]);
            program.extend(self.selector().to_le_bytes());
        }
        while program.len() < 15 {
            program.push(self.next() as u8);
        }
        program
    }
}

/// What the hypervisor makes of an exception that the delivery of `first` raised (SDM volume 3,
/// "Interrupt 8—Double Fault Exception"); none is a shutdown.
fn combine(first: Option<Event>, raised: &Error<PageFault>, machine: &Machine) -> Option<Event> {
    let exception = match raised {
        Error::Fault(_) => Exception { vector: 14, error_code: Some(2) },
        Error::Exception(exception) => *exception,
        other => panic!("a delivery decodes no instruction: {other:?}"),
    };
    let contributory = |vector| matches!(vector, 0 | 10..=13);
    let before = first.filter(|first| first.kind == EventKind::Exception).map(|first| first.vector);
    let severe = contributory(exception.vector) || exception.vector == 14;
    let combined = match before {
        Some(8) if severe => return None,
        Some(14) if severe => Exception { vector: 8, error_code: Some(0) },
        Some(vector) if contributory(vector) && contributory(exception.vector) => {
            Exception { vector: 8, error_code: Some(0) }
        }
        _ => exception,
    };
    Some(Event {
        kind: EventKind::Exception,
        vector: combined.vector,
        error_code: combined.error_code.map(u32::from),
        return_rip: machine.rip,
    })
}

/// A task switch has failed behind its commit point.
fn is_half_loaded(machine: &Machine) -> bool {
    let unusable = |segment: Segment| machine.segments[segment as usize].rights.is_unusable();
    machine.efer == 0 && (unusable(Segment::Cs) || unusable(Segment::Ss))
}

/// How an act ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ended {
    Carried,
    /// What it raised has been delivered.
    Delivered,
    /// The same, out of a task switch that had failed halfway.
    LeftTask,
    /// #AC while an event was delivered: there may be no end to it, and the hypervisor goes on with a VM entry.
    Recurs,
    Shutdown,
}

/// Delivers an event and what its delivery raises, within the bounds that the hypervisor has.
fn deliver_all(machine: &mut Machine, mut event: Event) -> Ended {
    let mut ended = Ended::Delivered;
    for _ in 0..5 {
        if is_half_loaded(machine) {
            ended = Ended::LeftTask;
        }
        match deliver(machine, event) {
            Ok(()) => {
                check(machine);
                return ended;
            }
            Err(error) => match combine(Some(event), &error, machine) {
                Some(next) if next.vector == Exception::ALIGNMENT_CHECK.vector => {
                    check(machine);
                    return Ended::Recurs;
                }
                Some(next) => event = next,
                None => return Ended::Shutdown,
            },
        }
    }
    panic!("without end: {event:?}");
}

#[track_caller]
fn check(machine: &Machine) {
    if let Err(failed) = entry::check(machine) {
        panic!("VM entry refuses {failed}");
    }
}

/// One random act on a random machine.
fn act(seed: u64) -> Ended {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut machine = random.machine();
    check(&machine);
    let long = machine.efer != 0;
    let virtual_8086 = machine.rflags & VM != 0;
    let raised = match random.below(4) {
        0 => {
            let kinds =
                [EventKind::Interrupt, EventKind::Nmi, EventKind::Exception, EventKind::Software];
            let error_code = random.one_in(2).then_some(0x1234_5678);
            let return_rip = random.address();
            let vector = random.below(50) as u8;
            let event = Event { kind: random.one_of(&kinds), vector, error_code, return_rip };
            return deliver_all(&mut machine, event);
        }
        1 if !long && !virtual_8086 => {
            let gate = Source::Gate { error_code: random.one_in(2).then_some(0) };
            let source = random.one_of(&[Source::Jmp, Source::Call, Source::Iret, gate]);
            let next_rip = machine.rip + 2;
            let selector = if random.one_in(2) { OTHER } else { random.selector() };
            task_switch(&mut machine, selector, source, next_rip).err()
        }
        _ => {
            let program = random.program();
            match machine.execute(&program) {
                Err(Error::Unsupported | Error::Truncated) => None,
                verdict => verdict.err(),
            }
        }
    };
    match raised {
        Some(error) => {
            if !is_half_loaded(&machine) {
                check(&machine);
            }
            let event = combine(None, &error, &machine).expect("nothing was under way");
            deliver_all(&mut machine, event)
        }
        None => {
            check(&machine);
            Ended::Carried
        }
    }
}

#[test]
fn whatever_happens_vm_entry_takes_the_state() {
    let acts =
        std::env::var("UMBRA_RANDOM_ACTS").map_or(100_000, |acts| acts.parse().expect("a number"));
    let mut endings = BTreeMap::new();
    for seed in 1..=acts {
        let ended = std::panic::catch_unwind(|| act(seed)).unwrap_or_else(|_| panic!("act {seed}"));
        *endings.entry(ended).or_insert(0_u64) += 1;
    }
    let all = [Ended::Carried, Ended::Delivered, Ended::LeftTask, Ended::Recurs, Ended::Shutdown];
    assert!(all.iter().all(|ended| endings.contains_key(ended)), "{endings:?}");
}

#[test]
fn the_checks_of_vm_entry_refuse_what_they_are_for() {
    type Spoil = fn(&mut Machine);
    let spoiled: [Spoil; 10] = [
        |machine| machine.segments[Segment::Cs as usize].rights = Rights::UNUSABLE,
        |machine| machine.segments[Segment::Ss as usize].rights.0 &= !1,
        |machine| machine.segments[Segment::Ss as usize].selector |= 3,
        |machine| machine.segments[Segment::Ds as usize].selector |= 3,
        |machine| machine.segments[Segment::Es as usize].limit = 0xfff0,
        |machine| machine.segments[Segment::Gs as usize].base = 1 << 47,
        |machine| machine.tr.rights = Rights(0x89),
        |machine| machine.ldtr.selector |= 4,
        |machine| machine.rip = 1 << 32,
        |machine| machine.rflags = 0,
    ];
    let machine = Machine::protected(0);
    assert_eq!(entry::check(&machine), Ok(()));
    assert!(machine.cpl() == 0);
    for (number, spoil) in spoiled.iter().enumerate() {
        let mut machine = machine.clone();
        spoil(&mut machine);
        assert!(entry::check(&machine).is_err(), "{number}");
    }
}

//! Small programs for two CPUs, in every order: what one of them does while the other is in the
//! hypervisor.
//!
//! Each [`Small`] program has a step that enters the MMU, and some steps of another CPU. They are
//! run with the other CPU getting further at every point of the MMU's way, once (it does one thing,
//! or two, or all), and twice (some of it at one point, the rest at a later one). A point is a call
//! of the embedder's traits. Getting further is an access, an instruction, or a step on the way
//! into the guest ([`Protocol`]). Whatever is left over takes place afterwards; then each CPU looks
//! at every page.
//!
//! Beyond two preemptions and small programs there are random ones:
//! [`Config::races`](crate::Config).

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use umbra_mmu::{FilterPolicy, MIN_FRAMES_PER_VCPU};
use umbra_paging::{Access, AccessKind, Gfn, Gva};

use crate::Session;
use crate::hardware::Temper;
use crate::machine::{Preempt, Protocol, Shadow, ShadowConfig, Start, When};
use crate::memory::{PhysAddr, Ram};
use crate::program::{HostEvent, Op};
use crate::registers::{Cpu, Privileged, Registers};
use crate::universe::{END, HOLE, Universe, WINDOW, WINDOW_SLOT};

const P: u64 = 1;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const ALL: u64 = P | W | U | A | D;

const MODEL: Cpu = Cpu { maxphyaddr: 40, gib_pages: true };
/// The root; its window's tables follow.
const ROOT: u64 = 0x10;
/// Another root, which leads to the same tables.
const OTHER_ROOT: u64 = 0x18;
/// The page table of the addresses from 0 on, and that of those from 2 MiB on.
const FIRST: u64 = 0x16;
const SECOND: u64 = 0x17;
/// A page of data.
const DATA: u64 = 0x1b;

/// A program.
#[derive(Debug)]
pub struct Small {
    /// What it is about.
    pub name: &'static str,
    shadow: ShadowConfig,
    /// Beside the tables that all have: (frame, index, entry).
    tables: Vec<(u64, usize, u64)>,
    setup: Vec<Op>,
    step: Op,
    others: Vec<Op>,
}

/// One order in which a program was run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// At which points the other CPU got further, once for each time that one is named.
    pub points: Vec<u32>,
    /// It was on its way into the guest when the step began.
    pub entering: bool,
    /// Seeds the hardware's choices.
    pub seed: u64,
}

/// A program went wrong in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The program.
    pub name: &'static str,
    /// The order.
    pub order: Order,
    /// How.
    pub why: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Order { points, entering, seed } = &self.order;
        let entering = if *entering { ", on its way in" } else { "" };
        write!(
            f,
            "{}: the other CPU gets further at {points:?}{entering}, seed {seed}: {}",
            self.name, self.why
        )
    }
}

impl std::error::Error for Wrong {}

fn load(cpu: usize, gva: u64, user: bool) -> Op {
    let access = Access { kind: AccessKind::Read, user, smap_override: !user };
    Op::Load { cpu, gva: Gva::new(gva), access, length: 8 }
}

/// A store by the supervisor, with RFLAGS.AC set.
fn store(cpu: usize, gva: u64, bytes: &[u8]) -> Op {
    Op::Store {
        cpu,
        gva: Gva::new(gva),
        user: false,
        ac: true,
        bytes: bytes.iter().copied().collect(),
    }
}

fn user_store(cpu: usize, gva: u64) -> Op {
    Op::Store { cpu, gva: Gva::new(gva), user: true, ac: false, bytes: [7].into_iter().collect() }
}

/// A store of an entry through the window.
fn set(cpu: usize, table: u64, index: u64, entry: u64) -> Op {
    store(cpu, WINDOW + (table << 12) + 8 * index, &entry.to_le_bytes())
}

/// A store of data to a frame through the window, so that it is mapped there.
fn touch(cpu: usize, frame: u64) -> Op {
    store(cpu, WINDOW + (frame << 12) + 0x800, &[1; 8])
}

fn invlpg(cpu: usize, gva: u64) -> Op {
    Op::Execute { cpu, instruction: Privileged::Invlpg(Gva::new(gva)) }
}

fn load_root(cpu: usize, root: u64) -> Op {
    let instruction = Privileged::LoadCr3 { root: Gfn::new(root), pcid: 0, no_flush: false };
    Op::Execute { cpu, instruction }
}

impl Small {
    /// All programs.
    pub fn all() -> Vec<Small> {
        let plain =
            ShadowConfig { eager: true, ..ShadowConfig::plain(true, 2 * MIN_FRAMES_PER_VCPU + 4) };
        let user = ShadowConfig { filter: FilterPolicy::User, ..plain };
        let released = ShadowConfig { release: 255, ..plain };
        let targets = ShadowConfig { targets: 4, ..plain };
        let unsync = ShadowConfig { unsync: 255, ..plain };
        let link = || vec![(0x15, 1, SECOND << 12 | ALL), (SECOND, 0, DATA << 12 | ALL)];
        let second = 0x20_0000;
        let ready = || vec![load(0, 0, true), load(1, 0, true), touch(1, SECOND), touch(1, DATA)];
        let and = |mut first: Vec<Op>, rest: Vec<Op>| {
            first.extend(rest);
            first
        };
        vec![
            Small {
                name: "a table is built while its entries are stored",
                shadow: plain,
                tables: link(),
                setup: ready(),
                step: load(0, second, true),
                others: vec![set(1, SECOND, 5, DATA << 12 | ALL), load(1, second + 0x5000, true)],
            },
            Small {
                name: "a table is attached while its entries are stored",
                shadow: plain,
                tables: link(),
                setup: and(
                    ready(),
                    vec![
                        load(0, second, true),
                        set(0, 0x15, 1, 0),
                        set(0, 0x15, 1, SECOND << 12 | ALL),
                        touch(1, SECOND),
                    ],
                ),
                step: load(0, second, true),
                others: vec![set(1, SECOND, 5, DATA << 12 | ALL), load(1, second + 0x5000, true)],
            },
            Small {
                name: "an entry becomes present",
                shadow: plain,
                tables: link(),
                setup: ready(),
                step: set(0, FIRST, 1, DATA << 12 | ALL),
                others: vec![load(1, 0x1000, true), load(1, 0x1000, true)],
            },
            Small {
                name: "an entry becomes present by halves",
                shadow: plain,
                tables: link(),
                setup: ready(),
                step: store(
                    0,
                    WINDOW + (FIRST << 12) + 8,
                    &((DATA << 12 | ALL) as u32).to_le_bytes(),
                ),
                others: vec![load(1, 0x1000, true), load(1, 0x1000, true)],
            },
            Small {
                name: "an entry names another page",
                shadow: plain,
                tables: link(),
                setup: ready(),
                step: set(0, FIRST, 0, 0x1a << 12 | ALL),
                others: vec![
                    load(1, WINDOW + (FIRST << 12), false),
                    load(1, 0, true),
                    invlpg(1, 0),
                    load(1, 0, true),
                ],
            },
            Small {
                name: "a table is let go while it is walked",
                shadow: plain,
                tables: link(),
                setup: and(ready(), vec![load(0, second, true), load(1, second, true)]),
                step: set(0, 0x15, 1, 0),
                others: vec![set(1, SECOND, 5, DATA << 12 | ALL), load(1, second + 0x5000, true)],
            },
            Small {
                name: "a table becomes a large page while it is walked",
                shadow: ShadowConfig { detach: 255, ..plain },
                tables: link(),
                setup: and(ready(), vec![load(0, second, true), load(1, second, true)]),
                step: set(0, SECOND, 1, DATA << 12 | ALL),
                others: vec![load(1, second + 0x1000, true), set(1, SECOND, 5, DATA << 12 | ALL)],
            },
            Small {
                name: "the host moves a table while it is walked",
                shadow: plain,
                tables: link(),
                setup: and(ready(), vec![load(0, second, true), load(1, second, true)]),
                step: Op::Host(HostEvent::Remap(Gfn::new(SECOND))),
                others: vec![set(1, SECOND, 5, DATA << 12 | ALL), load(1, second + 0x5000, true)],
            },
            Small {
                name: "a page becomes narrow under the user filter",
                shadow: user,
                tables: vec![(FIRST, 1, DATA << 12 | P | W | U | A)],
                setup: ready(),
                step: load(0, 0x1000, true),
                others: vec![user_store(1, 0x1000)],
            },
            Small {
                name: "a page table becomes unsync",
                shadow: unsync,
                tables: vec![(FIRST, 1, DATA << 12 | ALL)],
                setup: and(ready(), vec![load(1, 0x1000, true), load(0, 0x1000, true)]),
                step: set(0, FIRST, 1, 0x1a << 12 | ALL),
                others: vec![
                    set(1, FIRST, 2, DATA << 12 | ALL),
                    load(1, 0x2000, true),
                    invlpg(1, 0x1000),
                    load(1, 0x1000, true),
                ],
            },
            Small {
                name: "an unsync page table is tracked again",
                shadow: unsync,
                tables: vec![(FIRST, 1, DATA << 12 | ALL)],
                setup: and(
                    ready(),
                    vec![
                        load(1, 0x1000, true),
                        set(0, FIRST, 3, DATA << 12 | ALL),
                        load(1, 0x3000, true),
                    ],
                ),
                step: load_root(0, ROOT),
                others: vec![
                    set(1, FIRST, 1, 0x1a << 12 | ALL),
                    set(1, FIRST, 2, DATA << 12 | ALL),
                    invlpg(1, 0x1000),
                    load(1, 0x1000, true),
                    load(1, 0x2000, true),
                ],
            },
            Small {
                name: "an unsync page table gets another reference",
                shadow: unsync,
                tables: vec![(FIRST, 1, DATA << 12 | ALL)],
                setup: and(
                    ready(),
                    vec![
                        load(1, 0x1000, true),
                        set(0, FIRST, 3, DATA << 12 | ALL),
                        set(0, 0x15, 1, FIRST << 12 | ALL),
                    ],
                ),
                step: load(0, second + 0x1000, true),
                others: vec![
                    set(1, FIRST, 1, 0x1a << 12 | ALL),
                    load(1, second + 0x1000, true),
                    set(1, FIRST, 5, DATA << 12 | ALL),
                    load(1, second + 0x5000, true),
                ],
            },
            Small {
                name: "an address of an unsync page table is flushed",
                shadow: unsync,
                tables: vec![(FIRST, 1, DATA << 12 | ALL)],
                setup: and(
                    ready(),
                    vec![
                        load(0, 0x1000, true),
                        load(1, 0x1000, true),
                        set(0, FIRST, 3, DATA << 12 | ALL),
                        set(0, FIRST, 1, 0x1a << 12 | ALL),
                    ],
                ),
                step: invlpg(0, 0x1000),
                others: vec![
                    set(1, FIRST, 1, DATA << 12 | P | U | A),
                    invlpg(1, 0x1000),
                    user_store(1, 0x1000),
                    load(1, 0x1000, true),
                ],
            },
            Small {
                name: "a root becomes unsync",
                shadow: released,
                tables: vec![(FIRST, 1, DATA << 12 | ALL)],
                setup: and(ready(), vec![load(1, 0x1000, true)]),
                step: set(0, ROOT, 5, 0x14 << 12 | ALL),
                others: vec![invlpg(1, 0x1000), load(1, 5 << 39, true), load(1, 0x1000, true)],
            },
            Small {
                name: "a root is withdrawn while it is loaded",
                shadow: ShadowConfig { detach: 255, ..targets },
                tables: vec![
                    (OTHER_ROOT, 0, 0x14 << 12 | ALL),
                    (OTHER_ROOT, WINDOW_SLOT, 0x11 << 12 | P | W | A),
                ],
                setup: and(
                    ready(),
                    vec![
                        load_root(1, OTHER_ROOT),
                        load(1, 0, true),
                        load_root(1, ROOT),
                        load(1, 0, true),
                    ],
                ),
                step: set(0, OTHER_ROOT, 3, 0x14 << 12 | ALL),
                others: vec![load_root(1, OTHER_ROOT), load(1, 0, true), load(1, 3 << 39, true)],
            },
            Small {
                name: "a root moves while its frame is written",
                shadow: targets,
                tables: vec![
                    (OTHER_ROOT, 0, 0x14 << 12 | ALL),
                    (OTHER_ROOT, WINDOW_SLOT, 0x11 << 12 | P | W | A),
                ],
                setup: and(ready(), vec![touch(1, OTHER_ROOT)]),
                step: load_root(0, OTHER_ROOT),
                others: vec![
                    touch(1, OTHER_ROOT),
                    load(1, WINDOW + (OTHER_ROOT << 12) + 0x800, false),
                ],
            },
            Small {
                name: "a large page changes that is mapped by smaller ones",
                shadow: plain,
                tables: vec![(0x15, 2, PS | ALL), (0x15, 3, PS | ALL)],
                setup: and(ready(), vec![load(1, 0x40_0000, true), load(1, 0x41_b000, true)]),
                step: set(0, 0x15, 2, 0x40_0000 | PS | ALL),
                others: vec![invlpg(1, 0x40_0000), load(1, 0x41_b000, true)],
            },
            Small {
                name: "an entry changes while A is set in it",
                shadow: plain,
                tables: vec![(0x15, 1, SECOND << 12 | ALL), (SECOND, 0, DATA << 12 | P | W | U)],
                setup: ready(),
                step: load(0, second, true),
                others: vec![set(1, SECOND, 0, 0x1a << 12 | P | W | U), set(1, SECOND, 0, 0)],
            },
            Small {
                name: "a role changes beside another CPU",
                shadow: user,
                tables: vec![(FIRST, 1, DATA << 12 | P | U | A | D)],
                setup: and(ready(), vec![load(0, 0x1000, true), load(1, 0x1000, true)]),
                step: Op::Execute { cpu: 0, instruction: Privileged::Wp(false) },
                others: vec![user_store(1, 0x1000), load(1, 0x1000, true)],
            },
        ]
    }

    fn universe(&self) -> Universe {
        let tree =
            (0..8).map(|n| n << 12).chain([0x20_0000, 0x20_1000, 0x20_5000, 0x40_0000, 0x41_b000]);
        let roots = [3 << 39, 5 << 39];
        let window =
            [ROOT, 0x14, 0x15, FIRST, SECOND, OTHER_ROOT, DATA].map(|frame| WINDOW + (frame << 12));
        Universe::new(tree.chain(roots).chain(window).map(Gva::new).collect())
    }

    fn session(&self, protocol: Protocol, seed: u64) -> (Session<Shadow>, Rc<Universe>) {
        let mut memory = Ram::new(END as usize).with_hole(HOLE);
        let window = [
            (ROOT, WINDOW_SLOT, (ROOT + 1) << 12 | P | W | A),
            (ROOT + 1, 0, (ROOT + 2) << 12 | P | W | A),
            (ROOT + 2, 0, PS | P | W | A | D),
            (ROOT, 0, 0x14 << 12 | ALL),
            (0x14, 0, 0x15 << 12 | ALL),
            (0x15, 0, FIRST << 12 | ALL),
            (FIRST, 0, DATA << 12 | ALL),
        ];
        for &(frame, index, entry) in window.iter().chain(&self.tables) {
            memory.write(PhysAddr::new(Gfn::new(frame).entry(index).raw()), entry);
        }
        memory.take_journal();
        let universe = Rc::new(self.universe());
        let registers = Registers { smep: false, ..Registers::long_mode(Gfn::new(ROOT)) };
        let start = Start {
            model: MODEL,
            cpus: 2,
            registers,
            memory: memory.clone(),
            universe: universe.clone(),
            temper: Temper { ahead: 0, ..Temper::STICKY },
            seed,
        };
        let machine = Shadow::new(ShadowConfig { protocol, ..self.shadow }, start);
        (Session::new(machine, universe.clone(), memory, MODEL, vec![registers; 2]), universe)
    }

    /// Runs the program in one order, and says how many points there were.
    ///
    /// # Errors
    /// What went wrong.
    pub fn run(&self, protocol: Protocol, order: &Order) -> Result<u32, String> {
        let (mut session, universe) = self.session(protocol, order.seed);
        for op in &self.setup {
            session.step(op, false)?;
        }
        let others: Vec<(usize, &Op)> = self.others.iter().enumerate().collect();
        let preempt = Preempt { when: When::At(order.points.clone()), entering: order.entering };
        let taken = session.step_among(&self.step, &others, preempt, true)?;
        let points = session.points();
        for op in
            self.others.iter().enumerate().filter(|(n, _)| !taken.contains(n)).map(|(_, op)| op)
        {
            session.step(op, false)?;
        }
        for cpu in 0..2 {
            for page in universe.pages() {
                session.step(&load(cpu, page.raw(), false), false)?;
            }
        }
        session.step(&load(0, 0, true), true)?;
        Ok(points)
    }

    /// As [`Small::run`]; a panic is an error as any other.
    ///
    /// # Errors
    /// What went wrong.
    pub fn judge(&self, protocol: Protocol, order: Order) -> Result<u32, Wrong> {
        let run = AssertUnwindSafe(|| self.run(protocol, &order));
        let verdict = catch_unwind(run).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            Err(text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_default())
        });
        verdict.map_err(|why| Wrong { name: self.name, order, why })
    }

    /// Runs the program in every order with at most so many preemptions, one or two, and says in
    /// how many. The first preemption is at no more than `most` points, spread over all there are.
    ///
    /// # Errors
    /// The first order in which something goes wrong.
    pub fn explore(
        &self,
        protocol: Protocol,
        preemptions: u32,
        seed: u64,
        most: u32,
    ) -> Result<u64, Wrong> {
        let mut orders = 0;
        for entering in [false, true] {
            let mut run = |points: Vec<u32>| {
                orders += 1;
                self.judge(protocol, Order { points, entering, seed })
            };
            let last = run(Vec::new())?;
            // Two of them lead into the guest.
            let steps = self.others.len() + if entering { 2 } else { 0 };
            let stride = last.div_ceil(most.max(1)).max(1);
            for first in (1..=last).step_by(stride as usize) {
                for count in 1..=steps {
                    let mut points = vec![first; count];
                    let last = run(points.clone())?;
                    if preemptions < 2 || count == steps {
                        continue;
                    }
                    points.resize(steps, 0);
                    for second in (first + 1..=last).step_by(stride as usize) {
                        points[count..].fill(second);
                        run(points.clone())?;
                    }
                }
            }
        }
        Ok(orders)
    }
}

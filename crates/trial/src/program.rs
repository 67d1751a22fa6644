//! What a guest and its host do, step by step.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::layout::{
    ARENA, CODE_WORD, CPUS, DIRECT, DIRECT_PD, DIRECT_PDPT, HOLE, HOT, MAX_STEPS, PAGE, REGION,
    REGIONS, ROOTS, SLOTS, WORDS,
};

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The guest reads `size` bytes.
    Read {
        /// Where.
        gva: u64,
        /// 1, 2, 4 or 8.
        size: u8,
        /// In user mode.
        user: bool,
        /// With RFLAGS.AC set.
        ac: bool,
    },
    /// The guest writes the low `size` bytes of `value`.
    Write {
        /// Where.
        gva: u64,
        /// 1, 2, 4 or 8.
        size: u8,
        /// In user mode.
        user: bool,
        /// With RFLAGS.AC set.
        ac: bool,
        /// What.
        value: u64,
    },
    /// The guest executes the code that stands in each frame.
    Fetch {
        /// Where.
        gva: u64,
        /// In user mode.
        user: bool,
    },
    /// INVLPG.
    Invlpg {
        /// Of which address.
        gva: u64,
    },
    /// MOV to CR3.
    Cr3 {
        /// The frame of the new root.
        frame: u64,
    },
    /// CR4.PGE changes and changes back, which flushes everything.
    Flush,
    /// CR0.WP becomes this.
    Wp(bool),
    /// CR4.SMEP becomes this.
    Smep(bool),
    /// CR4.SMAP becomes this.
    Smap(bool),
    /// CR4.PGE becomes this.
    Pge(bool),
    /// EFER.NXE becomes this.
    Nxe(bool),
    /// The host does something.
    Host(HostEvent),
}

/// What a virtual machine monitor does while the virtual CPU that calls it stands still. But for
/// [`Write`] and a read-only region the guest must not notice.
///
/// [`Write`]: HostEvent::Write
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostEvent {
    /// Writes a word that may be an entry of a table, as a device does. The hypervisor does not
    /// see it.
    Write {
        /// Where: a multiple of 8.
        gpa: u64,
        /// What.
        value: u64,
    },
    /// Deletes a region's memory slot and makes it again.
    Cycle {
        /// Which region.
        region: u64,
        /// From now on the region is read-only: the monitor carries writes out.
        read_only: bool,
    },
    /// Deletes a region's memory slot and makes it again, with the contents elsewhere in the
    /// monitor's memory.
    Move {
        /// Which region.
        region: u64,
    },
    /// Moves a region's memory slot elsewhere in guest-physical memory, and back.
    Shift {
        /// Which region.
        region: u64,
    },
    /// Turns the dirty log of a region on or off.
    Log {
        /// Which region.
        region: u64,
        /// On.
        on: bool,
    },
    /// Takes the dirty log of a region.
    Harvest {
        /// Which region.
        region: u64,
    },
    /// Gives a page back to the monitor's kernel (MADV_DONTNEED) and restores its contents.
    Discard {
        /// The guest's frame.
        frame: u64,
    },
    /// The same with a whole region.
    DiscardRegion {
        /// Which region.
        region: u64,
    },
    /// Makes the memory behind a region read-only for the monitor (mprotect), and writable again.
    Protect {
        /// Which region.
        region: u64,
    },
    /// Reads the system registers of the virtual CPU that calls and sets them again, with another
    /// root in between.
    Registers,
}

/// A program: what the guest finds, and what happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its number: which random program it is, or comes from.
    pub seed: u64,
    /// Shapes the tables at the start: see [`crate::image`].
    pub tables: u64,
    /// MAXPHYADDR.
    pub maxphyaddr: u8,
    /// The CPU is one from before 2010: it has no 1 GiB pages, no SMEP, and no SMAP.
    #[serde(default)]
    pub old: bool,
    /// The monitor's memory is of huge pages, if the machine has them.
    pub huge: bool,
    /// The hypervisor may have as few shadow pages as it takes, so it has to reclaim some.
    #[serde(default)]
    pub tight: bool,
    /// By step, the virtual CPU that takes it; empty if the guest has one.
    #[serde(default)]
    pub turns: Vec<u8>,
    /// What happens.
    pub steps: Vec<Step>,
}

/// A program that no guest can run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It is too long.
    #[error("the program has {0} steps, and there is room for {MAX_STEPS}")]
    Long(usize),
    /// MAXPHYADDR.
    #[error("MAXPHYADDR is {0}, and must be 36 to 52")]
    Maxphyaddr(u8),
    /// The virtual CPUs.
    #[error("a program of two virtual CPUs names one of them, 0 or 1, for each step")]
    Turns,
    /// A step names something that there is not.
    #[error("step {0} names an address, a frame or a size that no program may: {1}")]
    Step(usize, String),
}

impl Program {
    /// The frame of the root that programs start on.
    pub const ROOT: u64 = HOT[0];

    /// How many virtual CPUs the guest has.
    pub fn cpus(&self) -> usize {
        if self.turns.is_empty() { 1 } else { CPUS }
    }

    /// The virtual CPU that takes a step.
    pub fn cpu(&self, step: usize) -> usize {
        self.turns.get(step).copied().map_or(0, usize::from)
    }

    /// Leaves steps out.
    pub fn remove(&mut self, steps: Range<usize>) {
        if !self.turns.is_empty() {
            self.turns.drain(steps.clone());
        }
        self.steps.drain(steps);
    }

    /// Leaves out all but the first steps.
    pub fn truncate(&mut self, steps: usize) {
        self.turns.truncate(steps);
        self.steps.truncate(steps);
    }

    /// Leaves out the steps for which this does not hold.
    pub fn retain(&mut self, holds: impl Fn(&Step) -> bool) {
        let mut kept = self.steps.iter().map(&holds);
        self.turns.retain(|_| kept.next().is_some_and(|kept| kept));
        self.steps.retain(holds);
    }

    /// Checks what comes from a file.
    ///
    /// # Errors
    /// A step that would reach beyond what the judge looks at.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.steps.len() > MAX_STEPS {
            return Err(Invalid::Long(self.steps.len()));
        }
        if !(36..=52).contains(&self.maxphyaddr) {
            return Err(Invalid::Maxphyaddr(self.maxphyaddr));
        }
        let named = self.turns.is_empty() || self.turns.len() == self.steps.len();
        if !named || self.turns.iter().any(|&cpu| usize::from(cpu) >= CPUS) {
            return Err(Invalid::Turns);
        }
        let valid = |step: &Step| step.is_valid() && !(self.old && step.needs_new_cpu());
        match self.steps.iter().position(|step| !valid(step)) {
            Some(at) => Err(Invalid::Step(at, self.steps[at].to_string())),
            None => Ok(()),
        }
    }
}

impl Step {
    /// Whether the host takes it.
    pub fn is_host(&self) -> bool {
        matches!(self, Step::Host(_))
    }

    /// Whether the CPU has to have SMEP and SMAP.
    pub fn needs_new_cpu(&self) -> bool {
        matches!(self, Step::Smep(_) | Step::Smap(_))
    }

    fn is_valid(&self) -> bool {
        let linear = |gva: u64| crate::judge::universe().contains(umbra_paging::Gva::new(gva));
        let watched = |at: u64| WORDS.contains(&(at % PAGE / 8));
        let within =
            |at: u64, size: u8| matches!(size, 1 | 2 | 4 | 8) && at % 8 + u64::from(size) <= 8;
        match *self {
            Step::Read { gva, size, .. } => linear(gva) && watched(gva) && within(gva, size),
            // The direct map is written in words and at its own places only.
            Step::Write { gva, size, .. } => linear(gva) && watched(gva) && within(gva, size),
            Step::Fetch { gva, .. } => linear(gva) && gva % PAGE == CODE_WORD * 8,
            Step::Invlpg { gva } => linear(gva),
            Step::Cr3 { frame } => HOT[..ROOTS].contains(&frame),
            Step::Host(event) => event.is_valid(),
            _ => true,
        }
    }
}

impl HostEvent {
    /// Whether it takes memory of the direct map's tables or of a root away for a while. A CPU
    /// that runs may need these at any time.
    pub fn hides_tables(&self) -> bool {
        match *self {
            HostEvent::Cycle { region, .. }
            | HostEvent::Move { region }
            | HostEvent::Shift { region }
            | HostEvent::DiscardRegion { region } => region == 0,
            HostEvent::Discard { frame } => {
                let direct_map = [DIRECT_PDPT / PAGE, DIRECT_PD / PAGE];
                HOT[..ROOTS].contains(&frame) || direct_map.contains(&frame)
            }
            _ => false,
        }
    }

    fn is_valid(&self) -> bool {
        match *self {
            HostEvent::Write { gpa, .. } => {
                HOT.contains(&(gpa / PAGE)) && gpa % 8 == 0 && WORDS.contains(&(gpa % PAGE / 8))
            }
            HostEvent::Cycle { region, .. }
            | HostEvent::Move { region }
            | HostEvent::Shift { region }
            | HostEvent::Log { region, .. }
            | HostEvent::Harvest { region }
            | HostEvent::DiscardRegion { region }
            | HostEvent::Protect { region } => region < REGIONS,
            HostEvent::Discard { frame } => frame < ARENA / PAGE,
            HostEvent::Registers => true,
        }
    }
}

/// The name of a frame: what the tables start as.
pub fn frame_name(frame: u64) -> String {
    let name = match frame {
        0x10 => "root A",
        0x11 => "root B",
        0x12 => "PDPT A",
        0x13 => "PDPT B",
        0x14 => "PD A",
        0x15 => "PD B",
        0x16 => "PT A",
        0x17 => "PT B",
        HOLE => "no memory",
        _ => return format!("frame {frame:#x}"),
    };
    format!("frame {frame:#x} ({name})")
}

/// An entry in words: where it leads, and its flags.
pub(crate) fn describe_entry(value: u64) -> String {
    if value & 1 == 0 {
        return format!("{value:#x} (not present)");
    }
    let flags = [(1, "W"), (2, "U"), (5, "A"), (6, "D"), (7, "PS"), (8, "G"), (63, "NX")];
    let mut text = format!("{value:#x} (P");
    for (bit, name) in flags {
        if value >> bit & 1 != 0 {
            text += " ";
            text += name;
        }
    }
    text + &format!(", {})", frame_name(value >> 12 & 0xff_ffff_ffff))
}

/// A linear address: what it selects, or what the direct map shows there.
fn address(gva: u64) -> String {
    if (DIRECT..DIRECT + ARENA).contains(&gva) {
        let gpa = gva - DIRECT;
        let name = frame_name(gpa / PAGE);
        return format!("word {} of {name}, by the direct map", gpa % PAGE / 8);
    }
    let index = |shift: u32| gva >> shift & 511;
    let [pml4, pdpt, pd, pt] = [39, 30, 21, 12].map(index);
    format!("{gva:#x} (PML4E {pml4}, PDPTE {pdpt}, PDE {pd}, PTE {pt}, offset {:#x})", gva % PAGE)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = |user: bool, ac: bool| match (user, ac) {
            (true, _) => "user",
            (false, true) => "supervisor with AC",
            (false, false) => "supervisor",
        };
        match *self {
            Step::Read { gva, size, user, ac } => {
                write!(f, "guest: {} reads {size} bytes at {}", who(user, ac), address(gva))
            }
            Step::Write { gva, size, user, ac, value } => {
                let what = if size == 8 { describe_entry(value) } else { format!("{value:#x}") };
                write!(
                    f,
                    "guest: {} writes {what}, {size} bytes, to {}",
                    who(user, ac),
                    address(gva)
                )
            }
            Step::Fetch { gva, user } => {
                write!(f, "guest: {} executes {}", who(user, false), address(gva))
            }
            Step::Invlpg { gva } => write!(f, "guest: INVLPG of {}", address(gva)),
            Step::Cr3 { frame } => write!(f, "guest: loads CR3 with {}", frame_name(frame)),
            Step::Flush => f.write_str("guest: changes CR4.PGE and changes it back"),
            Step::Wp(on) => write!(f, "guest: CR0.WP = {}", u8::from(on)),
            Step::Smep(on) => write!(f, "guest: CR4.SMEP = {}", u8::from(on)),
            Step::Smap(on) => write!(f, "guest: CR4.SMAP = {}", u8::from(on)),
            Step::Pge(on) => write!(f, "guest: CR4.PGE = {}", u8::from(on)),
            Step::Nxe(on) => write!(f, "guest: EFER.NXE = {}", u8::from(on)),
            Step::Host(event) => write!(f, "host:  {event}"),
        }
    }
}

impl fmt::Display for HostEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |region: u64| format!("{:#x}..{:#x}", region * REGION, (region + 1) * REGION);
        match *self {
            HostEvent::Write { gpa, value } => {
                let name = frame_name(gpa / PAGE);
                write!(f, "writes {} to word {} of {name}", describe_entry(value), gpa % PAGE / 8)
            }
            HostEvent::Cycle { region, read_only: false } => {
                write!(f, "deletes the memory slot of {} and makes it again", bytes(region))
            }
            HostEvent::Cycle { region, read_only: true } => {
                write!(
                    f,
                    "deletes the memory slot of {} and makes it again, read-only",
                    bytes(region)
                )
            }
            HostEvent::Move { region } => {
                write!(
                    f,
                    "deletes the memory slot of {} and makes it again on other memory",
                    bytes(region)
                )
            }
            HostEvent::Shift { region } => {
                write!(f, "moves the memory slot of {} elsewhere and back", bytes(region))
            }
            HostEvent::Log { region, on } => {
                write!(
                    f,
                    "turns the dirty log of {} {}",
                    bytes(region),
                    if on { "on" } else { "off" }
                )
            }
            HostEvent::Harvest { region } => write!(f, "takes the dirty log of {}", bytes(region)),
            HostEvent::Discard { frame } => {
                write!(f, "MADV_DONTNEED of {}, contents restored", frame_name(frame))
            }
            HostEvent::DiscardRegion { region } => {
                write!(f, "MADV_DONTNEED of {}, contents restored", bytes(region))
            }
            HostEvent::Protect { region } => {
                write!(f, "mprotect of {} to read-only, and back", bytes(region))
            }
            HostEvent::Registers => {
                f.write_str("sets another CR3 by KVM_SET_SREGS, or its like, and the old one again")
            }
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backing = if self.huge { "huge pages, if there are any" } else { "small pages" };
        writeln!(
            f,
            "seed {}, tables {:#x}, MAXPHYADDR {}",
            self.seed, self.tables, self.maxphyaddr
        )?;
        writeln!(f, "memory slots of {} KiB from 0 to {ARENA:#x}, on {backing}", REGION >> 10)?;
        if self.tight {
            writeln!(f, "as few shadow pages as the hypervisor takes")?;
        }
        self.steps.iter().enumerate().try_for_each(|(at, step)| {
            let cpu =
                if self.cpus() == 1 { String::new() } else { format!("CPU {}  ", self.cpu(at)) };
            writeln!(f, "{at:4}  {cpu}{step}")
        })
    }
}

/// Slots that a program's table writes go to.
pub(crate) fn slot(of: usize) -> u64 {
    SLOTS[of % SLOTS.len()]
}

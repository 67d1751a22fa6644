//! The two formats of a task-state segment, and the state of a task between them and the processor.
//! (SDM volume 3, "32-Bit Task-State Segment (TSS)" and "16-Bit Task-State Segment (TSS)").

use crate::flags::VM;
use crate::step::Result;
use crate::system::SystemCpu;
use crate::system::descriptor::Selector;
use crate::system::table;
use crate::width::Width;
use crate::{Exception, Gpr, Segment};

/// Bytes of the larger format.
const MAX_SIZE: usize = 104;
/// The flags that exist; bit 1 is always set.
const FLAGS: u64 = 0x3f_7fd5;

/// Where a format keeps what a switch saves: RIP, RFLAGS, eight registers, then the segments.
#[derive(Clone, Copy, Debug)]
struct Layout {
    width: Width,
    size: usize,
    rip: usize,
    /// How many segment registers it has.
    segments: usize,
    /// From one selector to the next.
    segment_step: usize,
    ldt: usize,
}

const LAYOUT_16: Layout =
    Layout { width: Width::Word, size: 44, rip: 14, segments: 4, segment_step: 2, ldt: 42 };
const LAYOUT_32: Layout =
    Layout { width: Width::Dword, size: MAX_SIZE, rip: 32, segments: 6, segment_step: 4, ldt: 96 };

const CR3: usize = 28;
const TRAP: usize = 100;

impl Layout {
    fn of(width: Width) -> Layout {
        if width == Width::Word { LAYOUT_16 } else { LAYOUT_32 }
    }

    /// Where the selector of a segment register is, counted in the order ES, CS, SS, DS, FS, GS.
    fn selector(&self, number: usize) -> usize {
        self.rip + 10 * self.width.bytes() + number * self.segment_step
    }
}

/// A TSS by its format and address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tss {
    pub(crate) width: Width,
    pub(crate) base: u64,
    /// Raised for what cannot be reached.
    pub(crate) bad: Exception,
}

impl Tss {
    /// The least limit.
    pub(crate) fn least_limit(self) -> u32 {
        Layout::of(self.width).size as u32 - 1
    }

    /// Reads the state of the task.
    pub(crate) fn read<C: SystemCpu>(self, cpu: &mut C) -> Result<Task, C> {
        let layout = Layout::of(self.width);
        let mut bytes = [0; MAX_SIZE];
        for (offset, chunk) in (0..).step_by(4).zip(bytes[..layout.size].chunks_mut(4)) {
            table::read(cpu, self.base.wrapping_add(offset), chunk, self.bad)?;
        }
        let field = |offset: usize, width: Width| {
            let value = bytes[offset..offset + width.bytes()].iter();
            value.rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        let selector = |offset| Selector(field(offset, Width::Word) as u16);
        let wide = self.width == Width::Dword;
        let register =
            |number| field(layout.rip + (2 + number) * layout.width.bytes(), layout.width);
        let segment = |number| {
            if number < layout.segments {
                selector(layout.selector(number))
            } else {
                Selector::NULL
            }
        };
        Ok(Task {
            rip: field(layout.rip, layout.width),
            rflags: field(layout.rip + layout.width.bytes(), layout.width) & FLAGS | 2,
            // A 16-bit TSS leaves ones in the upper halves.
            gprs: core::array::from_fn(|number| {
                register(number) | if wide { 0 } else { 0xffff_0000 }
            }),
            segments: core::array::from_fn(segment),
            ldt: selector(layout.ldt),
            cr3: wide.then(|| field(CR3, Width::Dword) as u32),
            trap: wide && field(TRAP, Width::Byte) & 1 != 0,
        })
    }

    /// Saves the processor's state as that of the task.
    pub(crate) fn save<C: SystemCpu>(self, cpu: &mut C, rip: u64, rflags: u64) -> Result<(), C> {
        let gprs: [u64; 8] = core::array::from_fn(|number| cpu.gpr(Gpr::ALL[number]));
        let layout = Layout::of(self.width);
        let step = layout.width.bytes();
        for (number, value) in [rip, rflags].into_iter().chain(gprs).enumerate() {
            let offset = (layout.rip + number * step) as u64;
            let bytes = value.to_le_bytes();
            table::write(cpu, self.base.wrapping_add(offset), &bytes[..step], self.bad)?;
        }
        for (number, segment) in Segment::ALL[..layout.segments].iter().enumerate() {
            let selector = cpu.segment(*segment).selector;
            let at = self.base.wrapping_add(layout.selector(number) as u64);
            table::write(cpu, at, &selector.to_le_bytes(), self.bad)?;
        }
        Ok(())
    }

    /// Checks that [`save`](Tss::save) will succeed.
    pub(crate) fn probe_save<C: SystemCpu>(self, cpu: &mut C) -> Result<(), C> {
        let layout = Layout::of(self.width);
        let end = layout.selector(layout.segments - 1) + 2;
        for offset in (layout.rip..end).step_by(2) {
            table::probe(cpu, self.base.wrapping_add(offset as u64), 2, self.bad)?;
        }
        Ok(())
    }

    /// Checks that [`link`](Tss::link) will succeed.
    pub(crate) fn probe_link<C: SystemCpu>(self, cpu: &mut C) -> Result<(), C> {
        table::probe(cpu, self.base, 2, self.bad)
    }

    /// Writes the selector of the task to return to.
    pub(crate) fn link<C: SystemCpu>(self, cpu: &mut C, previous: u16) -> Result<(), C> {
        table::write(cpu, self.base, &previous.to_le_bytes(), self.bad)
    }
}

/// The state of a task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) gprs: [u64; 8],
    pub(crate) segments: [Selector; 6],
    pub(crate) ldt: Selector,
    /// A 16-bit TSS has none.
    pub(crate) cr3: Option<u32>,
    /// T: a debug trap is due.
    pub(crate) trap: bool,
}

impl Task {
    pub(crate) fn segment(&self, segment: Segment) -> Selector {
        self.segments[segment as usize]
    }

    pub(crate) fn is_virtual_8086(&self) -> bool {
        self.rflags & VM != 0
    }
}

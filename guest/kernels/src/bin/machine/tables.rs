//! Descriptor tables of the programs, built anew before each.

use guest_kernels::kit::frames::{Frame, Pool};
use guest_kernels::kit::worlds::{self, Entries, Pointer, State};
use umbra_forms::program::{DESCRIPTORS, FIRST_SELECTOR, Setting, World, selector, vector};

/// Words of the GDT.
const GDT: usize = FIRST_SELECTOR as usize / 8 + DESCRIPTORS;
/// The last byte of a TSS with the I/O permissions of ports to 0x1ff.
const TSS_LIMIT: u64 = MAP as u64 + 0x40;
/// Where the I/O permission bitmap begins in a TSS.
const MAP: usize = 104;
/// Ports that ring 3 may use: 0x80, 0x150 and 0x151.
const OPEN: [(usize, u8); 2] = [(0x80 / 8, 0xfe), (0x150 / 8, 0xfc)];

/// The interrupt stack table of long mode that #DF and one of the vectors use.
const IST: u64 = 1;

/// Descriptor types.
mod kind {
    pub const LDT: u64 = 0x82;
    pub const TASK_GATE: u64 = 0x85;
    pub const TSS: u64 = 0x89;
    pub const CALL_GATE: u64 = 0x8c;
    pub const INTERRUPT_GATE: u64 = 0x8e;
    pub const TRAP_GATE: u64 = 0x8f;
    pub const RING_3: u64 = 0x60;
    pub const PRESENT: u64 = 0x80;
}

/// Segments that every program finds: those of the kit.
const SEGMENTS: [u64; 7] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00cf_fb00_0000_ffff,
];

/// A descriptor of a system segment, without what lies above 4 GiB.
fn system(base: u64, limit: u64, kind: u64) -> u64 {
    limit | (base & 0xff_ffff) << 16 | kind << 40 | (base >> 24 & 0xff) << 56
}

/// The lower word of a gate.
fn gate(offset: u64, selector: u16, low: u64, kind: u64) -> u64 {
    offset & 0xffff
        | u64::from(selector) << 16
        | low << 32
        | kind << 40
        | (offset >> 16 & 0xffff) << 48
}

/// The frames of the tables.
pub struct Tables {
    gdt: Frame,
    idt: Frame,
    tss: Frame,
    task: Frame,
    stacks: Frame,
    entries: Entries,
}

impl Tables {
    pub fn new(pool: &mut Pool) -> Tables {
        let [gdt, idt, tss, task] = core::array::from_fn(|_| pool.frame());
        let stacks = pool.frames(4, 4096);
        Tables { gdt, idt, tss, task, stacks, entries: worlds::entries() }
    }

    /// What SYSCALL and SYSENTER lead to, and with which stack.
    pub fn call(&self) -> (u64, u64) {
        (self.entries.call, self.stack(0))
    }

    fn stack(&self, index: u64) -> u64 {
        self.stacks.after(index).address() + 4096
    }

    /// Builds the tables for a program, and fills in where they are.
    pub fn build(&self, setting: &Setting, root: u64, state: &mut State) {
        let long = setting.world == World::Long;
        let stack = if setting.stack == 0 { self.stack(0) } else { setting.stack };
        self.set_gdt(long, &setting.descriptors);
        self.set_idt(long);
        self.tss.fill(0);
        self.task.fill(0);
        if long {
            let bytes = |at, value: u64| self.tss.write_bytes(at, &value.to_le_bytes());
            bytes(4, stack);
            bytes(36, self.stack(1));
        } else {
            let word = |frame: Frame, index: usize, value: u64| {
                frame.write_bytes(4 * index, &(value as u32).to_le_bytes());
            };
            word(self.tss, 1, stack);
            word(self.tss, 2, selector::DATA.into());
            word(self.task, 7, root);
            word(self.task, 8, self.entries.task);
            word(self.task, 9, 2);
            word(self.task, 14, self.stack(2));
            let data = u64::from(selector::DATA);
            let segments = [data, selector::CODE_32.into(), data, data, 0, 0];
            segments
                .into_iter()
                .enumerate()
                .for_each(|(index, value)| word(self.task, 18 + index, value));
            word(self.task, 25, (MAP as u64) << 16);
        }
        self.tss.write_bytes(MAP - 2, &(MAP as u16).to_le_bytes());
        self.tss.write_bytes(MAP, &[0xff; 0x41]);
        OPEN.iter().for_each(|&(at, bits)| self.tss.write_bytes(MAP + at, &[bits]));
        state.gdt = Pointer::new(self.gdt.address(), GDT as u16 * 8 - 1);
        let vectors = u16::from(vector::LIMIT);
        state.idt = Pointer::new(self.idt.address(), vectors * if long { 16 } else { 8 } - 1);
        (state.ldt, state.tr) = (selector::LDT.into(), selector::TSS.into());
    }

    fn set_gdt(&self, long: bool, descriptors: &[u64; DESCRIPTORS]) {
        let mut words = [0; GDT];
        words[..SEGMENTS.len()].copy_from_slice(&SEGMENTS);
        let first = usize::from(FIRST_SELECTOR) / 8;
        words[first..].copy_from_slice(descriptors);
        let local = self.gdt.address() + u64::from(FIRST_SELECTOR);
        let at = |selector: u16| usize::from(selector) / 8;
        words[at(selector::TSS)] = system(self.tss.address(), TSS_LIMIT, kind::TSS);
        words[at(selector::LDT)] = system(local, DESCRIPTORS as u64 * 8 - 1, kind::LDT);
        let call = kind::CALL_GATE | kind::RING_3;
        if long {
            words[at(selector::GATE)] = gate(self.entries.long_gate, selector::CODE, 0, call);
        } else {
            words[at(selector::TASK)] = system(self.task.address(), MAP as u64 - 1, kind::TSS);
            words[at(selector::GATE)] = gate(self.entries.legacy_gate, selector::CODE_32, 1, call);
        }
        words.into_iter().enumerate().for_each(|(index, word)| self.gdt.write(index, word));
    }

    fn set_idt(&self, long: bool) {
        for vector in 0..=u8::MAX {
            let (first, size, code) = if long {
                (self.entries.long, 16, selector::CODE)
            } else {
                (self.entries.legacy, 32, selector::CODE_32)
            };
            let offset = first + u64::from(vector) * size;
            let (mut kind, mut selector) = (kind::INTERRUPT_GATE, code);
            match vector {
                3 | 4 | vector::USER | vector::STOP => kind |= kind::RING_3,
                vector::TRAP => kind = kind::TRAP_GATE | kind::RING_3,
                vector::ABSENT => kind = (kind | kind::RING_3) & !kind::PRESENT,
                vector::NULL => (kind, selector) = (kind | kind::RING_3, 0),
                vector::DATA => (kind, selector) = (kind | kind::RING_3, selector::DATA),
                vector::BEYOND => (kind, selector) = (kind | kind::RING_3, 0x7f8),
                vector::TASK => kind |= kind::RING_3,
                _ => (),
            }
            let on_own = vector == 8 || vector == vector::TASK;
            let index = usize::from(vector);
            if long {
                let low = if on_own { IST } else { 0 };
                self.idt.write(2 * index, gate(offset, selector, low, kind));
                self.idt.write(2 * index + 1, offset >> 32);
            } else if on_own {
                let kind = kind::TASK_GATE | kind & kind::RING_3;
                self.idt.write(index, gate(0, selector::TASK, 0, kind));
            } else {
                self.idt.write(index, gate(offset, selector, 0, kind));
            }
        }
    }

    /// Makes the TSS available again, for LTR.
    pub fn release_task(&self) {
        let at = usize::from(selector::TSS) / 8;
        self.gdt.write(at, self.gdt.read(at) & !(1 << 41));
    }

    /// Words of the GDT from a program's own descriptors on, and of the TSS: what a program may
    /// have changed.
    pub fn changed(&self) -> impl Iterator<Item = (&'static str, usize, u64)> {
        let gdt = (0..GDT).map(|index| ("gdt", index, self.gdt.read(index)));
        let tss = (0..MAP / 8).map(|index| ("tss", index, self.tss.read(index)));
        gdt.chain(tss)
    }
}

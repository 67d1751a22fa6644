//! A machine to emulate on: registers, and sparse memory with pages that can be taken away.

#![allow(dead_code, reason = "each test file uses its own part")]

mod system;

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use umbra_emulator::{Cpu, Error, Feature, Gpr, Mode, Outcome, Rights, Segment, SegmentRegister};

/// Where programs are placed.
pub const START: u64 = 0x40_0000;
/// The same in 16-bit mode.
pub const START_16: u64 = 0x400;
/// The status flags, and the bit of RFLAGS that is always set.
pub const CF: u64 = 1 << 0;
pub const ONE: u64 = 1 << 1;
pub const PF: u64 = 1 << 2;
pub const AF: u64 = 1 << 4;
pub const ZF: u64 = 1 << 6;
pub const SF: u64 = 1 << 7;
pub const TF: u64 = 1 << 8;
pub const DF: u64 = 1 << 10;
pub const OF: u64 = 1 << 11;
pub const RF: u64 = 1 << 16;
pub const VM: u64 = 1 << 17;
pub const AC: u64 = 1 << 18;
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    ReadModify,
    Write,
    /// Checks without an access.
    CheckRead,
    CheckWrite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub kind: Kind,
    pub gva: u64,
    pub length: usize,
}

pub type Verdict = Result<Outcome, Error<Access>>;

/// What an instruction can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub gprs: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// Bytes written; others hold [`background`].
    pub memory: BTreeMap<u64, u8>,
}

#[derive(Clone, Debug)]
pub struct Machine {
    pub mode: Mode,
    pub stack_mode: Mode,
    pub segments: [SegmentRegister; 6],
    pub cpl: u8,
    pub cr0: u64,
    pub cr4: u64,
    /// TZCNT and LZCNT exist.
    pub counts_zeros: bool,
    /// What ports will be read as, one after the other.
    pub inputs: Vec<u32>,
    /// What happened on ports: (port, size, value).
    pub ports: Vec<(u16, u8, u32)>,
    pub state: State,
    /// Numbers of pages that no access reaches.
    pub absent: BTreeSet<u64>,
    /// Numbers of pages that can be read alone.
    pub read_only: BTreeSet<u64>,
    /// The access of this number fails, counted from zero.
    pub failing: Option<usize>,
    /// A data breakpoint on this byte.
    pub breakpoint: Option<u64>,
    pub accesses: Vec<Access>,
}

/// What untouched memory holds: something different everywhere.
pub fn background(gva: u64) -> u8 {
    (gva.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

impl Machine {
    pub fn new(mode: Mode) -> Self {
        let mut gprs = [0; 16];
        for (number, gpr) in gprs.iter_mut().enumerate() {
            *gpr = 0x1111_1111_1111_1111 * number as u64;
        }
        Machine {
            mode,
            stack_mode: mode,
            segments: Segment::ALL.map(|segment| match segment {
                Segment::Cs => flat(Rights(0xc09b)),
                _ => flat(Rights(0xc093)),
            }),
            cpl: 0,
            cr0: 0x8000_0001,
            cr4: 0,
            counts_zeros: true,
            inputs: Vec::new(),
            ports: Vec::new(),
            state: State {
                gprs,
                rip: if mode == Mode::Bits16 { START_16 } else { START },
                rflags: ONE,
                memory: BTreeMap::new(),
            },
            absent: BTreeSet::new(),
            read_only: BTreeSet::new(),
            failing: None,
            breakpoint: None,
            accesses: Vec::new(),
        }
    }

    pub fn with(mut self, gpr: Gpr, value: u64) -> Self {
        self.state.gprs[gpr as usize] = value;
        self
    }

    pub fn base(mut self, segment: Segment, base: u64) -> Self {
        self.segments[segment as usize].base = base;
        self
    }

    pub fn segment(mut self, segment: Segment, limit: u32, rights: u32) -> Self {
        let register = &mut self.segments[segment as usize];
        (register.limit, register.rights) = (limit, Rights(rights));
        self
    }

    /// With alignment checks on.
    pub fn aligned(mut self) -> Self {
        self.cpl = 3;
        self.cr0 |= 1 << 18;
        self.flags(AC)
    }

    pub fn flags(mut self, set: u64) -> Self {
        self.state.rflags |= set;
        self
    }

    pub fn poke(mut self, gva: u64, bytes: &[u8]) -> Self {
        self.store(gva, bytes);
        self
    }

    pub fn poke64(self, gva: u64, value: u64) -> Self {
        self.poke(gva, &value.to_le_bytes())
    }

    fn store(&mut self, gva: u64, bytes: &[u8]) {
        for (offset, byte) in bytes.iter().enumerate() {
            self.state.memory.insert(self.wrapped(gva.wrapping_add(offset as u64)), *byte);
        }
    }

    pub fn peek(&self, gva: u64, length: usize) -> u64 {
        let byte = |gva| u64::from(*self.state.memory.get(&gva).unwrap_or(&background(gva)));
        (0..length as u64).rev().fold(0, |value, offset| value << 8 | byte(gva + offset))
    }

    pub fn peek64(&self, gva: u64) -> u64 {
        self.peek(gva, 8)
    }

    pub fn get(&self, gpr: Gpr) -> u64 {
        self.state.gprs[gpr as usize]
    }

    pub fn bits(&self) -> u32 {
        bits(self.mode)
    }

    /// Emulates the first instruction of what `program` assembles, as far as one call goes.
    pub fn step(
        &mut self,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Verdict {
        let bytes = assemble(self.mode, self.state.rip, program);
        umbra_emulator::emulate(self, &bytes)
    }

    /// Emulates one instruction that must retire, and checks that RIP moved behind it and RF is
    /// clear.
    pub fn run(&mut self, program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let rip = self.state.rip;
        let bytes = assemble(self.mode, rip, program);
        assert_eq!(umbra_emulator::emulate(self, &bytes), Ok(Outcome::Done), "{bytes:02x?}");
        assert_eq!(self.state.rip, rip + bytes.len() as u64);
        assert_eq!(self.state.rflags & RF, 0);
    }

    fn access(&mut self, kind: Kind, gva: u64, length: usize) -> Result<(), Access> {
        let access = Access { kind, gva, length };
        assert!((1..=16).contains(&length), "{access:x?}");
        let last = self.wrapped(gva.wrapping_add(length as u64 - 1));
        match self.mode {
            Mode::Bits64 => {
                assert!([gva, last].iter().all(|gva| (*gva as i64) << 16 >> 16 == *gva as i64))
            }
            Mode::Bits16 | Mode::Bits32 => assert!(gva <= u32::MAX.into()),
        }
        let failing = self.failing == Some(self.accesses.len());
        self.accesses.push(access);
        let reads = matches!(kind, Kind::Read | Kind::CheckRead);
        let closed = |page| self.absent.contains(&page) || !reads && self.read_only.contains(&page);
        if failing || closed(gva >> 12) || closed(last >> 12) { Err(access) } else { Ok(()) }
    }

    /// The address behind the last one is 0.
    fn wrapped(&self, gva: u64) -> u64 {
        if self.mode == Mode::Bits64 { gva } else { low(4, gva) }
    }

    fn load(&mut self, kind: Kind, gva: u64, buf: &mut [u8]) -> Result<(), Access> {
        self.access(kind, gva, buf.len())?;
        for (offset, byte) in buf.iter_mut().enumerate() {
            *byte = self.peek(self.wrapped(gva.wrapping_add(offset as u64)), 1) as u8;
        }
        Ok(())
    }
}

impl Cpu for Machine {
    type Fault = Access;

    fn mode(&self) -> Mode {
        self.mode
    }

    fn stack_mode(&self) -> Mode {
        self.stack_mode
    }

    fn gpr(&self, gpr: Gpr) -> u64 {
        self.get(gpr)
    }

    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.state.gprs[gpr as usize] = value;
    }

    fn rip(&self) -> u64 {
        self.state.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.state.rip = rip;
    }

    fn rflags(&self) -> u64 {
        self.state.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.state.rflags = rflags;
    }

    fn segment(&self, segment: Segment) -> SegmentRegister {
        self.segments[segment as usize]
    }

    fn cpl(&self) -> u8 {
        self.cpl
    }

    fn cr0(&self) -> u64 {
        self.cr0
    }

    fn cr4(&self) -> u64 {
        self.cr4
    }

    fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::Tzcnt | Feature::Lzcnt => self.counts_zeros,
        }
    }

    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        let value = self.inputs.remove(0);
        self.ports.push((port, size, value));
        value
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) {
        self.ports.push((port, size, value));
    }

    fn check(&mut self, gva: u64, length: usize, write: bool) -> Result<(), Access> {
        self.access(if write { Kind::CheckWrite } else { Kind::CheckRead }, gva, length)
    }

    fn read(&mut self, gva: u64, buf: &mut [u8]) -> Result<(), Access> {
        self.load(Kind::Read, gva, buf)
    }

    fn read_modify(&mut self, gva: u64, buf: &mut [u8]) -> Result<(), Access> {
        self.load(Kind::ReadModify, gva, buf)
    }

    fn write(&mut self, gva: u64, buf: &[u8]) -> Result<(), Access> {
        self.access(Kind::Write, gva, buf.len())?;
        self.store(gva, buf);
        Ok(())
    }

    fn trap_due(&self) -> bool {
        let covers = |access: &Access| {
            let checked = matches!(access.kind, Kind::CheckRead | Kind::CheckWrite);
            !checked && self.breakpoint.unwrap().wrapping_sub(access.gva) < access.length as u64
        };
        self.breakpoint.is_some() && self.accesses.iter().any(covers)
    }
}

/// A segment of all linear addresses.
pub fn flat(rights: Rights) -> SegmentRegister {
    SegmentRegister { selector: 8, base: 0, limit: u32::MAX, rights }
}

pub fn bits(mode: Mode) -> u32 {
    match mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    }
}

/// The bytes of `program` placed at `rip`.
pub fn assemble(
    mode: Mode,
    rip: u64,
    program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bits(mode)).unwrap();
    program(&mut assembler).unwrap();
    assembler.assemble(rip).unwrap()
}

/// The low `width` bytes of a value.
pub fn low(width: usize, value: u64) -> u64 {
    value & u64::MAX >> (64 - 8 * width)
}

/// `old` after a write of `width` bytes of `value` to the register.
pub fn merged(width: usize, old: u64, value: u64) -> u64 {
    match width {
        8 => value,
        4 => low(4, value),
        _ => old & !low(width, u64::MAX) | low(width, value),
    }
}

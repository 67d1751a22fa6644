//! Emulates the one guest instruction behind an MMIO access or a write to a tracked guest page
//! table.
//!
//! The hypervisor fetches the instruction's bytes, implements [`Cpu`] on its virtual processor, and
//! calls [`emulate`]. The instruction takes effect as on the processor, or not at all: its one
//! memory write, which may fault, comes before the first register changes.
//!
//! Emulated are the general-purpose instructions that compilers and kernels use on memory, in all
//! operand and address widths: MOV and its relatives, exchanges and compare-and-exchange,
//! arithmetic, logic, shifts, bit tests, scans and counts, CRC32, SETcc and CMOVcc. To these come
//! all of the stack, near branches, BOUND, cache control and the string instructions, INS and OUTS
//! among them. So are the instructions that work on segments, descriptor tables, events and tasks:
//! loads and stores of segment and table registers, far JMP, CALL and RET, IRET, INT n, VERR, LAR
//! and their like. Each access is checked as the processor does it: canonical address or segment
//! limit and type, paging, alignment. Not emulated ([`Error::Unsupported`]) is what works on
//! control, x87 or vector registers, and all else: much of it is [`Native`].
//!
//! [`deliver`] delivers an event through the IDT and [`task_switch`] switches tasks, for
//! hypervisors whose processor cannot do it on the guest's memory. Both work in protected,
//! virtual-8086, compatibility and 64-bit mode.
//!
//! LOCK is accepted where the processor accepts it. That the access is atomic towards other virtual
//! processors is the embedder's to see to, between [`Cpu::read_modify`] and [`Cpu::write`].
//!
//! [`identify()`] tells moves to and from control registers, and lengths, where the processor tells
//! neither.
//!
//! [`Simple`] is a shorter way for the few instructions that exit most, where their operand is
//! known already.
//!
//! The first call of [`emulate`] builds the decoder's tables on the heap (80 KiB, some 800 000
//! instructions); they stay.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod alu;
mod arithmetic;
mod branch;
mod cache;
mod cpu;
mod decode;
mod eflags;
mod exception;
mod execute;
mod flags;
mod frame;
mod identify;
mod multiply;
mod native;
mod operand;
mod outcome;
mod recent;
mod scan;
mod segment;
mod segmentation;
mod simple;
mod stack;
mod step;
mod string;
mod system;
mod transfer;
mod width;

pub use cpu::{Cpu, Feature, Gpr, Mode};
pub use exception::Exception;
pub use identify::{Identity, Operation, identify};
pub use native::{Native, NativeOperand, Vector, names_operand};
pub use outcome::{Error, Outcome};
pub use recent::Recent;
pub use segment::{
    DescriptorTable, Rights, Segment, SegmentRegister, SystemSegment, TableRegister,
};
pub use simple::{Effect, Simple};
pub use system::{Event, EventKind, Privilege, Source, SystemCpu, deliver, task_switch};

/// Carries out the instruction that starts with `bytes`, fetched at CS:RIP: 15 bytes, or as many as
/// the guest can fetch there.
///
/// # Errors
///
/// See [`Error`]. No register and no memory was changed then, except by the finished iterations of
/// a repeated string instruction.
pub fn emulate<C: SystemCpu>(cpu: &mut C, bytes: &[u8]) -> Result<Outcome, Error<C::Fault>> {
    let mode = cpu.mode();
    let rip = cpu.rip();
    let mut step = step::Step { cpu, mode, next_rip: rip };
    let instruction = decode::decode(bytes, mode, rip)?;
    // Only a branch with a 16-bit operand cuts IP to 16 bits (SDM volume 1, "Instruction Pointer").
    step.next_rip = match mode {
        Mode::Bits64 => instruction.next_ip(),
        Mode::Bits32 | Mode::Bits16 => width::Width::Dword.truncate(instruction.next_ip()),
    };
    step.execute(&instruction)
}

/// Makes the example in the read-me a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadMe;

//! Instructions that the processor can carry out on copies of their operands.
//!
//! What [`emulate`](crate::emulate) does not know is mostly arithmetic on x87, MMX, SSE and AVX
//! registers. A hypervisor lets the processor itself execute such an instruction, in an address
//! space that maps copies of its code and operands and nothing else. That is sound only if nothing
//! but operands is accessed, and if neither control flow nor system state changes:
//! [`Native::decode`] gives no other instruction.

use alloc::vec::Vec;

use iced_x86::{
    EncodingKind, FlowControl, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpAccess,
    OpKind, Register, RflagsBits, UsedMemory,
};

use crate::operand::register as gpr_of;
use crate::{Cpu, Mode, Segment, decode};

/// The flags that may change: CF, PF, AF, ZF, SF and OF.
const STATUS: u32 = RflagsBits::CF
    | RflagsBits::PF
    | RflagsBits::AF
    | RflagsBits::ZF
    | RflagsBits::SF
    | RflagsBits::OF
    // The condition bits of the x87 status word, which iced-x86 counts here.
    | RflagsBits::C0
    | RflagsBits::C1
    | RflagsBits::C2
    | RflagsBits::C3;

/// A YMM register.
pub type Vector = [u8; 32];

/// How an operand in memory is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NativeOperand {
    /// Linear address of the first byte.
    pub gva: u64,
    /// Bytes.
    pub length: usize,
    /// Whether all of it is read in any case.
    pub read: bool,
    /// Whether all of it is written in any case. If it is neither, parts may be read or written.
    pub written: bool,
}

impl NativeOperand {
    /// Whether parts of it are accessed or not, as registers or other memory say.
    pub fn is_conditional(&self) -> bool {
        !self.read && !self.written
    }
}

/// An instruction that the processor can carry out on copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Native {
    /// Bytes of the instruction.
    pub length: usize,
    /// Its operands in memory.
    pub operands: Vec<NativeOperand>,
}

impl Native {
    /// The instruction that starts with `bytes` at RIP, if it accesses nothing but the operands
    /// named. It may change only general-purpose, x87 and vector registers and status flags.
    /// `xsave_area` is the size of the area of XSAVE with all components that are enabled.
    ///
    /// The addresses of a gather lie in a vector register: `vector` gives YMM registers by their
    /// numbers, or none where AVX is off. The bytes in memory may be others than those that the
    /// processor has fetched.
    pub fn decode<C: Cpu>(
        cpu: &C,
        bytes: &[u8],
        xsave_area: usize,
        vector: impl Fn(usize) -> Option<Vector>,
    ) -> Option<Native> {
        let mode = cpu.mode();
        let instruction = decode::decode::<C::Fault>(bytes, mode, cpu.rip()).ok()?;
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&instruction);
        let writes_segment = info
            .used_registers()
            .iter()
            .any(|used| used.register().is_segment_register() && is_written(used.access()));
        if writes_segment || !changes_registers_only(&instruction) {
            return None;
        }
        if instruction.is_vsib() {
            let operands = gathered(cpu, mode, &instruction, vector)?;
            return Some(Native { length: instruction.len(), operands });
        }
        let mut operands = Vec::new();
        for used in info.used_memory() {
            let access = used.access();
            if matches!(access, OpAccess::None | OpAccess::NoMemAccess) {
                continue;
            }
            let length = match used.memory_size() {
                MemorySize::Xsave | MemorySize::Xsave64 => xsave_area,
                size => size.size(),
            };
            if length == 0 {
                return None;
            }
            let whole = !has_parts(&instruction, used.memory_size());
            let gva = address(cpu, mode, used)?;
            operands.push(NativeOperand {
                gva,
                length,
                read: whole
                    && matches!(
                        access,
                        OpAccess::Read | OpAccess::ReadWrite | OpAccess::ReadCondWrite
                    ),
                written: whole && matches!(access, OpAccess::Write | OpAccess::ReadWrite),
            });
        }
        Some(Native { length: instruction.len(), operands })
    }
}

/// Whether the instruction that starts with `bytes` at RIP names an operand in memory at `gva`, the
/// stack included. False of bytes that are no instruction.
pub fn names_operand<C: Cpu>(cpu: &C, bytes: &[u8], gva: u64) -> bool {
    let mode = cpu.mode();
    let Ok(instruction) = decode::decode::<C::Fault>(bytes, mode, cpu.rip()) else { return false };
    let mut factory = InstructionInfoFactory::new();
    factory.info(&instruction).used_memory().iter().any(|used| {
        address(cpu, mode, used)
            .is_some_and(|at| gva.wrapping_sub(at) < used.memory_size().size() as u64)
    })
}

/// Whether the instruction goes on behind itself and changes no system state, and accesses no
/// memory but what iced-x86 names. The stack and strings are the emulator's.
fn changes_registers_only(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::Next
        && !instruction.is_privileged()
        && !instruction.is_stack_instruction()
        && !instruction.is_string_instruction()
        && instruction.rflags_modified() & !STATUS == 0
        && !is_about_the_system(instruction.mnemonic())
}

/// Instructions of any privilege level that use more than registers and operands: descriptor
/// tables, ports, or what exits to the hypervisor.
fn is_about_the_system(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Arpl
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Cpuid
            | M::Rdtsc
            | M::Rdtscp
            | M::Rdpmc
            | M::Rdpid
            | M::Xgetbv
            | M::In
            | M::Out
            | M::Rdrand
            | M::Rdseed
            | M::Monitor
            | M::Mwait
            | M::Bound
            | M::Xbegin
            | M::Xend
            | M::Xabort
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Vmcall
            | M::Vmfunc
            | M::Enqcmd
    )
}

/// Whether it depends on registers which parts of the operand are accessed, although iced-x86 names
/// the whole.
fn has_parts(instruction: &Instruction, size: MemorySize) -> bool {
    matches!(size, MemorySize::Xsave | MemorySize::Xsave64)
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
        )
}

fn is_written(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::NoMemAccess | OpAccess::Read | OpAccess::CondRead)
}

/// The elements that a gather with VEX prefix reads: those whose mask is set (SDM volume 2,
/// "VGATHERDPS/VGATHERDPD" and the like). None for one with EVEX prefix, and for scatters.
fn gathered<C: Cpu>(
    cpu: &C,
    mode: Mode,
    instruction: &Instruction,
    vector: impl Fn(usize) -> Option<Vector>,
) -> Option<Vec<NativeOperand>> {
    if instruction.encoding() != EncodingKind::VEX || instruction.op2_kind() != OpKind::Register {
        return None;
    }
    let index = instruction.memory_index();
    let length = instruction.memory_size().size();
    let index_length = if instruction.is_vsib64() { 8 } else { 4 };
    let count = (instruction.op0_register().size() / length).min(index.size() / index_length);
    let (indices, mask) = (vector(index.number())?, vector(instruction.op2_register().number())?);
    let element = |vector: &Vector, n: usize, length: usize| {
        let bytes = &vector[n * length..][..length];
        let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        (value << (64 - 8 * length)) as i64 >> (64 - 8 * length)
    };
    let used = (0..count).filter(|&n| element(&mask, n, length) < 0);
    used.map(|n| {
        let index = element(&indices, n, index_length) as u64;
        let gva = instruction.virtual_address(1, n, |register, _, _| {
            match register.is_vector_register() {
                true => Some(index),
                false => value(cpu, mode, register),
            }
        })?;
        let gva = if mode == Mode::Bits64 { gva } else { gva & 0xffff_ffff };
        Some(NativeOperand { gva, length, read: true, written: false })
    })
    .collect()
}

/// The linear address of an operand; none where a vector register takes part in it.
fn address<C: Cpu>(cpu: &C, mode: Mode, used: &UsedMemory) -> Option<u64> {
    let gva = used.virtual_address(0, |register, _, _| value(cpu, mode, register))?;
    Some(if mode == Mode::Bits64 { gva } else { gva & 0xffff_ffff })
}

/// What a register adds to an address.
fn value<C: Cpu>(cpu: &C, mode: Mode, name: Register) -> Option<u64> {
    if name.is_segment_register() {
        let segment = crate::operand::segment(name)?;
        let flat = mode == Mode::Bits64 && !matches!(segment, Segment::Fs | Segment::Gs);
        return Some(if flat { 0 } else { cpu.segment(segment).base });
    }
    let register = gpr_of(name)?;
    Some(register.width.truncate(cpu.gpr(register.gpr)))
}

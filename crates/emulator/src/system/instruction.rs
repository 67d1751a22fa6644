//! From the decoder's instruction to what carries it out.

use iced_x86::{Code as Iced, Instruction, Mnemonic, OpKind};

use crate::flags::{OF, RF, VM, ZF};
use crate::operand::{segment, width};
use crate::segmentation::is_canonical;
use crate::step::{Operand, Result, Step};
use crate::system::SystemCpu;
use crate::system::deliver::{self, Event, EventKind};
use crate::system::descriptor::Selector;
use crate::system::far::{self, Transfer};
use crate::system::iret;
use crate::system::load;
use crate::system::ret;
use crate::system::stack::Stack;
use crate::system::verify::{self, Question};
use crate::width::Width;
use crate::{
    DescriptorTable, Error, Exception, Mode, Outcome, Segment, SystemSegment, TableRegister,
};

/// CR4.UMIP: user mode is not told of descriptor tables and control registers.
const UMIP: u64 = 1 << 11;

const GP: Exception = Exception::GENERAL_PROTECTION;
const UD: Exception = Exception::INVALID_OPCODE;

impl<C: SystemCpu> Step<'_, C> {
    /// Carries out an instruction that works on segments, descriptor tables, events or tasks; none
    /// if this is no such instruction.
    pub(crate) fn system(&mut self, instruction: &Instruction) -> Result<Option<Outcome>, C> {
        use Mnemonic as M;
        let names_segment = |operand| instruction.op_register(operand).is_segment_register();
        let tells_of_the_system =
            matches!(instruction.mnemonic(), M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw);
        if tells_of_the_system && self.cpu.cr4() & UMIP != 0 {
            self.require_ring_0()?;
        }
        let outcome = match instruction.mnemonic() {
            M::Mov | M::Pop if names_segment(0) => self.load_segment(instruction),
            M::Mov if names_segment(1) => self.store_segment(instruction),
            M::Push if names_segment(0) => self.push_segment(instruction),
            M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => self.load_far_pointer(instruction),
            M::Sgdt => self.store_table(instruction, DescriptorTable::Gdt),
            M::Sidt => self.store_table(instruction, DescriptorTable::Idt),
            M::Lgdt => self.load_table(instruction, DescriptorTable::Gdt),
            M::Lidt => self.load_table(instruction, DescriptorTable::Idt),
            M::Sldt => self.store_system_segment(instruction, SystemSegment::Ldtr),
            M::Str => self.store_system_segment(instruction, SystemSegment::Tr),
            M::Lldt | M::Ltr => self.load_system_segment(instruction),
            M::Smsw => self.store_word(instruction, self.cpu.cr0()),
            M::Lmsw => self.load_machine_status_word(instruction),
            M::Clts => self.clear_task_switched(),
            M::Invlpg => self.invalidate_page(instruction),
            M::Invpcid => self.invalidate_pcid(instruction),
            M::Verr => self.verify(instruction, Question::Readable),
            M::Verw => self.verify(instruction, Question::Writable),
            M::Lar => self.load_of_descriptor(instruction, Question::Rights),
            M::Lsl => self.load_of_descriptor(instruction, Question::Limit),
            M::Arpl => self.adjust_privilege(instruction),
            M::Jmp | M::Call => return self.far_transfer(instruction),
            M::Retf => self.return_far(instruction),
            M::Iret | M::Iretd | M::Iretq => self.interrupt_return(instruction),
            M::Int | M::Int3 | M::Int1 | M::Into => self.interrupt(instruction),
            _ => return Ok(None),
        };
        outcome.map(Some)
    }

    fn require_ring_0(&self) -> Result<(), C> {
        if self.cpu.cpl() == 0 { Ok(()) } else { Err(GP.into()) }
    }

    /// #UD in virtual-8086 mode.
    fn require_protected_mode(&self) -> Result<(), C> {
        if self.cpu.rflags() & VM == 0 { Ok(()) } else { Err(UD.into()) }
    }

    /// The low 16 bits of an operand.
    fn selector_operand(&mut self, instruction: &Instruction, operand: u32) -> Result<Selector, C> {
        let operand = self.operand(instruction, operand)?;
        Ok(Selector(self.read(operand, Width::Word)? as u16))
    }

    /// MOV to and POP of a segment register.
    fn load_segment(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let to = segment(instruction.op0_register()).ok_or(Error::Unsupported)?;
        if to == Segment::Cs {
            return Err(UD.into());
        }
        let pops = instruction.mnemonic() == Mnemonic::Pop;
        let stack = Stack::current(self.cpu);
        // POP reads the selector alone, however far it moves the stack pointer.
        let selector = if pops {
            Selector(stack.read(self.cpu, 0, Width::Word)? as u16)
        } else {
            self.selector_operand(instruction, 1)?
        };
        let register = load::segment(self.cpu, to, selector)?;
        self.cpu.set_segment(to, register);
        if pops {
            let bytes = instruction.stack_pointer_increment().unsigned_abs();
            // POP SS moves the stack pointer with the width that the old SS gave it.
            stack.moved(bytes.into()).load_pointer(self.cpu);
        }
        if to == Segment::Ss {
            self.cpu.block_interrupts();
        }
        Ok(self.retire_unflagged())
    }

    /// MOV from a segment register: 16 bits to memory, zero-extended to registers.
    fn store_segment(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let from = segment(instruction.op1_register()).ok_or(Error::Unsupported)?;
        self.store_word(instruction, self.cpu.segment(from).selector.into())
    }

    /// PUSH of a segment register.
    fn push_segment(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let from = segment(instruction.op0_register()).ok_or(Error::Unsupported)?;
        let bytes = instruction.stack_pointer_increment().unsigned_abs();
        let selector = u64::from(self.cpu.segment(from).selector);
        let below = Stack::current(self.cpu).moved(u64::from(bytes).wrapping_neg());
        // With 32-bit operands, the processor writes the low half alone (SDM volume 2, "PUSH").
        let width = if bytes == 8 { Width::Qword } else { Width::Word };
        below.write(self.cpu, selector, width)?;
        below.load_pointer(self.cpu);
        Ok(self.retire_unflagged())
    }

    /// LDS, LES, LFS, LGS, LSS: the selector is loaded before the register changes.
    fn load_far_pointer(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let to = match instruction.mnemonic() {
            Mnemonic::Lds => Segment::Ds,
            Mnemonic::Les => Segment::Es,
            Mnemonic::Lfs => Segment::Fs,
            Mnemonic::Lgs => Segment::Gs,
            _ => Segment::Ss,
        };
        let width = width::<C>(instruction, 0)?;
        let (selector, offset) = self.far_pointer(instruction, width)?;
        let register = load::segment(self.cpu, to, selector)?;
        self.cpu.set_segment(to, register);
        let operand = self.operand(instruction, 0)?;
        self.write(operand, width, offset)?;
        Ok(self.retire_unflagged())
    }

    /// A far pointer in memory: the offset, then the selector.
    fn far_pointer(
        &mut self,
        instruction: &Instruction,
        width: Width,
    ) -> Result<(Selector, u64), C> {
        let place = self.memory(instruction, 0)?;
        let mut bytes = [0; 10];
        let size = width.bytes();
        self.read_bytes(place, &mut bytes[..size + 2])?;
        let selector = u16::from_le_bytes([bytes[size], bytes[size + 1]]);
        let offset =
            bytes[..size].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        Ok((Selector(selector), offset))
    }

    /// Stores 16 bits to memory, or as many as it has to a register.
    fn store_word(&mut self, instruction: &Instruction, value: u64) -> Result<Outcome, C> {
        let to = self.operand(instruction, 0)?;
        let width = match to {
            Operand::Register(register) => register.width,
            _ => Width::Word,
        };
        self.write(to, width, value)?;
        Ok(self.retire_unflagged())
    }

    fn store_table(
        &mut self,
        instruction: &Instruction,
        table: DescriptorTable,
    ) -> Result<Outcome, C> {
        let register = self.cpu.descriptor_table(table);
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&register.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&register.base.to_le_bytes());
        let length = if self.mode == Mode::Bits64 { 10 } else { 6 };
        let place = self.memory(instruction, 0)?;
        self.write_bytes(place, &bytes[..length])?;
        Ok(self.retire_unflagged())
    }

    fn load_table(
        &mut self,
        instruction: &Instruction,
        table: DescriptorTable,
    ) -> Result<Outcome, C> {
        self.require_ring_0()?;
        let mut bytes = [0; 10];
        let length = if self.mode == Mode::Bits64 { 10 } else { 6 };
        let place = self.memory(instruction, 0)?;
        self.read_bytes(place, &mut bytes[..length])?;
        let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
        let base = bytes[2..].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let short = matches!(instruction.code(), Iced::Lgdt_m1632_16 | Iced::Lidt_m1632_16);
        // With 16-bit operands the base has 24 bits.
        let base = if short { base & 0xff_ffff } else { base };
        if !is_canonical(base) {
            return Err(GP.into());
        }
        self.cpu.set_descriptor_table(table, TableRegister { base, limit });
        Ok(self.retire_unflagged())
    }

    fn store_system_segment(
        &mut self,
        instruction: &Instruction,
        from: SystemSegment,
    ) -> Result<Outcome, C> {
        self.require_protected_mode()?;
        self.store_word(instruction, self.cpu.system_segment(from).selector.into())
    }

    /// LLDT, LTR.
    fn load_system_segment(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        self.require_protected_mode()?;
        self.require_ring_0()?;
        let selector = self.selector_operand(instruction, 0)?;
        if instruction.mnemonic() == Mnemonic::Lldt {
            load::local_table(self.cpu, selector)?;
        } else {
            load::task_register(self.cpu, selector)?;
        }
        Ok(self.retire_unflagged())
    }

    fn load_machine_status_word(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        self.require_ring_0()?;
        let operand = self.operand(instruction, 0)?;
        let value = self.read(operand, Width::Word)? as u16;
        self.cpu.load_machine_status_word(value)?;
        Ok(self.retire_unflagged())
    }

    fn clear_task_switched(&mut self) -> Result<Outcome, C> {
        self.require_ring_0()?;
        self.cpu.set_task_switched(false);
        Ok(self.retire_unflagged())
    }

    /// INVLPG neither reads its operand nor faults for it.
    fn invalidate_page(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        self.require_ring_0()?;
        let operand = self.memory(instruction, 0)?;
        let gva = self.linear(operand);
        self.cpu.invalidate_page(gva);
        Ok(self.retire_unflagged())
    }

    /// INVPCID: the processor judges type and descriptor.
    fn invalidate_pcid(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        self.require_ring_0()?;
        let kind = self.operand(instruction, 0)?;
        let kind = self.read(kind, width::<C>(instruction, 0)?)?;
        let place = self.memory(instruction, 0)?;
        let mut descriptor = [0; 16];
        self.read_bytes(place, &mut descriptor)?;
        self.cpu.invalidate_pcid(kind, descriptor)?;
        Ok(self.retire_unflagged())
    }

    /// VERR, VERW.
    fn verify(&mut self, instruction: &Instruction, question: Question) -> Result<Outcome, C> {
        self.require_protected_mode()?;
        let selector = self.selector_operand(instruction, 0)?;
        let answer = verify::ask(self.cpu, question, selector)?;
        Ok(self.retire_with_zf(answer.is_some()))
    }

    /// LAR, LSL: without an answer the register stays as it is.
    fn load_of_descriptor(
        &mut self,
        instruction: &Instruction,
        question: Question,
    ) -> Result<Outcome, C> {
        self.require_protected_mode()?;
        let selector = self.selector_operand(instruction, 1)?;
        let answer = verify::ask(self.cpu, question, selector)?;
        if let Some(value) = answer {
            let to = self.operand(instruction, 0)?;
            self.write(to, width::<C>(instruction, 0)?, value)?;
        }
        Ok(self.retire_with_zf(answer.is_some()))
    }

    /// ARPL: raises the RPL of a selector to that of another.
    fn adjust_privilege(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        self.require_protected_mode()?;
        let to = self.operand(instruction, 0)?;
        let least = self.selector_operand(instruction, 1)?.rpl();
        let old = Selector(self.read_modify(to, Width::Word)? as u16);
        let raised = old.rpl() < least;
        if raised {
            self.write(to, Width::Word, old.with_rpl(least).0.into())?;
        }
        Ok(self.retire_with_zf(raised))
    }

    fn retire_with_zf(&mut self, set: bool) -> Outcome {
        let rflags = self.cpu.rflags();
        self.retire(if set { rflags | ZF } else { rflags & !ZF })
    }

    /// Far JMP and CALL; none if it is a near one.
    fn far_transfer(&mut self, instruction: &Instruction) -> Result<Option<Outcome>, C> {
        let width = match instruction.code() {
            Iced::Jmp_ptr1616 | Iced::Call_ptr1616 | Iced::Jmp_m1616 | Iced::Call_m1616 => {
                Width::Word
            }
            Iced::Jmp_ptr1632 | Iced::Call_ptr1632 | Iced::Jmp_m1632 | Iced::Call_m1632 => {
                Width::Dword
            }
            Iced::Jmp_m1664 | Iced::Call_m1664 => Width::Qword,
            _ => return Ok(None),
        };
        let target = match instruction.op0_kind() {
            OpKind::FarBranch16 => {
                (Selector(instruction.far_branch_selector()), instruction.far_branch16().into())
            }
            OpKind::FarBranch32 => {
                (Selector(instruction.far_branch_selector()), instruction.far_branch32().into())
            }
            _ => self.far_pointer(instruction, width)?,
        };
        let jumps = instruction.mnemonic() == Mnemonic::Jmp;
        let transfer = if jumps { Transfer::Jmp } else { Transfer::Call };
        let outcome = far::transfer(self.cpu, transfer, target, width, self.next_rip)?;
        if outcome == Outcome::Done {
            self.finish();
        }
        Ok(Some(outcome))
    }

    fn return_far(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let width = match instruction.code() {
            Iced::Retfw | Iced::Retfw_imm16 => Width::Word,
            Iced::Retfd | Iced::Retfd_imm16 => Width::Dword,
            _ => Width::Qword,
        };
        let parameters = if instruction.op_count() == 1 { instruction.immediate16() } else { 0 };
        ret::far(self.cpu, width, parameters.into())?;
        self.finish();
        Ok(Outcome::Done)
    }

    fn interrupt_return(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let width = match instruction.code() {
            Iced::Iretw => Width::Word,
            Iced::Iretd => Width::Dword,
            _ => Width::Qword,
        };
        iret::iret(self.cpu, width, self.next_rip)?;
        Ok(Outcome::Transferred)
    }

    /// INT n, INT3, INTO, INT1.
    fn interrupt(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let (kind, vector) = match instruction.mnemonic() {
            Mnemonic::Int1 => (EventKind::PrivilegedSoftware, 1),
            Mnemonic::Int3 => (EventKind::Software, 3),
            Mnemonic::Into if self.cpu.rflags() & OF == 0 => return Ok(self.retire_unflagged()),
            Mnemonic::Into => (EventKind::Software, 4),
            _ => {
                let vector = instruction.immediate8();
                if self.cpu.rflags() & VM != 0
                    && deliver::redirect(self.cpu, vector, self.next_rip)?
                {
                    return Ok(Outcome::Transferred);
                }
                (EventKind::Software, vector)
            }
        };
        deliver::deliver(
            self.cpu,
            Event { kind, vector, error_code: None, return_rip: self.next_rip },
        )?;
        Ok(Outcome::Transferred)
    }

    /// Ends an instruction that has set RIP.
    fn finish(&mut self) {
        let rflags = self.cpu.rflags();
        self.cpu.set_rflags(rflags & !RF);
    }
}

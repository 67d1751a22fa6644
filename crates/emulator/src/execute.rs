//! From the mnemonic to what carries it out.

use iced_x86::{Instruction, Mnemonic};

use crate::alu::{Binary, BitChange, Shift, Unary};
use crate::operand::width;
use crate::scan::From;
use crate::step::{Operand, Result, Step};
use crate::string::Kind;
use crate::width::Width;
use crate::{Error, Outcome, SystemCpu};

impl<C: SystemCpu> Step<'_, C> {
    pub(crate) fn execute(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        use Mnemonic as M;
        if let Some(outcome) = self.system(instruction)? {
            return Ok(outcome);
        }
        match instruction.mnemonic() {
            M::Mov | M::Movnti => self.two(instruction, Self::mov),
            M::Movbe => self.two(instruction, Self::mov_swapped),
            M::Movzx => self.mov_extended(instruction, false),
            M::Movsx | M::Movsxd => self.mov_extended(instruction, true),
            M::Xchg => self.two(instruction, Self::exchange),
            M::Xadd => self.two(instruction, Self::exchange_add),
            M::Cmpxchg => self.two(instruction, Self::compare_exchange),
            M::Cmpxchg8b => self.compare_exchange_pair(self.memory(instruction, 0)?, Width::Dword),
            M::Cmpxchg16b => self.compare_exchange_pair(self.memory(instruction, 0)?, Width::Qword),

            M::Add => self.binary(instruction, Binary::Add),
            M::Adc => self.binary(instruction, Binary::Adc),
            M::Sub => self.binary(instruction, Binary::Sub),
            M::Sbb => self.binary(instruction, Binary::Sbb),
            M::And => self.binary(instruction, Binary::And),
            M::Or => self.binary(instruction, Binary::Or),
            M::Xor => self.binary(instruction, Binary::Xor),
            M::Cmp => self.compare(instruction, Binary::Sub),
            M::Test => self.compare(instruction, Binary::And),
            M::Inc => self.unary(instruction, Unary::Inc),
            M::Dec => self.unary(instruction, Unary::Dec),
            M::Neg => self.unary(instruction, Unary::Neg),
            M::Not => self.unary(instruction, Unary::Not),
            M::Shl | M::Sal => self.shift(instruction, Shift::Shl),
            M::Shr => self.shift(instruction, Shift::Shr),
            M::Sar => self.shift(instruction, Shift::Sar),
            M::Rol => self.shift(instruction, Shift::Rol),
            M::Ror => self.shift(instruction, Shift::Ror),
            M::Rcl => self.shift(instruction, Shift::Rcl),
            M::Rcr => self.shift(instruction, Shift::Rcr),
            M::Bt => self.bit_test(instruction, BitChange::Keep),
            M::Bts => self.bit_test(instruction, BitChange::Set),
            M::Btr => self.bit_test(instruction, BitChange::Reset),
            M::Btc => self.bit_test(instruction, BitChange::Complement),

            M::Shld => self.double_shift(instruction, true),
            M::Shrd => self.double_shift(instruction, false),
            M::Mul => self.multiply(instruction, false),
            M::Imul if instruction.op_count() == 1 => self.multiply(instruction, true),
            M::Imul => self.multiply_truncated(instruction),
            M::Div => self.divide(instruction, false),
            M::Idiv => self.divide(instruction, true),
            M::Bsf => self.bit_scan(instruction, From::Bottom),
            M::Bsr => self.bit_scan(instruction, From::Top),
            M::Tzcnt => self.count_zeros(instruction, From::Bottom),
            M::Lzcnt => self.count_zeros(instruction, From::Top),
            M::Popcnt => self.count_ones(instruction),
            M::Crc32 => self.crc32(instruction),

            M::Push => self.push(instruction),
            M::Pushf | M::Pushfd | M::Pushfq => self.push_flags(instruction),
            M::Pop => self.pop(instruction),
            M::Popf | M::Popfd | M::Popfq => self.pop_flags(instruction),
            M::Pusha | M::Pushad => self.push_all(instruction),
            M::Popa | M::Popad => self.pop_all(instruction),
            M::Enter => self.enter(instruction),
            M::Leave => self.leave(instruction),
            M::Call => self.call(instruction),
            M::Jmp => self.jump(instruction),
            M::Ret => self.ret(instruction),

            M::Movsb | M::Movsw | M::Movsd | M::Movsq => self.string(instruction, Kind::Movs),
            M::Stosb | M::Stosw | M::Stosd | M::Stosq => self.string(instruction, Kind::Stos),
            M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => self.string(instruction, Kind::Lods),
            M::Scasb | M::Scasw | M::Scasd | M::Scasq => self.string(instruction, Kind::Scas),
            M::Insb | M::Insw | M::Insd => self.string(instruction, Kind::Ins),
            M::Outsb | M::Outsw | M::Outsd => self.string(instruction, Kind::Outs),
            M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => self.string(instruction, Kind::Cmps),

            M::Seto | M::Setno | M::Setb | M::Setae | M::Sete | M::Setne | M::Setbe | M::Seta => {
                self.set_condition(instruction)
            }
            M::Sets | M::Setns | M::Setp | M::Setnp | M::Setl | M::Setge | M::Setle | M::Setg => {
                self.set_condition(instruction)
            }
            M::Cmovo
            | M::Cmovno
            | M::Cmovb
            | M::Cmovae
            | M::Cmove
            | M::Cmovne
            | M::Cmovbe
            | M::Cmova => self.mov_conditional(instruction),
            M::Cmovs
            | M::Cmovns
            | M::Cmovp
            | M::Cmovnp
            | M::Cmovl
            | M::Cmovge
            | M::Cmovle
            | M::Cmovg => self.mov_conditional(instruction),

            M::Xlatb => self.translate(instruction),
            M::Bound => self.bound(instruction),
            M::Clflush | M::Clflushopt | M::Clwb => self.flush_line(instruction),
            M::Nop
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Prefetchw => self.hint(),
            _ => Err(Error::Unsupported),
        }
    }

    /// Carries out an instruction of two operands of one width.
    fn two(
        &mut self,
        instruction: &Instruction,
        execute: fn(&mut Self, Operand, Operand, Width) -> Result<Outcome, C>,
    ) -> Result<Outcome, C> {
        let (a, b) = (self.operand(instruction, 0)?, self.operand(instruction, 1)?);
        execute(self, a, b, width::<C>(instruction, 0)?)
    }
}

//! PUSHF and POPF, and who may change which flag (SDM volume 2, "PUSHF", "POPF"; volume 3,
//! "Virtual-8086 Mode").

use iced_x86::Instruction;

use crate::flags::{AC, DF, ID, IF, IOPL, NT, RF, STATUS, TF, VIF, VIP, VM};
use crate::stack::stack_width;
use crate::step::{Result, Step};
use crate::width::Width;
use crate::{Cpu, Exception, Outcome};

/// CR4.VME: virtual-8086 programs have an interrupt flag of their own.
const VIRTUAL_8086_EXTENSIONS: u64 = 1 << 0;

impl<C: Cpu> Step<'_, C> {
    /// Whether VIF stands for IF: in virtual-8086 mode below I/O privilege, with CR4.VME, for an
    /// operand of 16 bits. With none of the latter two, #GP.
    fn has_virtual_interrupts(&self, width: Width) -> Result<bool, C> {
        let rflags = self.cpu.rflags();
        if rflags & VM == 0 || rflags & IOPL == IOPL {
            return Ok(false);
        }
        if width == Width::Word && self.cpu.cr4() & VIRTUAL_8086_EXTENSIONS != 0 {
            return Ok(true);
        }
        Err(Exception::GENERAL_PROTECTION.into())
    }

    /// PUSHF: VM and RF read as zero.
    pub(crate) fn push_flags(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let width = stack_width::<C>(instruction)?;
        let rflags = self.cpu.rflags();
        let image = if self.has_virtual_interrupts(width)? {
            let interrupts = if rflags & VIF != 0 { IF } else { 0 };
            rflags & !IF | interrupts | IOPL
        } else {
            rflags & !(VM | RF)
        };
        self.push_value(image, width)?;
        Ok(self.retire_unflagged())
    }

    /// POPF. Flags that the program may not change stay as they are.
    pub(crate) fn pop_flags(&mut self, instruction: &Instruction) -> Result<Outcome, C> {
        let width = stack_width::<C>(instruction)?;
        let rflags = self.cpu.rflags();
        let virtual_interrupts = self.has_virtual_interrupts(width)?;
        let mut image = self.top_of_stack(width)?;
        let mut changes = STATUS | TF | DF | NT;
        if width != Width::Word {
            changes |= AC | ID;
        }
        let (cpl, iopl) = (u64::from(self.cpu.cpl()), rflags >> IOPL.trailing_zeros() & 3);
        if virtual_interrupts {
            if image & TF != 0 || image & IF != 0 && rflags & VIP != 0 {
                return Err(Exception::GENERAL_PROTECTION.into());
            }
            changes |= VIF;
            image = image & !VIF | if image & IF != 0 { VIF } else { 0 };
        } else if cpl <= iopl {
            changes |= IF;
        }
        if cpl == 0 {
            changes |= IOPL;
        }
        let pointer = self.stack_pointer();
        self.set_register(pointer, self.register(pointer).wrapping_add(width.bytes() as u64));
        Ok(self.retire(rflags & !changes | image & changes))
    }
}

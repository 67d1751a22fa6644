//! The instruction that the hypervisor carries out in answer to an exit.

use umbra_vcpu::backend::Backend;
use umbra_vcpu::breakpoints::Watched;

use super::Vcpu;

/// What carrying out the instruction at RIP has come to so far.
#[derive(Default)]
pub struct Instruction {
    /// Its length, if the exit skips it.
    length: u8,
    /// Breakpoints that it has met: bits B0 to B3 of DR6.
    met: u8,
    /// It has loaded SS, which holds back what would come behind it.
    loaded_ss: bool,
}

impl Instruction {
    /// Another instruction has exited.
    pub fn begin(&mut self) {
        self.met = 0;
    }

    /// Its length is known.
    pub fn set_length(&mut self, length: u8) {
        self.length = length;
    }

    /// Its length.
    pub fn length(&self) -> u64 {
        self.length.into()
    }

    /// The breakpoints that it has met: bits B0 to B3 of DR6.
    pub fn met(&self) -> u8 {
        self.met
    }

    /// It loads SS.
    pub fn load_ss(&mut self) {
        self.loaded_ss = true;
    }

    /// Whether it has loaded SS; told once.
    pub fn take_loaded_ss(&mut self) -> bool {
        core::mem::take(&mut self.loaded_ss)
    }
}

impl<B: Backend> Vcpu<B> {
    /// The instruction that exited has been carried out: goes on behind it.
    pub(super) fn skip(&mut self) {
        let next = self.next_rip(self.instruction.length());
        self.backend.set_rip(next);
        self.backend.retire(self.instruction.met);
    }

    /// Notes the breakpoints that an access of the guest's instruction meets.
    pub(super) fn watch(&mut self, what: Watched, address: u64, length: usize) {
        self.instruction.met |= self.backend.breakpoints().met(what, address, length as u64);
    }
}

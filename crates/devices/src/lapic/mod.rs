//! The local APIC of the virtual CPU, in xAPIC mode.
//!
//! SDM volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)". There is one CPU: an
//! inter-processor interrupt either reaches it or nobody. SMIs are dropped. An LINT pin in fixed
//! mode is edge-triggered whatever its trigger mode says. Nothing drives LINT1 and the thermal and
//! performance entries.

mod timer;
mod vectors;

use timer::{Mode, Timer};
use vectors::Vectors;

use crate::exception::GeneralProtection;

/// Where the local APIC's page is after a reset.
pub const LAPIC_DEFAULT_GPA: u64 = 0xfee0_0000;

pub(crate) const IA32_APIC_BASE: u32 = 0x1b;
pub(crate) const IA32_TSC_DEADLINE: u32 = 0x6e0;

const BASE_BOOTSTRAP_PROCESSOR: u64 = 1 << 8;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_FLAGS: u64 = BASE_BOOTSTRAP_PROCESSOR | BASE_ENABLE;

/// An integrated APIC with six LVT entries, without EOI-broadcast suppression.
const VERSION: u32 = 0x14 | 5 << 16;

const SVR_ENABLE: u32 = 1 << 8;
const SVR_WRITABLE: u32 = 0x1ff;
const SVR_RESET: u32 = 0xff;
const DFR_MODEL: u32 = 0xf000_0000;
const DFR_FLAT: u32 = 0xf;

const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const ESR_RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;
/// Vectors below this one are illegal for fixed interrupts.
const FIRST_LEGAL_VECTOR: u8 = 16;

const ICR_LOGICAL: u32 = 1 << 11;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_LEVEL: u32 = 1 << 15;
/// Vector, delivery and destination mode, level, trigger mode and shorthand; the delivery status is
/// always idle.
const ICR_LOW_WRITABLE: u32 = 0x000c_cfff;
const ICR_HIGH_WRITABLE: u32 = 0xff00_0000;

const LVT_MASKED: u32 = 1 << 16;
const LVT_TIMER: usize = 0;
const LVT_LINT0: usize = 3;
const LVT_LINT1: usize = 4;
const LVT_ERROR: usize = 5;
/// What can be written to the entries for timer (without TSC-deadline mode), thermal sensor,
/// performance counters, LINT0, LINT1 and error.
const LVT_WRITABLE: [u32; 6] = [0x300ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff];
const LVT_TIMER_TSC_DEADLINE: u32 = 1 << 18;

/// The delivery modes of an interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Fixed and lowest priority, which is the same for a single CPU.
    Fixed,
    Nmi,
    Init,
    ExtInt,
    /// SMI, start-up, reserved.
    Other,
}

impl Delivery {
    /// The delivery mode in bits 10:8, as LVT, ICR and I/O redirection entries have it.
    pub(crate) fn of(entry: u32) -> Delivery {
        match entry >> 8 & 7 {
            0 | 1 => Delivery::Fixed,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            7 => Delivery::ExtInt,
            _ => Delivery::Other,
        }
    }
}

/// An inter-processor interrupt that the local APIC cannot deal with alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ipi {
    /// INIT to the sender itself.
    InitSelf,
}

/// What a register write has to do outside the local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The I/O APIC must hear of the end of this level-triggered interrupt.
    EoiBroadcast(u8),
    Ipi(Ipi),
}

pub(crate) struct Lapic {
    /// IA32_APIC_BASE.
    base: u64,
    /// Its bits that must be zero.
    base_reserved: u64,
    tsc_deadline_shown: bool,
    id: u8,
    task_priority: u8,
    logical_destination: u8,
    destination_format: u32,
    spurious: u32,
    in_service: Vectors,
    /// The trigger mode register: which of the requested vectors are level-triggered.
    level: Vectors,
    requests: Vectors,
    /// The error status register as it reads, and what its next write will show.
    errors: u32,
    new_errors: u32,
    interrupt_command: [u32; 2],
    lvt: [u32; 6],
    timer: Timer,
    nmi: bool,
    /// The level of the LINT0 pin: the 8259s' output.
    lint0: bool,
}

impl Lapic {
    /// As firmware leaves the bootstrap processor's: enabled, in virtual-wire mode (MultiProcessor
    /// Specification 1.4, 3.6.2.2).
    pub(crate) fn new(physical_address_bits: u8, tsc_deadline_shown: bool) -> Lapic {
        let addresses =
            1u64.checked_shl(physical_address_bits.into()).map_or(u64::MAX, |end| end - 1);
        let mut lapic = Lapic {
            base: LAPIC_DEFAULT_GPA | BASE_FLAGS,
            base_reserved: !(addresses & !0xfff | BASE_FLAGS),
            tsc_deadline_shown,
            id: 0,
            task_priority: 0,
            logical_destination: 0,
            destination_format: 0,
            spurious: 0,
            in_service: Vectors::default(),
            level: Vectors::default(),
            requests: Vectors::default(),
            errors: 0,
            new_errors: 0,
            interrupt_command: [0; 2],
            lvt: [0; 6],
            timer: Timer::default(),
            nmi: false,
            lint0: false,
        };
        lapic.reset();
        lapic.spurious |= SVR_ENABLE;
        lapic.lvt[LVT_LINT0] = 0x700;
        lapic.lvt[LVT_LINT1] = 0x400;
        lapic
    }

    /// "Local APIC State After Power-Up or Reset". The task priority stays: it is CR8 too.
    fn reset(&mut self) {
        self.id = 0;
        self.logical_destination = 0;
        self.destination_format = u32::MAX;
        self.spurious = SVR_RESET;
        self.in_service = Vectors::default();
        self.level = Vectors::default();
        self.requests = Vectors::default();
        self.errors = 0;
        self.new_errors = 0;
        self.interrupt_command = [0; 2];
        self.lvt = [LVT_MASKED; 6];
        self.timer.reset();
    }

    fn hardware_enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    fn software_enabled(&self) -> bool {
        self.spurious & SVR_ENABLE != 0
    }

    /// The gpa of the registers' page.
    pub(crate) fn page(&self) -> Option<u64> {
        self.hardware_enabled().then_some(self.base & !0xfff)
    }

    pub(crate) fn msr_read(&self, msr: u32) -> Result<u64, GeneralProtection> {
        match msr {
            IA32_APIC_BASE => Ok(self.base),
            IA32_TSC_DEADLINE if self.tsc_deadline_shown => Ok(self.timer.tsc_deadline()),
            _ => Err(GeneralProtection),
        }
    }

    pub(crate) fn msr_write(
        &mut self,
        now: u64,
        msr: u32,
        value: u64,
    ) -> Result<(), GeneralProtection> {
        match msr {
            IA32_APIC_BASE if value & self.base_reserved == 0 => {
                let was_enabled = self.hardware_enabled();
                self.base = value;
                if was_enabled && !self.hardware_enabled() {
                    self.reset();
                }
                Ok(())
            }
            IA32_TSC_DEADLINE if self.tsc_deadline_shown => {
                self.timer.set_tsc_deadline(now, value);
                self.run_timer(now);
                Ok(())
            }
            _ => Err(GeneralProtection),
        }
    }

    pub(crate) fn set_tsc_offset(&mut self, now: u64, offset: u64) {
        self.timer.set_tsc_offset(now, offset);
        self.run_timer(now);
    }

    pub(crate) fn cr8(&self) -> u64 {
        u64::from(self.task_priority >> 4)
    }

    pub(crate) fn set_cr8(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value > 15 {
            return Err(GeneralProtection);
        }
        self.task_priority = (value as u8) << 4;
        Ok(())
    }

    /// A load from the page. Registers are 32 bits wide and stand 16 bytes apart; what is between
    /// them reads zero.
    pub(crate) fn mmio_read(&mut self, now: u64, offset: u16) -> u64 {
        let byte = offset & 0xf;
        if byte >= 4 {
            return 0;
        }
        u64::from(self.read(now, offset & !0xf)) >> (8 * byte)
    }

    fn read(&mut self, now: u64, register: u16) -> u32 {
        match register {
            0x020 => u32::from(self.id) << 24,
            0x030 => VERSION,
            0x080 => u32::from(self.task_priority),
            // Arbitration priority and remote read went with the APIC bus; EOI is for writing.
            0x090 | 0x0b0 | 0x0c0 => 0,
            0x0a0 => u32::from(self.processor_priority()),
            0x0d0 => u32::from(self.logical_destination) << 24,
            0x0e0 => self.destination_format,
            0x0f0 => self.spurious,
            0x100..=0x170 => self.in_service.register(register >> 4),
            0x180..=0x1f0 => self.level.register(register >> 4),
            0x200..=0x270 => self.requests.register(register >> 4),
            0x280 => self.errors,
            0x300 => self.interrupt_command[0],
            0x310 => self.interrupt_command[1],
            0x320..=0x370 => self.lvt[lvt_index(register)],
            0x380 => self.timer.initial_count(),
            0x390 => self.timer.current_count(now),
            0x3e0 => self.timer.divide_configuration(),
            _ => {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// A store of the 32-bit register at `register`.
    pub(crate) fn write(&mut self, now: u64, register: u16, value: u32) -> Option<Effect> {
        match register {
            0x020 => self.id = (value >> 24) as u8,
            0x080 => self.task_priority = value as u8,
            0x0b0 => return self.end_of_interrupt(),
            0x0d0 => self.logical_destination = (value >> 24) as u8,
            0x0e0 => self.destination_format = value | !DFR_MODEL,
            0x0f0 => {
                self.spurious = value & SVR_WRITABLE;
                if !self.software_enabled() {
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
            }
            // A write, of whatever value, shows the errors since the last one.
            0x280 => self.errors = core::mem::take(&mut self.new_errors),
            0x300 => {
                self.interrupt_command[0] = value & ICR_LOW_WRITABLE;
                return self.send();
            }
            0x310 => self.interrupt_command[1] = value & ICR_HIGH_WRITABLE,
            0x320..=0x370 => self.set_lvt(lvt_index(register), value),
            0x380 => self.timer.set_initial_count(now, value),
            0x3e0 => self.timer.set_divide_configuration(now, value),
            0x030 | 0x090 | 0x0a0 | 0x0c0 | 0x100..=0x270 | 0x390 => {}
            _ => self.error(ESR_ILLEGAL_REGISTER),
        }
        None
    }

    fn set_lvt(&mut self, index: usize, value: u32) {
        let mut writable = LVT_WRITABLE[index];
        if index == LVT_TIMER && self.tsc_deadline_shown {
            writable |= LVT_TIMER_TSC_DEADLINE;
        }
        let masked = if self.software_enabled() { 0 } else { LVT_MASKED };
        self.lvt[index] = value & writable | masked;
        if index == LVT_TIMER {
            self.timer.set_mode(Mode::of_lvt(self.lvt[index]));
        }
    }

    /// Lets the timer fire if it is due.
    pub(crate) fn run_timer(&mut self, now: u64) {
        if self.timer.take_expiry(now) && self.lvt[LVT_TIMER] & LVT_MASKED == 0 {
            self.accept(self.lvt[LVT_TIMER] as u8, false);
        }
    }

    /// When the timer will interrupt, and whether it does so again and again.
    pub(crate) fn next_timer(&self) -> Option<(u64, bool)> {
        let heard = self.hardware_enabled() && self.lvt[LVT_TIMER] & LVT_MASKED == 0;
        self.timer.fires_at().filter(|_| heard).map(|at| (at, self.timer.mode() == Mode::Periodic))
    }

    /// Whether LINT0 hands the 8259s' interrupts through to the CPU. A disabled APIC leaves its
    /// pins connected.
    pub(crate) fn passes_external_interrupts(&self) -> bool {
        let entry = self.lvt[LVT_LINT0];
        !self.hardware_enabled()
            || entry & LVT_MASKED == 0 && Delivery::of(entry) == Delivery::ExtInt
    }

    /// Whether LINT0 looks at the 8259s' output at all.
    pub(crate) fn listens_to_lint0(&self) -> bool {
        !self.hardware_enabled() || self.lvt[LVT_LINT0] & LVT_MASKED == 0
    }

    /// Whether an edge of the 8259s' output is an NMI.
    pub(crate) fn lint0_is_nmi(&self) -> bool {
        let entry = self.lvt[LVT_LINT0];
        self.hardware_enabled() && entry & LVT_MASKED == 0 && Delivery::of(entry) == Delivery::Nmi
    }

    /// Sets the level of the LINT0 pin.
    pub(crate) fn set_lint0(&mut self, level: bool) {
        let rose = level && !self.lint0;
        self.lint0 = level;
        let entry = self.lvt[LVT_LINT0];
        if rose && self.hardware_enabled() && entry & LVT_MASKED == 0 {
            self.deliver(Delivery::of(entry), entry as u8, false);
        }
    }

    /// Takes an interrupt message, unless it is of a kind that ends elsewhere. Whether it is one
    /// that will be ended by an EOI.
    pub(crate) fn deliver(&mut self, delivery: Delivery, vector: u8, level: bool) -> bool {
        match delivery {
            Delivery::Fixed => return self.accept(vector, level),
            Delivery::Nmi => self.nmi = true,
            Delivery::Init | Delivery::ExtInt | Delivery::Other => {}
        }
        false
    }

    /// Whether a message for this destination is for this APIC ("Logical Destination Mode").
    pub(crate) fn is_destination(&self, logical: bool, destination: u8) -> bool {
        if !self.hardware_enabled() {
            return false;
        }
        if destination == 0xff {
            return true;
        }
        if !logical {
            return destination == self.id;
        }
        let own = self.logical_destination;
        if self.destination_format >> 28 == DFR_FLAT {
            destination & own != 0
        } else {
            destination >> 4 == own >> 4 && destination & own & 0xf != 0
        }
    }

    /// Requests a fixed interrupt; whether it was accepted. A software-disabled APIC takes none.
    fn accept(&mut self, vector: u8, level: bool) -> bool {
        if !self.hardware_enabled() || !self.software_enabled() {
            return false;
        }
        if vector < FIRST_LEGAL_VECTOR {
            self.error(ESR_RECEIVED_ILLEGAL_VECTOR);
            return false;
        }
        self.requests.insert(vector);
        if level {
            self.level.insert(vector);
        } else {
            self.level.remove(vector);
        }
        true
    }

    /// Notes an error; a kind that the guest has not looked at yet does not interrupt again.
    fn error(&mut self, error: u32) {
        let entry = self.lvt[LVT_ERROR];
        let noted = self.new_errors & error != 0;
        self.new_errors |= error;
        if !noted && entry & LVT_MASKED == 0 {
            self.accept(entry as u8, false);
        }
    }

    /// The processor-priority register ("Task and Processor Priorities").
    fn processor_priority(&self) -> u8 {
        let in_service = self.in_service.highest().unwrap_or(0);
        if self.task_priority >> 4 >= in_service >> 4 {
            self.task_priority
        } else {
            in_service & 0xf0
        }
    }

    /// The vector that the CPU would take.
    pub(crate) fn pending(&self) -> Option<u8> {
        let deliverable = self.hardware_enabled() && self.software_enabled();
        let vector = self.requests.highest().filter(|_| deliverable)?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Puts the pending vector into service.
    pub(crate) fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.requests.remove(vector);
        self.in_service.insert(vector);
        Some(vector)
    }

    fn end_of_interrupt(&mut self) -> Option<Effect> {
        let vector = self.in_service.highest()?;
        self.in_service.remove(vector);
        self.level.contains(vector).then_some(Effect::EoiBroadcast(vector))
    }

    /// Sends what the interrupt command register says ("Interrupt Command Register (ICR)").
    fn send(&mut self) -> Option<Effect> {
        let [low, high] = self.interrupt_command;
        let vector = low as u8;
        let delivery = Delivery::of(low);
        if delivery == Delivery::Fixed && vector < FIRST_LEGAL_VECTOR {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
            return None;
        }
        let to_self = match low >> 18 & 3 {
            0 => self.is_destination(low & ICR_LOGICAL != 0, (high >> 24) as u8),
            1 | 2 => true,
            // All excluding self: there is nobody else.
            _ => false,
        };
        if !to_self {
            return None;
        }
        if delivery == Delivery::Init {
            // The de-assert message only synchronizes arbitration IDs.
            let deassert = low & (ICR_LEVEL | ICR_ASSERT) == ICR_LEVEL;
            return (!deassert).then_some(Effect::Ipi(Ipi::InitSelf));
        }
        self.deliver(delivery, vector, false);
        None
    }

    pub(crate) fn nmi_pending(&self) -> bool {
        self.nmi
    }

    pub(crate) fn take_nmi(&mut self) -> bool {
        core::mem::take(&mut self.nmi)
    }
}

/// The LVT entry at a register offset from 0x320 to 0x370.
fn lvt_index(register: u16) -> usize {
    usize::from((register - 0x320) >> 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: u16 = 0x020;
    const TPR: u16 = 0x080;
    const PPR: u16 = 0x0a0;
    const EOI: u16 = 0x0b0;
    const LDR: u16 = 0x0d0;
    const DFR: u16 = 0x0e0;
    const SVR: u16 = 0x0f0;
    const ESR: u16 = 0x280;
    const ICR: u16 = 0x300;
    const ICR_DESTINATION: u16 = 0x310;
    const TIMER: u16 = 0x320;
    const LINT0: u16 = 0x350;
    const ERROR: u16 = 0x370;
    const INITIAL_COUNT: u16 = 0x380;
    const CURRENT_COUNT: u16 = 0x390;
    const DIVIDE: u16 = 0x3e0;

    const SHORTHAND_SELF: u32 = 1 << 18;

    fn lapic() -> Lapic {
        Lapic::new(40, true)
    }

    fn self_ipi(lapic: &mut Lapic, vector: u8) {
        assert_eq!(lapic.write(0, ICR, SHORTHAND_SELF | u32::from(vector)), None);
    }

    #[test]
    fn higher_classes_nest_and_eoi_ends_the_highest() {
        let mut lapic = lapic();
        self_ipi(&mut lapic, 0x51);
        assert_eq!(lapic.acknowledge(), Some(0x51));
        assert_eq!(lapic.read(0, PPR), 0x50);
        self_ipi(&mut lapic, 0x5f);
        assert_eq!(lapic.pending(), None);
        self_ipi(&mut lapic, 0x60);
        assert_eq!(lapic.acknowledge(), Some(0x60));
        assert_eq!(lapic.read(0, 0x120), 1 << 17);
        assert_eq!(lapic.read(0, 0x130), 1 << 0);
        assert_eq!(lapic.read(0, 0x220), 1 << 31);
        lapic.write(0, EOI, 0);
        assert_eq!((lapic.read(0, PPR), lapic.pending()), (0x50, None));
        lapic.write(0, EOI, 0);
        assert_eq!(lapic.acknowledge(), Some(0x5f));
        lapic.write(0, EOI, 0);
        lapic.write(0, EOI, 0);
        assert_eq!((lapic.read(0, PPR), lapic.pending()), (0, None));
    }

    #[test]
    fn the_task_priority_holds_its_class_back() {
        let mut lapic = lapic();
        self_ipi(&mut lapic, 0x35);
        lapic.write(0, TPR, 0x30);
        assert_eq!((lapic.pending(), lapic.cr8(), lapic.read(0, PPR)), (None, 3, 0x30));
        lapic.set_cr8(2).unwrap();
        assert_eq!((lapic.pending(), lapic.read(0, TPR)), (Some(0x35), 0x20));
        assert_eq!(lapic.set_cr8(16), Err(GeneralProtection));
    }

    #[test]
    fn destinations() {
        let mut lapic = lapic();
        lapic.write(0, ID, 3 << 24);
        lapic.write(0, LDR, 0x21 << 24);
        let hits = |lapic: &Lapic, logical| {
            [3, 0, 0x20, 0x21, 0x12, 0xff].map(|d| lapic.is_destination(logical, d))
        };
        assert_eq!(hits(&lapic, false), [true, false, false, false, false, true]);
        assert_eq!(hits(&lapic, true), [true, false, true, true, false, true]);
        lapic.write(0, DFR, 0);
        assert_eq!(lapic.read(0, DFR), 0x0fff_ffff);
        assert_eq!(hits(&lapic, true), [false, false, false, true, false, true]);
    }

    #[test]
    fn inter_processor_interrupts_reach_this_cpu_or_nobody() {
        let mut lapic = lapic();
        lapic.write(0, ICR_DESTINATION, 1 << 24);
        for to_others in [0x4500, 0x4608, 0x00040, 0xc4040, 0xc4500] {
            assert_eq!(lapic.write(0, ICR, to_others), None);
            assert_eq!((lapic.pending(), lapic.nmi_pending()), (None, false));
        }
        assert_eq!(lapic.write(0, ICR, 0x8_4041), None);
        assert_eq!(lapic.pending(), Some(0x41));
        lapic.write(0, ICR_DESTINATION, 0);
        assert_eq!(lapic.write(0, ICR, 0x4400), None);
        assert!(lapic.take_nmi() && !lapic.take_nmi());
        assert_eq!(lapic.write(0, ICR, 0x4608), None);
        assert_eq!(lapic.write(0, ICR, 0x8500), None);
        assert_eq!(lapic.write(0, ICR, 0x4500), Some(Effect::Ipi(Ipi::InitSelf)));
    }

    #[test]
    fn illegal_vectors_and_registers_are_errors() {
        let mut lapic = lapic();
        lapic.write(0, ERROR, 0xe0);
        self_ipi(&mut lapic, 0x0f);
        assert_eq!(lapic.acknowledge(), Some(0xe0));
        assert_eq!(lapic.read(0, ESR), 0);
        lapic.write(0, ESR, 0);
        assert_eq!(lapic.read(0, ESR), ESR_SEND_ILLEGAL_VECTOR);
        lapic.write(0, 0x3f0, 0);
        lapic.deliver(Delivery::Fixed, 3, false);
        lapic.write(0, ESR, 0);
        assert_eq!(lapic.read(0, ESR), ESR_ILLEGAL_REGISTER | ESR_RECEIVED_ILLEGAL_VECTOR);
        // An error entry with an illegal vector is an error of its own, once.
        lapic.write(0, ERROR, 0x05);
        lapic.read(0, 0x000);
        lapic.write(0, ESR, 0);
        assert_eq!(lapic.read(0, ESR), ESR_ILLEGAL_REGISTER | ESR_RECEIVED_ILLEGAL_VECTOR);
    }

    #[test]
    fn the_timer_interrupts_unless_masked() {
        let mut lapic = lapic();
        lapic.write(0, DIVIDE, 0b1011);
        lapic.write(0, TIMER, 0xec);
        lapic.write(10, INITIAL_COUNT, 100);
        assert_eq!(lapic.next_timer(), Some((110, false)));
        assert_eq!(lapic.read(60, CURRENT_COUNT), 50);
        lapic.run_timer(110);
        assert_eq!(lapic.acknowledge(), Some(0xec));
        lapic.write(110, EOI, 0);
        lapic.write(110, TIMER, 0x300ec);
        lapic.write(110, INITIAL_COUNT, 100);
        assert_eq!(lapic.next_timer(), None);
        lapic.run_timer(250);
        assert_eq!((lapic.pending(), lapic.read(250, CURRENT_COUNT)), (None, 60));
        lapic.write(250, TIMER, 0x200ec);
        assert_eq!(lapic.next_timer(), Some((310, true)));
    }

    #[test]
    fn tsc_deadline_mode_needs_to_be_shown() {
        for shown in [false, true] {
            let mut lapic = Lapic::new(40, shown);
            lapic.write(0, TIMER, 0x400ef);
            assert_eq!(lapic.read(0, TIMER), if shown { 0x400ef } else { 0xef });
            assert_eq!(lapic.msr_write(5, IA32_TSC_DEADLINE, 1000).is_ok(), shown);
            assert_eq!(lapic.msr_read(IA32_TSC_DEADLINE).is_ok(), shown);
            assert_eq!(lapic.next_timer().is_some(), shown);
        }
        let mut lapic = lapic();
        lapic.write(0, TIMER, 0x400ef);
        lapic.msr_write(5, IA32_TSC_DEADLINE, 4).unwrap();
        assert_eq!(lapic.pending(), Some(0xef));
    }

    #[test]
    fn software_disable_masks_and_takes_nothing() {
        let mut lapic = lapic();
        assert!(lapic.passes_external_interrupts());
        self_ipi(&mut lapic, 0x41);
        lapic.write(0, SVR, 0xff);
        assert_eq!((lapic.pending(), lapic.passes_external_interrupts()), (None, false));
        self_ipi(&mut lapic, 0x42);
        lapic.write(0, LINT0, 0x700);
        assert_eq!(lapic.read(0, LINT0), 0x10700);
        lapic.write(0, SVR, 0x1ff);
        assert_eq!(lapic.acknowledge(), Some(0x41));
        assert_eq!(lapic.acknowledge(), None);
    }

    #[test]
    fn apic_base_moves_and_disables() {
        let mut lapic = lapic();
        assert_eq!(lapic.msr_read(IA32_APIC_BASE), Ok(0xfee0_0900));
        for reserved in [1 << 0, 1 << 9, 1 << 10, 1 << 40, 1 << 63] {
            assert_eq!(
                lapic.msr_write(0, IA32_APIC_BASE, 0xfee0_0900 | reserved),
                Err(GeneralProtection)
            );
        }
        lapic.msr_write(0, IA32_APIC_BASE, 0x1234_5900).unwrap();
        assert_eq!(lapic.page(), Some(0x1234_5000));
        self_ipi(&mut lapic, 0x41);
        lapic.msr_write(0, IA32_APIC_BASE, 0xfee0_0100).unwrap();
        assert_eq!((lapic.page(), lapic.pending()), (None, None));
        assert!(lapic.passes_external_interrupts());
        lapic.msr_write(0, IA32_APIC_BASE, 0xfee0_0900).unwrap();
        assert_eq!((lapic.read(0, SVR), lapic.read(0, LINT0)), (0xff, LVT_MASKED));
        for bits in [0, 36, 52, 64, 255] {
            assert_eq!(
                Lapic::new(bits, false).msr_write(0, IA32_APIC_BASE, 1 << 10),
                Err(GeneralProtection)
            );
        }
    }

    #[test]
    fn registers_are_16_bytes_apart() {
        let mut lapic = lapic();
        assert_eq!(
            [0x30, 0x31, 0x32, 0x34, 0x3f].map(|o| lapic.mmio_read(0, o)),
            [0x5_0014, 0x500, 5, 0, 0]
        );
    }
}

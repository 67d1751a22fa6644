//! KVM as a [`Driver`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use kvm_ioctls::{Kvm as Device, VcpuExit, VcpuFd, VmFd};
use umbra_trial::image::Image;
use umbra_trial::layout::{HOT, PAGE, REGION, REGIONS, STUB, USER};
use umbra_trial::program::{HostEvent, Program};
use umbra_trial::stub::PORT;
use umbra_trial::target::{Driver, Stop};

use crate::backing::{Backing, leave_few_shadow_pages};
use crate::vcpu;

/// Seconds that a guest may run without a stop: a program takes about one.
const PATIENCE: u32 = 20;

/// Where a slot goes that is moved away.
const ELSEWHERE: u64 = 1 << 32;

/// Three pages where no slot is, for KVM on CPUs of Intel (Linux: Documentation/virt/kvm/api.rst,
/// "KVM_SET_TSS_ADDR").
const KVM_TSS: usize = 0xfffb_d000;

/// CR0.WP.
const WP: u64 = 1 << 16;

/// KVM, and the guest of the program that runs.
pub struct Kvm {
    device: Device,
    guest: Option<Guest>,
    alarm: Arc<AtomicBool>,
}

/// A slot: where it lies, and the memory behind it.
struct Slot {
    gpa: u64,
    flags: u32,
    backing: Backing,
}

struct Guest {
    vcpu: VcpuFd,
    vm: VmFd,
    /// Those of the arena, the stub's, and its page for user mode. Dropped after the VM.
    slots: Vec<Slot>,
    huge: bool,
}

impl Kvm {
    /// Opens the device.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> Result<Kvm> {
        let alarm = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(libc::SIGALRM, alarm.clone()).context("SIGALRM")?;
        Ok(Kvm { device: Device::new().context("/dev/kvm")?, guest: None, alarm })
    }

    fn guest(&mut self) -> &mut Guest {
        self.guest.as_mut().expect("a program has started")
    }
}

impl Driver for Kvm {
    fn start(&mut self, program: &Program, image: &Image) -> Result<(), String> {
        self.guest = None;
        let guest = Guest::new(&self.device, program, image).map_err(text)?;
        self.guest = Some(guest);
        Ok(())
    }

    fn resume(&mut self) -> Stop {
        self.alarm.store(false, Ordering::Relaxed);
        nix::unistd::alarm::set(PATIENCE);
        let alarm = self.alarm.clone();
        let stop = loop {
            if let Some(stop) = self.guest().step(&alarm) {
                break stop;
            }
        };
        nix::unistd::alarm::cancel();
        stop
    }

    fn host(&mut self, event: &HostEvent) -> Result<Vec<u64>, String> {
        self.guest().host(event).with_context(|| event.to_string()).map_err(text)
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) {
        let guest = self.guest.as_ref().expect("a program has started");
        for (at, byte) in (gpa..).zip(bytes) {
            let word = guest.word(at & !7).unwrap_or(u64::MAX);
            *byte = (word >> (8 * (at & 7))) as u8;
        }
    }

    fn changed(&self, image: &Image) -> Vec<(u64, u64)> {
        let guest = self.guest.as_ref().expect("a program has started");
        let before: HashMap<u64, u64> = image.arena.iter().copied().collect();
        let mut changed = Vec::new();
        for slot in &guest.slots[..REGIONS as usize] {
            for offset in (0..REGION).step_by(8) {
                let (gpa, value) = (slot.gpa + offset, slot.backing.read(offset));
                // Most words are zero, and stay so.
                if value != 0 || before.contains_key(&gpa) {
                    let old = before.get(&gpa).copied().unwrap_or(0);
                    if value != old {
                        changed.push((gpa, value));
                    }
                }
            }
        }
        changed
    }
}

fn text(error: anyhow::Error) -> String {
    format!("{error:#}")
}

impl Guest {
    fn new(device: &Device, program: &Program, image: &Image) -> Result<Guest> {
        let vm = device.create_vm().context("KVM_CREATE_VM")?;
        vm.set_tss_address(KVM_TSS).context("KVM_SET_TSS_ADDR")?;
        let mut slots = Vec::new();
        for gpa in (0..REGIONS).map(|region| region * REGION).chain([STUB, USER]) {
            slots.push(Slot { gpa, flags: 0, backing: Backing::new(program.huge)? });
        }
        for (number, slot) in (0..).zip(&slots) {
            slot.backing.set_slot(&vm, number, 0, slot.gpa, REGION)?;
        }
        let place = |gpa: u64| {
            let slot = slots.iter().find(|slot| (slot.gpa..slot.gpa + REGION).contains(&gpa));
            slot.map(|slot| (&slot.backing, gpa - slot.gpa))
                .ok_or_else(|| anyhow!("no memory at {gpa:#x}"))
        };
        for &(gpa, value) in &image.arena {
            let (backing, offset) = place(gpa)?;
            backing.write(offset, value);
        }
        for (gpa, bytes) in &image.stub {
            let (backing, offset) = place(*gpa)?;
            backing.write_bytes(offset, bytes);
        }
        if program.tight {
            leave_few_shadow_pages(&vm)?;
        }
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        vcpu::prepare(device, &vcpu, program, image)?;
        Ok(Guest { vcpu, vm, slots, huge: program.huge })
    }

    fn slot_of(&self, gpa: u64) -> Option<&Slot> {
        self.slots.iter().find(|slot| (slot.gpa..slot.gpa + REGION).contains(&gpa))
    }

    fn word(&self, gpa: u64) -> Option<u64> {
        self.slot_of(gpa).map(|slot| slot.backing.read(gpa - slot.gpa))
    }

    /// Runs the guest until it needs something.
    fn step(&mut self, alarm: &AtomicBool) -> Option<Stop> {
        let why = match self.vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, data)) => {
                let mut value = [0; 4];
                let length = data.len().min(4);
                value[..length].copy_from_slice(&data[..length]);
                return Some(Stop::Called(u32::from_le_bytes(value)));
            }
            Ok(VcpuExit::MmioRead(_, data)) => {
                data.fill(0xff);
                return None;
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                let data = data.to_vec();
                // Into a read-only slot: the monitor writes for the guest. Else there is no memory.
                if let Some(slot) =
                    self.slot_of(gpa).filter(|slot| slot.flags & KVM_MEM_READONLY != 0)
                {
                    slot.backing.write_bytes(gpa - slot.gpa, &data);
                }
                return None;
            }
            Ok(VcpuExit::Shutdown) => return Some(Stop::TripleFault),
            Ok(other) => format!("{other:?}"),
            Err(error) if error.errno() == libc::EINTR => {
                return alarm.load(Ordering::Relaxed).then_some(Stop::Hung);
            }
            Err(error) if error.errno() == libc::EAGAIN => return None,
            Err(error) => format!("KVM_RUN fails: {error}"),
        };
        Some(Stop::GaveUp(self.describe(why)))
    }

    fn describe(&self, what: String) -> String {
        match self.vcpu.get_regs() {
            Ok(registers) => format!("KVM leaves the guest at {:#x}: {what}", registers.rip),
            Err(_) => format!("KVM leaves the guest: {what}"),
        }
    }

    fn host(&mut self, event: &HostEvent) -> Result<Vec<u64>> {
        match *event {
            HostEvent::Write { gpa, value } => {
                let slot = self.slot_of(gpa).context("no memory is there")?;
                slot.backing.write(gpa - slot.gpa, value);
            }
            HostEvent::Cycle { region, read_only } => {
                let log = self.slots[region as usize].flags & KVM_MEM_LOG_DIRTY_PAGES;
                self.set(region, 0, 0)?;
                self.slots[region as usize].flags =
                    log | if read_only { KVM_MEM_READONLY } else { 0 };
                self.set(region, 0, REGION)?;
            }
            HostEvent::Move { region } => {
                let new = Backing::new(self.huge)?;
                new.copy(&self.slots[region as usize].backing);
                self.set(region, 0, 0)?;
                // The old memory goes after its slot.
                self.slots[region as usize].backing = new;
                self.set(region, 0, REGION)?;
            }
            HostEvent::Shift { region } => {
                self.set(region, ELSEWHERE, REGION)?;
                self.set(region, 0, REGION)?;
            }
            HostEvent::Log { region, on } => {
                let slot = &mut self.slots[region as usize];
                let flags = slot.flags & !KVM_MEM_LOG_DIRTY_PAGES
                    | if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
                if flags != slot.flags {
                    slot.flags = flags;
                    self.set(region, 0, REGION)?;
                }
            }
            HostEvent::Harvest { region } => return self.harvest(region),
            HostEvent::Discard { frame } => {
                let slot = self.slot_of(frame * PAGE).context("no memory is there")?;
                slot.backing.discard(frame * PAGE - slot.gpa, PAGE)?;
            }
            HostEvent::DiscardRegion { region } => {
                self.slots[region as usize].backing.discard(0, REGION)?
            }
            HostEvent::Protect { region } => self.slots[region as usize].backing.protect()?,
            HostEvent::Registers => {
                let sregs = self.vcpu.get_sregs().context("KVM_GET_SREGS")?;
                let mut other = sregs;
                (other.cr3, other.cr0) = (HOT[1] * PAGE, sregs.cr0 ^ WP);
                for sregs in [other, sregs] {
                    self.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
                }
            }
        }
        Ok(Vec::new())
    }

    /// Tells KVM what a region's slot is: so far from its place, and of this size.
    fn set(&self, region: u64, away: u64, size: u64) -> Result<()> {
        let slot = &self.slots[region as usize];
        slot.backing.set_slot(&self.vm, region as u32, slot.flags, slot.gpa + away, size)
    }

    fn harvest(&self, region: u64) -> Result<Vec<u64>> {
        if self.slots[region as usize].flags & KVM_MEM_LOG_DIRTY_PAGES == 0 {
            return Ok(Vec::new());
        }
        let words =
            self.vm.get_dirty_log(region as u32, REGION as usize).context("KVM_GET_DIRTY_LOG")?;
        let set = |page: &u64| words[(page / 64) as usize] >> (page % 64) & 1 != 0;
        Ok((0..Backing::PAGES).filter(set).map(|page| region * Backing::PAGES + page).collect())
    }
}

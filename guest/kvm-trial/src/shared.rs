//! What the virtual CPUs of a guest have in common: the VM and its memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use kvm_ioctls::{Kvm as Device, VcpuFd, VmFd};
use umbra_trial::image::Image;
use umbra_trial::layout::{HOT, PAGE, REGION, REGIONS, STUB, USER};
use umbra_trial::program::{HostEvent, Program};

use crate::backing::{Backing, leave_few_shadow_pages};

/// Where a slot goes that is moved away.
const ELSEWHERE: u64 = 1 << 32;

/// Three pages where no slot is, for KVM on CPUs of Intel (Linux: Documentation/virt/kvm/api.rst,
/// "KVM_SET_TSS_ADDR").
const KVM_TSS: usize = 0xfffb_d000;

/// CR0.WP.
const WP: u64 = 1 << 16;

/// A slot: where it lies, and the memory behind it.
pub struct Slot {
    /// Its guest-physical address.
    pub gpa: u64,
    flags: u32,
    /// The memory.
    pub backing: Backing,
}

/// The VM and its memory.
pub struct Shared {
    /// The VM.
    pub vm: VmFd,
    /// Those of the arena, the stub's, and its page for user mode. Dropped after the VM.
    slots: Mutex<Slots>,
}

/// The guest's memory.
pub struct Slots {
    slots: Vec<Slot>,
    huge: bool,
}

impl Shared {
    /// A VM with this image in its memory.
    ///
    /// # Errors
    /// KVM's, or there is no memory left.
    pub fn new(device: &Device, program: &Program, image: &Image) -> Result<Shared> {
        let vm = device.create_vm().context("KVM_CREATE_VM")?;
        vm.set_tss_address(KVM_TSS).context("KVM_SET_TSS_ADDR")?;
        let mut slots = Vec::new();
        for gpa in (0..REGIONS).map(|region| region * REGION).chain([STUB, USER]) {
            slots.push(Slot { gpa, flags: 0, backing: Backing::new(program.huge)? });
        }
        for (number, slot) in (0..).zip(&slots) {
            slot.backing.set_slot(&vm, number, 0, slot.gpa, REGION)?;
        }
        let slots = Slots { slots, huge: program.huge };
        let place = |gpa: u64| {
            let slot = slots.of(gpa).ok_or_else(|| anyhow!("no memory at {gpa:#x}"))?;
            anyhow::Ok((&slot.backing, gpa - slot.gpa))
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
        Ok(Shared { vm, slots: Mutex::new(slots) })
    }

    /// The memory. Nothing leaves it in between two states, a panic neither.
    pub fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what the host does in a step of this CPU. Returns the frames that a dirty log names.
    ///
    /// # Errors
    /// KVM's.
    pub fn host(&self, vcpu: &VcpuFd, event: &HostEvent) -> Result<Vec<u64>> {
        let mut slots = self.slots();
        match *event {
            HostEvent::Harvest { region } => return slots.harvest(&self.vm, region),
            HostEvent::Registers => {
                let sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
                let mut other = sregs;
                (other.cr3, other.cr0) = (HOT[1] * PAGE, sregs.cr0 ^ WP);
                for sregs in [other, sregs] {
                    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
                }
            }
            _ => slots.change(&self.vm, event)?,
        }
        Ok(Vec::new())
    }
}

impl Slots {
    fn of(&self, gpa: u64) -> Option<&Slot> {
        self.slots.iter().find(|slot| (slot.gpa..slot.gpa + REGION).contains(&gpa))
    }

    /// Those of the arena.
    pub fn arena(&self) -> &[Slot] {
        &self.slots[..REGIONS as usize]
    }

    /// The word at an address, a multiple of 8.
    pub fn word(&self, gpa: u64) -> Option<u64> {
        self.of(gpa).map(|slot| slot.backing.read(gpa - slot.gpa))
    }

    /// What the monitor does for a guest that has written where it may not. Into a read-only slot
    /// it writes; else there is no memory.
    pub fn write_for_guest(&self, gpa: u64, data: &[u8]) {
        if let Some(slot) = self.of(gpa).filter(|slot| slot.flags & KVM_MEM_READONLY != 0) {
            slot.backing.write_bytes(gpa - slot.gpa, data);
        }
    }

    fn change(&mut self, vm: &VmFd, event: &HostEvent) -> Result<()> {
        match *event {
            HostEvent::Write { gpa, value } => {
                let slot = self.of(gpa).context("no memory is there")?;
                slot.backing.write(gpa - slot.gpa, value);
            }
            HostEvent::Cycle { region, read_only } => {
                let log = self.slots[region as usize].flags & KVM_MEM_LOG_DIRTY_PAGES;
                self.set(vm, region, 0, 0)?;
                self.slots[region as usize].flags =
                    log | if read_only { KVM_MEM_READONLY } else { 0 };
                self.set(vm, region, 0, REGION)?;
            }
            HostEvent::Move { region } => {
                let new = Backing::new(self.huge)?;
                new.copy(&self.slots[region as usize].backing);
                self.set(vm, region, 0, 0)?;
                // The old memory goes after its slot.
                self.slots[region as usize].backing = new;
                self.set(vm, region, 0, REGION)?;
            }
            HostEvent::Shift { region } => {
                self.set(vm, region, ELSEWHERE, REGION)?;
                self.set(vm, region, 0, REGION)?;
            }
            HostEvent::Log { region, on } => {
                let slot = &mut self.slots[region as usize];
                let flags = slot.flags & !KVM_MEM_LOG_DIRTY_PAGES
                    | if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
                if flags != slot.flags {
                    slot.flags = flags;
                    self.set(vm, region, 0, REGION)?;
                }
            }
            HostEvent::Discard { frame } => {
                let slot = self.of(frame * PAGE).context("no memory is there")?;
                slot.backing.discard(frame * PAGE - slot.gpa, PAGE)?;
            }
            HostEvent::DiscardRegion { region } => {
                self.slots[region as usize].backing.discard(0, REGION)?;
            }
            HostEvent::Protect { region } => self.slots[region as usize].backing.protect()?,
            HostEvent::Harvest { .. } | HostEvent::Registers => (),
        }
        Ok(())
    }

    /// Tells KVM what a region's slot is: so far from its place, and of this size.
    fn set(&self, vm: &VmFd, region: u64, away: u64, size: u64) -> Result<()> {
        let slot = &self.slots[region as usize];
        slot.backing.set_slot(vm, region as u32, slot.flags, slot.gpa + away, size)
    }

    fn harvest(&self, vm: &VmFd, region: u64) -> Result<Vec<u64>> {
        if self.slots[region as usize].flags & KVM_MEM_LOG_DIRTY_PAGES == 0 {
            return Ok(Vec::new());
        }
        let words =
            vm.get_dirty_log(region as u32, REGION as usize).context("KVM_GET_DIRTY_LOG")?;
        let set = |page: &u64| words[(page / 64) as usize] >> (page % 64) & 1 != 0;
        Ok((0..Backing::PAGES).filter(set).map(|page| region * Backing::PAGES + page).collect())
    }
}

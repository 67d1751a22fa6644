//! KVM as a [`Driver`].

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kvm_ioctls::Kvm as Device;
use umbra_trial::image::Image;
use umbra_trial::layout::{CPUS, REGION};
use umbra_trial::program::{HostEvent, Program};
use umbra_trial::target::{Driver, Stop};

use crate::cpu::{Cpu, KICK, Report};
use crate::shared::Shared;
use crate::vcpu;

/// How long a guest may run without a stop: a program takes about a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// When a CPU is told again to stand still.
const AGAIN: Duration = Duration::from_millis(1);

/// KVM, and the guest of the program that runs.
pub struct Kvm {
    device: Device,
    guest: Option<Guest>,
}

struct Guest {
    cpus: Vec<Cpu>,
    reports: Receiver<Report>,
    /// Stops that nobody has heard of yet.
    stops: VecDeque<Stop>,
    shared: Arc<Shared>,
}

impl Kvm {
    /// Opens the device.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> Result<Kvm> {
        // Its handler does nothing: the signal interrupts KVM_RUN.
        let ignored = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(KICK as i32, ignored).context("SIGUSR1")?;
        Ok(Kvm { device: Device::new().context("/dev/kvm")?, guest: None })
    }

    fn guest(&mut self) -> &mut Guest {
        self.guest.as_mut().expect("a program has started")
    }

    fn shared(&self) -> &Shared {
        &self.guest.as_ref().expect("a program has started").shared
    }
}

impl Driver for Kvm {
    fn cpus(&self) -> usize {
        CPUS
    }

    fn start(&mut self, program: &Program, image: &Image) -> Result<(), String> {
        self.guest = None;
        let guest = Guest::new(&self.device, program, image).map_err(text)?;
        self.guest = Some(guest);
        Ok(())
    }

    fn resume(&mut self) -> Stop {
        self.guest().resume()
    }

    fn host(&mut self, cpu: usize, event: &HostEvent) -> Result<Vec<u64>, String> {
        self.guest().host(cpu, event).with_context(|| event.to_string()).map_err(text)
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) {
        let slots = self.shared().slots();
        for (at, byte) in (gpa..).zip(bytes) {
            let word = slots.word(at & !7).unwrap_or(u64::MAX);
            *byte = (word >> (8 * (at & 7))) as u8;
        }
    }

    fn changed(&self, image: &Image) -> Vec<(u64, u64)> {
        let before: HashMap<u64, u64> = image.arena.iter().copied().collect();
        let mut changed = Vec::new();
        for slot in self.shared().slots().arena() {
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
        let shared = Arc::new(Shared::new(device, program, image)?);
        let (sender, reports) = channel();
        let mut guest = Guest { cpus: Vec::new(), reports, stops: VecDeque::new(), shared };
        for number in 0..program.cpus() {
            let vcpu = guest.shared.vm.create_vcpu(number as u64).context("KVM_CREATE_VCPU")?;
            vcpu::prepare(device, &vcpu, number, program, image)?;
            guest.cpus.push(Cpu::new(number, vcpu, guest.shared.clone(), sender.clone())?);
        }
        Ok(guest)
    }

    /// Takes a report that a CPU stands still.
    fn hear(&mut self, report: Report) {
        match report {
            Report::Stopped(cpu, stop) => {
                self.cpus[cpu].stands();
                self.stops.push_back(stop);
            }
            Report::Halted(cpu) => self.cpus[cpu].stands(),
            // Whoever gives the order waits for it.
            Report::Did(_) => (),
        }
    }

    fn resume(&mut self) -> Stop {
        let start = Instant::now();
        self.cpus.iter_mut().for_each(Cpu::run);
        loop {
            if let Some(stop) = self.stops.pop_front() {
                return stop;
            }
            match self.reports.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
                Ok(report) => self.hear(report),
                Err(_) => return Stop::Hung,
            }
        }
    }

    /// Waits until a CPU stands still.
    fn halt(&mut self, cpu: usize) {
        while self.cpus[cpu].runs() {
            self.cpus[cpu].kick();
            if let Ok(report) = self.reports.recv_timeout(AGAIN) {
                self.hear(report);
            }
        }
    }

    fn host(&mut self, cpu: usize, event: &HostEvent) -> Result<Vec<u64>> {
        if event.hides_tables() {
            (0..self.cpus.len()).for_each(|cpu| self.halt(cpu));
        }
        self.cpus[cpu].host(*event)?;
        loop {
            match self.reports.recv_timeout(PATIENCE).context("the host does not come to an end")? {
                Report::Did(done) => return done,
                other => self.hear(other),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        (0..self.cpus.len()).for_each(|cpu| self.halt(cpu));
        self.cpus.drain(..).for_each(Cpu::end);
    }
}

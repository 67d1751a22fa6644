//! A virtual CPU on a thread of its own: it runs, or carries out what the host does in its step.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::Signal;
use umbra_trial::program::HostEvent;
use umbra_trial::stub::PORT;
use umbra_trial::target::Stop;

use crate::shared::Shared;

/// What interrupts KVM_RUN.
pub const KICK: Signal = Signal::SIGUSR1;

/// To the thread.
enum Order {
    Run,
    Host(HostEvent),
}

/// From the threads.
pub enum Report {
    /// This CPU stands still, as it needs something.
    Stopped(usize, Stop),
    /// This CPU stands still, as it was told to.
    Halted(usize),
    /// What the host does is done: the frames that a dirty log names.
    Did(Result<Vec<u64>>),
}

/// A virtual CPU.
pub struct Cpu {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
    halt: Arc<AtomicBool>,
    runs: bool,
}

impl Cpu {
    /// Gives a virtual CPU that is ready to run its thread.
    ///
    /// # Errors
    /// The kernel has no thread left.
    pub fn new(
        number: usize,
        vcpu: VcpuFd,
        shared: Arc<Shared>,
        reports: Sender<Report>,
    ) -> Result<Cpu> {
        let (orders, received) = channel();
        let halt = Arc::new(AtomicBool::new(false));
        let worker = Worker { number, vcpu, shared, halt: halt.clone() };
        let thread = thread::Builder::new()
            .spawn(move || worker.work(&received, &reports))
            .context("a thread for a virtual CPU")?;
        Ok(Cpu { orders, thread, halt, runs: false })
    }

    /// Lets it run, if it stands still.
    pub fn run(&mut self) {
        if !self.runs {
            self.runs = self.orders.send(Order::Run).is_ok();
        }
    }

    /// Carries out what the host does, while this CPU stands still.
    pub fn host(&self, event: HostEvent) -> Result<()> {
        self.orders.send(Order::Host(event)).ok().context("the thread of a virtual CPU has ended")
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        self.runs && !self.thread.is_finished()
    }

    /// Tells it to stand still. It may have to be told again: a signal that comes before KVM_RUN is
    /// lost.
    pub fn kick(&self) {
        self.halt.store(true, Ordering::SeqCst);
        // It fails for a thread that has ended.
        let _ = pthread_kill(self.thread.as_pthread_t(), KICK);
    }

    /// It has reported that it stands still.
    pub fn stands(&mut self) {
        self.halt.store(false, Ordering::SeqCst);
        self.runs = false;
    }

    /// Ends the thread of a CPU that stands still.
    pub fn end(self) {
        drop(self.orders);
        // A panic was its own end, and has been written to the console.
        let _ = self.thread.join();
    }
}

/// What the thread has.
struct Worker {
    number: usize,
    vcpu: VcpuFd,
    shared: Arc<Shared>,
    halt: Arc<AtomicBool>,
}

impl Worker {
    fn work(mut self, orders: &Receiver<Order>, reports: &Sender<Report>) {
        for order in orders {
            let report = match order {
                Order::Run => self.run(),
                Order::Host(event) => Report::Did(self.shared.host(&self.vcpu, &event)),
            };
            if reports.send(report).is_err() {
                return;
            }
        }
    }

    fn run(&mut self) -> Report {
        loop {
            if self.halt.load(Ordering::SeqCst) {
                return Report::Halted(self.number);
            }
            if let Some(stop) = self.step() {
                return Report::Stopped(self.number, stop);
            }
        }
    }

    /// Runs the guest until it needs something.
    fn step(&mut self) -> Option<Stop> {
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
                self.shared.slots().write_for_guest(gpa, data);
                return None;
            }
            Ok(VcpuExit::Shutdown) => return Some(Stop::TripleFault),
            Ok(other) => format!("{other:?}"),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => return None,
            Err(error) => format!("KVM_RUN fails: {error}"),
        };
        Some(Stop::GaveUp(self.describe(&why)))
    }

    fn describe(&self, what: &str) -> String {
        match self.vcpu.get_regs() {
            Ok(registers) => format!("KVM leaves the guest at {:#x}: {what}", registers.rip),
            Err(_) => format!("KVM leaves the guest: {what}"),
        }
    }
}

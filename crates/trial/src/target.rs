//! What a hypervisor has to offer so that programs can run on it.
//!
//! Implement [`Driver`] for yours, in whatever process can make guests there; `guest/kvm-trial` of
//! this repository is the one for KVM. [`run`] does the rest.

use crate::image::Image;
use crate::layout::{RESULTS, RESULTS_SIZE, STATE, State, direct};
use crate::program::{HostEvent, Program, Step};
use crate::record::{End, Record};
use crate::stub::PORT_END;

/// Why the guest stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It wrote this to the port [`crate::stub::PORT`].
    Called(u32),
    /// It had a triple fault.
    TripleFault,
    /// The hypervisor cannot go on, and says why.
    GaveUp(String),
    /// It ran for longer than any step takes.
    Hung,
}

/// A hypervisor, as far as a program needs it. One guest at a time.
pub trait Driver {
    /// How many virtual CPUs its guests may have. Programs of two are for those that can run two at
    /// the same time.
    fn cpus(&self) -> usize {
        1
    }

    /// Makes a guest of this image, ready to run: the arena in three slots of
    /// [`REGION`](crate::layout::REGION) bytes, the stub's memory, nothing else but a monitor that
    /// answers reads of no memory with ones. Each of the program's CPUs is in 64-bit mode. It
    /// has the image's control registers, the stub's descriptor tables, and a task-state segment of
    /// its own.
    ///
    /// # Errors
    /// The hypervisor refuses something that every program needs.
    fn start(&mut self, program: &Program, image: &Image) -> Result<(), String>;

    /// Runs the guest's CPUs until one of them stops. The other one spins in the stub, and goes on
    /// with it during [`Driver::host`].
    fn resume(&mut self) -> Stop;

    /// Does what the host does in this step, for the CPU that has called. Returns the frames that a
    /// dirty log names. While [`HostEvent::hides_tables`] the other CPU must stand still, as it has
    /// no tables.
    ///
    /// # Errors
    /// The hypervisor refuses.
    fn host(&mut self, cpu: usize, event: &HostEvent) -> Result<Vec<u64>, String>;

    /// Reads the guest's memory.
    fn read(&self, gpa: u64, bytes: &mut [u8]);

    /// Words of the arena that are not what the image has there: address and value. Watched words
    /// may be left out.
    fn changed(&self, image: &Image) -> Vec<(u64, u64)>;
}

/// At most so many stray words are reported.
const STRAYS: usize = 8;

/// Runs a program.
///
/// # Errors
/// The driver's: nothing is wrong with the hypervisor, but it cannot be tried this way.
pub fn run(driver: &mut impl Driver, program: &Program) -> Result<Record, String> {
    if program.cpus() > driver.cpus() {
        return Err(String::from("its guests have one virtual CPU, and the program needs two"));
    }
    let image = Image::new(program, None);
    driver.start(program, &image)?;
    let mut harvests = Vec::new();
    let end = loop {
        match driver.resume() {
            Stop::Called(PORT_END) => break End::Complete,
            Stop::Called(step) => {
                let step = step as usize;
                let Some(Step::Host(event)) = program.steps.get(step) else {
                    break End::GaveUp(format!(
                        "the guest asks for a host event in step {step}, which has none"
                    ));
                };
                let frames = driver.host(program.cpu(step), event)?;
                if let HostEvent::Harvest { .. } = event {
                    harvests.push((step, frames));
                }
            }
            Stop::TripleFault => break End::TripleFault,
            Stop::GaveUp(why) => break End::GaveUp(why),
            Stop::Hung => break End::Hung,
        }
    };
    let mut strays = driver.changed(&image);
    strays.retain(|&(gpa, _)| Image::is_quiet(gpa));
    strays.truncate(STRAYS);
    Ok(Record { results: results(driver), end, harvests, strays })
}

/// The results that the stub has written so far.
fn results(driver: &impl Driver) -> Vec<u8> {
    let mut word = [0; 8];
    driver.read(STATE + State::RESULT, &mut word);
    let length = u64::from_le_bytes(word).saturating_sub(direct(RESULTS).raw());
    // A guest that went astray may have left anything there.
    let mut bytes = vec![0; length.min(RESULTS_SIZE) as usize];
    driver.read(RESULTS, &mut bytes);
    bytes
}

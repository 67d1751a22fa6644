//! `umbra decode`: results of an image's run on another machine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use umbra_telemetry::{BootConfig, LogLevel, Message, PROTOCOL, Stats};

use crate::console::{message, output, output_bytes, screen_text};
use crate::error::Error;
use crate::machine::Machine;
use crate::report;
use crate::run::{
    End, FaultCount, Hypervisor, Noise, Outcome, Part, Recording, STATISTICS, Subject, TRACE,
    conclude, read_stream,
};
use crate::signals::Signals;
use crate::untrusted::lines;

/// How often signals are looked for.
const TICK: Duration = Duration::from_millis(100);

/// Parts of a capture that may wait for a standard output which nobody reads.
const QUEUE: usize = 64;

/// Make results of what an image of `umbra image` said at its machine's port 0xe9.
///
/// Shows what `umbra run` shows: the guest's output on standard output, messages and the table of
/// exits on standard error. The results are those of a run, for `umbra compare`, `umbra trace` and
/// `umbra report`.
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Exit status: as for `umbra run`; 3 if the capture ends before the guest, then the results are \
    those of a guest whose hypervisor did not report."
)]
pub struct Arguments {
    /// The bytes of port 0xe9, from the machine's start to its end; `-` is standard input
    #[arg(value_name = "CAPTURE")]
    capture: PathBuf,

    /// What the machine was, as for `umbra run --machine`: in Bochs, ticks are instructions
    /// [default: what its CPU calls itself]
    #[arg(long, value_name = "NAME", value_parser = str::parse::<Machine>)]
    machine: Option<Machine>,

    /// Write the statistics as JSON
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,

    /// Write the trace, if the image was made with --trace
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// Decodes.
///
/// # Errors
/// The capture is none or cannot be read, or a result cannot be written.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let capture = arguments.capture.as_path();
    let name = report::name_of(capture);
    let stream = report::open_input(capture).map_err(|error| {
        Error::Input(format!(
            "cannot read the capture {name}: {error}; give another file, or - for standard input"
        ))
    })?;
    let signals = Signals::catch()?;
    let outputs = [(STATISTICS, arguments.stats.as_deref()), (TRACE, arguments.trace.as_deref())];
    report::check_outputs(&outputs, [capture])?;
    // A terminal or pipe may keep silent for as long as it likes, and a signal must end this
    // nevertheless.
    let (parts, queue) = sync_channel(QUEUE);
    thread::spawn(move || read_stream(stream, |part| parts.send(part).is_ok()));
    let mut capture = Capture {
        name,
        queue,
        signals,
        noise: Noise::default(),
        faults: FaultCount::default(),
        messages: 0,
    };
    let (config, cpu) = capture.start()?;
    if arguments.trace.is_some() && !config.trace {
        return Err(Error::Input(format!(
            "{} has no trace: its image was made without --trace; leave --trace out, or make the image with it",
            capture.name
        )));
    }
    let machine = arguments.machine.as_ref().map_or(cpu, Machine::name);
    let subject = Subject {
        hypervisor: Hypervisor::Umbra,
        machine: &machine,
        ticks_are_instructions: arguments
            .machine
            .as_ref()
            .is_some_and(Machine::ticks_are_instructions),
        config: &config,
    };
    let start = |path| Recording::start(path, &subject);
    let mut recording = arguments.trace.as_deref().map(start).transpose()?;
    let (end, stats) = capture.rest(recording.as_mut())?;
    let outcome = Outcome { end, stats, emulator: None, guest_faults: capture.faults.faults() };
    conclude(&subject, &outcome, arguments.stats.as_deref(), recording)
}

/// What was captured.
struct Capture {
    name: String,
    queue: Receiver<Part>,
    signals: Signals,
    noise: Noise,
    faults: FaultCount,
    /// So many came.
    messages: u64,
}

impl Capture {
    /// The next message; `None` at the end.
    fn next(&mut self) -> Result<Option<Message>, Error> {
        loop {
            self.signals.check()?;
            match self.queue.recv_timeout(TICK) {
                Ok(Part::Message(message)) => {
                    self.messages += 1;
                    return Ok(Some(*message));
                }
                Ok(Part::Noise(noise)) => self.noise.keep(&noise),
                Ok(Part::End(Ok(()))) | Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Ok(Part::End(Err(error))) => {
                    return Err(Error::Input(format!(
                        "cannot read the capture {}: {error}; give a file that can be read, or - for standard input",
                        self.name
                    )));
                }
                Err(RecvTimeoutError::Timeout) => (),
            }
        }
    }

    /// What the hypervisor says first: what it was told, and what its CPU calls itself.
    fn start(&mut self) -> Result<(BootConfig, String), Error> {
        match (self.next()?, self.messages) {
            (Some(Message::Hello { protocol: PROTOCOL }), _) => (),
            (Some(Message::Hello { protocol }), _) => {
                return Err(Error::Input(format!(
                    "{} is of a hypervisor that speaks protocol {protocol}, and this tool speaks {PROTOCOL}; decode it \
                     with the umbra that made the image",
                    self.name
                )));
            }
            (Some(_), _) => return Err(self.no_start()),
            (None, _) => {
                return Err(Error::Input(format!(
                    "{} has no message of Umbra; give what the machine's port 0xe9 said from its start on",
                    self.name
                )));
            }
        }
        match self.next()? {
            Some(Message::Setup { config, cpu }) => Ok((config, cpu)),
            Some(Message::Failure(why)) => {
                Err(Error::Machine(format!("the hypervisor cannot go on: {why}")))
            }
            _ => Err(self.no_start()),
        }
    }

    fn no_start(&self) -> Error {
        Error::Input(format!(
            "{} does not have the hypervisor's first messages; give what the machine's port 0xe9 said from its start on",
            self.name
        ))
    }

    /// What the guest and the hypervisor say, up to the end.
    fn rest(
        &mut self,
        mut recording: Option<&mut Recording>,
    ) -> Result<(End, Option<Stats>), Error> {
        while let Some(message) = self.next()? {
            match message {
                // The machine was reset: what follows is another run.
                Message::Hello { .. } | Message::Setup { .. } => break,
                Message::Log { level: LogLevel::Warning, text } => say(&format!("warning: {text}")),
                Message::Log { level: LogLevel::Info, text } => say(&text),
                Message::Console(bytes) | Message::DebugConsole(bytes) => {
                    self.faults.push(&bytes);
                    output_bytes(&bytes)?;
                }
                Message::Screen(characters) => output(screen_text(&characters))?,
                // Counts are for who watches.
                Message::GuestEntered | Message::Counts { .. } => (),
                Message::Trace(chunk) => {
                    if let Some(recording) = &mut recording {
                        if chunk.records().is_err() {
                            return Err(Error::Input(format!(
                                "{} has a damaged trace; capture it again",
                                self.name
                            )));
                        }
                        recording.add(chunk);
                    }
                }
                Message::End(stats) => return Ok((End::Guest, Some(stats))),
                Message::Failure(why) => return Ok((End::HypervisorFailed(why), None)),
            }
        }
        Ok((self.noise.last_words().map_or(End::CutOff, End::HypervisorFailed), None))
    }
}

fn say(text: &str) {
    lines(text).for_each(|line| message(format_args!("umbra: {line}\n")));
}

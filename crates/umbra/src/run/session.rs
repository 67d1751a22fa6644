//! The time from the emulator's start to its end: who says what to whom.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use umbra_telemetry::{GuestExit, LogLevel, Message, PROTOCOL, Stats};

use super::fault_count::FaultCount;
use super::outcome::{End, Outcome};
use super::recording::Recording;
use super::stream::{self, Noise, Part};
use super::watch::Watch;
use crate::console::{
    Action, HELP, Input, Keys, MachineInput, Progress, RawMode, message, read_standard_input,
    screen_text,
};
use crate::error::{Error, status};
use crate::machine::{Emulator, Outputs, bare_end, explain_death};
use crate::report::EmulatorUse;
use crate::signals::Signals;
use crate::untrusted::lines;

/// How often it is looked for what does not come as an event.
const TICK: Duration = Duration::from_millis(100);

/// How long the hypervisor may take to report after it was asked to end the guest.
const REPORT_LIMIT: Duration = Duration::from_secs(10);

/// How long the emulator may take to end after the last message.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(5);

/// Messages that may wait for a standard output which nobody reads.
const QUEUE: usize = 64;

enum Event {
    Machine(Part),
    /// A key for this program.
    Key(Action),
}

/// Who speaks at the machine's port 0xe9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// Umbra, or the peer's host: messages, which carry the guest's output.
    Hypervisor,
    /// Linux on the bare machine: messages of its `/init`. Its console is the machine's COM1.
    Linux,
    /// A multiboot kernel on the bare machine: text, after one message of its boot loader. COM1 is
    /// a console, too.
    SmallKernel,
}

/// Who else hears of the exits.
pub struct Observers<'a> {
    /// The trace.
    pub recording: Option<&'a mut Recording>,
    /// The view.
    pub watch: Option<Watch>,
}

/// Carries everything back and forth until the machine has ended.
///
/// # Errors
/// The guest's output cannot be written, or the terminal refuses.
pub fn run(
    emulator: &mut Emulator<'_>,
    outputs: Outputs,
    signals: &Signals,
    timeout: Option<Duration>,
    progress: String,
    observers: Observers<'_>,
    speaker: Speaker,
) -> Result<Outcome, Error> {
    let terminal = RawMode::enter().map_err(|error| {
        Error::Machine(format!("cannot switch the terminal to single keys: {error}"))
    })?;
    signals.set_terminal(terminal.as_ref().map(|terminal| terminal.before().clone()));

    let (events, queue) = sync_channel(QUEUE);
    let (guest_runs, ready) = sync_channel(1);
    if speaker != Speaker::Hypervisor {
        let port = outputs.console.try_clone().map_err(|error| {
            Error::Machine(format!("cannot read the machine's serial port: {error}"))
        })?;
        let to_queue = events.clone();
        thread::spawn(move || echo(port, &to_queue));
    }
    let input = MachineInput::start(outputs.console, ready);
    let messages = outputs.messages;
    let to_queue = events.clone();
    let hand_on = move |part| to_queue.send(Event::Machine(part)).is_ok();
    thread::spawn(move || match speaker {
        Speaker::Hypervisor | Speaker::Linux => stream::read(messages, hand_on),
        Speaker::SmallKernel => stream::read_bare(messages, hand_on),
    });
    let (to_machine, on_terminal) = (input.clone(), terminal.is_some());
    thread::spawn(move || listen(on_terminal, &to_machine, &events));

    let mut session = Session {
        emulator,
        signals,
        speaker,
        input,
        guest_runs,
        timeout,
        started: Instant::now(),
        ending: None,
        progress: Progress::start(progress),
        entered: false,
        on_terminal: terminal.is_some(),
        at_line_start: true,
        noise: Noise::default(),
        faults: FaultCount::default(),
        recording: observers.recording,
        watch: observers.watch,
    };
    session.run(&queue)
}

/// Passes on what comes from the machine's COM1. Its end is not the machine's.
fn echo(mut port: impl Read, events: &SyncSender<Event>) {
    let mut buffer = vec![0; 4 << 10];
    while let Ok(length @ 1..) = port.read(&mut buffer) {
        let message = Message::Console(buffer[..length].to_vec());
        if events.send(Event::Machine(Part::Message(Box::new(message)))).is_err() {
            return;
        }
    }
}

/// Takes the user's input to the machine; keys for this program become events. Its end is not the
/// machine's.
fn listen(on_terminal: bool, machine: &MachineInput, events: &SyncSender<Event>) {
    let mut keys = Keys::default();
    read_standard_input(|bytes| {
        let actions =
            if on_terminal { keys.push(bytes) } else { vec![Action::Send(bytes.to_vec())] };
        actions.into_iter().all(|action| match action {
            Action::Send(bytes) => machine.send(Input::Console(bytes)),
            action => events.send(Event::Key(action)).is_ok(),
        })
    });
}

struct Session<'a, 'e> {
    emulator: &'a mut Emulator<'e>,
    signals: &'a Signals,
    speaker: Speaker,
    input: MachineInput,
    /// Tells the input's writer that there is somebody to write to.
    guest_runs: SyncSender<()>,
    timeout: Option<Duration>,
    started: Instant,
    /// Who asked for the end, and until when the hypervisor may report.
    ending: Option<(End, Instant)>,
    progress: Progress,
    entered: bool,
    on_terminal: bool,
    /// Where the guest's output has left the cursor.
    at_line_start: bool,
    noise: Noise,
    faults: FaultCount,
    recording: Option<&'a mut Recording>,
    watch: Option<Watch>,
}

impl Session<'_, '_> {
    fn run(&mut self, queue: &Receiver<Event>) -> Result<Outcome, Error> {
        loop {
            match queue.recv_timeout(TICK) {
                Ok(Event::Machine(Part::Message(message))) => {
                    if let Some(outcome) = self.message(*message)? {
                        return Ok(outcome);
                    }
                }
                Ok(Event::Machine(Part::Noise(noise))) => self.noise.keep(&noise),
                Ok(Event::Key(Action::End)) => self.ask_for_end(End::User(status::USER_END)),
                Ok(Event::Key(_)) => self.say(HELP),
                Ok(Event::Machine(Part::End(_))) | Err(RecvTimeoutError::Disconnected) => {
                    return Ok(self.silence());
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.emulator.peak_memory_kib();
                    if !self.entered {
                        self.progress.tick(self.emulator.elapsed());
                    }
                }
            }
            self.ask_for_counts();
            // Also between messages: a guest that never stops talking must not escape its end.
            if let Some(status) = self.signals.status() {
                self.ask_for_end(End::User(status));
            }
            if let Some(timeout) = self.timeout.filter(|&limit| self.started.elapsed() >= limit) {
                self.ask_for_end(End::Timeout(timeout.as_secs()));
            }
            if let Some(why) = self.emulator.endless_log() {
                return Ok(self.outcome(End::EmulatorDied(why), None));
            }
            if let Some((end, _)) = self.ending.take_if(|(_, limit)| Instant::now() >= *limit) {
                return Ok(self.outcome(end, None));
            }
        }
    }

    fn message(&mut self, message: Message) -> Result<Option<Outcome>, Error> {
        match message {
            Message::Hello { protocol: PROTOCOL } => (),
            Message::Hello { protocol } => {
                return Err(Error::Machine(format!(
                    "the embedded hypervisor speaks protocol {protocol} and this tool {PROTOCOL}; build umbra again \
                     without UMBRA_HYPERVISOR"
                )));
            }
            // It says what this tool has told it.
            Message::Setup { .. } => (),
            Message::Log { level, text } => match level {
                LogLevel::Warning => self.say(&format!("warning: {text}")),
                LogLevel::Info => self.say(&text),
            },
            Message::Console(bytes) | Message::DebugConsole(bytes) => self.print(&bytes)?,
            Message::Screen(characters) => {
                let rest_of_line = if self.at_line_start { "" } else { "\n" };
                self.print(format!("{rest_of_line}{}", screen_text(&characters)).as_bytes())?;
            }
            Message::GuestEntered => {
                self.entered = true;
                if self.on_terminal {
                    self.say("the guest starts; Ctrl-A X ends the machine, Ctrl-A H shows help");
                }
                // Full means it was told before, gone that the machine is.
                let _ = self.guest_runs.try_send(());
            }
            Message::Trace(chunk) => {
                if let Some(recording) = &mut self.recording {
                    recording.add(chunk);
                }
            }
            Message::Counts { exits, tsc } => {
                let at_line_start = self.at_line_start || !io::stdout().is_terminal();
                if let Some(watch) = &mut self.watch {
                    watch.answer(Instant::now(), exits, tsc, at_line_start);
                }
            }
            Message::End(stats) => {
                let end = match self.ending.take() {
                    Some((end, _)) if stats.guest_exit == GuestExit::Stopped => end,
                    _ => End::Guest,
                };
                return Ok(Some(self.outcome(end, Some(stats))));
            }
            Message::Failure(why) => {
                return Ok(Some(self.outcome(End::HypervisorFailed(why), None)));
            }
        }
        Ok(None)
    }

    /// The emulator has ended, and no report has come.
    fn silence(&mut self) -> Outcome {
        let end = match self.ending.take() {
            Some((end, _)) => end,
            None => {
                let killed_by = self.emulator.finish(POWER_OFF_LIMIT);
                let bare = bare_end(&self.emulator.log_tail());
                if let (Speaker::SmallKernel, Some(exit)) = (self.speaker, bare) {
                    return self.outcome(End::Bare(exit), None);
                }
                self.noise.last_words().map_or_else(
                    || {
                        let log = self.emulator.log_tail();
                        End::EmulatorDied(explain_death(killed_by, &log, &self.noise.text()))
                    },
                    End::HypervisorFailed,
                )
            }
        };
        self.outcome(end, None)
    }

    /// Asks the hypervisor for its counts, if somebody watches. If the guest's input waits, it is
    /// asked later.
    fn ask_for_counts(&mut self) {
        if self.entered
            && let Some(watch) = &mut self.watch
            && watch.is_due(Instant::now())
        {
            let _ = self.input.try_send(Input::Count);
        }
    }

    /// Takes away what stands in place on the terminal.
    fn clear(&mut self) {
        self.progress.clear();
        if let Some(watch) = &mut self.watch {
            watch.clear();
        }
    }

    /// Asks the hypervisor to end the guest and report. If it does not run yet, there is nothing to
    /// wait for.
    fn ask_for_end(&mut self, end: End) {
        if self.ending.is_none() {
            let asked = self.entered
                && self.speaker == Speaker::Hypervisor
                && self.input.try_send(Input::Finish);
            let limit = if asked { REPORT_LIMIT } else { Duration::ZERO };
            self.ending = Some((end, Instant::now() + limit));
        }
    }

    fn outcome(&mut self, end: End, stats: Option<Stats>) -> Outcome {
        let (elapsed, peak_memory_kib) = (self.emulator.elapsed(), self.emulator.peak_memory_kib());
        if stats.is_some() {
            self.emulator.finish(POWER_OFF_LIMIT);
        } else {
            self.emulator.kill();
        }
        self.clear();
        self.start_line();
        let emulator = EmulatorUse {
            seconds: elapsed.as_millis() as f64 / 1000.0,
            peak_memory: peak_memory_kib as f64 / 1024.0,
        };
        Outcome { end, stats, emulator: Some(emulator), guest_faults: self.faults.faults() }
    }

    /// The guest's own output, byte for byte.
    fn print(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.clear();
        self.faults.push(bytes);
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(|error| Error::Machine(format!("cannot write the guest's output: {error}")))?;
        self.at_line_start =
            bytes.last().map_or(self.at_line_start, |&last| last == b'\n' || last == b'\r');
        Ok(())
    }

    /// A line of this program's.
    fn say(&mut self, text: &str) {
        self.clear();
        self.start_line();
        lines(text).for_each(|line| message(format_args!("umbra: {line}\n")));
    }

    /// Ends the guest's unfinished line, if it is on the same screen.
    fn start_line(&mut self) {
        if !self.at_line_start && io::stderr().is_terminal() && io::stdout().is_terminal() {
            message(format_args!("\n"));
            self.at_line_start = true;
        }
    }
}

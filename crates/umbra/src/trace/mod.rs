//! `umbra trace`: shows what `umbra run --trace` has recorded.

mod chrome;
#[cfg(test)]
mod document;
mod file;
mod filter;
mod summary;
mod symbols;
mod text;

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use umbra_telemetry::trace::{Exit, MmuEvent, Record};
use umbra_telemetry::{PHASE_NAMES, phase_name};

pub use file::{Head, Line, Reader, Recorder, Tail};
pub use filter::{Filter, Running};
use symbols::Symbols;

use crate::error::Error;
use crate::number::whole;
use crate::report;
use crate::signals;

/// What is written, for the user.
const WHAT: &str = "what the trace shows";

/// Instructions that a summary names.
const TOP: usize = 20;

/// Show a trace: every exit of a run.
///
/// With each exit stand its cause and what the shadow MMU did in answer.
///
/// `ticks` is what the hypervisor took for an exit, in ticks of the time-stamp counter (in Bochs:
/// instructions).
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What `umbra run --trace FILE` has written; `-` is standard input
    #[arg(value_name = "FILE")]
    trace: PathBuf,

    #[command(flatten)]
    filter: Filter,

    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// In a summary: how many of the instructions that exit most are named [default: 20]
    #[arg(
        hide_short_help = true,
        long,
        value_name = "N",
        value_parser = whole::<usize>(0..=u32::MAX.into()),
        allow_negative_numbers = true
    )]
    top: Option<usize>,

    /// Name addresses by the guest's System.map or kallsyms
    ///
    /// The file is System.map, or what `cat /proc/kallsyms` says in the guest as root (with kernel
    /// address space randomization, of the same run); `-` is standard input.
    #[arg(long, value_name = "FILE")]
    symbols: Option<PathBuf>,

    /// Stop after so many exits
    #[arg(long, value_name = "N", value_parser = whole::<u64>(0..=u64::MAX), allow_negative_numbers = true)]
    limit: Option<u64>,

    /// Write to a file instead of standard output
    ///
    /// It appears when it is whole.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// a line for each exit
    Text,
    /// exits by cause, the hypervisor's ticks for them, and the instructions that exit most
    Summary,
    /// JSON for Perfetto (ui.perfetto.dev) and chrome://tracing; a tick is shown as a nanosecond
    Chrome,
}

/// What can go wrong while a trace is shown.
enum Failure {
    Trace(Error),
    Output(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Trace(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

/// Shows a trace.
///
/// # Errors
/// The trace cannot be read, or the output not written.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Error> {
    let inputs = std::iter::once(&arguments.trace).chain(&arguments.symbols).map(PathBuf::as_path);
    if arguments.top.is_some() && arguments.format != Format::Summary {
        return Err(Error::Input("--top is for --format summary; leave it out".into()));
    }
    report::check_inputs(inputs.clone())?;
    report::check_outputs(&[(WHAT, arguments.output.as_deref())], inputs)?;
    let (head, reader) = Reader::open(&arguments.trace)?;
    check_phases(arguments.filter.phases())?;
    let symbols = arguments.symbols.as_deref().map(Symbols::read).transpose()?;
    let shown = match &arguments.output {
        Some(path) => to_file(arguments, &head, reader, symbols.as_ref(), path),
        None => show(
            arguments,
            &head,
            reader,
            symbols.as_ref(),
            &mut BufWriter::new(io::stdout().lock()),
        ),
    };
    match shown {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Whoever reads has had enough, as `head` does.
        Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {
            Ok(ExitCode::SUCCESS)
        }
        Err(Failure::Output(error)) => Err(match &arguments.output {
            Some(path) => report::cannot_write(WHAT, path, &error),
            None => {
                Error::Machine(format!("cannot write to standard output: {error}; make room there"))
            }
        }),
        Err(Failure::Trace(error)) => Err(error),
    }
}

fn to_file(
    arguments: &Arguments,
    head: &Head,
    reader: Reader,
    symbols: Option<&Symbols>,
    path: &Path,
) -> Result<(), Failure> {
    // A long trace takes a while, and a Ctrl-C must not leave a part of the file.
    signals::end_at_the_first()?;
    let mut file = report::AtomicFile::create(path)?;
    show(arguments, head, reader, symbols, &mut file)?;
    Ok(file.finish()?)
}

fn check_phases(names: &[String]) -> Result<(), Error> {
    let is_known =
        |name: &String| PHASE_NAMES.contains(&name.as_str()) || name.starts_with("phase-");
    match names.iter().find(|name| !is_known(name)) {
        Some(name) => Err(Error::Input(format!(
            "there is no phase {name}; there are {}, and phase-N for those without a name",
            PHASE_NAMES.join(", ")
        ))),
        None => Ok(()),
    }
}

fn show(
    arguments: &Arguments,
    head: &Head,
    mut reader: Reader,
    symbols: Option<&Symbols>,
    out: &mut impl Write,
) -> Result<(), Failure> {
    match arguments.format {
        Format::Text => {
            print_head(out, head)?;
            writeln!(out, "{}", text::HEADING)?;
            walk(arguments, &mut reader, &mut Printer { out, symbols })?;
        }
        Format::Summary => {
            print_head(out, head)?;
            let mut summary = summary::Summary::default();
            let lost = walk(arguments, &mut reader, &mut summary)?;
            writeln!(out, "\n{}", summary.text(arguments.top.unwrap_or(TOP), symbols).trim_end())?;
            if lost > 0 {
                writeln!(out, "\n{lost} records were lost or dropped: the figures are too small")?;
            }
        }
        Format::Chrome => {
            let mut export = chrome::Export::start(&mut *out, head)?;
            walk(arguments, &mut reader, &mut Exporter { export: &mut export, symbols })?;
            return Ok(export.finish()?);
        }
    }
    if let Some(tail) = reader.tail() {
        writeln!(out, "\nthe guest ended: {}", tail.guest_exit)?;
    }
    Ok(out.flush()?)
}

fn print_head(out: &mut impl Write, head: &Head) -> io::Result<()> {
    let Head { version, machine, kernel, cmdline, memory, guest_faults, without } = head;
    let names: Vec<String> = without.iter().map(ToString::to_string).collect();
    let without =
        if names.is_empty() { String::new() } else { format!(", without {}", names.join(", ")) };
    writeln!(
        out,
        "umbra {version}, {machine}, {memory} MiB, guest faults {guest_faults}{without}: {kernel} ({cmdline})"
    )
}

/// Takes what is wanted of a trace.
trait Visitor {
    fn exit(&mut self, exit: &Exit) -> io::Result<()>;

    /// Before the exit that it belongs to.
    fn mmu(&mut self, _event: MmuEvent, _exit: &Exit) -> io::Result<()> {
        Ok(())
    }

    fn phase(&mut self, _id: u32, _starts: bool) -> io::Result<()> {
        Ok(())
    }

    fn lost(&mut self, _records: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the trace and hands on what is wanted; returns how many records were lost or dropped.
fn walk(
    arguments: &Arguments,
    reader: &mut Reader,
    visitor: &mut impl Visitor,
) -> Result<u64, Failure> {
    let mut running = Running::default();
    let mut events = Vec::new();
    let (mut lost, mut exits) = (0, 0);
    for line in reader {
        let record = match line? {
            Line::Lost(records) => {
                lost = records.saturating_add(lost);
                visitor.lost(records)?;
                continue;
            }
            Line::Record(record) => record,
        };
        running.follow(&record);
        match record {
            Record::Mmu(event) => events.push(event),
            Record::Dropped(count) => {
                lost = count.saturating_add(lost);
                visitor.lost(count)?;
            }
            Record::PhaseStart(id) | Record::PhaseEnd(id) => {
                if arguments.filter.wants_phase(id) {
                    visitor.phase(id, matches!(record, Record::PhaseStart(_)))?;
                }
            }
            Record::Exit(exit) => {
                let of_this = std::mem::take(&mut events);
                if !arguments.filter.wants(&exit, &of_this, &running) {
                    continue;
                }
                if arguments.limit.is_some_and(|limit| exits == limit) {
                    break;
                }
                exits += 1;
                of_this.into_iter().try_for_each(|event| visitor.mmu(event, &exit))?;
                visitor.exit(&exit)?;
            }
        }
    }
    Ok(lost)
}

/// Prints lines.
struct Printer<'a, W: Write> {
    out: &'a mut W,
    symbols: Option<&'a Symbols>,
}

/// Exports.
struct Exporter<'a, W: Write> {
    export: &'a mut chrome::Export<W>,
    symbols: Option<&'a Symbols>,
}

impl<W: Write> Visitor for Printer<'_, W> {
    fn exit(&mut self, exit: &Exit) -> io::Result<()> {
        writeln!(self.out, "{}", text::exit(exit, self.symbols))
    }

    fn mmu(&mut self, event: MmuEvent, _exit: &Exit) -> io::Result<()> {
        writeln!(self.out, "{}", text::mmu(event))
    }

    fn phase(&mut self, id: u32, starts: bool) -> io::Result<()> {
        writeln!(self.out, "-- {} {}", phase_name(id), if starts { "starts" } else { "ends" })
    }

    fn lost(&mut self, records: u64) -> io::Result<()> {
        writeln!(self.out, "-- {records} records were lost here")
    }
}

impl Visitor for summary::Summary {
    fn exit(&mut self, exit: &Exit) -> io::Result<()> {
        self.add(exit);
        Ok(())
    }

    fn mmu(&mut self, event: MmuEvent, _exit: &Exit) -> io::Result<()> {
        self.add_event(event);
        Ok(())
    }
}

impl<W: Write> Visitor for Exporter<'_, W> {
    fn exit(&mut self, exit: &Exit) -> io::Result<()> {
        self.export.exit(exit, self.symbols)
    }

    fn mmu(&mut self, event: MmuEvent, exit: &Exit) -> io::Result<()> {
        self.export.mmu(event, exit)
    }

    fn phase(&mut self, id: u32, starts: bool) -> io::Result<()> {
        self.export.phase(id, starts)
    }
}

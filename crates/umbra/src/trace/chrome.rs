//! Export in the trace event format that Chrome's tracing and Perfetto's viewer read.
//!
//! One tick is shown as one nanosecond. Exits are slices, as long as the hypervisor took; what the
//! MMU did are instants within; phases are slices on a track of their own.

use std::io::{self, Write};

use serde::Serialize;
use umbra_telemetry::trace::{Exit, MmuEvent};
use umbra_telemetry::{ExitCause, phase_name};

use super::file::Head;
use super::symbols::Symbols;
use super::text;

const PROCESS: u32 = 1;
/// The track of the phases; virtual CPUs are the tracks from [`FIRST_VCPU`] on.
const PHASES: u32 = 1;
const FIRST_VCPU: u32 = 2;

#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'a str>,
    ph: &'static str,
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    pid: u32,
    tid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<serde_json::Value>,
}

/// Writes the JSON, event by event.
pub struct Export<W: Write> {
    out: W,
    first: bool,
    /// When the last exit ended.
    now: u64,
}

impl<W: Write> Export<W> {
    /// Starts the file.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(mut out: W, head: &Head) -> io::Result<Export<W>> {
        out.write_all(b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n")?;
        let mut export = Export { out, first: true, now: 0 };
        let process = format!("umbra {} on {}", head.kernel, head.machine);
        export.name("process_name", 0, &process)?;
        export.name("thread_name", PHASES, "phases")?;
        export.name("thread_name", FIRST_VCPU, "vCPU 0")?;
        export.phase(0, true)?;
        Ok(export)
    }

    /// An exit.
    ///
    /// # Errors
    /// What the system says.
    pub fn exit(&mut self, exit: &Exit, symbols: Option<&Symbols>) -> io::Result<()> {
        self.now = exit.time.saturating_add(exit.ticks);
        let hex = |value: u64| format!("{value:#x}");
        let args = serde_json::json!({
            "rip": hex(exit.rip),
            "cr3": hex(exit.cr3),
            "address": exit.address.map(hex),
            "value": exit.value.map(hex),
            "gpa": exit.gpa.map(hex),
            "delivers": exit.delivers,
            "by": symbols.and_then(|symbols| symbols.place(exit.rip)).map(|place| place.to_string()),
            "at": text::named(exit, symbols).map(|place| place.to_string()),
        });
        self.put(&Event {
            name: exit.cause.map_or("phase mark", ExitCause::name),
            cat: Some("exit"),
            ph: "X",
            ts: microseconds(exit.time),
            dur: Some(microseconds(exit.ticks)),
            pid: PROCESS,
            tid: FIRST_VCPU + exit.vcpu,
            args: Some(args),
        })
    }

    /// Something that the MMU did in answer to `exit`.
    ///
    /// # Errors
    /// What the system says.
    pub fn mmu(&mut self, event: MmuEvent, exit: &Exit) -> io::Result<()> {
        let name = text::describe(event);
        self.put(&Event {
            name: &name,
            cat: Some("mmu"),
            ph: "i",
            ts: microseconds(exit.time),
            dur: None,
            pid: PROCESS,
            tid: FIRST_VCPU + exit.vcpu,
            args: None,
        })
    }

    /// A phase starts or ends.
    ///
    /// # Errors
    /// What the system says.
    pub fn phase(&mut self, id: u32, starts: bool) -> io::Result<()> {
        let ts = microseconds(self.now);
        self.put(&Event {
            name: &phase_name(id),
            cat: Some("phase"),
            ph: if starts { "B" } else { "E" },
            ts,
            dur: None,
            pid: PROCESS,
            tid: PHASES,
            args: None,
        })
    }

    /// Ends the file.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(b"\n]}\n")?;
        self.out.flush()
    }

    fn name(&mut self, what: &str, tid: u32, name: &str) -> io::Result<()> {
        let args = Some(serde_json::json!({ "name": name }));
        self.put(&Event {
            name: what,
            cat: None,
            ph: "M",
            ts: 0.0,
            dur: None,
            pid: PROCESS,
            tid,
            args,
        })
    }

    fn put(&mut self, event: &Event<'_>) -> io::Result<()> {
        if !std::mem::take(&mut self.first) {
            self.out.write_all(b",\n")?;
        }
        Ok(serde_json::to_writer(&mut self.out, event)?)
    }
}

fn microseconds(ticks: u64) -> f64 {
    ticks as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_json_with_slices_and_instants() {
        let exit = Exit {
            time: 1500,
            ticks: 500,
            vcpu: 0,
            rip: 0x1000,
            cr3: 0,
            cause: Some(ExitCause::HostFaultLink),
            address: Some(0x2000),
            value: None,
            gpa: None,
            delivers: None,
        };
        let mut bytes = Vec::new();
        let mut export = Export::start(&mut bytes, &Head::default()).unwrap();
        export.mmu(MmuEvent::Flushed, &exit).unwrap();
        let symbols = Symbols::parse("00001000 T fault\n00003000 T _end\n").unwrap();
        export.exit(&exit, Some(&symbols)).unwrap();
        export.phase(0, false).unwrap();
        export.finish().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let events = json["traceEvents"].as_array().unwrap();
        let slice = events.iter().find(|event| event["ph"] == "X").unwrap();
        assert_eq!(
            (&slice["name"], &slice["ts"], &slice["dur"]),
            (&"host_fault_link".into(), &1.5.into(), &0.5.into())
        );
        assert_eq!(slice["args"]["address"], "0x2000");
        assert_eq!(
            (&slice["args"]["by"], &slice["args"]["at"]),
            (&"fault".into(), &"fault+0x1000".into())
        );
        assert_eq!(events.last().unwrap()["ts"], 2.0);
        assert!(
            events.iter().any(|event| event["ph"] == "i" && event["name"] == "flushed everything")
        );
    }
}

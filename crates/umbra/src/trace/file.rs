//! The trace file: gzip over a magic line and items, each a length (32 bits, little endian) and a
//! postcard value.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use umbra_telemetry::trace::{Chunk, Record};

use crate::error::Error;
use crate::report::{AtomicFile, name_of, open_input};
use crate::untrusted::Untrusted;

/// Stands at the start; its number goes up with every change of the format.
const MAGIC: &[u8] = b"umbra trace 2\n";

/// What every version of the format starts with.
const MAGIC_STEM: &[u8] = b"umbra trace ";

/// No item is longer.
const MAX_ITEM: usize = 1 << 20;

/// What was traced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Of the tool.
    pub version: Untrusted,
    /// The machine's model.
    pub machine: Untrusted,
    /// What the kernel calls itself.
    pub kernel: Untrusted,
    /// The kernel's command line.
    pub cmdline: Untrusted,
    /// In MiB.
    pub memory: u32,
    /// `bypass`, `present`, `user` or `trap`, as it was asked for.
    pub guest_faults: Untrusted,
    /// What was switched off.
    #[serde(deserialize_with = "crate::guest::read_names")]
    pub without: Vec<Untrusted>,
}

/// How it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// `guest_exit` of the statistics.
    pub guest_exit: Untrusted,
    /// Records that were lost between the hypervisor and this file.
    pub lost: u64,
}

#[derive(Serialize, Deserialize)]
enum Item {
    Head(Head),
    Chunk(Chunk),
    Tail(Tail),
}

/// Writes a trace file, which appears when it is whole.
pub struct Recorder {
    stream: GzEncoder<AtomicFile>,
    next: u64,
    records: u64,
    lost: u64,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("next", &self.next)
            .field("records", &self.records)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// Starts the file that is going to be `path`.
    ///
    /// # Errors
    /// It cannot be written there.
    pub fn create(path: &Path, head: &Head) -> io::Result<Recorder> {
        let mut stream = GzEncoder::new(AtomicFile::create(path)?, Compression::fast());
        stream.write_all(MAGIC)?;
        let mut recorder = Recorder { stream, next: 0, records: 0, lost: 0 };
        recorder.put(&Item::Head(head.clone()))?;
        Ok(recorder)
    }

    /// Adds a stretch of the trace.
    ///
    /// # Errors
    /// What the system says, such as that the disk is full.
    pub fn add(&mut self, chunk: Chunk) -> io::Result<()> {
        // A capture may say anything.
        self.lost = self.lost.saturating_add(chunk.first.saturating_sub(self.next));
        self.next = chunk.first.saturating_add(chunk.count.into());
        self.records += u64::from(chunk.count);
        self.put(&Item::Chunk(chunk))
    }

    /// Ends the file; returns (records in it, records lost on the way).
    ///
    /// # Errors
    /// What the system says; then there is no file.
    pub fn finish(mut self, guest_exit: String) -> io::Result<(u64, u64)> {
        let (records, lost) = (self.records, self.lost);
        self.put(&Item::Tail(Tail { guest_exit: guest_exit.into(), lost }))?;
        self.stream.finish()?.finish()?;
        Ok((records, lost))
    }

    fn put(&mut self, item: &Item) -> io::Result<()> {
        let bytes = postcard::to_allocvec(item).map_err(io::Error::other)?;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.stream.write_all(&length.to_le_bytes())?;
        self.stream.write_all(&bytes)
    }
}

/// One line of a trace, as a reader gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// What the hypervisor recorded.
    Record(Record),
    /// So many records are missing here.
    Lost(u64),
}

/// Reads a trace file from its start.
pub struct Reader {
    name: String,
    stream: GzDecoder<BufReader<Box<dyn Read + Send>>>,
    lines: std::vec::IntoIter<Line>,
    next: u64,
    tail: Option<Tail>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("name", &self.name)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens a trace; `-` is standard input.
    ///
    /// # Errors
    /// It is not there, is no trace, or is one of another version.
    pub fn open(path: &Path) -> Result<(Head, Reader), Error> {
        let name = name_of(path);
        let file = open_input(path).map_err(|error| {
            Error::Input(match error.kind() {
                io::ErrorKind::IsADirectory => {
                    format!("{name} is a folder; give a file that `umbra run --trace` has written")
                }
                _ => format!("cannot read the trace {name}: {error}; give another file"),
            })
        })?;
        let mut reader = Reader {
            name,
            stream: GzDecoder::new(BufReader::new(file)),
            lines: Vec::new().into_iter(),
            next: 0,
            tail: None,
        };
        let mut magic = [0; MAGIC.len()];
        let read = reader.stream.read_exact(&mut magic);
        if read.is_err() || !magic.starts_with(MAGIC_STEM) {
            return Err(Error::Input(format!(
                "{} is not a trace, or cut off at its start; give a file that `umbra run --trace` has written",
                reader.name
            )));
        }
        if magic != MAGIC {
            return Err(Error::Input(format!(
                "{} was written by another version of umbra, in a format that this one does not know; trace the \
                 guest again",
                reader.name
            )));
        }
        match reader.item()? {
            Item::Head(head) => Ok((head, reader)),
            Item::Chunk(_) | Item::Tail(_) => Err(reader.damaged()),
        }
    }

    /// How the trace ended, after its last line.
    pub fn tail(&self) -> Option<&Tail> {
        self.tail.as_ref()
    }

    fn item(&mut self) -> Result<Item, Error> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(|error| self.cut_off(&error))?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_ITEM {
            return Err(self.damaged());
        }
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).map_err(|error| self.cut_off(&error))?;
        postcard::from_bytes(&bytes).map_err(|_| self.damaged())
    }

    fn cut_off(&self, error: &io::Error) -> Error {
        if error.kind() != io::ErrorKind::UnexpectedEof {
            return self.damaged();
        }
        Error::Input(format!(
            "the trace {} is cut off after {} records: its writer was ended or its disk was full; trace the guest \
             again",
            self.name, self.next
        ))
    }

    fn damaged(&self) -> Error {
        Error::Input(format!(
            "the trace {} is damaged after {} records; trace the guest again",
            self.name, self.next
        ))
    }

    /// Reads on until there are lines, or the end.
    fn fill(&mut self) -> Result<(), Error> {
        while self.lines.len() == 0 && self.tail.is_none() {
            match self.item()? {
                Item::Head(_) => return Err(self.damaged()),
                Item::Tail(tail) => {
                    // Reading on checks gzip's own sum.
                    match self.stream.read(&mut [0]) {
                        Ok(0) => self.tail = Some(tail),
                        Ok(_) => return Err(self.damaged()),
                        Err(error) => return Err(self.cut_off(&error)),
                    }
                }
                Item::Chunk(chunk) => {
                    let records = chunk.records().map_err(|_| self.damaged())?;
                    let gap = chunk.first.saturating_sub(self.next);
                    let lost = (gap > 0).then_some(Line::Lost(gap));
                    self.lines = lost
                        .into_iter()
                        .chain(records.into_iter().map(Line::Record))
                        .collect::<Vec<_>>()
                        .into_iter();
                    self.next = chunk.first.saturating_add(chunk.count.into());
                }
            }
        }
        Ok(())
    }
}

impl Iterator for Reader {
    type Item = Result<Line, Error>;

    /// The next line. After an error there is nothing more to read.
    fn next(&mut self) -> Option<Result<Line, Error>> {
        match self.fill() {
            Ok(()) => self.lines.next().map(Ok),
            Err(error) => {
                self.tail = Some(Tail::default());
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use umbra_telemetry::trace::Writer;

    use super::*;

    fn chunks(count: u32) -> Vec<Chunk> {
        let mut writer = Writer::default();
        (0..count)
            .filter_map(|id| {
                writer.push(&Record::PhaseStart(id));
                writer.push(&Record::PhaseEnd(id));
                writer.take()
            })
            .collect()
    }

    fn record(path: &Path, chunks: Vec<Chunk>) -> (u64, u64) {
        let mut recorder = Recorder::create(path, &Head { memory: 7, ..Head::default() }).unwrap();
        chunks.into_iter().for_each(|chunk| recorder.add(chunk).unwrap());
        assert!(!path.exists(), "a part of a trace is there");
        recorder.finish("acpi_off".into()).unwrap()
    }

    #[test]
    fn a_trace_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        assert_eq!(record(&path, chunks(3)), (6, 0));
        let (head, mut reader) = Reader::open(&path).unwrap();
        assert_eq!(head.memory, 7);
        let lines: Vec<_> = reader.by_ref().map(Result::unwrap).collect();
        assert_eq!(lines.len(), 6);
        assert_eq!(lines[5], Line::Record(Record::PhaseEnd(2)));
        assert_eq!(reader.tail().unwrap().guest_exit, "acpi_off");
    }

    #[test]
    fn what_was_lost_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let mut some = chunks(4);
        some.remove(1);
        assert_eq!(record(&path, some), (6, 2));
        let (_, reader) = Reader::open(&path).unwrap();
        let lines: Vec<_> = reader.map(Result::unwrap).collect();
        assert_eq!(lines[2], Line::Lost(2));
        assert_eq!(lines.len(), 7);
    }

    #[test]
    fn a_trace_that_is_cut_off_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        record(&path, chunks(50));
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let sentence = match Reader::open(&path) {
                Err(error) => error.to_string(),
                Ok((_, reader)) => reader.last().unwrap().unwrap_err().to_string(),
            };
            assert!(
                sentence.contains("cut off") || sentence.contains("not a trace"),
                "{length}: {sentence}"
            );
        }
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let sentence = |path: &Path| Reader::open(path).err().unwrap().to_string();
        assert!(sentence(&path).contains("cannot read"));
        assert!(sentence(folder.path()).contains("is a folder; give a file"));
        fs::write(&path, "{}").unwrap();
        assert!(sentence(&path).contains("not a trace"));
        let mut other = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
        other.write_all(b"umbra trace 0\nand so on").unwrap();
        other.finish().unwrap();
        assert!(sentence(&path).contains("another version"));
    }
}

//! TRACE.md against the code.

use umbra_telemetry::ExitCause;
use umbra_telemetry::trace::{Chunk, Exit, FILTER_NAMES, MmuEvent, Record, Writer};

use super::file::{Head, Recorder};

const DOCUMENT: &str = include_str!("../../TRACE.md");

/// What stands between two marks.
fn between(mark: &str) -> &'static str {
    let (_, rest) = DOCUMENT.split_once(&format!("<!-- {mark} -->\n")).unwrap();
    rest.split_once("\n<!-- end -->").unwrap().0
}

/// The rows of the table below a sentence: number and name.
fn rows(sentence: &str) -> Vec<(u32, &'static str)> {
    let (_, rest) = DOCUMENT.split_once(sentence).unwrap();
    let lines = rest.lines().skip_while(|line| !line.starts_with("| number")).skip(2);
    let rows = lines.take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let mut cells = row.split(" | ");
        (cells.next().unwrap().trim_start_matches("| ").parse().unwrap(), cells.next().unwrap())
    })
    .collect()
}

/// A reader of postcard that knows no types of ours, as a stranger would write it.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let (&first, rest) = self.0.split_first().unwrap();
        self.0 = rest;
        first
    }

    fn unsigned(&mut self) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }

    fn signed(&mut self) -> i64 {
        let value = self.unsigned();
        (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.byte() == 1).then(|| read(self))
    }

    fn text(&mut self) -> String {
        let length = self.unsigned();
        (0..length).map(|_| char::from(self.byte())).collect()
    }
}

fn exit(cause: ExitCause) -> Exit {
    Exit {
        time: 1000,
        ticks: 50,
        vcpu: 0,
        rip: 0x1000,
        cr3: 0x2000,
        cause: Some(cause),
        address: Some(0x3000),
        value: Some(3),
        gpa: Some(0x4000),
        delivers: None,
    }
}

fn chunk(records: &[Record]) -> Chunk {
    let mut writer = Writer::default();
    records.iter().for_each(|record| writer.push(record));
    writer.take().unwrap()
}

/// The bytes of a chunk's records: behind first number, count and length.
fn bytes(chunk: &Chunk) -> Vec<u8> {
    let encoded = postcard::to_allocvec(chunk).unwrap();
    let mut reader = Bytes(&encoded);
    assert_eq!((reader.unsigned(), reader.unsigned()), (chunk.first, chunk.count.into()));
    let length = reader.unsigned();
    assert_eq!(reader.0.len() as u64, length);
    reader.0.to_vec()
}

#[test]
fn the_example_is_what_is_written() {
    let built = Record::Mmu(MmuEvent::Built { table: 0x123, level: 1 });
    let records =
        [Record::PhaseStart(2), built, Record::Exit(exit(ExitCause::HostFaultTableWrite))];
    let written: Vec<String> =
        bytes(&chunk(&records)).iter().map(|byte| format!("{byte:02x}")).collect();
    let shown: Vec<&str> =
        between("example").split_whitespace().filter(|word| word.len() == 2).collect();
    assert_eq!(shown, written, "TRACE.md shows other bytes; those are {}", written.join(" "));
    assert_eq!(ExitCause::HostFaultTableWrite as usize, 6, "the text names its number");
}

#[test]
fn the_causes_are_listed_in_their_order() {
    let listed: Vec<&str> = between("causes")
        .split([',', '\n'])
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    let names: Vec<&str> = ExitCause::ALL.iter().map(|cause| cause.name()).collect();
    assert_eq!(listed, names, "they are {}", names.join(", "));
    for (number, &cause) in (0..).zip(ExitCause::ALL) {
        let bytes = bytes(&chunk(&[Record::Exit(exit(cause))]));
        let mut reader = Bytes(&bytes);
        assert_eq!(reader.unsigned(), 0);
        let _ = (
            reader.signed(),
            reader.unsigned(),
            reader.unsigned(),
            reader.signed(),
            reader.signed(),
        );
        assert_eq!(reader.option(Bytes::unsigned), Some(number));
        assert_eq!(reader.option(Bytes::signed), Some(0x3000));
        assert_eq!(
            (reader.option(Bytes::unsigned), reader.option(Bytes::unsigned)),
            (Some(3), Some(0x4000))
        );
        assert_eq!((reader.option(Bytes::byte), reader.0.len()), (None, 0));
    }
}

#[test]
fn the_tables_number_records_and_events_as_they_are_written() {
    let table = 0x1234;
    let events = [
        (MmuEvent::Built { table, level: 1 }, "built"),
        (MmuEvent::Zapped { table, level: 2, reclaimed: true }, "zapped"),
        (MmuEvent::Split(table), "split"),
        (MmuEvent::Flushed, "flushed"),
        (MmuEvent::Unsynced(table), "not seen until"),
        (MmuEvent::Resynced(table), "seen again"),
        (MmuEvent::Detached(table), "detached"),
        (MmuEvent::Attached { table, level: 1, changed: 5 }, "linked again"),
        (MmuEvent::RootMoved(table), "root"),
        (MmuEvent::Filter(2), "filter"),
    ];
    let listed = rows("What the shadow MMU does.");
    assert_eq!(listed.len(), events.len());
    for ((event, word), (number, name)) in events.into_iter().zip(listed) {
        assert!(name.contains(word), "{name}: {word}");
        let bytes = bytes(&chunk(&[Record::Mmu(event)]));
        let mut reader = Bytes(&bytes);
        assert_eq!((reader.unsigned(), reader.unsigned()), (1, number.into()), "{name}");
        match event {
            MmuEvent::Flushed => (),
            MmuEvent::Filter(filter) => assert_eq!(reader.byte(), filter),
            _ => assert_eq!(reader.unsigned(), table),
        }
    }
    let records =
        [Record::Exit(exit(ExitCause::Io)), Record::Mmu(MmuEvent::Flushed), Record::Dropped(7)];
    let records = [&records[..], &[Record::PhaseStart(7), Record::PhaseEnd(7)]].concat();
    let listed = rows("The bytes of a chunk are records");
    assert_eq!(listed.iter().map(|&(number, _)| number).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    for (record, (number, _)) in records.iter().zip(listed) {
        assert_eq!(bytes(&chunk(&[*record]))[0], number as u8);
    }
    for (number, name) in FILTER_NAMES.iter().enumerate() {
        assert!(DOCUMENT.contains(&format!("{number} `{name}`")), "{name}");
    }
}

/// Reads a whole file by what the page says, with nothing of the reader's code but gzip.
#[test]
fn a_stranger_can_read_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let head = Head {
        machine: "penryn".into(),
        memory: 192,
        without: vec!["cr3".into()],
        ..Head::default()
    };
    let mut recorder = Recorder::create(&path, &head).unwrap();
    recorder.add(chunk(&[Record::PhaseStart(9)])).unwrap();
    recorder.finish("acpi_off".into()).unwrap();
    let mut inner = Vec::new();
    let mut gzip = flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap());
    std::io::Read::read_to_end(&mut gzip, &mut inner).unwrap();
    let magic = DOCUMENT.split("the line `").nth(1).unwrap().split('`').next().unwrap();
    let mut rest = inner.strip_prefix(format!("{magic}\n").as_bytes()).unwrap();
    let mut items = Vec::new();
    while let Some((length, more)) = rest.split_first_chunk() {
        let (item, more) = more.split_at(u32::from_le_bytes(*length) as usize);
        items.push(item);
        rest = more;
    }
    let [head, chunk, tail] = items[..] else { panic!("{} items", items.len()) };
    let mut head = Bytes(head);
    assert_eq!((head.unsigned(), head.text(), head.text()), (0, String::new(), "penryn".into()));
    assert_eq!(
        (head.text(), head.text(), head.unsigned(), head.text()),
        (String::new(), String::new(), 192, String::new())
    );
    assert_eq!((head.unsigned(), head.text(), head.0.len()), (1, "cr3".into(), 0));
    let mut chunk = Bytes(chunk);
    assert_eq!((chunk.unsigned(), chunk.unsigned(), chunk.unsigned()), (1, 0, 1));
    assert_eq!((chunk.unsigned(), chunk.unsigned(), chunk.unsigned(), chunk.0.len()), (2, 3, 9, 0));
    let mut tail = Bytes(tail);
    assert_eq!((tail.unsigned(), tail.text(), tail.unsigned()), (2, "acpi_off".into(), 0));
    assert_eq!(rows("## Items").len(), 3);
}

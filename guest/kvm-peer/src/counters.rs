//! KVM's own counters, by file: a header, descriptions, and the values (Linux:
//! Documentation/virt/kvm/api.rst, "KVM_GET_STATS_FD").

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use kvm_bindings::{KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_MASK};

/// Bytes of `struct kvm_stats_header`, and of `struct kvm_stats_desc` before the name.
const HEADER: usize = 24;
const DESCRIPTION: usize = 16;

/// One file, and where its counters are.
struct Source {
    file: File,
    data_offset: u64,
    data: Vec<u8>,
    /// Name, and place among the data.
    counters: Vec<(String, usize)>,
}

/// The counters of a VM and its virtual CPU.
pub struct Counters(Vec<Source>);

impl Counters {
    /// Reads the descriptions.
    ///
    /// # Errors
    /// A file that is not as documented.
    pub fn new(files: impl IntoIterator<Item = File>) -> Result<Counters> {
        files.into_iter().map(Source::new).collect::<Result<_>>().map(Counters)
    }

    /// The names, in the order of [`read`](Counters::read).
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|source| &source.counters).map(|(name, _)| name.as_str())
    }

    /// The values now.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&mut self) -> Result<Vec<u64>> {
        let mut values = Vec::new();
        for source in &mut self.0 {
            source
                .file
                .read_exact_at(&mut source.data, source.data_offset)
                .context("reading KVM's counters")?;
            for (name, at) in &source.counters {
                let bytes = source.data.get(*at..).and_then(<[u8]>::first_chunk);
                values.push(u64::from_ne_bytes(
                    *bytes.with_context(|| format!("counter {name} is cut off"))?,
                ));
            }
        }
        Ok(values)
    }
}

impl Source {
    fn new(file: File) -> Result<Source> {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).context("reading the header of KVM's counters")?;
        // flags, name_size, num_desc, id_offset, desc_offset, data_offset
        let [_, name_size, count, _, start, data_offset] =
            [0, 1, 2, 3, 4, 5].map(|i| u32_at(&header, 4 * i).expect("the header has six numbers"));
        let length = DESCRIPTION + name_size as usize;
        let mut descriptions = vec![0; count as usize * length];
        file.read_exact_at(&mut descriptions, start.into())
            .context("reading the descriptions of KVM's counters")?;
        let mut counters = Vec::new();
        let mut end = 0;
        for description in descriptions.chunks_exact(length) {
            let flags = u32_at(description, 0).context("a description without flags")?;
            let values = u16::from_ne_bytes([description[6], description[7]]);
            let at = u32_at(description, 8).context("a description without place")? as usize;
            end = end.max(at + 8 * usize::from(values));
            // Neither histograms nor levels.
            if flags & KVM_STATS_TYPE_MASK == KVM_STATS_TYPE_CUMULATIVE && values == 1 {
                let name =
                    description[DESCRIPTION..].split(|&byte| byte == 0).next().unwrap_or_default();
                counters.push((String::from_utf8_lossy(name).into_owned(), at));
            }
        }
        ensure!(!counters.is_empty(), "KVM has no counters");
        Ok(Source { file, data_offset: data_offset.into(), data: vec![0; end], counters })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn description(flags: u32, values: u16, at: u32, name: &str) -> Vec<u8> {
        let mut bytes = flags.to_ne_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(values.to_ne_bytes());
        bytes.extend(at.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(name.as_bytes());
        bytes.resize(DESCRIPTION + 16, 0);
        bytes
    }

    #[test]
    fn cumulative_counters_are_read_from_their_places() {
        let descriptions = [
            description(0, 1, 8, "exits"),
            description(1, 1, 0, "pages_4k"),
            description(3, 2, 16, "hist"),
        ];
        let mut file = tempfile();
        let header = [0u32, 16, 3, 24, 24, 24 + 3 * 32];
        file.write_all(&header.map(u32::to_ne_bytes).concat()).unwrap();
        file.write_all(&descriptions.concat()).unwrap();
        file.write_all(&[7u64, 99, 1, 2].map(u64::to_ne_bytes).concat()).unwrap();
        let mut counters = Counters::new([file]).unwrap();
        assert_eq!(counters.names().collect::<Vec<_>>(), ["exits"]);
        assert_eq!(counters.read().unwrap(), [99]);
    }

    /// A file without a name.
    fn tempfile() -> File {
        let path = std::env::temp_dir().join(format!("umbra-counters-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }
}

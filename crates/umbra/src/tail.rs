//! The end of a file that may be long.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// The last `most` bytes as text; nothing of a file that cannot be read.
pub fn tail(path: &Path, most: u64) -> String {
    String::from_utf8_lossy(&read(path, most).unwrap_or_default()).into_owned()
}

fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut end = Vec::new();
    // It may grow meanwhile.
    file.take(most).read_to_end(&mut end)?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_the_end_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!(tail(&path, 3), "");
        fs::write(&path, "abcdef").unwrap();
        assert_eq!((tail(&path, 3).as_str(), tail(&path, 9).as_str()), ("def", "abcdef"));
    }
}

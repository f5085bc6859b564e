//! Capture files: the classic format, as `net_pcap` and everyone else reads it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

const MAGIC: u32 = 0xa1b2_c3d4;
const ETHERNET: u32 = 1;

/// Writes frames to a capture file, one by one.
#[derive(Debug)]
pub(crate) struct Writer {
    file: BufWriter<File>,
    frames: u64,
}

impl Writer {
    /// Creates the file.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("could not create {}", path.display()))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&MAGIC.to_ne_bytes())?;
        for half in [2u16, 4] {
            file.write_all(&half.to_ne_bytes())?;
        }
        for word in [0u32, 0, 65_535, ETHERNET] {
            file.write_all(&word.to_ne_bytes())?;
        }
        Ok(Self { file, frames: 0 })
    }

    /// Appends a frame, a microsecond after the one before.
    pub(crate) fn frame(&mut self, frame: &[u8]) -> Result<()> {
        let (seconds, micros) = ((self.frames / 1_000_000) as u32, (self.frames % 1_000_000) as u32);
        self.frames += 1;
        for word in [seconds, micros, frame.len() as u32, frame.len() as u32] {
            self.file.write_all(&word.to_ne_bytes())?;
        }
        Ok(self.file.write_all(frame)?)
    }

    /// Completes the file.
    pub(crate) fn finish(mut self) -> Result<()> {
        Ok(self.file.flush()?)
    }
}

/// Writes a whole capture.
pub(crate) fn write(path: &Path, frames: &[Vec<u8>]) -> Result<()> {
    let mut writer = Writer::create(path)?;
    frames.iter().try_for_each(|frame| writer.frame(frame))?;
    writer.finish()
}

/// Reads a whole capture.
pub(crate) fn read(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
    let word =
        |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    // net_pcap writes nanosecond captures; both have the same records
    if !matches!(word(0), Some(MAGIC | 0xa1b2_3c4d)) {
        bail!("{} is not a capture file", path.display());
    }
    let mut frames = Vec::new();
    let mut at = 24;
    while at < bytes.len() {
        let length = word(at + 8).with_context(|| format!("{} is cut off", path.display()))? as usize;
        let frame = bytes.get(at + 16..at + 16 + length);
        frames.push(frame.with_context(|| format!("{} is cut off", path.display()))?.to_vec());
        at += 16 + length;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let path = std::env::temp_dir().join(format!("weir-capture-{}.pcap", std::process::id()));
        let frames = vec![vec![1, 2, 3], vec![], vec![9; 1_500]];
        write(&path, &frames).unwrap();
        assert_eq!(read(&path).unwrap(), frames);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(read(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}

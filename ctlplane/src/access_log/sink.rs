//! Where do lines end up? In a file that may be moved away, on a disk that may be full, behind a pipe that nobody reads.
//!
//! A thread of its own, because writing may block. What it can't write it drops and counts; a line that was written in part is ended
//! before the next one.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::{Shared, Target, locked};

/// Chunks that may wait; with the reader's size of them some megabytes.
pub(super) const QUEUE: usize = 128;
/// How often it is looked whether the file is still the one at its path, and a file that could not be opened is tried again.
const LOOK: Duration = Duration::from_millis(500);
/// How often an error is repeated in the daemon's log.
const COMPLAIN: Duration = Duration::from_secs(60);

/// What the sink gets.
#[derive(Debug)]
pub(super) enum Chunk {
    /// Whole lines, and their number.
    Lines(Vec<u8>, u64),
    /// Lines go there from here on.
    Target(Option<Target>),
}

/// What lines are written to.
struct Output {
    writer: Box<dyn Write + Send>,
    /// Device and inode of a file.
    identity: Option<(u64, u64)>,
}

impl Output {
    fn open(target: &Target) -> io::Result<Self> {
        match target {
            Target::Stdout => Ok(Self { writer: Box::new(io::stdout()), identity: None }),
            Target::File(path) => {
                let mut options = OpenOptions::new();
                let file = options.append(true).create(true).mode(0o640).open(path)?;
                let identity = file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))?;
                Ok(Self { writer: Box::new(file), identity: Some(identity) })
            }
        }
    }

    /// Writes as much as can be; how much, and what stopped it.
    fn write(&mut self, mut bytes: &[u8]) -> (usize, Option<io::Error>) {
        let mut written = 0;
        while !bytes.is_empty() {
            match self.writer.write(bytes) {
                Ok(0) => return (written, Some(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    written += count;
                    bytes = bytes.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (written, Some(error)),
            }
        }
        // a file has nothing to flush, standard output a buffer of its own
        (written, self.writer.flush().err())
    }

    /// Whether `path` still names this file.
    fn is_at(&self, path: &Path) -> bool {
        let named = std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
        named.is_ok_and(|named| Some(named) == self.identity)
    }
}

/// The writing end.
pub(super) struct Sink {
    shared: Arc<Shared>,
    chunks: Receiver<Chunk>,
    target: Option<Target>,
    output: Option<Output>,
    /// The last byte that was written did not end a line.
    is_within_line: bool,
    /// When to look at the path, or try to open it again.
    look_at: Instant,
    /// What was asked for was done so far.
    reopened: u64,
    complain_at: Instant,
}

impl Sink {
    pub(super) fn new(shared: Arc<Shared>, chunks: Receiver<Chunk>) -> Self {
        let now = Instant::now();
        Self {
            shared,
            chunks,
            target: None,
            output: None,
            is_within_line: false,
            look_at: now,
            reopened: 0,
            complain_at: now,
        }
    }

    /// Until the reader is gone.
    pub(super) fn run(mut self) {
        loop {
            match self.chunks.recv_timeout(LOOK) {
                Ok(Chunk::Lines(bytes, lines)) => {
                    self.look();
                    self.write(&bytes, lines);
                }
                Ok(Chunk::Target(target)) => {
                    *locked(&self.shared.target) = target.as_ref().map(Target::to_string);
                    *locked(&self.shared.error) = None;
                    (self.target, self.output, self.is_within_line) = (target, None, false);
                    self.complain_at = Instant::now();
                    self.open();
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Opens again what was moved away, or could not be opened.
    fn look(&mut self) {
        let Some(Target::File(path)) = &self.target else { return };
        let now = Instant::now();
        let asked = self.shared.reopen.load(Ordering::Relaxed);
        if asked == self.reopened && now < self.look_at {
            return;
        }
        self.look_at = now + LOOK;
        let is_here = self.output.as_ref().is_some_and(|output| output.is_at(path));
        if asked == self.reopened && is_here {
            return;
        }
        self.reopened = asked;
        if self.output.take().is_some() {
            Shared::add(&self.shared.reopened, 1);
        }
        self.open();
    }

    fn open(&mut self) {
        let Some(target) = &self.target else { return };
        self.look_at = Instant::now() + LOOK;
        match Output::open(target) {
            Ok(output) => {
                (self.output, self.is_within_line) = (Some(output), false);
                *locked(&self.shared.error) = None;
            }
            Err(error) => self.complain("cannot open", &error),
        }
    }

    fn write(&mut self, bytes: &[u8], lines: u64) {
        if self.target.is_none() {
            return;
        }
        let Some(output) = &mut self.output else {
            return Shared::add(&self.shared.dropped_error, lines);
        };
        if self.is_within_line {
            self.is_within_line = output.write(b"\n").0 == 0;
        }
        let (written, error) = if self.is_within_line { (0, None) } else { output.write(bytes) };
        Shared::add(&self.shared.bytes, written as u64);
        let done = bytes.get(..written).unwrap_or_default();
        if written == bytes.len() {
            Shared::add(&self.shared.written, lines);
        } else {
            let whole = done.iter().filter(|byte| **byte == b'\n').count() as u64;
            Shared::add(&self.shared.written, whole);
            Shared::add(&self.shared.dropped_error, lines.saturating_sub(whole));
        }
        if let Some(last) = done.last() {
            self.is_within_line = *last != b'\n';
        }
        match error {
            Some(error) => self.complain("cannot write", &error),
            None if written == bytes.len() => *locked(&self.shared.error) = None,
            None => {}
        }
    }

    fn complain(&mut self, what: &str, error: &io::Error) {
        let target = self.target.as_ref().map(Target::to_string).unwrap_or_default();
        let text = format!("{what} {target}: {error}");
        let now = Instant::now();
        if now >= self.complain_at {
            self.complain_at = now + COMPLAIN;
            tracing::error!("access log: {text}; lines are dropped and counted until it can be");
        }
        *locked(&self.shared.error) = Some(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::sync_channel;

    /// A disk with so many bytes left.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let count = bytes.len().min(disk.1);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.1 -= count;
            disk.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_costs_lines_but_never_half_of_one() {
        let (_chunks, inbox) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let mut sink = Sink::new(Arc::clone(&shared), inbox);
        let disk = Disk::default();
        sink.target = Some(Target::Stdout);
        sink.output = Some(Output { writer: Box::new(disk.clone()), identity: None });
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        disk.0.lock().unwrap().1 = 8;
        sink.write(b"one\ntwo\nthree\n", 3);
        assert_eq!((count(&shared.written), count(&shared.dropped_error)), (2, 1));
        disk.0.lock().unwrap().1 = 3;
        sink.write(b"four\nfive\n", 2);
        assert_eq!((count(&shared.written), count(&shared.dropped_error)), (2, 3));
        assert!(locked(&shared.error).as_deref().is_some_and(|text| text.contains("cannot write")));
        // still full: the half line can't even be ended
        sink.write(b"six\n", 1);
        disk.0.lock().unwrap().1 = 100;
        sink.write(b"seven\n", 1);
        assert_eq!((count(&shared.written), count(&shared.dropped_error)), (3, 4));
        assert_eq!(locked(&shared.error).as_deref(), None);
        assert_eq!(disk.0.lock().unwrap().0, b"one\ntwo\nfou\nseven\n");
        assert_eq!(count(&shared.bytes), 3 + 8 + 6);
    }
}

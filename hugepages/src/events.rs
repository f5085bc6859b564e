//! How does one process tell another what happened, without ever waiting for it? A ring of records in a named segment.
//!
//! One producer (a worker of the dataplane), one consumer (ctlplane). Records are bytes of any length up to [`RECORD_LIMIT`]. A full
//! ring refuses a record and counts it, in the header, where everybody can read it. Either side may start, die and come back:
//!
//! - The producer goes on behind what nobody has read yet and says by a new epoch that it is another process.
//! - The consumer may attach at any time and reads on from the first record that was not taken.
//!
//! All memory is atomic words, written by one side each. Both treat it as hostile: positions are bounded, a record's header carries its
//! length and a mark of its position. Where something is wrong, the consumer goes to the newest position and says why ([`Lost`]);
//! the producer counts records as refused until the consumer has put things right.
//!
//! ```text
//! line 0: magic, version, words of data     line 1, producer's: epoch, tail, written, refused     line 2, consumer's: head
//! then the data: a word of header, then the record's words; positions count words for ever, modulo the words of data
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use crate::segment::{Access, AtomicWords, ClaimError, Role, SegmentDir, SegmentError};

#[cfg(test)]
mod tests;

/// Longest record, in bytes.
pub const RECORD_LIMIT: usize = 8 << 10;
/// Least bytes of data: some of the longest records.
pub const LEAST_BYTES: usize = 64 << 10;
/// Most bytes of data.
pub const MOST_BYTES: usize = 1 << 30;

const MAGIC: u64 = u64::from_le_bytes(*b"WEIREVNT");
const VERSION: u64 = 1;
/// In a record's header beside its length, with the position: old data is taken for a header once in four billion times at most.
const MARK: u32 = 0x57e1_7ec0;
const LINE: usize = 8;
const HEADER_WORDS: usize = 8 * LINE;
const EPOCH: usize = LINE;
const TAIL: usize = LINE + 1;
const WRITTEN: usize = LINE + 2;
const REFUSED: usize = LINE + 3;
const HEAD: usize = 2 * LINE;
const WORD: usize = size_of::<u64>();

/// Why a ring can't be used.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Another process has this end.
    #[error("the {end} of event ring {name:?} is taken by {}; stop that process", pid.map_or_else(|| "another".to_owned(), |pid| format!("pid {pid}")))]
    Taken {
        /// Which end.
        end: &'static str,
        /// Name of the segment.
        name: String,
        /// By whom, where that is known.
        pid: Option<u32>,
    },
    /// The lock.
    #[error("cannot lock event ring {name:?}: {source}")]
    Lock {
        /// Name of the segment.
        name: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Likely cause: its producer is just making it, or is of another release.
    #[error("{name:?} is no event ring of version {VERSION}: {reason}")]
    Foreign {
        /// Name of the segment.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Why records were lost to the consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Positions that no ring can have.
    #[error("the ring's end is {tail}, its beginning {head}: more than it holds")]
    Positions {
        /// Where the producer writes.
        tail: u64,
        /// Where the consumer reads.
        head: u64,
    },
    /// What should be a record's header is none.
    #[error("no record begins at {position}")]
    Header {
        /// Where.
        position: u64,
    },
}

/// What the header tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rises with each start of the producer.
    pub epoch: u64,
    /// Records written, by all its processes.
    pub written: u64,
    /// Records that found the ring full.
    pub refused: u64,
}

/// The words of a ring whose header was checked.
#[derive(Debug)]
struct Ring {
    words: AtomicWords,
    /// Words of data less one; they are a power of two.
    mask: u64,
}

impl Ring {
    fn header(&self, at: usize) -> Option<&AtomicU64> {
        self.words.get(at)
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.header(at).map_or(0, |word| word.load(order))
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        if let Some(word) = self.header(at) {
            word.store(value, order);
        }
    }

    fn capacity(&self) -> u64 {
        self.mask + 1
    }

    /// The words from a position on: up to the data's end, and what follows from its beginning.
    fn span(&self, position: u64, words: usize) -> (&[AtomicU64], &[AtomicU64]) {
        let start = (position & self.mask) as usize;
        let data = self.words.get(HEADER_WORDS..).unwrap_or_default();
        let data = data.get(..self.capacity() as usize).unwrap_or_default();
        let near = data.get(start..).unwrap_or_default();
        let near = near.get(..words).unwrap_or(near);
        (near, data.get(..words - near.len()).unwrap_or_default())
    }

    fn counts(&self) -> Counts {
        let load = |at| self.load(at, Ordering::Relaxed);
        Counts { epoch: load(EPOCH), written: load(WRITTEN), refused: load(REFUSED) }
    }
}

fn header_of(position: u64, length: usize) -> u64 {
    u64::from(MARK ^ position as u32) << 32 | length as u64
}

fn claim(words: &AtomicWords, name: &str, role: Role, end: &'static str) -> Result<(), EventsError> {
    let name = name.to_owned();
    words.claim(role).map_err(|error| match error {
        ClaimError::Held(pid) => EventsError::Taken { end, name, pid },
        ClaimError::Io(source) => EventsError::Lock { name, source },
    })
}

/// The end that puts records in.
#[derive(Debug)]
pub struct Producer {
    ring: Ring,
    /// Own copies of what the header says.
    tail: u64,
    written: u64,
    refused: u64,
    /// The consumer's position as last seen: looked up only when the ring seems full.
    known_head: u64,
}

impl Producer {
    /// Takes over the ring `name` with at least `bytes` of data, or makes it. One of another size or version is replaced; what nobody
    /// has read of it is lost.
    pub fn open(directory: &SegmentDir, name: &str, bytes: usize) -> Result<Self, EventsError> {
        let data = bytes.clamp(LEAST_BYTES, MOST_BYTES).next_power_of_two() / WORD;
        let words = match directory.map_atomics(name, HEADER_WORDS + data, Access::Create) {
            Err(SegmentError::WrongSize { .. }) => Self::replacement(directory, name, data)?,
            other => other?,
        };
        claim(&words, name, Role::Owner, "producing end")?;
        let ring = Ring { words, mask: data as u64 - 1 };
        let is_known = [MAGIC, VERSION, data as u64]
            .into_iter()
            .enumerate()
            .all(|(at, value)| ring.load(at, Ordering::Relaxed) == value);
        if is_known || ring.words.was_created() {
            return Ok(Self::on(ring));
        }
        drop(ring);
        let words = Self::replacement(directory, name, data)?;
        claim(&words, name, Role::Owner, "producing end")?;
        Ok(Self::on(Ring { words, mask: data as u64 - 1 }))
    }

    /// Removed rather than overwritten: a consumer that has the old one mapped notices, and no position must be agreed on.
    fn replacement(directory: &SegmentDir, name: &str, data: usize) -> Result<AtomicWords, SegmentError> {
        directory.remove(name)?;
        directory.map_atomics(name, HEADER_WORDS + data, Access::Create)
    }

    fn on(ring: Ring) -> Self {
        let Counts { epoch, written, refused } = ring.counts();
        let (tail, head) = (ring.load(TAIL, Ordering::Relaxed), ring.load(HEAD, Ordering::Acquire));
        ring.store(EPOCH, epoch.wrapping_add(1), Ordering::Relaxed);
        ring.store(1, VERSION, Ordering::Relaxed);
        ring.store(2, ring.capacity(), Ordering::Relaxed);
        ring.store(0, MAGIC, Ordering::Release);
        Self { ring, tail, written, refused, known_head: head }
    }

    /// Puts a record in; false where there is no room for it, or it is longer than [`RECORD_LIMIT`].
    #[inline]
    pub fn push(&mut self, record: &[u8]) -> bool {
        let words = 1 + record.len().div_ceil(WORD);
        if record.len() > RECORD_LIMIT || !self.has_room(words as u64) {
            self.refused = self.refused.wrapping_add(1);
            self.ring.store(REFUSED, self.refused, Ordering::Relaxed);
            // where somebody else wrote there, the consumer may have followed: it shall notice
            self.ring.store(TAIL, self.tail, Ordering::Release);
            return false;
        }
        let (near, far) = self.ring.span(self.tail, words);
        let mut places = near.iter().chain(far);
        if let Some(place) = places.next() {
            place.store(header_of(self.tail, record.len()), Ordering::Relaxed);
        }
        let (whole, rest) = record.as_chunks::<WORD>();
        for (chunk, place) in whole.iter().zip(&mut places) {
            place.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
        }
        if let Some(place) = places.next() {
            let mut last = [0; WORD];
            last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            place.store(u64::from_ne_bytes(last), Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(words as u64);
        self.written = self.written.wrapping_add(1);
        self.ring.store(WRITTEN, self.written, Ordering::Relaxed);
        self.ring.store(TAIL, self.tail, Ordering::Release);
        true
    }

    #[inline]
    fn has_room(&mut self, words: u64) -> bool {
        let room = |head: u64| self.ring.capacity().checked_sub(self.tail.wrapping_sub(head));
        if room(self.known_head).is_some_and(|room| room >= words) {
            return true;
        }
        self.known_head = self.ring.load(HEAD, Ordering::Acquire);
        // a position that can't be: nothing is overwritten that somebody may be reading
        room(self.known_head).is_some_and(|room| room >= words)
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        Counts { written: self.written, refused: self.refused, ..self.ring.counts() }
    }
}

/// The end that takes records out.
#[derive(Debug)]
pub struct Consumer {
    ring: Ring,
    head: u64,
    record: Box<[[u8; WORD]]>,
}

impl Consumer {
    /// Attaches to a ring, wherever its producer is.
    pub fn open(directory: &SegmentDir, name: &str) -> Result<Self, EventsError> {
        let words = directory.map_atomics(name, HEADER_WORDS + MOST_BYTES / WORD, Access::Open)?;
        let foreign = |reason| EventsError::Foreign { name: name.to_owned(), reason };
        let load = |at: usize, order| words.get(at).map_or(0, |word| word.load(order));
        if load(0, Ordering::Acquire) != MAGIC {
            return Err(foreign("it does not begin with the mark of one"));
        }
        if load(1, Ordering::Relaxed) != VERSION {
            return Err(foreign("its version is another"));
        }
        let capacity = load(2, Ordering::Relaxed);
        let fits = capacity.is_power_of_two()
            && capacity >= (LEAST_BYTES / WORD) as u64
            && capacity <= words.len().saturating_sub(HEADER_WORDS) as u64;
        if !fits {
            return Err(foreign("its size is not that of its segment"));
        }
        claim(&words, name, Role::Publisher, "consuming end")?;
        let head = load(HEAD, Ordering::Relaxed);
        let record = vec![[0; WORD]; RECORD_LIMIT / WORD].into_boxed_slice();
        Ok(Self { ring: Ring { words, mask: capacity - 1 }, head, record })
    }

    /// The oldest record, which leaves the ring; `None` where there is none.
    pub fn take(&mut self) -> Result<Option<&[u8]>, Lost> {
        let tail = self.ring.load(TAIL, Ordering::Acquire);
        let waiting = tail.wrapping_sub(self.head);
        if waiting == 0 {
            // also repairs what somebody else may have written there
            self.ring.store(HEAD, self.head, Ordering::Release);
            return Ok(None);
        }
        if waiting > self.ring.capacity() {
            let lost = Lost::Positions { tail, head: self.head };
            self.move_to(tail);
            return Err(lost);
        }
        let Some(length) = self.length_at(self.head, waiting) else {
            let lost = Lost::Header { position: self.head };
            self.move_to(tail);
            return Err(lost);
        };
        let words = length.div_ceil(WORD);
        let (near, far) = self.ring.span(self.head.wrapping_add(1), words);
        for (place, word) in self.record.iter_mut().zip(near.iter().chain(far)) {
            *place = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        self.move_to(self.head.wrapping_add(1 + words as u64));
        Ok(self.record.as_flattened().get(..length))
    }

    /// The length of the record at a position, where one can be there.
    fn length_at(&self, position: u64, waiting: u64) -> Option<usize> {
        let header = self.ring.span(position, 1).0.first()?.load(Ordering::Relaxed);
        let length = (header & u64::from(u32::MAX)) as usize;
        let is_one = length <= RECORD_LIMIT
            && header == header_of(position, length)
            && waiting > length.div_ceil(WORD) as u64;
        is_one.then_some(length)
    }

    fn move_to(&mut self, position: u64) {
        self.head = position;
        self.ring.store(HEAD, position, Ordering::Release);
    }

    /// What the producer counted.
    pub fn counts(&self) -> Counts {
        self.ring.counts()
    }

    /// Share of the ring that waits to be read, 0 to 1.
    pub fn fill(&self) -> f64 {
        let waiting = self.ring.load(TAIL, Ordering::Relaxed).wrapping_sub(self.head);
        waiting.min(self.ring.capacity()) as f64 / self.ring.capacity() as f64
    }

    /// Whether the directory still has this very ring: false once it was replaced, and [`Consumer::open`] finds another.
    pub fn is_current(&self, directory: &SegmentDir) -> bool {
        self.ring.words.is_current(directory)
    }
}

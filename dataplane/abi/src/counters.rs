//! Counters that need no matching build to be read: the segment names its own groups and columns.
//!
//! ```text
//! word 0      magic              8 ..   groups: 4 words name, rows, columns, offset of the column names, offset of the data
//!      1      version                   column names: 4 words each
//!      2      areas                     area 0 (worker 0), area 1 …, last area: the management thread
//!      3      groups                    in an area: group after group, row after row, rows padded to 64 bytes
//!      4      words in all
//!      5      words of one area
//!      6      first word of area 0
//!      7      start of the writer (unix ms)
//! ```
//!
//! Each word has one writer, which loads and stores it relaxed; readers sum over the areas. Gauges are written as
//! wrapping additions and subtractions, so that a sum over areas is right even where one area is "negative".

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

const MAGIC: u64 = u64::from_le_bytes(*b"WEIRCNTR");
const VERSION: u64 = 1;
const HEADER_WORDS: usize = 8;
const GROUP_WORDS: usize = 8;
const NAME_WORDS: usize = 4;
const NAME_BYTES: usize = NAME_WORDS * 8;
const LINE_WORDS: usize = 8;
const MAX_WORDS: usize = 1 << 30;
const MAX_GROUPS: usize = 64;
const MAX_COLUMNS: usize = 512;

/// A table of counters: what a [`Layout`] is made of.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// At most 32 bytes.
    pub name: &'static str,
    /// Number of rows: 1, or one per port, listener, backend.
    pub rows: usize,
    /// Column names, at most 32 bytes each.
    pub columns: Vec<&'static str>,
}

/// Where each group lies.
#[derive(Clone, Debug)]
pub struct Layout {
    groups: Vec<GroupSpec>,
    areas: usize,
}

/// Why a segment can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CountersError {
    /// Not a counters segment, or its writer has not finished making it.
    #[error("the counters segment does not start with its magic (is the dataplane starting?)")]
    Magic,
    /// Another release's.
    #[error("the counters segment has version {0}, this program reads version {VERSION}")]
    Version(u64),
    /// Its own description leaves the segment.
    #[error("the counters segment describes {0} beyond its end")]
    Bounds(&'static str),
}

fn row_words(columns: usize) -> usize {
    columns.div_ceil(LINE_WORDS) * LINE_WORDS
}

impl Layout {
    /// A layout for `areas` writers (workers plus the management thread).
    pub fn new(areas: usize, groups: Vec<GroupSpec>) -> Self {
        Self { groups, areas }
    }

    fn names_words(&self) -> usize {
        self.groups.iter().map(|group| group.columns.len() * NAME_WORDS).sum()
    }

    fn area_words(&self) -> usize {
        self.groups.iter().map(|group| group.rows * row_words(group.columns.len())).sum()
    }

    fn first_area(&self) -> usize {
        (HEADER_WORDS + self.groups.len() * GROUP_WORDS + self.names_words()).div_ceil(LINE_WORDS)
            * LINE_WORDS
    }

    /// Words that the segment needs.
    pub fn words(&self) -> usize {
        self.first_area() + self.areas * self.area_words()
    }

    /// Describes itself at the head of `words`; the magic is stored last, so that a reader never sees half of it.
    pub fn describe(&self, words: &[AtomicU64], start_unix_ms: u64) {
        let put = |at: usize, value: u64| {
            if let Some(word) = words.get(at) {
                word.store(value, Ordering::Relaxed);
            }
        };
        let put_name = |at: usize, name: &str| {
            let mut bytes = [0u8; NAME_BYTES];
            for (to, from) in bytes.iter_mut().zip(name.bytes()) {
                *to = from;
            }
            for (step, chunk) in bytes.chunks_exact(8).enumerate() {
                put(at + step, chunk.try_into().map_or(0, u64::from_le_bytes));
            }
        };
        put(0, 0);
        put(1, VERSION);
        put(2, self.areas as u64);
        put(3, self.groups.len() as u64);
        put(4, self.words() as u64);
        put(5, self.area_words() as u64);
        put(6, self.first_area() as u64);
        put(7, start_unix_ms);
        let mut names = HEADER_WORDS + self.groups.len() * GROUP_WORDS;
        let mut data = 0;
        for (position, group) in self.groups.iter().enumerate() {
            let at = HEADER_WORDS + position * GROUP_WORDS;
            put_name(at, group.name);
            put(at + 4, group.rows as u64);
            put(at + 5, group.columns.len() as u64);
            put(at + 6, names as u64);
            put(at + 7, data as u64);
            for column in &group.columns {
                put_name(names, column);
                names += NAME_WORDS;
            }
            data += group.rows * row_words(group.columns.len());
        }
        if let Some(word) = words.first() {
            word.store(MAGIC, Ordering::Release);
        }
    }

    /// The writer's handle to one group of one area: `None` where there is no such group or area.
    pub fn writer<W: Deref<Target = [AtomicU64]>>(
        &self,
        words: W,
        area: usize,
        group: &str,
    ) -> Option<Writer<W>> {
        if area >= self.areas || words.len() < self.words() {
            return None;
        }
        let mut base = self.first_area() + area * self.area_words();
        for spec in &self.groups {
            let stride = row_words(spec.columns.len());
            if spec.name == group {
                return Some(Writer { words, base, stride, rows: spec.rows });
            }
            base += spec.rows * stride;
        }
        None
    }
}

/// One writer's counters of one group.
#[derive(Debug)]
pub struct Writer<W> {
    words: W,
    base: usize,
    stride: usize,
    rows: usize,
}

impl<W: Deref<Target = [AtomicU64]>> Writer<W> {
    /// Adds to a counter; rows and columns that do not exist are ignored (bounded, never a panic).
    #[inline]
    pub fn add(&self, row: usize, column: usize, amount: u64) {
        if let Some(word) = self.word(row, column) {
            word.store(word.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
        }
    }

    /// Subtracts from a gauge.
    #[inline]
    pub fn subtract(&self, row: usize, column: usize, amount: u64) {
        self.add(row, column, amount.wrapping_neg());
    }

    /// Sets a gauge.
    #[inline]
    pub fn set(&self, row: usize, column: usize, value: u64) {
        if let Some(word) = self.word(row, column) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// This writer's own value.
    pub fn value(&self, row: usize, column: usize) -> u64 {
        self.word(row, column).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    #[inline]
    fn word(&self, row: usize, column: usize) -> Option<&AtomicU64> {
        if row >= self.rows || column >= self.stride {
            return None;
        }
        self.words.get(self.base + row * self.stride + column)
    }
}

/// Reads a segment that somebody else writes; every offset in it is checked against the segment's length.
#[derive(Debug)]
pub struct Reader<W> {
    words: W,
    groups: Vec<GroupLayout>,
    areas: usize,
    area_words: usize,
    first_area: usize,
}

#[derive(Debug)]
struct GroupLayout {
    name: String,
    rows: usize,
    columns: Vec<String>,
    data: usize,
}

/// One group as a reader sees it.
#[derive(Debug)]
pub struct Group<'a, W> {
    reader: &'a Reader<W>,
    layout: &'a GroupLayout,
}

impl<W: Deref<Target = [AtomicU64]>> Reader<W> {
    /// Checks the segment's description of itself.
    pub fn open(words: W) -> Result<Self, CountersError> {
        let first = words.first().ok_or(CountersError::Magic)?;
        if first.load(Ordering::Acquire) != MAGIC {
            return Err(CountersError::Magic);
        }
        let read = |at: usize| words.get(at).map(|word| word.load(Ordering::Relaxed));
        let bounded = |at: usize, what: &'static str, most: usize| match read(at) {
            Some(value) if value <= most as u64 => Ok(value as usize),
            _ => Err(CountersError::Bounds(what)),
        };
        let version = read(1).unwrap_or(0);
        if version != VERSION {
            return Err(CountersError::Version(version));
        }
        let areas = bounded(2, "areas", 1_024)?;
        let group_count = bounded(3, "groups", MAX_GROUPS)?;
        let total = bounded(4, "words", MAX_WORDS.min(words.len()))?;
        let area_words = bounded(5, "an area", MAX_WORDS)?;
        let first_area = bounded(6, "the first area", total)?;
        if first_area + areas * area_words > total {
            return Err(CountersError::Bounds("areas"));
        }
        let name = |at: usize| -> String {
            let bytes: Vec<u8> = (at..at + NAME_WORDS)
                .flat_map(|at| read(at).unwrap_or(0).to_le_bytes())
                .take_while(|&byte| byte != 0)
                .collect();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let mut groups = Vec::with_capacity(group_count);
        for position in 0..group_count {
            let at = HEADER_WORDS + position * GROUP_WORDS;
            let rows = bounded(at + 4, "rows", area_words)?;
            let columns = bounded(at + 5, "columns", MAX_COLUMNS)?;
            let names = bounded(at + 6, "column names", total)?;
            let data = bounded(at + 7, "group data", area_words)?;
            if rows.saturating_mul(row_words(columns)).saturating_add(data) > area_words {
                return Err(CountersError::Bounds("a group"));
            }
            groups.push(GroupLayout {
                name: name(at),
                rows,
                columns: (0..columns).map(|column| name(names + column * NAME_WORDS)).collect(),
                data,
            });
        }
        Ok(Self { words, groups, areas, area_words, first_area })
    }

    /// All groups, in order.
    pub fn groups(&self) -> impl Iterator<Item = Group<'_, W>> {
        self.groups.iter().map(|layout| Group { reader: self, layout })
    }

    /// The group of that name.
    pub fn group(&self, name: &str) -> Option<Group<'_, W>> {
        self.groups().find(|group| group.layout.name == name)
    }

    /// Number of areas: workers plus one.
    pub fn areas(&self) -> usize {
        self.areas
    }

    /// When the writer started, unix milliseconds; changes with each start.
    pub fn start_unix_ms(&self) -> u64 {
        self.words.get(7).map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

impl<W: Deref<Target = [AtomicU64]>> Group<'_, W> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.layout.name
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.layout.rows
    }

    /// Names of its columns.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.layout.columns.iter().map(String::as_str)
    }

    /// Number of the column of that name.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns().position(|column| column == name)
    }

    /// One area's value; 0 where there is no such cell.
    pub fn value(&self, area: usize, row: usize, column: usize) -> u64 {
        if area >= self.reader.areas || row >= self.layout.rows || column >= self.layout.columns.len() {
            return 0;
        }
        let stride = row_words(self.layout.columns.len());
        let at =
            self.reader.first_area + area * self.reader.area_words + self.layout.data + row * stride + column;
        self.reader.words.get(at).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// The sum over all areas (wrapping: gauges may be negative in one of them).
    pub fn sum(&self, row: usize, column: usize) -> u64 {
        (0..self.reader.areas).fold(0u64, |sum, area| sum.wrapping_add(self.value(area, row, column)))
    }

    /// The sum over all areas of the column of that name; 0 where there is none.
    pub fn sum_of(&self, row: usize, column: &str) -> u64 {
        self.column(column).map_or(0, |column| self.sum(row, column))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout::new(
            3,
            vec![
                GroupSpec { name: "worker", rows: 1, columns: vec!["rx", "tx"] },
                GroupSpec {
                    name: "backend",
                    rows: 5,
                    columns: vec!["a", "b", "c", "d", "e", "f", "g", "h", "i"],
                },
            ],
        )
    }

    fn memory(layout: &Layout) -> Vec<AtomicU64> {
        (0..layout.words()).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn a_reader_finds_what_a_writer_wrote() {
        let layout = layout();
        let words = memory(&layout);
        assert_eq!(Reader::open(words.as_slice()).err(), Some(CountersError::Magic));
        layout.describe(&words, 7);
        layout.writer(words.as_slice(), 0, "backend").unwrap().add(4, 8, 5);
        layout.writer(words.as_slice(), 1, "backend").unwrap().subtract(4, 8, 2);
        layout.writer(words.as_slice(), 2, "worker").unwrap().set(0, 1, 9);
        let reader = Reader::open(words.as_slice()).unwrap();
        let backend = reader.group("backend").unwrap();
        assert_eq!((backend.sum_of(4, "i"), backend.sum_of(3, "i"), backend.value(0, 4, 8)), (3, 0, 5));
        assert_eq!(reader.group("worker").unwrap().sum_of(0, "tx"), 9);
        assert_eq!((reader.areas(), reader.start_unix_ms()), (3, 7));
        assert!(reader.group("none").is_none());
    }

    #[test]
    fn rows_and_columns_out_of_range_change_nothing() {
        let layout = layout();
        let words = memory(&layout);
        layout.describe(&words, 0);
        let before: Vec<u64> = words.iter().map(|w| w.load(Ordering::Relaxed)).collect();
        let writer = layout.writer(words.as_slice(), 0, "backend").unwrap();
        writer.add(5, 0, 1);
        writer.add(0, 16, 1);
        let after: Vec<u64> = words.iter().map(|w| w.load(Ordering::Relaxed)).collect();
        assert_eq!(before, after);
        assert!(layout.writer(words.as_slice(), 3, "backend").is_none());
    }

    #[test]
    fn a_description_beyond_the_segment_is_refused() {
        let layout = layout();
        for word in 1..HEADER_WORDS + 2 * GROUP_WORDS {
            let words = memory(&layout);
            layout.describe(&words, 0);
            words[word].store(u64::MAX / 2, Ordering::Relaxed);
            // names and the start time may be anything; nothing may panic
            if let Ok(reader) = Reader::open(words.as_slice()) {
                reader.groups().for_each(|group| assert_eq!(group.sum(0, 0), 0));
            }
        }
        let words = memory(&layout);
        layout.describe(&words, 0);
        assert!(Reader::open(&words[..words.len() - 1]).is_err());
    }
}

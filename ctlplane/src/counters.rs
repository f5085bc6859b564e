//! What did the dataplane count? Any process may look, with ctlplane up or down.

use std::collections::BTreeMap;

use hugepages::segment::{Access, AtomicWords, SegmentDir, SegmentError};
use weir_abi::counters::{CountersError, Group, Reader};

/// Name of the segment.
const SEGMENT: &str = "counters";

/// Most that is mapped: 1 GiB.
const MOST_WORDS: usize = 1 << 27;

/// A view of the counters segment.
#[derive(Debug)]
pub struct Counters {
    reader: Reader<AtomicWords>,
}

/// Why there are no counters.
#[derive(Debug, thiserror::Error)]
pub enum CountersUnavailable {
    /// No dataplane was here yet, or no right to look.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Being made, or of another release.
    #[error(transparent)]
    Content(#[from] CountersError),
}

impl Counters {
    /// Opens the segment of an instance.
    pub fn open(directory: &SegmentDir) -> Result<Self, CountersUnavailable> {
        let words = directory.map_atomics(SEGMENT, MOST_WORDS, Access::ReadOnly)?;
        Ok(Self { reader: Reader::open(words)? })
    }

    /// When the writer started.
    pub fn start_unix_ms(&self) -> u64 {
        self.reader.start_unix_ms()
    }

    /// One cell over all areas; 0 where there is none.
    pub fn sum(&self, group: &str, row: usize, column: &str) -> u64 {
        self.reader.group(group).map_or(0, |group| group.sum_of(row, column))
    }

    /// A row by column names, over all areas; empty where there is no such row.
    pub fn row(&self, group: &str, row: usize) -> BTreeMap<String, u64> {
        self.cells(group, row, |group, column| group.sum(row, column))
    }

    /// A row by column names, of one area.
    pub fn row_of_area(&self, group: &str, row: usize, area: usize) -> BTreeMap<String, u64> {
        self.cells(group, row, |group, column| group.value(area, row, column))
    }

    fn cells(
        &self,
        group: &str,
        row: usize,
        value: impl Fn(&Group<'_, AtomicWords>, usize) -> u64,
    ) -> BTreeMap<String, u64> {
        let Some(group) = self.reader.group(group).filter(|group| row < group.rows()) else {
            return BTreeMap::new();
        };
        let columns: Vec<String> = group.columns().map(str::to_owned).collect();
        columns.into_iter().enumerate().map(|(at, name)| (name, value(&group, at))).collect()
    }

    /// Number of areas: one per worker, and the management thread's.
    pub fn areas(&self) -> usize {
        self.reader.areas()
    }
}

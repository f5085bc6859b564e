//! Where a worker's flow tables live: named segments that survive the process, in hugepages where there are any.

use hugepages::segment::{Access, SegmentDir, SegmentError, SharedSlice};
use weir_index::{Bucket, buckets_for};
use weir_l4::entry::{EntryV4, EntryV6};
use weir_l4::snat::MAX_ADDRESSES;
use weir_l4::{Memory, Tables};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

const MAGIC: u64 = u64::from_le_bytes(*b"WEIRFLOW");
/// Version of the records. Raised when a record, the hash or the meaning of a field changes.
const VERSION: u32 = 2;

/// What a process must know of the tables that it finds.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct FlowHeader {
    magic: u64,
    version: u32,
    workers: u32,
    worker: u32,
    records_v4: u32,
    records_v6: u32,
    reserved: u32,
    seed: [u64; 2],
    snat_count: u64,
    snat: [[u8; 16]; MAX_ADDRESSES],
}

/// No header: an index is rebuilt at every start.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct NoHeader {}

/// The engine's memory in segments.
#[derive(Debug)]
pub struct SegmentMemory;

impl Memory for SegmentMemory {
    type V4 = SharedSlice<FlowHeader, EntryV4>;
    type V6 = SharedSlice<NoHeader, EntryV6>;
    type Index = SharedSlice<NoHeader, Bucket>;
}

/// Tables ready for an engine, and what became of the previous process's.
#[derive(Debug)]
pub struct Opened {
    /// For [`weir_l4::Engine::new`].
    pub tables: Tables<SegmentMemory>,
    /// The tables' hash key.
    pub seed: [u64; 2],
    /// Why the previous process's records were not kept, if there were any.
    pub discarded: Option<String>,
}

/// Opens a worker's tables; records of a previous process are kept where version, sizes and number of workers agree.
pub fn open(
    directory: &SegmentDir,
    worker: u32,
    workers: u32,
    records_v4: u32,
    records_v6: u32,
) -> Result<Opened, SegmentError> {
    let name = |part: &str| format!("flow-{worker}-{part}");
    let mut discarded = None;
    let mut v4: SharedSlice<FlowHeader, EntryV4> =
        map(directory, &name("v4"), records_v4 as usize, &mut discarded)?;
    let mut v6: SharedSlice<NoHeader, EntryV6> =
        map(directory, &name("v6"), records_v6 as usize, &mut discarded)?;
    let v4_index = map(directory, &name("index-v4"), buckets_for(records_v4 as usize), &mut None)?;
    let v6_index = map(directory, &name("index-v6"), buckets_for(records_v6 as usize), &mut None)?;
    let header = *v4.header();
    if header.magic == 0 && discarded.is_none() {
        reset(&mut v4, &mut v6, worker, workers);
    } else {
        let problem = if discarded.is_some() {
            discarded.take()
        } else if header.magic != MAGIC {
            Some("it is not a flow table".to_owned())
        } else if header.version != VERSION {
            Some(format!("its version is {}, this program's {VERSION}", header.version))
        } else if header.workers != workers {
            Some(format!("it was made for {} workers, there are {workers}", header.workers))
        } else if header.worker != worker {
            Some(format!("it belongs to worker {}", header.worker))
        } else if (header.records_v4, header.records_v6) != (records_v4, records_v6) {
            // another number in the same number of pages: the segment's size does not tell
            let (v4, v6) = (header.records_v4, header.records_v6);
            Some(format!(
                "it was made for {v4} IPv4 and {v6} IPv6 flows, there are to be {records_v4} and {records_v6}"
            ))
        } else if header.snat_count > MAX_ADDRESSES as u64 {
            Some(format!("it names {} source addresses, at most {MAX_ADDRESSES} can be", header.snat_count))
        } else {
            None
        };
        if problem.is_some() {
            reset(&mut v4, &mut v6, worker, workers);
        }
        discarded = problem;
    }
    let header = v4.header();
    let snat = header
        .snat
        .iter()
        .take(header.snat_count as usize)
        .map(|bytes| u128::from_be_bytes(*bytes))
        .collect();
    let seed = header.seed;
    Ok(Opened { tables: Tables { v4, v6, v4_index, v6_index, snat }, seed, discarded })
}

/// Writes down which source address each number of a record stands for. Must happen before a record uses a new number.
pub fn remember_snat(directory_header: &mut FlowHeader, addresses: &[u128]) {
    for (place, address) in directory_header.snat.iter_mut().zip(addresses) {
        *place = address.to_be_bytes();
    }
    directory_header.snat_count = addresses.len().min(MAX_ADDRESSES) as u64;
}

fn map<H, T>(
    directory: &SegmentDir,
    name: &str,
    items: usize,
    discarded: &mut Option<String>,
) -> Result<SharedSlice<H, T>, SegmentError>
where
    H: FromBytes + IntoBytes + KnownLayout + Immutable,
    T: FromBytes + IntoBytes + KnownLayout + Immutable,
{
    match directory.map_shared(name, items, Access::Create) {
        Err(error @ SegmentError::WrongSize { .. }) => {
            *discarded = Some(error.to_string());
            directory.remove(name)?;
            directory.map_shared(name, items, Access::Create)
        }
        other => other,
    }
}

fn reset(
    v4: &mut SharedSlice<FlowHeader, EntryV4>,
    v6: &mut SharedSlice<NoHeader, EntryV6>,
    worker: u32,
    workers: u32,
) {
    let (records_v4, records_v6) = (v4.len() as u32, v6.len() as u32);
    // the magic goes first and comes last: a process killed in between leaves a table that is made anew
    v4.header_mut().magic = 0;
    v4.fill(EntryV4::new_zeroed());
    v6.fill(EntryV6::new_zeroed());
    let header = v4.header_mut();
    header.version = VERSION;
    header.workers = workers;
    header.worker = worker;
    header.records_v4 = records_v4;
    header.records_v6 = records_v6;
    header.seed = [random(), random()];
    header.snat_count = 0;
    header.magic = MAGIC;
}

/// The standard library's per-process hash keys come from the system's random numbers.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(hugepages::generation::monotonic_ns());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn directory() -> (tempfile::TempDir, SegmentDir) {
        let parent = tempfile::tempdir().unwrap();
        let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
        (parent, directory)
    }

    /// A table with a byte set in the first record of each family.
    fn used(directory: &SegmentDir) -> [u64; 2] {
        let mut opened = open(directory, 0, 2, 100, 70).unwrap();
        opened.tables.v4[0].as_mut_bytes()[0] = 1;
        opened.tables.v6[0].as_mut_bytes()[0] = 1;
        remember_snat(opened.tables.v4.header_mut(), &[7, 8]);
        opened.seed
    }

    fn is_empty(opened: &Opened) -> bool {
        let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        zero(opened.tables.v4.as_bytes()) && zero(opened.tables.v6.as_bytes())
    }

    #[test]
    fn a_process_finds_what_the_previous_one_left() {
        let (_parent, directory) = directory();
        let first = open(&directory, 0, 2, 100, 70).unwrap();
        assert!(is_empty(&first) && first.discarded.is_none() && first.tables.snat.is_empty());
        assert!(matches!(open(&directory, 0, 2, 100, 70), Err(SegmentError::InUse { .. })));
        drop(first);
        let seed = used(&directory);
        let again = open(&directory, 0, 2, 100, 70).unwrap();
        assert_eq!((again.discarded.as_deref(), again.seed), (None, seed));
        assert_eq!((again.tables.v4[0].as_bytes()[0], again.tables.v6[0].as_bytes()[0]), (1, 1));
        assert_eq!(again.tables.snat, [7, 8]);
        assert_ne!(seed, open(&directory, 1, 2, 100, 70).unwrap().seed, "each worker has its own key");
    }

    /// What becomes of a used table that is opened with other parameters, or after `spoil`.
    fn discarded(
        spoil: impl FnOnce(&mut FlowHeader),
        (worker, workers): (u32, u32),
        (v4, v6): (u32, u32),
    ) -> Option<String> {
        let (_parent, directory) = directory();
        let seed = used(&directory);
        let mut table: SharedSlice<FlowHeader, EntryV4> =
            directory.map_shared("flow-0-v4", 100, Access::Open).unwrap();
        spoil(table.header_mut());
        drop(table);
        if worker != 0 {
            for part in ["v4", "v6"] {
                let name = |worker| directory.path().join(format!("flow-{worker}-{part}"));
                std::fs::rename(name(0), name(worker)).unwrap();
            }
        }
        let opened = open(&directory, worker, workers, v4, v6).unwrap();
        let (len_v4, len_v6) = (opened.tables.v4.len(), opened.tables.v6.len());
        assert_eq!((len_v4, len_v6), (v4 as usize, v6 as usize));
        assert!(is_empty(&opened) && opened.tables.snat.is_empty() && opened.seed != seed);
        let reason = opened.discarded.clone();
        drop(opened);
        // and the next process is content with it
        assert_eq!(open(&directory, worker, workers, v4, v6).unwrap().discarded, None);
        reason
    }

    #[test]
    fn what_does_not_fit_is_discarded_with_a_reason() {
        let (same, sizes) = ((0, 2), (100, 70));
        let reason = |spoil: fn(&mut FlowHeader)| discarded(spoil, same, sizes).unwrap();
        assert_eq!(reason(|header| header.magic ^= 1), "it is not a flow table");
        assert_eq!(reason(|header| header.version = 77), "its version is 77, this program's 2");
        assert_eq!(
            reason(|header| header.snat_count = u64::MAX),
            format!("it names {} source addresses, at most {MAX_ADDRESSES} can be", u64::MAX)
        );
        assert_eq!(reason(|header| header.as_mut_bytes().fill(0xa5)), "it is not a flow table");
        // killed while it was being made
        assert_eq!(discarded(|header| header.magic = 0, same, sizes), None);
        let other = |who, sizes| discarded(|_| (), who, sizes).unwrap();
        assert_eq!(other((0, 3), sizes), "it was made for 2 workers, there are 3");
        assert_eq!(other((1, 2), sizes), "it belongs to worker 0");
    }

    #[test]
    fn another_size_is_discarded_even_where_the_pages_are_the_same() {
        let other = |sizes| discarded(|_| (), (0, 2), sizes).unwrap();
        assert_eq!(
            other((101, 70)),
            "it was made for 100 IPv4 and 70 IPv6 flows, there are to be 101 and 70"
        );
        assert_eq!(
            other((100, 71)),
            "it was made for 100 IPv4 and 70 IPv6 flows, there are to be 100 and 71"
        );
        for sizes in [(10_000, 70), (100, 10_000)] {
            assert!(other(sizes).contains(" bytes, expected "), "{}", other(sizes));
        }
    }

    #[test]
    fn a_directory_full_of_garbage_becomes_a_table() {
        let (parent, directory) = directory();
        for name in ["flow-0-v4", "flow-0-v6", "flow-0-index-v4", "flow-0-index-v6"] {
            std::fs::write(parent.path().join("weir-test").join(name), [0x5a; 300]).unwrap();
        }
        let opened = open(&directory, 0, 1, 1_000, 1_000).unwrap();
        assert!(opened.discarded.is_some() && is_empty(&opened));
    }

    #[test]
    fn a_header_of_zeroes_is_no_table() {
        let mut header = FlowHeader::new_zeroed();
        remember_snat(&mut header, &vec![1; MAX_ADDRESSES + 1]);
        assert_eq!((header.magic, header.snat_count), (0, MAX_ADDRESSES as u64));
    }
}

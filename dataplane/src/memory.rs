//! Where a worker's flow tables live: named segments that survive the process, in hugepages where there are any.

use hugepages::segment::{Access, SegmentDir, SegmentError, SharedSlice};
use weir_l4::entry::{EntryV4, EntryV6};
use weir_l4::index::{Bucket, buckets_for};
use weir_l4::snat::MAX_ADDRESSES;
use weir_l4::{Memory, Tables};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

const MAGIC: u64 = u64::from_le_bytes(*b"WEIRFLOW");
/// Version of the records. Raised when a record, the hash or the meaning of a field changes.
const VERSION: u32 = 1;

/// What a process must know of the tables that it finds.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct FlowHeader {
    magic: u64,
    version: u32,
    workers: u32,
    worker: u32,
    records: u32,
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
        reset(&mut v4, &mut v6, worker, workers, records_v4);
    } else {
        let problem = if discarded.is_some() {
            discarded.take()
        } else if header.magic != MAGIC {
            Some("it is not a flow table".to_owned())
        } else if header.version != VERSION {
            Some(format!("its version is {}, this program's {VERSION}", header.version))
        } else if header.workers != workers {
            Some(format!("it was made for {} workers, there are {workers}", header.workers))
        } else if (header.worker, header.records) != (worker, records_v4) {
            Some("it belongs to another worker or has another size".to_owned())
        } else if header.snat_count > MAX_ADDRESSES as u64 {
            Some(format!("it names {} source addresses, at most {MAX_ADDRESSES} can be", header.snat_count))
        } else {
            None
        };
        if problem.is_some() {
            reset(&mut v4, &mut v6, worker, workers, records_v4);
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
    records: u32,
) {
    // the magic goes first and comes last: a process killed in between leaves a table that is made anew
    v4.header_mut().magic = 0;
    v4.fill(EntryV4::new_zeroed());
    v6.fill(EntryV6::new_zeroed());
    let header = v4.header_mut();
    header.version = VERSION;
    header.workers = workers;
    header.worker = worker;
    header.records = records;
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

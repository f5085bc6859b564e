//! Where do packet buffers come from, and where do they return to?

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::eal::EalHandle;
use crate::mbuf::{self, Mbuf};
use crate::text::{Errno, c_string};

/// Bytes that DPDK keeps free before each received packet, for headers to prepend (`RTE_PKTMBUF_HEADROOM`).
pub const HEADROOM: u16 = sys::WEIR_RTE_PKTMBUF_HEADROOM as u16;

/// Data room that holds every standard Ethernet frame, and that net_af_xdp needs.
pub const DATA_ROOM: u16 = 2048;

/// Longest pool name: DPDK prefixes it and the sequence number is appended, in 32 bytes all told.
const NAME_LIMIT: usize = 16;

/// Why a pool could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The name becomes part of a DPDK memory zone's.
    #[error("packet pool name {0:?} must have 1 to {NAME_LIMIT} letters, digits, '-' or '_'")]
    BadName(String),
    /// Per-thread caches are bounded by DPDK (512), and must leave something for the others.
    #[error(
        "packet pool {name}: cache of {cache} packets must be at most {limit}, and 1.5 times less than {count}"
    )]
    BadCache {
        /// The pool.
        name: String,
        /// What was asked for.
        cache: u32,
        /// DPDK's limit.
        limit: u64,
        /// Packets in the pool.
        count: u32,
    },
    /// Likely too few hugepages.
    #[error(
        "packet pool {name} of {count} buffers with {data_room} bytes (about {megabytes} MiB): {errno}; reserve more \
         hugepages or ask for fewer packets"
    )]
    Memory {
        /// The pool.
        name: String,
        /// Packets in the pool.
        count: u32,
        /// Bytes of each, without headroom.
        data_room: u16,
        /// The sum.
        megabytes: u64,
        /// What DPDK reported.
        errno: Errno,
    },
}

/// A pool of packet buffers, whose memory stays until the environment ends, because packets may outlive every handle of
/// their pool: make pools once, not over and over. Clones share it; it can be used from every thread, and is fastest from those that
/// [`crate::lcore::register_current_thread`] gave a cache.
#[derive(Clone, Debug)]
pub struct PacketPool(Arc<Pool>);

struct Pool {
    raw: NonNull<sys::rte_mempool>,
    name: String,
    count: u32,
    data_room: u16,
    _environment: EalHandle,
}

// SAFETY: rte_mempool's default operations are multi-producer and multi-consumer, and its caches belong to
// one lcore each; the remaining fields don't change.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Pool")
            .field("name", &self.name)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl PacketPool {
    /// Makes a pool of `count` packets with room for `data_room` bytes each, after a headroom of [`HEADROOM`]. Each
    /// registered thread keeps up to 1.5 × `cache` of them at hand. `socket` is the NUMA node, or any.
    ///
    /// # Errors
    /// When the name or the cache size won't do, or memory is short.
    pub fn new(
        environment: &EalHandle,
        name: &str,
        count: u32,
        cache: u32,
        data_room: u16,
        socket: Option<u32>,
    ) -> Result<Self, PoolError> {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > NAME_LIMIT || !name.bytes().all(plain) {
            return Err(PoolError::BadName(name.to_owned()));
        }
        let limit = sys::WEIR_RTE_MEMPOOL_CACHE_MAX_SIZE;
        if u64::from(cache) > limit || u64::from(cache) * 3 / 2 > u64::from(count) {
            return Err(PoolError::BadCache { name: name.to_owned(), cache, limit, count });
        }
        // Names of DPDK's memory zones are unique for the life of the process, those of pools here need not be.
        let unique = c_string(&format!("{name}.{}", SEQUENCE.fetch_add(1, Ordering::Relaxed) % 100_000));
        let socket = socket.and_then(|node| i32::try_from(node).ok()).unwrap_or(-1);
        let room = data_room.saturating_add(HEADROOM);
        // SAFETY: rte_pktmbuf_pool_create must follow rte_eal_init (the handle), copies the name, and returns NULL
        // with rte_errno on failure.
        let raw = unsafe { sys::rte_pktmbuf_pool_create(unique.as_ptr(), count, cache, 0, room, socket) };
        let Some(raw) = NonNull::new(raw) else {
            let errno = Errno::of_dpdk();
            let each = u64::from(room) + size_of::<sys::rte_mbuf>() as u64 + 64;
            let megabytes = (u64::from(count) * each).div_ceil(1 << 20);
            return Err(PoolError::Memory { name: name.to_owned(), count, data_room, megabytes, errno });
        };
        Ok(Self(Arc::new(Pool {
            raw,
            name: name.to_owned(),
            count,
            data_room: room.saturating_sub(HEADROOM),
            _environment: environment.clone(),
        })))
    }

    /// Takes one packet, empty, with [`HEADROOM`] bytes before it. `None` when the pool is exhausted.
    pub fn alloc(&self) -> Option<Mbuf> {
        // SAFETY: the pool is alive; rte_pktmbuf_alloc returns a reset packet with one reference, or NULL.
        let raw = unsafe { sys::weir_mbuf_alloc(self.raw()) };
        let raw = NonNull::new(raw)?;
        mbuf::count(1);
        // SAFETY: the packet is fresh from the pool: nobody else holds it.
        Some(unsafe { Mbuf::from_raw(raw) })
    }

    /// Fills the batch up to its capacity, all or nothing, and returns how many were added.
    pub fn alloc_bulk<const N: usize>(&self, batch: &mut ArrayVec<Mbuf, N>) -> usize {
        let held = batch.len();
        let room = batch.remaining_capacity();
        let Ok(wanted) = u32::try_from(room) else { return 0 };
        if wanted == 0 {
            return 0;
        }
        // SAFETY: `held` is within the batch's storage, and Mbuf is a transparent pointer to rte_mbuf.
        let spare = unsafe { batch.as_mut_ptr().add(held) }.cast::<*mut sys::rte_mbuf>();
        // SAFETY: rte_pktmbuf_alloc_bulk writes exactly `wanted` pointers, for which there is room, or none.
        if unsafe { sys::weir_mbuf_alloc_bulk(self.raw(), spare, wanted) } != 0 {
            return 0;
        }
        // SAFETY: the `room` slots after `held` have just been filled with packets that only this batch owns.
        unsafe { batch.set_len(held + room) };
        mbuf::count(i64::from(wanted));
        room
    }

    /// Packets in the pool and in threads' caches. Exact only while nobody takes or returns any.
    pub fn available(&self) -> u32 {
        // SAFETY: the pool is alive; the counts are read without a lock, as DPDK documents.
        unsafe { sys::rte_mempool_avail_count(self.raw()) }
    }

    /// Packets out of the pool: held by the program, by rings and by drivers.
    pub fn in_use(&self) -> u32 {
        // SAFETY: as for `available`.
        unsafe { sys::rte_mempool_in_use_count(self.raw()) }
    }

    /// Packets altogether.
    pub fn capacity(&self) -> u32 {
        self.0.count
    }

    /// Bytes that fit into one packet, without the headroom.
    pub fn data_room(&self) -> u16 {
        self.0.data_room
    }

    /// The name that the pool was made with.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn raw(&self) -> *mut sys::rte_mempool {
        self.0.raw.as_ptr()
    }
}

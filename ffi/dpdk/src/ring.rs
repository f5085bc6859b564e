//! How does a packet go from one worker to another?
//!
//! A ring has one producer and one consumer, each owned by one thread at a time. What is inside when both are gone is
//! freed.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::eal::EalHandle;
use crate::mbuf::{self, Mbuf};
use crate::text::{Errno, c_string};

/// Longest ring name: DPDK prefixes it and the sequence number is appended, in 32 bytes all told.
const NAME_LIMIT: usize = 16;

/// Why a ring could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The name becomes part of a DPDK memory zone's.
    #[error("ring name {0:?} must have 1 to {NAME_LIMIT} bytes without NUL")]
    BadName(String),
    /// Likely no memory.
    #[error("ring {name} for {size} packets: {errno}")]
    Refused {
        /// The ring.
        name: String,
        /// Packets it should hold.
        size: u32,
        /// What DPDK reported.
        errno: Errno,
    },
}

struct Shared {
    raw: NonNull<sys::rte_ring>,
    size: u32,
    _environment: EalHandle,
}

// SAFETY: rte_ring in single-producer, single-consumer mode allows one thread on each end at the same time;
// Producer and Consumer are the only ends, neither Clone nor Sync, and their bursts borrow them exclusively.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut raw: *mut sys::rte_mbuf = ptr::null_mut();
        // SAFETY: both ends are gone, so this is the only user of the ring; it holds packets that only it owns.
        while unsafe { sys::weir_ring_pop_burst(self.raw.as_ptr(), &raw mut raw, 1) } == 1 {
            // SAFETY: as above; they were booked off when they were pushed.
            unsafe { sys::weir_mbuf_free(raw) };
        }
        // SAFETY: the ring came from rte_ring_create, is empty, and has no other user.
        unsafe { sys::rte_ring_free(self.raw.as_ptr()) };
    }
}

/// The end that packets go in at. It may move between threads but is used by one at a time.
pub struct Producer {
    shared: Arc<Shared>,
    _not_sync: PhantomData<std::cell::Cell<()>>,
}

/// The end that packets come out of. It may move between threads but is used by one at a time.
pub struct Consumer {
    shared: Arc<Shared>,
    _not_sync: PhantomData<std::cell::Cell<()>>,
}

/// Makes rings.
#[derive(Debug)]
pub struct Ring;

impl Ring {
    /// A ring that holds exactly `size` packets.
    ///
    /// # Errors
    /// When the name is too long or memory is short.
    #[expect(clippy::new_ret_no_self, reason = "a ring is used through its two ends only")]
    pub fn new(environment: &EalHandle, name: &str, size: u32) -> Result<(Producer, Consumer), RingError> {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        if name.is_empty() || name.len() > NAME_LIMIT || name.contains('\0') {
            return Err(RingError::BadName(name.to_owned()));
        }
        let unique = c_string(&format!("{name}.{}", SEQUENCE.fetch_add(1, Ordering::Relaxed) % 1_000_000));
        let flags = sys::WEIR_RING_F_SP_ENQ | sys::WEIR_RING_F_SC_DEQ | sys::WEIR_RING_F_EXACT_SZ;
        // SAFETY: rte_ring_create must follow rte_eal_init (the handle), copies the name, and returns NULL with
        // rte_errno on failure. SOCKET_ID_ANY is -1.
        let raw = unsafe { sys::rte_ring_create(unique.as_ptr(), size, -1, flags as u32) };
        let Some(raw) = NonNull::new(raw) else {
            return Err(RingError::Refused { name: name.to_owned(), size, errno: Errno::of_dpdk() });
        };
        let shared = Arc::new(Shared { raw, size, _environment: environment.clone() });
        let producer = Producer { shared: Arc::clone(&shared), _not_sync: PhantomData };
        Ok((producer, Consumer { shared, _not_sync: PhantomData }))
    }
}

impl Producer {
    /// Takes as many packets as fit out of the front of the batch; the rest stays, in order. Returns how many.
    #[inline]
    pub fn push_burst<const N: usize>(&mut self, batch: &mut ArrayVec<Mbuf, N>) -> usize {
        let held = batch.len();
        let Ok(offered) = u32::try_from(held) else { return 0 };
        if offered == 0 {
            return 0;
        }
        let packets = batch.as_mut_ptr().cast::<*mut sys::rte_mbuf>();
        // SAFETY: this is the ring's one producer; `offered` packets are readable, and those that the ring accepts
        // are forgotten by the batch below.
        let taken = unsafe { sys::weir_ring_push_burst(self.shared.raw.as_ptr(), packets, offered) } as usize;
        forget_front(batch, taken);
        taken
    }

    /// Packets inside.
    pub fn len(&self) -> usize {
        length(&self.shared)
    }

    /// Whether nothing is inside.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Packets that fit altogether.
    pub fn capacity(&self) -> usize {
        self.shared.size as usize
    }
}

impl Consumer {
    /// Moves packets into the batch, up to its capacity, and returns how many.
    #[inline]
    pub fn pop_burst<const N: usize>(&mut self, batch: &mut ArrayVec<Mbuf, N>) -> usize {
        let held = batch.len();
        let Ok(room) = u32::try_from(batch.remaining_capacity()) else { return 0 };
        if room == 0 {
            return 0;
        }
        // SAFETY: `held` is within the batch's storage.
        let spare = unsafe { batch.as_mut_ptr().add(held) }.cast::<*mut sys::rte_mbuf>();
        // SAFETY: this is the ring's one consumer; it writes at most `room` pointers, for which there is room.
        let taken = unsafe { sys::weir_ring_pop_burst(self.shared.raw.as_ptr(), spare, room) };
        // SAFETY: that many slots have been filled, with packets whose only handle is now in the batch.
        unsafe { batch.set_len(held + taken as usize) };
        mbuf::count(i64::from(taken));
        taken as usize
    }

    /// Packets inside.
    pub fn len(&self) -> usize {
        length(&self.shared)
    }

    /// Whether nothing is inside.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn length(shared: &Shared) -> usize {
    // SAFETY: rte_ring_count reads two indexes and may be called from any thread.
    unsafe { sys::weir_ring_count(shared.raw.as_ptr()) as usize }
}

/// Removes the first `taken` packets of a batch without dropping them: somebody else owns them now.
#[inline]
pub(crate) fn forget_front<const N: usize>(batch: &mut ArrayVec<Mbuf, N>, taken: usize) {
    let held = batch.len();
    let taken = taken.min(held);
    // SAFETY: `taken` ≤ `held`: the range taken..held is initialised and moves to the front, then the length covers
    // just that range. Nothing in between can panic.
    unsafe {
        if taken < held {
            let start = batch.as_mut_ptr();
            ptr::copy(start.add(taken), start, held - taken);
        }
        batch.set_len(held - taken);
    }
    mbuf::count(-(taken as i64));
}

impl fmt::Debug for Producer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Producer").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Consumer").field("held", &self.len()).finish_non_exhaustive()
    }
}

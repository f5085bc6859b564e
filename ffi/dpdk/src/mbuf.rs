//! What is one packet, who owns it, and how are its bytes read and moved?
//!
//! An [`Mbuf`] is the only handle of one DPDK packet: not `Clone`, freed when dropped, forgotten when a driver or a
//! ring takes it over. Fields are read straight from the header, so that the hot path has no calls.

use std::cell::Cell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::eal::EalError;
use crate::mempool::PacketPool;
use crate::offload;
pub use crate::offload::{Checksum, TxChecksum};
use crate::text::{Errno, into_array};

/// One thread's count, on a cache line of its own: written by that thread only.
#[repr(align(64))]
struct Ledger(AtomicI64);

thread_local! {
    /// Without a destructor, so that packets can be dropped while a thread is torn down.
    static LEDGER: Cell<Option<&'static Ledger>> = const { Cell::new(None) };
}

/// The counts of all threads that ever held a packet, ended ones included.
static LEDGERS: Mutex<Vec<&'static Ledger>> = Mutex::new(Vec::new());

/// Packets that the calling thread took (allocated, received, popped) minus those it let go of (dropped, sent,
/// pushed). A thread that hands packets over by other means goes negative elsewhere: the sum over all threads, see
/// [`ledger_total`], is what counts.
pub fn ledger() -> i64 {
    LEDGER.get().map_or(0, |ledger| ledger.0.load(Ordering::Relaxed))
}

/// The packets that safe code holds, on all threads: zero at the end of a clean run. Exact while no packet moves.
pub fn ledger_total() -> i64 {
    let ledgers = LEDGERS.lock().unwrap_or_else(PoisonError::into_inner);
    ledgers.iter().map(|ledger| ledger.0.load(Ordering::Acquire)).sum()
}

/// Books packets on the calling thread: once per burst, not per packet. Packets are booked off after they are gone, so
/// that a total of zero means that nobody touches one any more.
#[inline]
pub(crate) fn count(packets: i64) {
    let ledger = LEDGER.get().unwrap_or_else(open_ledger);
    let held = ledger.0.load(Ordering::Relaxed);
    ledger.0.store(held.wrapping_add(packets), Ordering::Release);
}

/// The calling thread's first packet. The count is never freed: one cache line per thread.
#[cold]
fn open_ledger() -> &'static Ledger {
    let ledger: &'static Ledger = Box::leak(Box::new(Ledger(AtomicI64::new(0))));
    LEDGERS.lock().unwrap_or_else(PoisonError::into_inner).push(ledger);
    LEDGER.set(Some(ledger));
    ledger
}

/// Where in the packet header the scratch value lives; set once, before any packet exists.
static SCRATCH_OFFSET: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn register_scratch_field() -> Result<(), EalError> {
    let size = size_of::<u64>();
    // SAFETY: an all-zero rte_mbuf_dynfield is valid (an array of characters and integers).
    let mut field: sys::rte_mbuf_dynfield = unsafe { std::mem::zeroed() };
    into_array("weir_dynfield_scratch", &mut field.name);
    field.size = size;
    field.align = align_of::<u64>();
    // SAFETY: called after rte_eal_init, by the thread that ran it; DPDK copies the description.
    let offset = unsafe { sys::rte_mbuf_dynfield_register(&raw const field) };
    let offset =
        usize::try_from(offset).map_err(|_| EalError::ScratchField { size, errno: Errno::of_dpdk() })?;
    SCRATCH_OFFSET.store(offset, Ordering::Release);
    Ok(())
}

/// One packet, owned. Dropping it returns its buffers to their pool.
#[repr(transparent)]
pub struct Mbuf(NonNull<sys::rte_mbuf>);

// SAFETY: the one owner of a packet may be on any thread; returning it to its pool is thread-safe (see Pool).
unsafe impl Send for Mbuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for Mbuf {}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this is the packet's only handle; rte_pktmbuf_free returns all of its segments.
        unsafe { sys::weir_mbuf_free(self.0.as_ptr()) };
        count(-1);
    }
}

impl fmt::Debug for Mbuf {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Mbuf")
            .field("packet_len", &self.packet_len())
            .field("segments", &self.segment_count())
            .field("port", &self.port())
            .finish()
    }
}

/// Drops a whole batch, booked once.
pub fn free_bulk<const N: usize>(batch: &mut ArrayVec<Mbuf, N>) {
    let packets = i64::try_from(batch.len()).unwrap_or(0);
    for packet in batch.drain(..) {
        let packet = ManuallyDrop::new(packet);
        // SAFETY: as in Mbuf::drop, which ManuallyDrop keeps from running.
        unsafe { sys::weir_mbuf_free(packet.0.as_ptr()) };
    }
    count(-packets);
}

impl Mbuf {
    /// # Safety
    /// The caller hands over the only handle of a valid packet (rte_mbuf with one reference), and books it.
    #[inline]
    pub(crate) unsafe fn from_raw(raw: NonNull<sys::rte_mbuf>) -> Self {
        Self(raw)
    }

    #[inline]
    pub(crate) fn raw(&self) -> *mut sys::rte_mbuf {
        self.0.as_ptr()
    }

    #[inline]
    pub(crate) fn raw_nonnull(&self) -> NonNull<sys::rte_mbuf> {
        self.0
    }

    /// Bytes of the first segment's buffer, headroom included.
    #[inline]
    pub fn room(&self) -> u32 {
        u32::from(self.header().buf_len)
    }

    #[inline]
    fn header(&self) -> &sys::rte_mbuf {
        // SAFETY: the packet is valid while it is owned, and no driver touches it in that time.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn header_mut(&mut self) -> &mut sys::rte_mbuf {
        // SAFETY: as for `header`; the exclusive borrow of the only handle makes it exclusive.
        unsafe { self.0.as_mut() }
    }

    /// Bytes of the first segment: all of the packet unless [`Self::segment_count`] says otherwise.
    #[inline]
    pub fn data(&self) -> &[u8] {
        segment_bytes(self.header())
    }

    /// Bytes of the first segment, to write.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        let header = self.header_mut();
        // SAFETY: data_off + data_len is within the buffer (DPDK's invariant of an mbuf, kept by every method
        // here); the bytes are mapped pool memory, always initialised, and exclusively ours.
        unsafe {
            let start = header.buf_addr.cast::<u8>().add(usize::from(header.data_off));
            slice::from_raw_parts_mut(start, usize::from(header.data_len))
        }
    }

    /// Bytes of all segments together.
    #[inline]
    pub fn packet_len(&self) -> usize {
        self.header().pkt_len as usize
    }

    /// How many segments the packet has, at least one.
    #[inline]
    pub fn segment_count(&self) -> u16 {
        self.header().nb_segs
    }

    /// The bytes of each segment, in order.
    pub fn segments(&self) -> Segments<'_> {
        Segments { next: Some(self.header()) }
    }

    /// Free bytes before the data.
    #[inline]
    pub fn headroom(&self) -> usize {
        usize::from(self.header().data_off)
    }

    /// Free bytes after the data of the last segment.
    #[inline]
    pub fn tailroom(&self) -> usize {
        tailroom_of(last_segment(self.header()))
    }

    /// Makes the packet `length` bytes longer at its front and returns the new bytes, which hold whatever the
    /// headroom held. `None`, and no change, where the headroom is too small.
    #[inline]
    pub fn prepend(&mut self, length: usize) -> Option<&mut [u8]> {
        let header = self.header_mut();
        let length = u16::try_from(length).ok()?;
        let offset = header.data_off.checked_sub(length)?;
        let data_len = header.data_len.checked_add(length)?;
        let packet_len = header.pkt_len.checked_add(u32::from(length))?;
        header.data_off = offset;
        header.data_len = data_len;
        header.pkt_len = packet_len;
        self.data_mut().get_mut(..usize::from(length))
    }

    /// Cuts a packet of one segment to `length` bytes, makes it `front` bytes longer at its front, and returns all of it; the
    /// new bytes hold whatever the headroom held. One change of the header, which is not read back. `None`, and no change,
    /// where the packet has several segments, is shorter, or the headroom is too small.
    #[inline(always)]
    pub fn reframe(&mut self, front: usize, length: usize) -> Option<&mut [u8]> {
        let header = self.header_mut();
        if header.nb_segs != 1 || length > usize::from(header.data_len) {
            return None;
        }
        let offset = usize::from(header.data_off).checked_sub(front)?;
        // offset and length stay within what they were together: a buffer of less than 2^16 bytes
        let length = length + front;
        header.data_off = offset as u16;
        header.data_len = length as u16;
        header.pkt_len = length as u32;
        // SAFETY: it starts `front` bytes before the data, which the headroom holds, and ends no later than the data did; the
        // bytes are mapped pool memory, always initialised, and exclusively ours.
        Some(unsafe { slice::from_raw_parts_mut(header.buf_addr.cast::<u8>().add(offset), length) })
    }

    /// Makes the packet `length` bytes longer at its end and returns the new bytes, zeroed. `None`, and no change,
    /// where the last segment's tailroom is too small.
    pub fn append(&mut self, length: usize) -> Option<&mut [u8]> {
        let extra = u16::try_from(length).ok()?;
        let packet_len = self.header().pkt_len.checked_add(u32::from(extra))?;
        let last = last_segment_mut(self.header_mut());
        if tailroom_of(last) < length {
            return None;
        }
        let old_len = usize::from(last.data_len);
        let data_len = last.data_len.checked_add(extra)?;
        let start = usize::from(last.data_off) + old_len;
        last.data_len = data_len;
        // SAFETY: the tailroom check keeps start + length within this segment's buffer, which is exclusively ours
        // and initialised pool memory.
        let added = unsafe { slice::from_raw_parts_mut(last.buf_addr.cast::<u8>().add(start), length) };
        added.fill(0);
        self.header_mut().pkt_len = packet_len;
        Some(added)
    }

    /// Adds `length` bytes at the end of a packet of one segment, which hold whatever an older packet left there: for callers that write
    /// all of them. `None`, and no change, where the packet has several segments or the tailroom is too small.
    #[inline]
    pub fn append_stale(&mut self, length: usize) -> Option<&mut [u8]> {
        if self.segment_count() != 1 || length > self.tailroom() {
            return None;
        }
        let header = self.header_mut();
        let start = usize::from(header.data_off) + usize::from(header.data_len);
        // the tailroom, and so the length, is below 2^16
        header.data_len += length as u16;
        header.pkt_len = u32::from(header.data_len);
        // SAFETY: the tailroom check keeps start + length within the segment's buffer, which is exclusively ours and initialised
        // pool memory.
        Some(unsafe { slice::from_raw_parts_mut(header.buf_addr.cast::<u8>().add(start), length) })
    }

    /// Cuts `length` bytes off the front of the first segment. False, and no change, where it is shorter.
    #[inline]
    pub fn trim_front(&mut self, length: usize) -> bool {
        let header = self.header_mut();
        let Ok(length) = u16::try_from(length) else { return false };
        let Some(data_len) = header.data_len.checked_sub(length) else { return false };
        header.data_len = data_len;
        header.data_off += length;
        header.pkt_len -= u32::from(length);
        true
    }

    /// Cuts the packet down to `length` bytes, and returns buffers that are left over to their pool. False, and no
    /// change, where the packet is shorter.
    #[inline]
    pub fn truncate(&mut self, length: usize) -> bool {
        if length > self.packet_len() {
            return false;
        }
        let header = self.header_mut();
        if header.nb_segs == 1 {
            // The packet is one segment, whose length is a u16, and `length` is not above it.
            header.data_len = length as u16;
            header.pkt_len = u32::from(header.data_len);
        } else {
            truncate_chain(header, length);
        }
        true
    }

    /// Gathers all segments into the first. False, and no change, where its tailroom is too small.
    pub fn linearize(&mut self) -> bool {
        // SAFETY: rte_pktmbuf_linearize wants a valid packet that the caller owns alone.
        self.segment_count() == 1 || unsafe { sys::weir_mbuf_linearize(self.0.as_ptr()) } == 0
    }

    /// Puts another packet's bytes after this one's, as further segments. Gives it back where DPDK's limit on
    /// segments (65,535) is reached.
    ///
    /// # Errors
    /// The packet that did not fit.
    pub fn chain(&mut self, tail: Self) -> Result<(), Self> {
        if self.header().pkt_len.checked_add(tail.header().pkt_len).is_none() {
            return Err(tail);
        }
        // SAFETY: both are valid packets of ours alone; on success the head owns the tail's segments.
        if unsafe { sys::weir_mbuf_chain(self.0.as_ptr(), tail.0.as_ptr()) } != 0 {
            return Err(tail);
        }
        count(-1);
        let _ = ManuallyDrop::new(tail);
        Ok(())
    }

    /// The port that the packet came from, or that the program set.
    #[inline]
    pub fn port(&self) -> u16 {
        self.header().port
    }

    /// Sets [`Self::port`].
    #[inline]
    pub fn set_port(&mut self, port: u16) {
        self.header_mut().port = port;
    }

    /// The receive hash, where the NIC computed one.
    #[inline]
    pub fn rss_hash(&self) -> Option<u32> {
        let header = self.header();
        if header.ol_flags & sys::WEIR_RTE_MBUF_F_RX_RSS_HASH == 0 {
            return None;
        }
        // SAFETY: the union holds the hash where the flag is set; any bits are a valid u32.
        Some(unsafe { header.__bindgen_anon_2.hash.rss })
    }

    /// Whether the NIC found a checksum wrong: [`Self::ip_checksum`] or [`Self::l4_checksum`] is [`Checksum::Bad`].
    #[inline(always)]
    pub fn is_corrupt(&self) -> bool {
        offload::is_corrupt(self.header().ol_flags)
    }

    /// Whether [`Self::ip_checksum`] is [`Checksum::Good`].
    #[inline(always)]
    pub fn is_ip_checked(&self) -> bool {
        offload::is_ip_checked(self.header().ol_flags)
    }

    /// What the NIC found in the IPv4 header checksum.
    #[inline]
    pub fn ip_checksum(&self) -> Checksum {
        offload::ip_checksum(self.header().ol_flags)
    }

    /// What the NIC found in the TCP or UDP checksum.
    #[inline]
    pub fn l4_checksum(&self) -> Checksum {
        offload::l4_checksum(self.header().ol_flags)
    }

    /// The VLAN tag (TCI) that the NIC took off.
    #[inline]
    pub fn vlan_tci(&self) -> Option<u16> {
        let header = self.header();
        (header.ol_flags & sys::WEIR_RTE_MBUF_F_RX_VLAN_STRIPPED != 0).then_some(header.vlan_tci)
    }

    /// The value that [`Self::set_user`] left with this packet. Before that, whatever the buffer's last user left.
    #[inline]
    pub fn user(&self) -> u64 {
        // SAFETY: the offset was registered for an aligned u64 inside the header, which is initialised.
        unsafe { self.scratch().read() }
    }

    /// Leaves a value with the packet; it travels through rings.
    #[inline]
    pub fn set_user(&mut self, value: u64) {
        // SAFETY: as for `user`; the borrow is exclusive.
        unsafe { self.scratch().write(value) }
    }

    #[inline]
    fn scratch(&self) -> *mut u64 {
        let offset = SCRATCH_OFFSET.load(Ordering::Relaxed);
        // SAFETY: rte_mbuf_dynfield_register returned the offset, which is inside the header. Packets exist only
        // after it: Eal::init registers before it returns.
        unsafe { self.0.as_ptr().cast::<u8>().add(offset).cast::<u64>() }
    }

    /// Asks the NIC to fill in checksums when it sends the packet, on a port whose capabilities say that it can. For
    /// TCP and UDP the checksum field must hold the pseudo-header's sum (RFC 793 §3.1), the IPv4 one zero.
    /// False, and no change, where a length does not fit its field (127 and 511 bytes).
    pub fn request_tx_checksum(&mut self, request: TxChecksum) -> bool {
        let Some((flags, lengths)) = offload::tx_request(request) else { return false };
        let header = self.header_mut();
        header.ol_flags = (header.ol_flags & !offload::TX_MASK) | flags;
        header.__bindgen_anon_3.tx_offload = lengths;
        true
    }

    /// Copies the packet, all segments, into one fresh buffer. `None` where the pool is empty or the packet too long.
    pub fn copy_into(&self, pool: &PacketPool) -> Option<Self> {
        let mut copy = pool.alloc()?;
        for segment in self.segments() {
            copy.append(segment.len())?.copy_from_slice(segment);
        }
        Some(copy)
    }

    /// Replaces the contents by these bytes, in the first segment. False, and no change, where they don't fit.
    pub fn fill(&mut self, bytes: &[u8]) -> bool {
        let header = self.header();
        let room = usize::from(header.buf_len).saturating_sub(usize::from(header.data_off));
        if bytes.len() > room {
            return false;
        }
        self.truncate(0) && self.append(bytes.len()).map(|room| room.copy_from_slice(bytes)).is_some()
    }
}

/// Iterator over a packet's segments, as byte slices.
#[derive(Clone)]
pub struct Segments<'a> {
    next: Option<&'a sys::rte_mbuf>,
}

impl fmt::Debug for Segments<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Segments").finish_non_exhaustive()
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let segment = self.next?;
        // SAFETY: `next` is NULL or the following segment, which the packet's one owner owns as well.
        self.next = unsafe { segment.next.as_ref() };
        Some(segment_bytes(segment))
    }
}

#[inline]
fn segment_bytes(segment: &sys::rte_mbuf) -> &[u8] {
    // SAFETY: as in Mbuf::data_mut, for reading.
    unsafe {
        let start = segment.buf_addr.cast::<u8>().add(usize::from(segment.data_off));
        slice::from_raw_parts(start, usize::from(segment.data_len))
    }
}

fn tailroom_of(segment: &sys::rte_mbuf) -> usize {
    usize::from(segment.buf_len)
        .saturating_sub(usize::from(segment.data_off))
        .saturating_sub(usize::from(segment.data_len))
}

fn last_segment(mut segment: &sys::rte_mbuf) -> &sys::rte_mbuf {
    // SAFETY: as in Segments::next.
    while let Some(next) = unsafe { segment.next.as_ref() } {
        segment = next;
    }
    segment
}

fn last_segment_mut(mut segment: &mut sys::rte_mbuf) -> &mut sys::rte_mbuf {
    while !segment.next.is_null() {
        // SAFETY: not NULL, so it is the following segment; the exclusive borrow of the packet covers it.
        segment = unsafe { &mut *segment.next };
    }
    segment
}

/// Keeps `length` bytes of a chain that has at least as many.
fn truncate_chain(header: &mut sys::rte_mbuf, length: usize) {
    let mut left = length;
    let mut kept: u16 = 1;
    let mut segment: &mut sys::rte_mbuf = header;
    while left > usize::from(segment.data_len) && !segment.next.is_null() {
        left -= usize::from(segment.data_len);
        kept += 1;
        // SAFETY: as in last_segment_mut.
        segment = unsafe { &mut *segment.next };
    }
    // At most data_len now: the chain holds `length` bytes.
    segment.data_len = segment.data_len.min(u16::try_from(left).unwrap_or(u16::MAX));
    let surplus = std::mem::replace(&mut segment.next, std::ptr::null_mut());
    if !surplus.is_null() {
        // SAFETY: the surplus segments are cut off from the chain; rte_pktmbuf_free follows `next` from here and
        // returns each to its pool.
        unsafe { sys::weir_mbuf_free(surplus) };
    }
    header.nb_segs = kept;
    header.pkt_len = u32::try_from(length).unwrap_or(u32::MAX);
}

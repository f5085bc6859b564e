//! How does what is addressed to Weir itself reach the kernel, and what the kernel sends the wire? The exception path.
//!
//! Each port with an exception path has a TAP of the kernel's. A worker copies a packet into a spare frame and passes it over a ring to a
//! thread that does nothing else ([`kernel`]); frames of the kernel come back by the first worker. No worker makes a system call
//! or waits: beyond its rate, or with no spare frame left, the packet is a counted drop.
//!
//! ```text
//! worker ──full──▶ ┐                 ┌──▶ TAP ──▶ sockets of this network namespace
//!        ◀─spare── │ weir-exception  │
//! first  ◀─outgoing│ (one thread)    │
//! worker ──used──▶ ┘                 └◀── TAP
//! ```

pub mod kernel;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hugepages::spsc;
use weir_abi::columns::ExceptionColumn;
use weir_abi::probes::Probe;
use weir_abi::record::{EXCEPTION_RATE, MAX_PORTS};
use weir_net::{Parsed, eth};

use crate::books::Books;
use crate::drops::WorkerReason;

/// Frames on their way to the kernel, per worker.
const UP_FRAMES: usize = 2_048;
/// Frames on their way from the kernel.
const DOWN_FRAMES: usize = 512;
/// A burst is what comes in this part of a second, and no less than [`LEAST_BURST`].
const BURST_PER_SECOND: u64 = 50;
/// Packets of the smallest burst.
const LEAST_BURST: u64 = 32;
/// Link header with a tag.
const LINK_ROOM: usize = eth::HEADER_LEN + eth::TAG_LEN;

/// A copy of a frame, without a tag.
#[derive(Debug)]
pub struct Frame {
    /// Index of the port.
    pub port: u16,
    /// Of a frame of the kernel's: it is a health check of a backend.
    pub probe: Option<Probe>,
    length: usize,
    room: Box<[u8]>,
}

impl Frame {
    fn new(room: usize) -> Self {
        Self { port: 0, probe: None, length: 0, room: vec![0; room].into_boxed_slice() }
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        self.room.get(..self.length).unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.room.get_mut(..self.length).unwrap_or_default()
    }

    /// Copies a frame without its tag; `false`: it is too long.
    fn copy(&mut self, port: u16, frame: &[u8], tagged: bool) -> bool {
        const ADDRESSES: usize = 12;
        let skipped = if tagged { eth::TAG_LEN } else { 0 };
        let Some((addresses, rest)) = frame.split_at_checked(ADDRESSES) else { return false };
        let Some(rest) = rest.get(skipped..) else { return false };
        let length = ADDRESSES + rest.len();
        let Some((to_addresses, to_rest)) =
            self.room.get_mut(..length).and_then(|room| room.split_at_mut_checked(ADDRESSES))
        else {
            return false;
        };
        to_addresses.copy_from_slice(addresses);
        to_rest.copy_from_slice(rest);
        (self.port, self.length) = (port, length);
        true
    }
}

/// Which ports have an interface of the kernel right now, a bit each: written by the exception thread.
#[derive(Clone, Debug, Default)]
pub struct Attached(Arc<AtomicU32>);

const _: () = assert!(MAX_PORTS <= 32);

impl Attached {
    fn set(&self, port: usize, attached: bool) {
        let bit = 1u32.checked_shl(port as u32).unwrap_or(0);
        if attached {
            self.0.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.0.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    #[inline]
    fn has(&self, port: u16) -> bool {
        self.0.load(Ordering::Relaxed).checked_shr(u32::from(port)).unwrap_or(0) & 1 == 1
    }
}

/// So many packets a second, a burst at once; the clock is the CPU's.
#[derive(Debug)]
struct Bucket {
    /// Ticks that a packet costs.
    price: u64,
    most: u64,
    credit: u64,
    last: u64,
}

impl Bucket {
    fn new(rate: u32, tsc_hz: u64, now: u64) -> Self {
        let rate = u64::from(if rate == 0 { EXCEPTION_RATE } else { rate });
        let price = (tsc_hz / rate).max(1);
        let most = price.saturating_mul((rate / BURST_PER_SECOND).max(LEAST_BURST));
        Self { price, most, credit: most, last: now }
    }

    fn take(&mut self, now: u64) -> bool {
        self.credit = self.credit.saturating_add(now.saturating_sub(self.last)).min(self.most);
        self.last = now;
        match self.credit.checked_sub(self.price) {
            Some(left) => {
                self.credit = left;
                true
            }
            None => false,
        }
    }
}

/// A worker's end.
pub struct Punts {
    attached: Attached,
    bucket: Bucket,
    full: spsc::Producer<Frame>,
    spare: spsc::Consumer<Frame>,
    outgoing: spsc::Consumer<Frame>,
    used: spsc::Producer<Frame>,
    tsc_hz: u64,
    rate: u32,
}

impl Punts {
    /// Hands a copy to the kernel of the port, or says why not.
    pub fn punt(
        &mut self,
        port: u16,
        frame: &[u8],
        parsed: &Parsed,
        now_tsc: u64,
        books: &Books,
    ) -> Result<(), WorkerReason> {
        let at = usize::from(port);
        if !self.attached.has(port) {
            return Err(WorkerReason::Punt);
        }
        if !self.bucket.take(now_tsc) {
            books.exception(at, ExceptionColumn::RateLimited, 1);
            return Err(WorkerReason::PuntLimited);
        }
        let full = || {
            books.exception(at, ExceptionColumn::RingFull, 1);
            WorkerReason::PuntFull
        };
        // as many frames as places: with a frame there is a place
        let mut copy = self.spare.pop().ok_or_else(full)?;
        if !copy.copy(port, frame, parsed.vlan.is_some()) {
            // longer than the port's packets can be: empty, the thread just gives it back
            copy.length = 0;
            drop(self.full.push(copy));
            return Err(full());
        }
        self.full.push(copy).map_err(|_| full())?;
        books.exception(at, ExceptionColumn::Punted, 1);
        Ok(())
    }

    /// The rate of a new generation.
    pub fn set_rate(&mut self, rate: u32, now_tsc: u64) {
        if rate != self.rate {
            (self.rate, self.bucket) = (rate, Bucket::new(rate, self.tsc_hz, now_tsc));
        }
    }

    /// The kernel's next frame, to be given back by [`Punts::sent`].
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        self.outgoing.pop()
    }

    /// Gives the kernel's frame back.
    pub fn sent(&mut self, frame: Frame) {
        // as many places as frames
        drop(self.used.push(frame));
    }
}

/// The exception thread's end of a worker.
pub struct Lane {
    full: spsc::Consumer<Frame>,
    spare: spsc::Producer<Frame>,
    outgoing: spsc::Producer<Frame>,
    used: spsc::Consumer<Frame>,
}

/// What the workers and the thread share, before it is dealt.
pub struct Wiring {
    /// By worker.
    pub punts: Vec<Punts>,
    /// By worker.
    pub lanes: Vec<Lane>,
    /// The kernel's frames that are not on their way.
    pub idle: Vec<Frame>,
    /// Which ports have interfaces.
    pub attached: Attached,
}

impl Wiring {
    /// Rings for so many workers. Without a port that has an exception path (`longest` is 0), they carry nothing.
    pub fn new(workers: usize, longest: u16, rate: u32, tsc_hz: u64) -> Self {
        let room = usize::from(longest) + LINK_ROOM;
        let (up, down) = if longest == 0 { (0, 0) } else { (UP_FRAMES, DOWN_FRAMES) };
        let attached = Attached::default();
        let (mut punts, mut lanes) = (Vec::new(), Vec::new());
        for _ in 0..workers {
            let (full, full_out) = spsc::ring(up);
            let (mut spare_in, spare) = spsc::ring(up);
            let (outgoing_in, outgoing) = spsc::ring(down);
            let (used, used_out) = spsc::ring(down);
            for _ in 0..up {
                drop(spare_in.push(Frame::new(room)));
            }
            let bucket = Bucket::new(rate, tsc_hz, dpdk::lcore::tsc());
            let attached = attached.clone();
            punts.push(Punts { attached, bucket, full, spare, outgoing, used, tsc_hz, rate });
            lanes.push(Lane { full: full_out, spare: spare_in, outgoing: outgoing_in, used: used_out });
        }
        let idle = (0..down).map(|_| Frame::new(room)).collect();
        Self { punts, lanes, idle, attached }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::books::tests::books;
    use weir_net::{Mac, ParseOptions, arp, parse};

    const ROOM: u16 = 1_500;

    fn frame(vlan: Option<u16>) -> Vec<u8> {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        arp::request(mac, [198, 18, 0, 1].into(), [198, 18, 0, 254].into(), vlan).to_vec()
    }

    fn wiring(rate: u32) -> (Punts, Lane) {
        let mut wiring = Wiring::new(1, ROOM, rate, 1_000_000_000);
        wiring.attached.set(2, true);
        (wiring.punts.remove(0), wiring.lanes.remove(0))
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(1_000, 1_000_000_000, 0);
        let taken = |bucket: &mut Bucket, now: u64| (0..10_000).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, 0), 32);
        assert_eq!(taken(&mut bucket, 5_000_000), 5);
        assert_eq!(taken(&mut bucket, 5_000_001), 0);
        assert_eq!(taken(&mut bucket, 3_600_000_000_000), 32, "no more than a burst is saved");
        let mut fast = Bucket::new(0, 2_000_000_000, 0);
        assert_eq!(taken(&mut fast, 0), EXCEPTION_RATE as usize / 50);
    }

    #[test]
    fn the_kernel_gets_frames_without_their_tag() {
        let (_parent, [books, ..], reader) = books();
        let (mut punts, mut lane) = wiring(0);
        for vlan in [None, Some(42), Some(0)] {
            let tagged = frame(vlan);
            let parsed = parse(&tagged, &ParseOptions::default()).unwrap();
            punts.punt(2, &tagged, &parsed, 0, &books).unwrap();
            let copy = lane.full.pop().unwrap();
            assert_eq!((copy.bytes(), copy.port), (&frame(None)[..], 2), "{vlan:?}");
        }
        let parsed = parse(&frame(None), &ParseOptions::default()).unwrap();
        assert_eq!(punts.punt(1, &frame(None), &parsed, 0, &books), Err(WorkerReason::Punt), "no interface");
        assert_eq!(reader.group("exception").unwrap().sum_of(2, "punted"), 3);
    }

    #[test]
    fn what_finds_no_room_is_counted_and_frames_come_back() {
        let (_parent, [books, ..], reader) = books();
        let (mut punts, mut lane) = wiring(10_000_000);
        let bytes = frame(None);
        let parsed = parse(&bytes, &ParseOptions::default()).unwrap();
        let punt = |punts: &mut Punts, bytes: &[u8], now| punts.punt(2, bytes, &parsed, now, &books);
        for _ in 0..UP_FRAMES {
            punt(&mut punts, &bytes, 0).unwrap();
        }
        assert_eq!(punt(&mut punts, &bytes, 0), Err(WorkerReason::PuntFull));
        while let Some(frame) = lane.full.pop() {
            assert!(lane.spare.push(frame).is_ok());
        }
        punt(&mut punts, &bytes, 0).unwrap();
        // longer than the port's packets can be
        let long = vec![0; usize::from(ROOM) + LINK_ROOM + 1];
        assert_eq!(punt(&mut punts, &long, 0), Err(WorkerReason::PuntFull));
        assert_eq!(lane.full.available(), 2, "its frame comes back all the same");
        let sum = |column| reader.group("exception").unwrap().sum_of(2, column);
        assert_eq!((sum("punted"), sum("ring_full"), sum("rate_limited")), (UP_FRAMES as u64 + 1, 2, 0));
        punts.set_rate(1, 0);
        for _ in 0..LEAST_BURST {
            punt(&mut punts, &bytes, 0).unwrap();
        }
        assert_eq!(punt(&mut punts, &bytes, 0), Err(WorkerReason::PuntLimited));
        assert_eq!(sum("rate_limited"), 1);
    }

    #[test]
    fn without_an_exception_path_there_are_no_frames() {
        let wiring = Wiring::new(2, 0, 0, 1_000_000_000);
        assert_eq!((wiring.punts.len(), wiring.idle.len()), (2, 0));
    }
}

//! What is in the rings? Read in turns, as often as they fill.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use hugepages::events::{Consumer, EventsError};
use hugepages::segment::SegmentDir;
use weir_abi::events::{RING_PREFIX, Record};

use super::format::Format;
use super::names::{Directory, Names};
use super::sink::Chunk;
use super::{Order, Settings, Shared, Target, locked};

/// Between two looks: after one that found something, and at most.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(50);
/// A ring that is fuller than this is looked at again at once.
const HURRY: f64 = 0.25;
/// Records of a ring before the next one's turn.
const TURN: usize = 4_096;
/// Bytes of lines that are handed over together.
const CHUNK_BYTES: usize = 64 << 10;
/// How often it is looked for rings that came or went.
const SCAN: Duration = Duration::from_millis(500);
/// Rings of one instance at most.
const MOST_RINGS: usize = 64;

struct Ring {
    name: String,
    worker: Option<u16>,
    consumer: Consumer,
    epoch: u64,
}

/// The reading end.
pub(super) struct Reader {
    directory: PathBuf,
    segments: Option<SegmentDir>,
    shared: Arc<Shared>,
    orders: Receiver<Order>,
    chunks: SyncSender<Chunk>,
    format: Option<Format>,
    /// To be told to the sink once there is room.
    target: Option<Option<Target>>,
    rings: Vec<Ring>,
    names: Directory,
    lines: Vec<u8>,
    count: u64,
}

impl Reader {
    pub(super) fn new(
        directory: PathBuf,
        shared: Arc<Shared>,
        orders: Receiver<Order>,
        chunks: SyncSender<Chunk>,
    ) -> Self {
        Self {
            directory,
            segments: None,
            shared,
            orders,
            chunks,
            format: None,
            target: None,
            rings: Vec::new(),
            names: Directory::default(),
            lines: Vec::with_capacity(CHUNK_BYTES + (CHUNK_BYTES >> 2)),
            count: 0,
        }
    }

    /// Until it is told to stop, or nobody is there to tell it.
    pub(super) fn run(mut self) {
        let mut pause = SHORTEST;
        let mut scan_at = Instant::now();
        loop {
            match self.orders.recv_timeout(pause) {
                Ok(Order::Set(settings)) => self.set(settings),
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            if now >= scan_at {
                scan_at = now + SCAN;
                self.scan();
            }
            let found = self.look();
            self.hand_over();
            let hurry = self.rings.iter().any(|ring| ring.consumer.fill() > HURRY);
            pause = match (hurry, found) {
                (true, _) => Duration::ZERO,
                (_, true) => SHORTEST,
                _ => (pause * 2).clamp(SHORTEST, LONGEST),
            };
        }
        self.look();
        self.hand_over();
    }

    fn set(&mut self, settings: Option<Settings>) {
        // what was told before goes to where lines went
        self.hand_over();
        let (format, target) = settings.map(|Settings { format, target }| (format, target)).unzip();
        (self.format, self.target) = (format, Some(target));
        self.tell_target();
    }

    fn tell_target(&mut self) {
        if let Some(target) = self.target.take()
            && let Err(TrySendError::Full(Chunk::Target(target))) =
                self.chunks.try_send(Chunk::Target(target))
        {
            self.target = Some(target);
        }
    }

    /// Finds rings that came, lets go of rings that were replaced or removed.
    fn scan(&mut self) {
        if self.segments.is_none() {
            self.segments = SegmentDir::open_existing(&self.directory).ok();
        }
        let Some(segments) = &self.segments else { return };
        let mut gone = Vec::new();
        self.rings.retain_mut(|ring| {
            let is_current = ring.consumer.is_current(segments);
            if !is_current {
                gone.push(ring.worker);
            }
            is_current
        });
        let Ok(names) = segments.list() else { return };
        let is_new =
            |name: &String| name.starts_with(RING_PREFIX) && self.rings.iter().all(|ring| ring.name != *name);
        for name in names.into_iter().filter(is_new).take(MOST_RINGS).collect::<Vec<_>>() {
            if self.rings.len() >= MOST_RINGS {
                break;
            }
            match Consumer::open(segments, &name) {
                Ok(consumer) => {
                    let epoch = consumer.counts().epoch;
                    let worker = name.strip_prefix(RING_PREFIX).and_then(|number| number.parse().ok());
                    self.rings.push(Ring { name, worker, consumer, epoch });
                }
                // its producer is making it: the next scan will find it
                Err(EventsError::Foreign { .. } | EventsError::Segment(_)) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
        for worker in gone.into_iter().flatten() {
            locked(&self.shared.breakers).forget(worker);
        }
        let refused = self.rings.iter().map(|ring| ring.consumer.counts().refused).sum();
        self.shared.refused.store(refused, Ordering::Relaxed);
    }

    /// Takes what is there, a turn of each ring. Whether there was anything.
    fn look(&mut self) -> bool {
        let mut found = false;
        let mut rings = std::mem::take(&mut self.rings);
        for ring in &mut rings {
            let epoch = ring.consumer.counts().epoch;
            if epoch != ring.epoch {
                ring.epoch = epoch;
                if let Some(worker) = ring.worker {
                    locked(&self.shared.breakers).forget(worker);
                }
            }
            for _ in 0..TURN {
                match ring.consumer.take() {
                    Ok(Some(record)) => {
                        found = true;
                        self.record(record);
                    }
                    Ok(None) => break,
                    Err(lost) => {
                        Shared::add(&self.shared.damaged, 1);
                        tracing::warn!("event ring {}: {lost}; what waited in it is lost", ring.name);
                        break;
                    }
                }
                if self.lines.len() >= CHUNK_BYTES {
                    self.hand_over();
                }
            }
        }
        self.rings = rings;
        found
    }

    fn record(&mut self, record: &[u8]) {
        match Record::decode(record) {
            Ok(Record::Exchange(exchange)) => {
                let names = self.names_of(exchange.stamp.generation);
                if let Some(format) = &self.format {
                    format.write(&exchange, &names, &mut self.lines);
                    self.count += 1;
                }
            }
            Ok(Record::Breaker(change)) => {
                let names = self.names_of(change.stamp.generation);
                locked(&self.shared.breakers).changed(change, &names);
            }
            Err(error) => {
                Shared::add(&self.shared.damaged, 1);
                tracing::debug!("{error}");
            }
        }
    }

    fn names_of(&mut self, generation: u64) -> Arc<Names> {
        match &self.segments {
            Some(segments) => self.names.of(segments, generation),
            None => Arc::default(),
        }
    }

    /// Gives the lines to the sink, or drops them where it can't keep up.
    fn hand_over(&mut self) {
        self.tell_target();
        if self.count == 0 {
            return;
        }
        let lines = std::mem::take(&mut self.lines);
        let count = std::mem::take(&mut self.count);
        match self.chunks.try_send(Chunk::Lines(lines, count)) {
            Ok(()) => self.lines.reserve(CHUNK_BYTES + (CHUNK_BYTES >> 2)),
            Err(TrySendError::Full(chunk) | TrySendError::Disconnected(chunk)) => {
                Shared::add(&self.shared.dropped_slow, count);
                if let Chunk::Lines(mut lines, _) = chunk {
                    // the memory is used again
                    lines.clear();
                    self.lines = lines;
                }
            }
        }
    }
}

//! Does any order of segments, calls and time make the engine panic, grow or miscount?
//!
//! [`segments`] is the body of a fuzz target: a runner feeds it arbitrary bytes, which it reads as a programme of what peers and
//! the application do; a failed promise is a panic there. [`seeds`] are programmes that open, talk and close.

use weir_net::{ParseOptions, parse, tcp};

use crate::buffer::{Buffer, Chunk, Endpoint, HeapBuffer};
use crate::config::{ConnectionConfig, EngineConfig, KeepAlive, SynCookies};
use crate::connection::State;
use crate::counters::Counters;
use crate::engine::{Engine, Handled};
use crate::event::Handle;
use crate::header::{Header, PayloadSum};
use crate::icmp::Problem;
use crate::options::{FastOpen, FastOpenCookie, OptionBytes, Options, SackBlocks, Timestamps};
use crate::seq::SeqNumber;
use crate::time::Instant;
use crate::transmit::{Payload, Transmit};

/// Records of the engine.
const CONNECTIONS: usize = 6;
/// Pieces that it may hold.
const PIECES: usize = 64;
/// Bytes that its buffers may keep from other use.
const MEMORY: u64 = 32 << 10;
/// Most that one programme does.
const MOST_STEPS: usize = 400;
/// Peers; each has an address and a port of its own, every other one speaks IPv6.
const PEERS: usize = 4;
/// Longest write of the application.
const LONGEST_WRITE: usize = 3_000;
/// Its send buffer.
const SEND_BUFFER: u32 = 4_096;
/// The server's port.
const PORT: u16 = 80;

/// What one byte of a programme asks for; its low four bits.
mod step {
    pub(super) const SEGMENT: u8 = 0;
    pub(super) const SEGMENT_AGAIN: u8 = 1;
    pub(super) const FRAME: u8 = 2;
    pub(super) const CONNECT: u8 = 3;
    pub(super) const SEND: u8 = 4;
    pub(super) const RECEIVE: u8 = 5;
    pub(super) const SHUTDOWN: u8 = 6;
    pub(super) const ABORT: u8 = 7;
    pub(super) const RELEASE: u8 = 8;
    pub(super) const WAIT_SHORT: u8 = 9;
    pub(super) const WAIT_LONG: u8 = 10;
    pub(super) const FULL: u8 = 11;
    pub(super) const ICMP: u8 = 12;
    pub(super) const SETTINGS: u8 = 13;
    pub(super) const ROTATE: u8 = 14;
    pub(super) const DATA: u8 = 15;
}

/// The bytes of a programme; zeros behind its end.
struct Programme<'a>(&'a [u8]);

impl Programme<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head.to_vec()
    }
}

/// What a peer knows of its connection: the engine has told it.
#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    /// What the engine expects next.
    seq: SeqNumber,
    /// What the engine will send next.
    ack: SeqNumber,
    timestamp: u32,
    cookie: Option<FastOpenCookie>,
}

/// What the engine sends, and what the peers make of it.
#[derive(Debug)]
struct Wire {
    peers: [Peer; PEERS],
    is_full: bool,
    /// The last one, for an ICMP error about it.
    last: Vec<u8>,
}

impl Transmit<HeapBuffer> for Wire {
    fn transmit(&mut self, header: &Header, payload: Payload<'_, HeapBuffer>) -> bool {
        if self.is_full {
            return false;
        }
        let frame = frame(header, payload);
        if let Some(peer) = self.peers.get_mut(usize::from(header.remote.port) % PEERS) {
            let options = Options::parse(header.options.as_bytes());
            let takes = u32::from(header.flags & tcp::SYN != 0) + u32::from(header.flags & tcp::FIN != 0);
            let data = frame.len().saturating_sub(14 + header.len()) as u32;
            peer.ack = header.seq + data + takes;
            if header.flags & tcp::ACK != 0 {
                peer.seq = header.ack;
            }
            peer.timestamp = options.timestamps.map_or(peer.timestamp, |timestamps| timestamps.value);
            if let Some(FastOpen::Cookie(cookie)) = options.fast_open {
                peer.cookie = Some(cookie);
            }
        }
        self.last = frame;
        true
    }

    fn copy(&mut self, bytes: &[u8]) -> Option<HeapBuffer> {
        (!bytes.len().is_multiple_of(3)).then(|| HeapBuffer::from(bytes))
    }
}

fn frame(header: &Header, payload: Payload<'_, HeapBuffer>) -> Vec<u8> {
    let (mut sum, len) = (PayloadSum::new(), payload.len());
    let mut data = Vec::with_capacity(len);
    for (buffer, offset, len) in payload {
        let start = usize::from(offset);
        let piece = buffer.bytes().get(start..start + usize::from(len)).unwrap_or_default();
        assert_eq!(piece.len(), usize::from(len), "a piece lies within its buffer");
        sum.add(piece);
        data.extend_from_slice(piece);
    }
    assert_eq!(data.len(), len, "a payload is as long as it says");
    framed(header, &data, sum.finish())
}

fn framed(header: &Header, data: &[u8], sum: u16) -> Vec<u8> {
    let mut frame = vec![0; 14];
    frame.splice(12..14, if header.local.is_v4() { [0x08, 0x00] } else { [0x86, 0xdd] });
    let mut headers = vec![0; header.len()];
    header.write(data.len(), sum, &mut headers);
    frame.extend(headers);
    frame.extend_from_slice(data);
    frame
}

/// Addresses and ports: the peer's and ours.
fn ends(peer: usize, is_ours: bool) -> (Endpoint, Endpoint) {
    let base = if peer.is_multiple_of(2) { 0xffff_c612_0000 } else { 0x2001_0db8_u128 << 96 };
    let port = 1_000 + (peer % PEERS) as u16;
    let local = if is_ours { 2_000 } else { PORT };
    (Endpoint { address: base | 9, port }, Endpoint { address: base | 1, port: local })
}

struct World {
    engine: Engine<HeapBuffer>,
    wire: Wire,
    now: Instant,
    handles: Vec<Handle>,
    released: Vec<Handle>,
}

/// Runs a programme.
pub fn segments(data: &[u8]) {
    play(data);
}

/// What the engine counted.
fn play(data: &[u8]) -> Counters {
    let mut programme = Programme(data);
    let limits = EngineConfig {
        connections: CONNECTIONS,
        time_waits: 3,
        pieces: PIECES,
        memory: MEMORY,
        challenge_acks: 100,
    };
    let now = Instant(u64::from(programme.word()) << 28);
    let mut engine = Engine::new(limits, [programme.byte(); 32], now);
    engine.set_listener(0, settings(programme.byte()));
    let wire = Wire { peers: [Peer::default(); PEERS], is_full: false, last: Vec::new() };
    let mut world = World { engine, wire, now, handles: Vec::new(), released: Vec::new() };
    for _ in 0..MOST_STEPS {
        if programme.0.is_empty() {
            break;
        }
        world.step(&mut programme);
        world.settle();
        world.check();
    }
    world.end()
}

fn settings(choice: u8) -> ConnectionConfig {
    let has = |bit: u8| choice & 1 << bit != 0;
    ConnectionConfig {
        no_delay: has(0),
        keep_alive: has(1).then_some(KeepAlive { idle_s: 5, interval_s: 2, probes: 3 }),
        fast_open: has(2),
        syn_cookies: if has(3) { SynCookies::Always } else { SynCookies::Auto },
        sack: !has(4),
        timestamps: !has(5),
        window_scaling: !has(6),
        ecn_request: has(7),
        backlog: 3,
        receive_buffer: 2_000 + (u32::from(choice) << 6),
        send_buffer: SEND_BUFFER,
        syn_retries: 2,
        data_retries: 3,
        rto_max_ms: 4_000,
        time_wait_s: 2,
        fin_wait_s: 5,
        ..ConnectionConfig::default()
    }
}

impl World {
    fn step(&mut self, programme: &mut Programme<'_>) {
        let code = programme.byte();
        let which = usize::from(code >> 4);
        let handle = self.handles.get(which % self.handles.len().max(1)).copied();
        match (code & 0xf, handle) {
            (step::SEGMENT | step::SEGMENT_AGAIN | step::DATA, _) => {
                let frame = self.peer_segment(which, code & 0xf == step::DATA, programme);
                self.arrive(&frame);
                if code & 0xf == step::SEGMENT_AGAIN {
                    self.arrive(&frame);
                }
            }
            (step::FRAME, _) => {
                let len = usize::from(programme.word() % 1_600);
                let frame = programme.bytes(len);
                self.arrive(&frame);
            }
            (step::CONNECT, _) => {
                let (remote, local) = ends(which, true);
                if let Ok(handle) = self.engine.connect(local, remote, 0, which as u32, self.now) {
                    self.handles.push(handle);
                }
            }
            (step::SEND, Some(handle)) => {
                let len = usize::from(programme.word()) % (LONGEST_WRITE + 1);
                let room = self.engine.room(handle);
                let sent = self.engine.send(handle, Chunk::whole(HeapBuffer::from(&vec![7; len][..])));
                assert!(sent.is_err() || room > 0 || len == 0, "more was taken than there is room for");
            }
            (step::RECEIVE, Some(handle)) => {
                let before = self.engine.receivable(handle);
                let len = self.engine.receive(handle).map_or(0, |chunk| u32::from(chunk.len));
                assert_eq!(before - len, self.engine.receivable(handle), "what was read is gone");
            }
            (step::SHUTDOWN, Some(handle)) => self.engine.shutdown(handle),
            (step::ABORT, Some(handle)) => {
                self.engine.abort(handle);
                let state = self.engine.info(handle).map(|info| info.state);
                assert_eq!(state, Some(State::Closed), "aborted, and held");
            }
            (step::RELEASE, Some(handle)) => self.release(handle),
            (step::WAIT_SHORT, _) => self.now = self.now.after(u64::from(programme.word())),
            (step::WAIT_LONG, _) => self.now = self.now.after(u64::from(programme.word()) << 10),
            (step::FULL, _) => self.wire.is_full = which % 2 == 0,
            (step::ICMP, _) => self.icmp(programme),
            (step::SETTINGS, _) => self.engine.set_listener(0, settings(programme.byte())),
            (step::ROTATE, _) => self.engine.rotate_secrets(self.now),
            _ => {}
        }
    }

    /// A segment that a peer could send, or nearly.
    fn peer_segment(&self, which: usize, is_plain: bool, programme: &mut Programme<'_>) -> Vec<u8> {
        let (remote, local) = ends(which, which & 8 != 0);
        let peer = self.wire.peers.get(which % PEERS).copied().unwrap_or_default();
        let (flags, seq, ack, choice) = if is_plain {
            (tcp::ACK | tcp::PSH, 0, 0, 0)
        } else {
            (programme.byte(), programme.byte() as i8, programme.byte() as i8, programme.byte())
        };
        // most steps are small, some jump
        let step = |by: i8| match by {
            -100..=100 => i32::from(by) * 64,
            _ => i32::from(by) << 20,
        };
        let len = usize::from(programme.byte()) * if choice & 0x80 != 0 { 6 } else { 1 };
        let has = |bit: u8| choice & 1 << bit != 0;
        let value = self.now.milliseconds();
        let mut sack = SackBlocks::new();
        if has(3) {
            let from = peer.ack - u32::from(programme.byte()) * 32;
            let _ = sack.try_push((from, from + u32::from(programme.byte()) * 32));
        }
        let options = Options {
            mss: has(0).then_some(536),
            window_scale: has(1).then_some(3),
            sack_permitted: has(2),
            timestamps: (!has(4)).then_some(Timestamps { value, echo: peer.timestamp }),
            sack,
            fast_open: has(5).then(|| peer.cookie.map_or(FastOpen::Request, FastOpen::Cookie)),
        };
        let header = Header {
            local: remote,
            remote: local,
            seq: SeqNumber(peer.seq.0.wrapping_add_signed(step(seq))),
            ack: SeqNumber(peer.ack.0.wrapping_add_signed(step(ack))),
            window: if has(6) { 0 } else { 0xffff },
            identification: 1,
            flags,
            ecn: flags >> 6,
            hop_limit: 64,
            options: OptionBytes::from(&options),
        };
        let data = vec![9; len];
        let mut sum = PayloadSum::new();
        sum.add(&data);
        framed(&header, &data, sum.finish())
    }

    fn arrive(&mut self, frame: &[u8]) {
        let Ok(parsed) = parse(frame, &ParseOptions::default()) else { return };
        if !parsed.has_ports {
            return;
        }
        let mut lookup = self.engine.prepare(frame, &parsed);
        self.engine.guess(&mut lookup);
        self.engine.warm(&lookup);
        let buffer = HeapBuffer::from(frame);
        let handled = self.engine.segment(buffer, &parsed, lookup, false, self.now, &mut self.wire);
        if let Handled::Unknown(buffer) = handled {
            let listener = (parsed.dst_port == PORT).then_some(0);
            self.engine.unknown(buffer, &parsed, listener, self.now, &mut self.wire);
        }
    }

    fn icmp(&mut self, programme: &mut Programme<'_>) {
        let problem = match programme.byte() % 3 {
            0 => Problem::Hard,
            1 => Problem::Soft,
            _ => Problem::TooBig { mtu: programme.word() },
        };
        // the quotation of the last segment, in an error that stands before it
        let quoted = self.wire.last.get(14..).unwrap_or_default();
        let is_v4 = quoted.first().is_some_and(|byte| byte >> 4 == 4);
        let mut frame = vec![0; 14];
        frame.splice(12..14, if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
        let Ok(parsed) = parse(&self.wire.last, &ParseOptions::default()) else { return };
        let mut packet = weir_net::VecBuf::new(&self.wire.last);
        let router: std::net::IpAddr =
            if is_v4 { [198, 18, 0, 200].into() } else { [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xc8].into() };
        let answer = weir_net::icmp_reply::Problem::TooBig { mtu: 1_400 };
        if weir_net::icmp_reply::error(&mut packet, &parsed, router, answer).is_err() {
            return;
        }
        let frame = weir_net::PacketBuf::data(&packet).to_vec();
        if let Ok(parsed) = parse(&frame, &ParseOptions::default())
            && let Ok(inner) = weir_net::icmp::inner(&frame, &parsed)
        {
            self.engine.icmp(&frame, &inner, problem, self.now);
        }
    }

    fn release(&mut self, handle: Handle) {
        self.engine.release(handle);
        self.handles.retain(|held| *held != handle);
        self.released.push(handle);
    }

    /// What a worker does after each batch.
    fn settle(&mut self) {
        if self.engine.next_deadline(self.now).is_some_and(|at| at <= self.now) {
            self.engine.advance(self.now, &mut self.wire);
        }
        self.hear();
        self.engine.transmit(self.now, &mut self.wire);
        self.hear();
    }

    fn hear(&mut self) {
        while let Some((handle, _)) = self.engine.poll_event() {
            assert!(!self.released.contains(&handle), "news of what was released");
            if !self.handles.contains(&handle) {
                self.handles.push(handle);
            }
        }
    }

    fn check(&mut self) {
        let (told, counted) = (self.engine.census(), self.engine.recount());
        assert_eq!((told.half_open, told.established, told.closing, told.closed), counted);
        assert!(self.engine.live() <= CONNECTIONS);
        // pieces are cut once per segment in flight, and each connection may hold one beyond the limit
        let cut = (SEND_BUFFER as usize + LONGEST_WRITE) / 36;
        assert!(self.engine.pieces() <= PIECES + CONNECTIONS * (cut + 1), "{} pieces", self.engine.pieces());
        let beyond = (CONNECTIONS * (SEND_BUFFER as usize + LONGEST_WRITE + 2 * 1_600)) as u64;
        assert!(self.engine.pinned() <= MEMORY + beyond, "{} bytes pinned", self.engine.pinned());
        let listed = self.engine.listed();
        assert!(listed <= 8 * CONNECTIONS, "{listed} entries in the lists of what is to be done");
        for handle in &self.handles {
            assert!(self.engine.info(*handle).is_some(), "a handle that was not released is good");
        }
        self.released.retain(|handle| self.engine.info(*handle).is_some());
    }

    /// All is let go of, nobody says anything more: nothing may be left.
    fn end(mut self) -> Counters {
        self.wire.is_full = false;
        for handle in std::mem::take(&mut self.handles) {
            self.release(handle);
        }
        for _ in 0..2_000 {
            self.settle();
            self.check();
            for handle in std::mem::take(&mut self.handles) {
                self.release(handle);
            }
            let next = self.engine.next_deadline(self.now);
            if next.is_none() && !self.engine.is_ready() {
                break;
            }
            self.now = Instant(next.map_or(0, |at| at.0).max(self.now.0 + 1_000));
        }
        assert_eq!(self.engine.live(), 0, "connections never end: {:?}", self.engine.census());
        assert_eq!((self.engine.pieces(), self.engine.pinned()), (0, 0), "pieces are left");
        for handle in &self.released {
            assert!(self.engine.info(*handle).is_none(), "a stale handle is good");
        }
        *self.engine.counters()
    }
}

impl<B: Buffer> Engine<B> {
    /// Half open, established, closing and closed records, counted one by one.
    fn recount(&self) -> (u32, u32, u32, u32) {
        let (mut half_open, mut established, mut closing, mut closed) = (0, 0, 0, 0);
        for record in self.slab.records() {
            match record.state {
                State::Closed => closed += 1,
                State::SynSent | State::SynReceived => half_open += 1,
                State::Established => established += 1,
                _ => closing += 1,
            }
        }
        let free = self.slab.records().len() - self.slab.live();
        (half_open, established, closing, closed - free as u32)
    }

    /// Entries of the lists of slots that something has to be done for.
    fn listed(&self) -> usize {
        self.ready.len() + self.starved.len()
    }
}

/// Programmes that open, talk and close.
pub fn seeds() -> Vec<Vec<u8>> {
    let (syn, ack, fin, rst) = (tcp::SYN, tcp::ACK, tcp::FIN, tcp::RST);
    let segment = |peer: u8, flags: u8, seq: u8, ack: u8, choice: u8, len: u8| {
        vec![peer << 4 | step::SEGMENT, flags, seq, ack, choice, len]
    };
    let data = |peer: u8, len: u8| vec![peer << 4 | step::DATA, len];
    let open = |peer: u8| [segment(peer, syn, 0, 0, 0b111, 0), segment(peer, ack, 0, 0, 0, 0)].concat();
    let send = vec![step::SEND, 8, 0];
    let (read, wait) = (vec![step::RECEIVE], vec![step::WAIT_LONG, 0, 250]);
    let start = |choice: u8| vec![1, 2, 3, choice];
    let mut seeds = Vec::new();
    for choice in [0, 1, 2, 4, 8, 0x30, 0x70, 0x80] {
        let parts = [
            start(choice),
            open(0),
            data(0, 200),
            read.clone(),
            send.clone(),
            segment(0, ack, 0, 0, 0, 0),
            wait.clone(),
            segment(0, ack | fin, 0, 0, 0, 10),
            vec![step::SHUTDOWN],
            segment(0, ack, 0, 0, 0, 0),
            vec![step::RELEASE],
            wait.clone(),
        ];
        seeds.push(parts.concat());
        let parts = [
            start(choice),
            vec![0x90 | step::CONNECT],
            // the answer to our SYN, in the name of the peer that it went to
            segment(9, syn | ack, 0, 0, 0b111, 0),
            send.clone(),
            send.clone(),
            segment(9, ack, 2, 0xe8, 0b1000, 100),
            segment(9, ack, 0, 0xe8, 0b1000, 3),
            wait.clone(),
            wait.clone(),
            vec![step::ICMP, 2, 2, 60],
            segment(9, rst | ack, 0, 0, 0, 0),
        ];
        seeds.push(parts.concat());
        let many = [open(0), open(1), open(2), open(3)].concat();
        let parts = [
            start(choice),
            many,
            segment(0, ack, 4, 0, 0x80, 200),
            segment(1, ack, 8, 0, 0x80, 200),
            segment(0, ack, 0, 0, 0x80, 100),
            vec![step::FULL],
            send.clone(),
            vec![0x10 | step::SEND, 11, 0],
            vec![0x10 | step::FULL],
            vec![0x10 | step::ABORT],
            segment(2, ack | fin, 0, 0, 0, 0),
            vec![step::ROTATE, step::SETTINGS, 0xff],
            segment(3, ack, 0, 0, 0x40, 20),
            wait.clone(),
        ];
        seeds.push(parts.concat());
    }
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((x ^ (x >> 31)) % bound as u64) as usize
        }
    }

    #[test]
    fn seeds_get_far() {
        let all: Vec<Counters> = seeds().iter().map(|seed| play(seed)).collect();
        let sum = |of: fn(&Counters) -> u64| all.iter().map(of).sum::<u64>();
        let reached = [
            sum(|counters| counters.accepted),
            sum(|counters| counters.connected),
            sum(|counters| counters.bytes_in / 100),
            sum(|counters| counters.bytes_out / 1_000),
            sum(|counters| counters.syn_cookies_accepted),
            sum(|counters| counters.retransmitted),
            sum(|counters| counters.out_of_order),
            sum(|counters| counters.resets_received),
        ];
        assert!(reached.iter().all(|count| *count > 0) && reached[0] > 20, "{reached:?}");
    }

    /// `WEIR_SEEDS` says how many, `WEIR_SEED` which is the first.
    #[test]
    fn programmes_and_noise_break_nothing() {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let (first, count) = (number("WEIR_SEED").unwrap_or(1), number("WEIR_SEEDS").unwrap_or(3_000));
        let seeds = seeds();
        for round in first..first + count {
            let mut random = Random(round);
            let mut programme = seeds[random.below(seeds.len())].clone();
            for _ in 0..random.below(4) {
                let more = &seeds[random.below(seeds.len())];
                let from = 4 + random.below(more.len() - 4);
                programme.extend_from_slice(&more[from..]);
            }
            if random.below(4) == 0 {
                programme.extend((0..random.below(300)).map(|_| random.below(256) as u8));
            }
            for _ in 0..random.below(12) {
                let at = random.below(programme.len());
                match random.below(4) {
                    0 => programme[at] = random.below(256) as u8,
                    1 => programme[at] ^= 1 << random.below(8),
                    2 => drop(programme.remove(at)),
                    _ => programme.insert(at, random.below(256) as u8),
                }
            }
            let outcome = std::panic::catch_unwind(|| segments(&programme));
            assert!(outcome.is_ok(), "seed {round} (WEIR_SEED={round} WEIR_SEEDS=1): {programme:?}");
        }
    }
}

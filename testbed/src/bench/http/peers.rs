//! Clients and backends without stacks: they know what follows, and their frames are written ahead of time but for the header.

use std::collections::{HashMap, VecDeque};

use anyhow::{Context as _, Result, bail, ensure};
use weir_net::tcp;
use weir_tcp::header::OptionBytes;
use weir_tcp::options::{Options, Timestamps};
use weir_tcp::{Endpoint, Header, SeqNumber};

use super::super::tcp::packet::{Packet, Pool, pattern};
use super::wire::Sent;
use super::worker::{self, BURST};
use crate::random::Random;

/// Where clients connect.
pub(super) const VIP: Endpoint = Endpoint { address: 0xffff_c612_6401, port: 80 };
/// Where the proxy connects from: 198.18.1.200.
pub(super) const SOURCE: u128 = 0xffff_c612_01c8;
/// Backends.
pub(super) const BACKENDS: u32 = 8;
/// The host that is asked for.
pub(super) const HOST: &str = "shop.example.com";
/// Requests at backends at once: so many connections there are.
pub(super) const IN_FLIGHT: usize = 64;
/// Bytes of a request.
pub(super) const REQUEST: usize = 128;
/// Bytes of a response's body.
pub(super) const BODY: usize = 1_024;
/// First client address: 198.19.0.0, and its ports.
const CLIENTS: u128 = 0xffff_c613_0000;
const ADDRESSES: u32 = 1 << 14;
const PORTS: u16 = 10_000;
/// First backend address: 198.18.2.0.
const BACKEND: u128 = 0xffff_c612_0200;
const BACKEND_PORT: u16 = 8_080;
/// Responses between one and its acknowledgement.
const LAG: usize = 1_024;
/// Bytes before the data of a segment with timestamps.
const DATA: usize = 14 + 20 + 20 + 12;
const ISS: u32 = 1_000_000;
const WINDOW: u16 = 0xffff;
const SCALE: u8 = 8;
const MSS: u16 = 1_460;

/// The end of a client.
fn client(number: u32) -> Endpoint {
    Endpoint { address: CLIENTS + u128::from(number % ADDRESSES), port: PORTS + (number / ADDRESSES) as u16 }
}

fn number_of(end: Endpoint) -> u32 {
    (end.address - CLIENTS) as u32 + u32::from(end.port.wrapping_sub(PORTS)) * ADDRESSES
}

/// The end of a backend.
pub(super) fn backend(number: u32) -> Endpoint {
    Endpoint { address: BACKEND + u128::from(number), port: BACKEND_PORT }
}

/// Both ends of a connection, as the peer has them.
#[derive(Clone, Copy, Debug)]
struct Ends {
    local: Endpoint,
    remote: Endpoint,
    seq: u32,
    ack: u32,
    /// What the worker adds to its clock in timestamps.
    offset: u32,
    /// Bytes of the answer that came.
    came: u32,
}

/// Who says something next.
#[derive(Clone, Copy, Debug)]
enum Next {
    Syn(u32),
    SynAck(u32),
    Request(u32),
    Response(u32),
    Acknowledge(u32),
    Finish(u32),
}

/// How clients use their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// All stay open; each request goes over another.
    Kept,
    /// Each is opened for a request and closed by the response.
    Once,
}

/// All peers.
pub(super) struct Peers {
    clients: Vec<Ends>,
    upstreams: Vec<Ends>,
    by_ends: HashMap<(u128, u16), u32>,
    order: Vec<u32>,
    place: usize,
    uses: Use,
    /// What is said before anything else.
    soon: VecDeque<Next>,
    responses: VecDeque<u32>,
    acknowledgements: VecDeque<u32>,
    /// Requests on their way.
    pub(super) in_flight: usize,
    requests: Pool,
    answers: Pool,
    small: Pool,
    /// Bytes of a whole response as clients get it; learned from the first.
    response_len: u32,
    response: Vec<u8>,
    /// Whole responses that clients got.
    pub(super) answered: u64,
    /// Requests that backends got.
    pub(super) asked: u64,
    compared: u64,
}

impl Peers {
    /// So many clients, asking for so many paths.
    pub(super) fn new(clients: u32, routes: usize, uses: Use, seed: u64) -> Self {
        let mut order: Vec<u32> = (0..clients).collect();
        let mut random = Random::new(seed, "http");
        random.shuffle(&mut order);
        let close = uses == Use::Once;
        let mut texts = (0usize..).map(|at| request(at * 7_919 % routes.max(1), close));
        let response = response();
        let requests = Pool::filled(|frame| put(frame, &texts.next().unwrap_or_default()));
        let answers = Pool::filled(|frame| put(frame, &response));
        Self {
            clients: (0..clients).map(|number| Ends::new(client(number), VIP)).collect(),
            upstreams: Vec::new(),
            by_ends: HashMap::new(),
            order,
            place: 0,
            uses,
            soon: VecDeque::with_capacity(1 << 14),
            responses: VecDeque::with_capacity(1 << 12),
            acknowledgements: VecDeque::with_capacity(1 << 14),
            in_flight: 0,
            requests,
            answers,
            small: Pool::new(),
            response_len: 0,
            response,
            answered: 0,
            asked: 0,
            compared: 0,
        }
    }

    /// Lets clients open their connections.
    pub(super) fn open(&mut self, clients: &[u32]) {
        self.soon.extend(clients.iter().map(|client| Next::Syn(*client)));
    }

    /// The clients in the order in which they ask.
    pub(super) fn order(&self) -> Vec<u32> {
        self.order.clone()
    }

    /// Whether anything is still to be said.
    pub(super) fn is_silent(&self) -> bool {
        self.soon.is_empty() && self.responses.is_empty()
    }

    /// Upstream connections that were opened.
    pub(super) fn upstreams(&self) -> usize {
        self.upstreams.len()
    }

    /// Fills a burst with what peers say; with `asks` clients begin new requests as well.
    pub(super) fn fill(&mut self, packets: &mut Vec<Packet>, time_us: u64, asks: bool) -> Result<()> {
        while packets.len() < BURST
            && let Some(next) = self.soon.pop_front()
        {
            packets.push(self.say(next, time_us)?);
        }
        const SHARE: usize = BURST / 3;
        for _ in 0..SHARE.min(BURST - packets.len()) {
            if self.responses.len() + SHARE <= IN_FLIGHT && asks {
                break;
            }
            let Some(upstream) = self.responses.pop_front() else { break };
            packets.push(self.say(Next::Response(upstream), time_us)?);
        }
        for _ in 0..SHARE.min(BURST - packets.len()) {
            if self.acknowledgements.len() <= LAG && asks {
                break;
            }
            let Some(client) = self.acknowledgements.pop_front() else { break };
            packets.push(self.say(Next::Acknowledge(client), time_us)?);
        }
        while asks && packets.len() < BURST && self.in_flight < IN_FLIGHT {
            let client = self.order[self.place % self.order.len()];
            self.place += 1;
            self.in_flight += 1;
            let next = if self.uses == Use::Kept { Next::Request(client) } else { Next::Syn(client) };
            packets.push(self.say(next, time_us)?);
        }
        Ok(())
    }

    fn say(&mut self, next: Next, time_us: u64) -> Result<Packet> {
        match next {
            Next::Syn(number) => {
                self.clients[number as usize] = Ends::new(client(number), VIP);
                self.clients[number as usize].syn(tcp::SYN, &mut self.small, time_us)
            }
            Next::SynAck(number) => {
                self.upstreams[number as usize].syn(tcp::SYN | tcp::ACK, &mut self.small, time_us)
            }
            Next::Request(number) => {
                let ends = &mut self.clients[number as usize];
                ends.came = 0;
                ends.segment(tcp::PSH, REQUEST, &mut self.requests, time_us)
            }
            Next::Response(number) => {
                let len = self.response.len();
                self.upstreams[number as usize].segment(tcp::PSH, len, &mut self.answers, time_us)
            }
            Next::Acknowledge(number) => {
                self.clients[number as usize].segment(0, 0, &mut self.small, time_us)
            }
            Next::Finish(number) => {
                self.clients[number as usize].segment(tcp::FIN, 0, &mut self.small, time_us)
            }
        }
    }

    /// Lets the peers see what the worker sent.
    pub(super) fn see(&mut self, sent: &mut Vec<Sent>, time_us: u64) -> Result<()> {
        for sent in sent.drain(..) {
            ensure!(sent.flags & tcp::RST == 0, "a RST: {sent:?}");
            if sent.local == VIP {
                self.client_sees(&sent, time_us)?
            } else {
                self.backend_sees(&sent, time_us)?
            }
        }
        Ok(())
    }

    fn client_sees(&mut self, sent: &Sent, time_us: u64) -> Result<()> {
        let number = number_of(sent.remote);
        let ends = self.clients.get_mut(number as usize).context("a segment to nobody")?;
        if sent.flags & tcp::SYN != 0 {
            ends.ack = sent.seq.wrapping_add(1);
            ends.offset = sent.timestamp.wrapping_sub(clock(time_us));
            self.soon.push_back(Next::Acknowledge(number));
            if self.uses == Use::Once {
                self.soon.push_back(Next::Request(number));
            }
            return Ok(());
        }
        let fin = u32::from(sent.flags & tcp::FIN != 0);
        if sent.len + fin == 0 {
            return Ok(());
        }
        ensure!(sent.seq == ends.ack, "{sent:?} is not the next to {ends:?}");
        ends.ack = sent.seq.wrapping_add(sent.len + fin);
        ends.came += sent.len;
        if self.response_len == 0 {
            // of the first, alone on its connection: what all others have to be
            self.response_len = sent.len;
        }
        if sent.len > 0 && ends.came >= self.response_len {
            ensure!(ends.came == self.response_len, "{} bytes, not {}", ends.came, self.response_len);
            self.answered += 1;
            self.in_flight -= 1;
            if self.uses == Use::Kept {
                self.acknowledgements.push_back(number);
            }
        }
        if fin != 0 {
            ensure!(self.uses == Use::Once, "a kept connection was closed: {sent:?}");
            self.soon.push_back(Next::Finish(number));
        }
        Ok(())
    }

    fn backend_sees(&mut self, sent: &Sent, time_us: u64) -> Result<()> {
        let key = (sent.remote.address, sent.local.port);
        if sent.flags & tcp::SYN != 0 {
            let mut ends = Ends::new(sent.remote, sent.local);
            ends.ack = sent.seq.wrapping_add(1);
            ends.offset = sent.timestamp.wrapping_sub(clock(time_us));
            let number = self.upstreams.len() as u32;
            self.upstreams.push(ends);
            self.by_ends.insert(key, number);
            self.soon.push_back(Next::SynAck(number));
            return Ok(());
        }
        ensure!(sent.flags & tcp::FIN == 0, "a connection to a backend was closed: {sent:?}");
        if sent.len == 0 {
            return Ok(());
        }
        let number = *self.by_ends.get(&key).context("a segment to no backend")?;
        let ends = &mut self.upstreams[number as usize];
        ensure!(sent.seq == ends.ack, "{sent:?} is not the next to {ends:?}");
        ends.ack = sent.seq.wrapping_add(sent.len);
        self.asked += 1;
        self.responses.push_back(number);
        Ok(())
    }

    /// Compares samples of what was sent.
    pub(super) fn compare(&mut self, samples: &mut [(Endpoint, Vec<u8>)]) -> Result<()> {
        for (to, bytes) in samples.iter_mut().filter(|(_, bytes)| !bytes.is_empty()) {
            let head_end = bytes.windows(4).position(|part| part == b"\r\n\r\n").context("no head")? + 4;
            let (head, body) = bytes.split_at(head_end);
            let head = std::str::from_utf8(head)?;
            if to.port == BACKEND_PORT {
                let right = head.starts_with("GET /service-") && head.contains("X-Forwarded-For: 198.19.");
                ensure!(right && body.is_empty(), "a request went on as {head}");
            } else {
                let right =
                    head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Content-Length: 1024\r\n");
                ensure!(right, "a response went on as {head}");
                let is_whole = body.iter().enumerate().all(|(at, byte)| *byte == pattern(at));
                ensure!(is_whole && body.len() == BODY, "a body of {} bytes came changed", body.len());
            }
            bytes.clear();
            self.compared += 1;
        }
        Ok(())
    }

    /// Fails where too little was compared.
    pub(super) fn check(&self) -> Result<()> {
        if self.compared == 0 {
            bail!("nothing was compared");
        }
        Ok(())
    }
}

impl Ends {
    fn new(local: Endpoint, remote: Endpoint) -> Self {
        Self { local, remote, seq: ISS, ack: 0, offset: 0, came: 0 }
    }

    fn header(&self, flags: u8, options: OptionBytes) -> Header {
        Header {
            local: self.local,
            remote: self.remote,
            seq: SeqNumber(self.seq),
            ack: SeqNumber(self.ack),
            flags,
            window: WINDOW,
            options,
            ..Header::default()
        }
    }

    fn syn(&mut self, flags: u8, pool: &mut Pool, time_us: u64) -> Result<Packet> {
        let value = clock(time_us);
        let echo = if flags & tcp::ACK != 0 { value.wrapping_add(self.offset) } else { 0 };
        let options = Options {
            mss: Some(MSS),
            window_scale: Some(SCALE),
            sack_permitted: true,
            timestamps: Some(Timestamps { value, echo }),
            ..Options::default()
        };
        let header = self.header(flags, OptionBytes::from(&options));
        self.seq = self.seq.wrapping_add(1);
        pool.fill(|frame| write(&header, 0, frame.start(14 + header.len())))
    }

    /// A segment; its data lie in the pool's frames already.
    fn segment(&mut self, flags: u8, len: usize, pool: &mut Pool, time_us: u64) -> Result<Packet> {
        let value = clock(time_us);
        let stamps = Timestamps { value, echo: value.wrapping_add(self.offset) };
        let header = self.header(flags | tcp::ACK, OptionBytes::timestamps(stamps));
        self.seq = self.seq.wrapping_add(len as u32 + u32::from(flags & tcp::FIN != 0));
        pool.fill(|frame| write(&header, len, frame.start(DATA + len)))
    }
}

/// The clock of timestamps.
const fn clock(time_us: u64) -> u32 {
    (time_us / 1_000) as u32
}

fn write(header: &Header, payload: usize, out: &mut [u8]) {
    out[12..14].copy_from_slice(&[8, 0]);
    header.write_without_checksum(payload, &mut out[14..]);
}

/// Puts data where segments have it.
fn put(bytes: &mut [u8], data: &[u8]) {
    bytes[DATA..DATA + data.len()].copy_from_slice(data);
}

/// A request of [`REQUEST`] bytes.
fn request(route: usize, close: bool) -> Vec<u8> {
    let token = if close { "Connection: close\r\n" } else { "" };
    let head = format!("GET {}/item HTTP/1.1\r\nHost: {HOST}\r\nAccept: */*\r\n{token}", worker::path(route));
    let left = REQUEST.saturating_sub(head.len() + "X-Pad: \r\n\r\n".len());
    format!("{head}X-Pad: {}\r\n\r\n", "p".repeat(left)).into_bytes()
}

/// A response as nginx writes it, with a body of [`BODY`] bytes.
fn response() -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 23 Nov 2026 16:00:00 GMT\r\nContent-Type: text/html\r\n\
         Content-Length: {BODY}\r\nConnection: keep-alive\r\n\r\n"
    );
    head.into_bytes().into_iter().chain((0..BODY).map(pattern)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_size_and_every_client_an_end() {
        for close in [false, true] {
            assert_eq!(request(99_999, close).len(), REQUEST);
        }
        for number in [0, 1, 9_999, 16_384, 262_143] {
            assert_eq!(number_of(client(number)), number);
        }
        assert!(DATA + response().len() <= 1_514);
    }
}

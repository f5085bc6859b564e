//! Random clients and backends, slow, truncating, resetting, lying and pipelining: each request gets at most one response, in order, that
//! is its own; what is cut short is known to be; and nothing is left of anything.

use weir_http::routes::spec::{Action, Mirror, Respond};
use weir_l7::http::rules::{HttpPool, Retry};
use weir_tcp::Ended;

use super::{route, to_pool, with};
use crate::world::{POOL, Plan, World};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, limit: u64) -> bool {
        self.next().is_multiple_of(limit)
    }
}

/// A client: what it will send, and what it got.
struct Client {
    handle: usize,
    to_send: Vec<u8>,
    /// Ids of its requests, in order; whether each is HEAD.
    asked: Vec<(u64, bool)>,
    got: Vec<u8>,
}

/// A backend's end of a connection.
struct Backend {
    handle: usize,
    got: Vec<u8>,
    to_send: Vec<u8>,
    closes: bool,
}

fn request(random: &mut Random, id: u64) -> (Vec<u8>, bool) {
    let own = if random.one_in(10) { "/own" } else { "" };
    let body = vec![b'r'; random.below(3_000) as usize];
    match random.below(5) {
        0 => (format!("HEAD {own}/{id} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes(), true),
        1 => {
            let head =
                format!("PUT {own}/{id} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
            ([head.into_bytes(), body].concat(), false)
        }
        2 => {
            let mut bytes =
                format!("POST {own}/{id} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .into_bytes();
            for chunk in body.chunks(700) {
                bytes.extend(format!("{:x};e=1\r\n", chunk.len()).bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
            (bytes, false)
        }
        _ => (format!("GET {own}/{id} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes(), false),
    }
}

/// The first whole message of some bytes: its length and its first line; bodies are of a length, chunked, or none.
fn message(bytes: &[u8], has_no_body: bool) -> Option<(usize, String)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let line = head.lines().next().unwrap().to_owned();
    if has_no_body || line.starts_with("HTTP/1.1 1") {
        return Some((end, line));
    }
    if head.contains("Transfer-Encoding: chunked") {
        let mut at = end;
        loop {
            let size_end = bytes[at..].windows(2).position(|two| two == b"\r\n")? + at;
            let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..size_end]).unwrap(), 16).unwrap();
            at = size_end + 2 + size + 2;
            if at > bytes.len() {
                return None;
            }
            if size == 0 {
                return Some((at, line));
            }
        }
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |length| length.parse::<usize>().unwrap());
    (bytes.len() >= end + length).then_some((end + length, line))
}

impl Backend {
    /// Answers the requests that are whole; some badly.
    fn answer(&mut self, random: &mut Random) {
        while let Some((len, line)) = message(&self.got, false) {
            self.got.drain(..len);
            let id = line.split(' ').nth(1).unwrap().to_owned();
            let is_head = line.starts_with("HEAD");
            if random.one_in(10) {
                self.to_send.extend(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
            }
            let body = format!("{id}:").into_bytes();
            let filler = vec![b'b'; random.below(4_000) as usize];
            let body = [body, filler].concat();
            match random.below(16) {
                0 => {
                    let lie = format!("HTTP/1.1 200 OK\r\nX-Id: {id}\r\nContent-Length: 999999\r\n\r\nlie");
                    self.to_send.extend(lie.bytes());
                }
                1 => self.to_send.extend(b"nonsense\r\n\r\n"),
                2 => self.closes = true,
                3..7 if !is_head => {
                    let head = format!("HTTP/1.1 200 OK\r\nX-Id: {id}\r\nTransfer-Encoding: chunked\r\n\r\n");
                    self.to_send.extend(head.bytes());
                    for chunk in body.chunks(1_000) {
                        self.to_send.extend(format!("{:x}\r\n", chunk.len()).bytes());
                        self.to_send.extend(chunk);
                        self.to_send.extend(b"\r\n");
                    }
                    self.to_send.extend(b"0\r\n\r\n");
                }
                _ => {
                    let head =
                        format!("HTTP/1.1 200 OK\r\nX-Id: {id}\r\nContent-Length: {}\r\n\r\n", body.len());
                    self.to_send.extend(head.bytes());
                    if !is_head {
                        self.to_send.extend(body);
                    }
                }
            }
        }
    }
}

impl Client {
    /// Takes whole responses off what it got: each must be to its oldest request, unless the proxy has answered.
    fn check(&mut self) {
        while let Some((_, is_head)) = self.asked.first().copied() {
            let Some((len, line)) = message(&self.got, is_head) else { return };
            let text = String::from_utf8_lossy(&self.got[..len]).into_owned();
            self.got.drain(..len);
            if line.starts_with("HTTP/1.1 1") {
                continue;
            }
            let (id, _) = self.asked.remove(0);
            let is_own = text.contains("weir-cause: ") || text.contains("X-Own: 1");
            assert!(is_own || text.contains(&format!("X-Id: /{id}\r\n")), "request {id} got {text}");
        }
        assert!(self.got.is_empty(), "more than was asked for: {}", self.got.escape_ascii());
    }
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let mut own = route(
        "/own",
        Action::Respond(Respond { status: 200, content_type: "a/b".into(), body: b"own".as_slice().into() }),
    );
    own.response.fields = vec![weir_http::routes::spec::FieldEdit::Set("X-Own".into(), "1".into())];
    let mut rest = route("/", to_pool());
    rest.mirror = random.one_in(2).then_some(Mirror { pool: POOL, per_ten_thousand: 3_000 });
    let retry = Retry { attempts: 2, on_status: vec![503], ..Retry::default() };
    let idle_connections = random.below(4) as u32;
    let mut plan = Plan {
        backends: 3,
        backend_limit: if random.one_in(2) { 3 } else { 0 },
        http_pool: HttpPool { retry, idle_connections, breaker: None, ..HttpPool::default() },
        ..with(|listener| {
            listener.routes = [own, rest].into();
            listener.limits.client_body_buffer = if seed.is_multiple_of(3) { 1_000 } else { 0 };
        })
    };
    plan.rules.queue = 5;
    plan.rules.queue_ms = 5_000;
    let mut world = World::new(plan);
    world.around.longest = 100 + random.below(600) as usize;
    let (mut clients, mut backends): (Vec<Client>, Vec<Backend>) = (vec![], vec![]);
    let mut next_id = 0;
    for _ in 0..600 {
        for handle in world.fake.upstreams() {
            if !backends.iter().any(|backend| backend.handle == handle) {
                backends.push(Backend { handle, got: vec![], to_send: vec![], closes: false });
                match random.below(8) {
                    0 => world.dies(handle, Ended::Refused),
                    1 => {}
                    _ => world.answer(handle),
                }
            }
        }
        if random.one_in(4) && clients.len() < 60 {
            let handle = world.client();
            world.fake.connections[handle].limit = 500 + random.below(60_000) as usize;
            let mut client = Client { handle, to_send: vec![], asked: vec![], got: vec![] };
            for _ in 0..1 + random.below(4) {
                let (bytes, is_head) = request(&mut random, next_id);
                client.to_send.extend(bytes);
                client.asked.push((next_id, is_head));
                next_id += 1;
            }
            clients.push(client);
        }
        for client in &mut clients {
            let is_open = world.fake.connections[client.handle].is_open;
            if is_open && !client.to_send.is_empty() && random.one_in(2) {
                let len = (1 + random.below(1_500) as usize).min(client.to_send.len());
                let bytes: Vec<u8> = client.to_send.drain(..len).collect();
                world.arrives(client.handle, &bytes);
            }
            if random.one_in(2) {
                let read = world.reads(client.handle, random.below(3_000) as usize);
                client.got.extend(read);
                client.check();
            }
            if is_open && random.one_in(200) {
                world.dies(client.handle, Ended::Reset);
            }
        }
        for backend in &mut backends {
            let is_open = world.fake.connections[backend.handle].is_open;
            if !is_open || random.one_in(3) {
                continue;
            }
            let read = world.reads(backend.handle, random.below(5_000) as usize);
            backend.got.extend(read);
            backend.answer(&mut random);
            let len = (random.below(2_000) as usize).min(backend.to_send.len());
            let bytes: Vec<u8> = backend.to_send.drain(..len).collect();
            if !bytes.is_empty() && world.fake.connections[backend.handle].is_open {
                world.arrives(backend.handle, &bytes);
            }
            if backend.closes && backend.to_send.is_empty() {
                if random.one_in(2) {
                    world.finishes(backend.handle);
                } else {
                    world.dies(backend.handle, Ended::Reset);
                }
            }
        }
        if random.one_in(3) {
            world.advance(random.below(3_000));
        }
        if random.one_in(100) {
            let mut plan = world.plan.clone();
            plan.down = if random.one_in(2) { vec![random.below(3) as u32] } else { vec![] };
            plan.drained = if random.one_in(2) { vec![random.below(3) as u32] } else { vec![] };
            world.adopt(plan);
        }
    }
    assert!(world.around.told.len() > 20, "seed {seed}: nothing has happened");
    let own: u64 = weir_http::cause::Cause::ALL.iter().map(|cause| world.books.cause(*cause)).sum();
    assert_eq!(world.books.http(weir_l7::http::event::HttpCount::Own), own);
    world.ends();
}

#[test]
fn whatever_clients_and_backends_do_nobody_gets_what_is_not_theirs_and_nothing_is_left() {
    for seed in 0..200 {
        println!("seed {seed}");
        run(seed);
    }
}

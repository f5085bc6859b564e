//! How does the engine become a stack that scripts can run? Buffers that are counted, a wire that can be full, and names for
//! settings, events and values.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use weir_net::{Family, ParseOptions, Parsed, Protocol, checksum, icmp, parse};
use weir_tcp::icmp::Problem;
use weir_tcp::{
    Algorithm, Buffer, Chunk, ConnectionConfig, Endpoint, Engine, EngineConfig, Events, Handle, Handled,
    Header, Instant, KeepAlive, Payload, State, SynCookies, Transmit,
};

use super::stack::{News, Stack};
use super::wire::ethernet;

/// Bytes that one call of `send` puts into a buffer of its own at most.
const PIECE: usize = 16_384;
/// The only row of the listener table.
const LISTENER: u16 = 0;

/// Memory that knows when it is given back.
struct Memory {
    bytes: Vec<u8>,
    live: Rc<Cell<usize>>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.live.set(self.live.get() - 1);
    }
}

struct Counted(Rc<Memory>);

impl Counted {
    fn new(bytes: Vec<u8>, live: &Rc<Cell<usize>>) -> Counted {
        live.set(live.get() + 1);
        Counted(Rc::new(Memory { bytes, live: live.clone() }))
    }
}

impl Buffer for Counted {
    fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    fn share(&self) -> Self {
        Counted(self.0.clone())
    }

    fn cost(&self) -> u32 {
        self.0.bytes.len() as u32
    }
}

/// What leaves the engine; full while it is down.
struct Wire {
    up: bool,
    frames: Vec<Vec<u8>>,
    live: Rc<Cell<usize>>,
}

impl Transmit<Counted> for Wire {
    fn transmit(&mut self, header: &Header, payload: Payload<'_, Counted>) -> bool {
        if !self.up {
            return false;
        }
        let mut data = Vec::new();
        for (buffer, offset, len) in payload {
            let start = usize::from(offset);
            data.extend_from_slice(&buffer.bytes()[start..start + usize::from(len)]);
        }
        let mut headers = vec![0; header.len()];
        let written = header.write(data.len(), checksum::sum(&data), &mut headers);
        assert_eq!(written, headers.len(), "the header does not fit its own length");
        let mut frame = ethernet(header.local.is_v4()).to_vec();
        frame.extend(headers);
        frame.extend(data);
        self.frames.push(frame);
        true
    }

    fn copy(&mut self, bytes: &[u8]) -> Option<Counted> {
        Some(Counted::new(bytes.to_vec(), &self.live))
    }
}

/// An engine with one listener.
pub(crate) struct EngineStack {
    limits: EngineConfig,
    config: ConnectionConfig,
    engine: Option<Engine<Counted>>,
    wire: Wire,
    listening: Option<Endpoint>,
    handles: BTreeMap<(u128, u16), Handle>,
    /// Where acknowledgements stood when a client's connection was accepted.
    accepted: BTreeMap<(u128, u16), u32>,
    /// Our end of each peer's last segment or connection.
    locals: BTreeMap<(u128, u16), Endpoint>,
    /// Clients that the engine told of because their handshake took too long.
    given_up: u64,
    now: Instant,
}

fn key(endpoint: Endpoint) -> (u128, u16) {
    (endpoint.address, endpoint.port)
}

impl EngineStack {
    pub(crate) fn new() -> EngineStack {
        let wire = Wire { up: true, frames: Vec::new(), live: Rc::default() };
        EngineStack {
            limits: EngineConfig { connections: 64, time_waits: 64, ..EngineConfig::default() },
            config: ConnectionConfig::default(),
            engine: None,
            wire,
            listening: None,
            handles: BTreeMap::new(),
            accepted: BTreeMap::new(),
            locals: BTreeMap::new(),
            given_up: 0,
            now: Instant(0),
        }
    }

    /// The engine, which begins with the first thing that happens to it.
    fn engine(&mut self, now: Instant) -> (&mut Engine<Counted>, &mut Wire) {
        self.now = now;
        let engine = self.engine.get_or_insert_with(|| {
            let mut engine = Engine::new(self.limits, *b"thirty-two bytes of known secret", now);
            engine.set_listener(LISTENER, self.config);
            engine
        });
        (engine, &mut self.wire)
    }

    fn handle(&self, remote: Endpoint) -> Result<Handle, String> {
        let handle = self.handles.get(&key(remote)).copied();
        handle.ok_or_else(|| "the application holds no such connection: none was accepted or opened".into())
    }

    fn icmp(&mut self, frame: &[u8], parsed: &Parsed, now: Instant) -> Result<(), String> {
        let inner = icmp::inner(frame, parsed).map_err(|malformed| format!("ICMP: {malformed:?}"))?;
        if let Some(problem) = Problem::of(frame, parsed) {
            let (engine, _) = self.engine(now);
            engine.icmp(frame, &inner, problem, now);
        }
        Ok(())
    }
}

impl Stack for EngineStack {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        if let Some(key) = key.strip_prefix("engine ") {
            if self.engine.is_some() {
                return Err("the engine has begun: set its limits first".into());
            }
            return limit(&mut self.limits, key, value);
        }
        setting(&mut self.config, key, value)?;
        if let Some(engine) = &mut self.engine {
            engine.set_listener(LISTENER, self.config);
        }
        Ok(())
    }

    fn listen(&mut self, local: Endpoint) {
        self.listening = Some(local);
    }

    fn connect(&mut self, local: Endpoint, remote: Endpoint, now: Instant) -> Result<(), String> {
        let (engine, _) = self.engine(now);
        let handle = engine
            .connect(local, remote, LISTENER, 7, now)
            .map_err(|problem| format!("connect: {problem:?}"))?;
        self.handles.insert(key(remote), handle);
        self.locals.insert(key(remote), local);
        Ok(())
    }

    fn input(&mut self, frame: &[u8], now: Instant) -> Result<(), String> {
        // the worker drops what does not parse before the engine sees it
        let Ok(parsed) = parse(frame, &ParseOptions { l3_checksum_ok: false }) else { return Ok(()) };
        if parsed.protocol != Protocol::TCP {
            return self.icmp(frame, &parsed, now);
        }
        let (src, dst) = match parsed.family() {
            Some(Family::V4) => {
                let (src, dst) = parsed.addresses_v4(frame);
                (u128::from(src) | 0xffff_0000_0000, u128::from(dst) | 0xffff_0000_0000)
            }
            _ => parsed.addresses_v6(frame),
        };
        let remote = Endpoint { address: src, port: parsed.src_port };
        let local = Endpoint { address: dst, port: parsed.dst_port };
        self.locals.insert(key(remote), local);
        let listener = (self.listening == Some(local)).then_some(LISTENER);
        let buffer = Counted::new(frame.to_vec(), &self.wire.live);
        let (engine, wire) = self.engine(now);
        let mut lookup = engine.prepare(frame, &parsed);
        engine.guess(&mut lookup);
        engine.warm(&lookup);
        if let Handled::Unknown(buffer) = engine.segment(buffer, &parsed, lookup, false, now, wire) {
            engine.unknown(buffer, &parsed, listener, now, wire);
        }
        Ok(())
    }

    fn settle(&mut self, now: Instant) {
        self.now = now;
        if let Some(engine) = &mut self.engine {
            engine.transmit(now, &mut self.wire);
        }
    }

    fn next_deadline(&mut self) -> Option<Instant> {
        let now = self.now;
        self.engine.as_mut()?.next_deadline(now)
    }

    fn advance(&mut self, now: Instant) {
        self.now = now;
        if let Some(engine) = &mut self.engine {
            engine.advance(now, &mut self.wire);
        }
    }

    fn output(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.wire.frames)
    }

    fn news(&mut self) -> Vec<News> {
        let Some(engine) = &mut self.engine else { return Vec::new() };
        let mut news = Vec::new();
        while let Some((_, clients)) = engine.poll_given_up() {
            self.given_up += clients;
        }
        while let Some((handle, events)) = engine.poll_event() {
            let Some(info) = engine.info(handle) else {
                news.push(News {
                    remote: Endpoint::default(),
                    name: format!("{events:?} of a stale handle"),
                });
                continue;
            };
            let names = [
                (Events::ACCEPTED, "accepted"),
                (Events::CONNECTED, "connected"),
                (Events::READABLE, "readable"),
                (Events::WRITABLE, "writable"),
                (Events::FINISHED, "finished"),
                (Events::FLUSHED, "flushed"),
            ];
            if events.has(Events::ACCEPTED) {
                self.handles.insert(key(info.remote), handle);
                self.accepted.insert(key(info.remote), engine.acknowledged(handle));
            }
            for (event, name) in names {
                if events.has(event) {
                    news.push(News { remote: info.remote, name: name.into() });
                }
            }
            if events.has(Events::CLOSED) {
                let why = words(&format!("{:?}", info.ended));
                news.push(News { remote: info.remote, name: format!("closed {why}") });
            }
        }
        news
    }

    fn send(&mut self, remote: Endpoint, bytes: &[u8], now: Instant) -> Result<usize, String> {
        let handle = self.handle(remote)?;
        let live = self.wire.live.clone();
        let (engine, _) = self.engine(now);
        let mut taken = 0;
        for piece in bytes.chunks(PIECE) {
            if engine.send(handle, Chunk::whole(Counted::new(piece.to_vec(), &live))).is_err() {
                break;
            }
            taken += piece.len();
        }
        Ok(taken)
    }

    fn receive(&mut self, remote: Endpoint, now: Instant) -> Result<Option<Vec<u8>>, String> {
        let handle = self.handle(remote)?;
        let (engine, _) = self.engine(now);
        Ok(engine.receive(handle).map(|chunk| chunk.bytes().to_vec()))
    }

    fn shutdown(&mut self, remote: Endpoint, now: Instant) -> Result<(), String> {
        let handle = self.handle(remote)?;
        self.engine(now).0.shutdown(handle);
        Ok(())
    }

    fn abort(&mut self, remote: Endpoint, now: Instant) -> Result<(), String> {
        let handle = self.handle(remote)?;
        self.engine(now).0.abort(handle);
        Ok(())
    }

    fn release(&mut self, remote: Endpoint, now: Instant) -> Result<(), String> {
        let handle = self.handle(remote)?;
        self.engine(now).0.release(handle);
        self.handles.remove(&key(remote));
        Ok(())
    }

    fn link(&mut self, up: bool) {
        self.wire.up = up;
    }

    fn rotate(&mut self, now: Instant) {
        self.engine(now).0.rotate_secrets(now);
    }

    fn inspect(&self, remote: Endpoint, what: &str) -> Result<Option<String>, String> {
        let Some(engine) = &self.engine else { return Ok(Some("0".into())) };
        let census = engine.census();
        let taken = self.locals.get(&key(remote)).is_some_and(|local| engine.is_taken(*local, remote));
        match what {
            "connections" => return Ok(Some(engine.live().to_string())),
            "time-waits" => return Ok(Some(census.time_wait.to_string())),
            "given-up" => {
                // told and counted alike
                let told = (self.given_up == engine.counters().handshake_timeouts).then_some(self.given_up);
                return Ok(told.map(|told| told.to_string()));
            }
            "taken" => return Ok(Some(if taken { "yes" } else { "no" }.into())),
            "gone" => return Ok(taken.then(|| format!("{census:?}"))),
            _ => {}
        }
        let Some(info) = self.handles.get(&key(remote)).and_then(|handle| engine.info(*handle)) else {
            // the application holds no handle of a half-open connection
            let half_open = what == "state" && taken && census.half_open > 0;
            return Ok(half_open.then(|| "SYN-RECEIVED".into()));
        };
        let segments = |bytes: u32| (bytes / u32::from(info.mss)).to_string();
        Ok(Some(match what {
            "state" => state(info.state).into(),
            "cwnd" => segments(info.congestion_window),
            "ssthresh" => segments(info.slow_start_threshold),
            "srtt" => (info.round_trip_us / 1_000).to_string(),
            "rto" => (info.retransmission_timeout_us / 1_000).to_string(),
            "mss" => info.mss.to_string(),
            "in-flight" => info.in_flight.to_string(),
            "acknowledged" => {
                let stands = self.handles.get(&key(remote)).map_or(0, |handle| engine.acknowledged(*handle));
                stands.wrapping_sub(self.accepted.get(&key(remote)).copied().unwrap_or(0)).to_string()
            }
            _ => return Err(format!("`assert {what}`: no such value")),
        }))
    }

    fn leaked(&mut self, now: Instant) -> usize {
        self.wire.up = true;
        let handles = std::mem::take(&mut self.handles);
        let (engine, wire) = self.engine(now);
        for handle in handles.into_values() {
            engine.abort(handle);
            engine.release(handle);
        }
        engine.transmit(now, wire);
        // connections that the application let go of before may still send what they have
        if engine.live() == 0 { wire.live.get() } else { 0 }
    }
}

/// `DataAfterClose` as `data after close`.
fn words(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push(' ');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

fn state(state: State) -> &'static str {
    match state {
        State::Closed => "CLOSED",
        State::SynSent => "SYN-SENT",
        State::SynReceived => "SYN-RECEIVED",
        State::Established => "ESTABLISHED",
        State::FinWait1 => "FIN-WAIT-1",
        State::FinWait2 => "FIN-WAIT-2",
        State::CloseWait => "CLOSE-WAIT",
        State::Closing => "CLOSING",
        State::LastAck => "LAST-ACK",
    }
}

fn parsed<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("`{value}` is no value of {key}"))
}

fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{key} is on or off, not `{value}`")),
    }
}

fn limit(limits: &mut EngineConfig, key: &str, value: &str) -> Result<(), String> {
    match key {
        "connections" => limits.connections = parsed(key, value)?,
        "time-waits" => limits.time_waits = parsed(key, value)?,
        "pieces" => limits.pieces = parsed(key, value)?,
        "memory" => limits.memory = parsed(key, value)?,
        "challenge-acks" => limits.challenge_acks = parsed(key, value)?,
        _ => return Err(format!("no such limit: {key}")),
    }
    Ok(())
}

fn setting(config: &mut ConnectionConfig, key: &str, value: &str) -> Result<(), String> {
    match key {
        "no-delay" => config.no_delay = switch(key, value)?,
        "keep-alive" => config.keep_alive = keep_alive(key, value)?,
        "initial-window" => config.initial_window = parsed(key, value)?,
        "algorithm" => {
            config.algorithm = match value {
                "cubic" => Algorithm::Cubic,
                "newreno" => Algorithm::NewReno,
                _ => return Err(format!("no such algorithm: {value}")),
            };
        }
        "fast-open" => config.fast_open = switch(key, value)?,
        "mss" => config.mss = Some(parsed(key, value)?),
        "receive-buffer" => config.receive_buffer = parsed(key, value)?,
        "send-buffer" => config.send_buffer = parsed(key, value)?,
        "slow-start-after-idle" => config.slow_start_after_idle = switch(key, value)?,
        "backlog" => config.backlog = parsed(key, value)?,
        "syn-cookies" => {
            config.syn_cookies = match value {
                "auto" => SynCookies::Auto,
                "always" => SynCookies::Always,
                "never" => SynCookies::Never,
                _ => return Err(format!("SYN cookies are auto, always or never, not `{value}`")),
            };
        }
        "ecn" => config.ecn = switch(key, value)?,
        "ecn-request" => config.ecn_request = switch(key, value)?,
        "timestamps" => config.timestamps = switch(key, value)?,
        "sack" => config.sack = switch(key, value)?,
        "window-scaling" => config.window_scaling = switch(key, value)?,
        "delayed-ack" => config.delayed_ack_ms = parsed(key, value)?,
        "rto-min" => config.rto_min_ms = parsed(key, value)?,
        "rto-max" => config.rto_max_ms = parsed(key, value)?,
        "handshake" => config.handshake_ms = Some(parsed(key, value)?),
        "syn-retries" => config.syn_retries = parsed(key, value)?,
        "data-retries" => config.data_retries = parsed(key, value)?,
        "user-timeout" => config.user_timeout_ms = Some(parsed(key, value)?),
        "fin-wait" => config.fin_wait_s = parsed(key, value)?,
        "time-wait" => config.time_wait_s = parsed(key, value)?,
        "mtu" => config.mtu = parsed(key, value)?,
        "hop-limit" => config.hop_limit = parsed(key, value)?,
        _ => return Err(format!("no such setting: {key}")),
    }
    Ok(())
}

/// `off`, or `IDLE/INTERVAL/PROBES` in seconds.
fn keep_alive(key: &str, value: &str) -> Result<Option<KeepAlive>, String> {
    if value == "off" {
        return Ok(None);
    }
    match value.split('/').collect::<Vec<_>>().as_slice() {
        [idle, interval, probes] => Ok(Some(KeepAlive {
            idle_s: parsed(key, idle)?,
            interval_s: parsed(key, interval)?,
            probes: parsed(key, probes)?,
        })),
        _ => Err(format!("keep-alive is off or IDLE/INTERVAL/PROBES, not `{value}`")),
    }
}

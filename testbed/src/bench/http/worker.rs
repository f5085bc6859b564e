//! A worker: TCP engine, proxy and rules, driven as the dataplane drives them.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use hugepages::prefetch;
use weir_http::cause::Cause as HttpCause;
use weir_http::routes::spec::{Action, Edits, Host, Path, Route, RouteTimes, Split};
use weir_l4::services::Algorithm;
use weir_l4::snat::ReplyOwner;
use weir_l4::{Backend, Listener, Mode, OnDown, Parts, Pool as ServicesPool, Services};
use weir_l7::http::event::{BackendHttpCount, HttpCount, HttpGauge};
use weir_l7::http::rules::{HttpListener, HttpPool};
use weir_l7::http::site::Site;
use weir_l7::{
    Accounts, BackendCount, Cause, ListenerCount, ListenerRules, PoolRules, Proxy, ProxyConfig, Rules,
    Surroundings,
};
use weir_net::{ParseOptions, Parsed, parse};
use weir_tcp::{ConnectionConfig, Endpoint, Engine, EngineConfig, Handle, Handled, Instant, Lookup};

use super::super::tcp::packet::{Packet, Pool};
use super::peers::{BACKENDS, HOST, SOURCE, VIP, backend};
use super::wire::Wire;

/// Packets of a burst.
pub(super) const BURST: usize = 32;
/// Time from one burst to the next, µs; it is virtual, so that timers come at their time whatever the machine.
pub(super) const STEP_US: u64 = 10;
/// The listener, its pool, and the engine's profile of connections to backends.
const LISTENER: u16 = 0;
const POOL: u32 = 0;
const PROFILE: u16 = 1;
/// What the NIC has done.
const VERIFIED: ParseOptions = ParseOptions { l3_checksum_ok: true };

/// Counters as arrays, as the dataplane's are.
#[derive(Debug)]
pub(super) struct Books {
    /// Requests, responses and so on.
    pub(super) http: [u64; 16],
    /// By cause.
    pub(super) causes: [u64; 64],
    listener: [u64; 16],
    backend: Vec<[u64; 16]>,
    gauges: [i64; 4],
    /// Connections that the proxy aborted.
    pub(super) aborted: u64,
}

/// Counts one more.
#[inline(always)]
fn count(place: Option<&mut u64>, by: u64) {
    if let Some(place) = place {
        *place += by;
    }
}

impl Accounts for Books {
    #[inline]
    fn listener(&mut self, _: u16, what: ListenerCount, by: u64) {
        count(self.listener.get_mut(what as usize), by);
    }
    #[inline]
    fn listener_active(&mut self, _: u16, by: i64) {
        self.gauges[0] += by;
    }
    #[inline]
    fn listener_queued(&mut self, _: u16, by: i64) {
        self.gauges[1] += by;
    }
    #[inline]
    fn backend(&mut self, backend: u32, what: BackendCount, by: u64) {
        count(self.backend.get_mut(backend as usize).and_then(|row| row.get_mut(what as usize)), by);
    }
    #[inline]
    fn backend_active(&mut self, _: u32, by: i64) {
        self.gauges[2] += by;
    }
    #[inline]
    fn snat_exhausted(&mut self) {
        self.aborted += 1;
    }
    #[inline]
    fn aborted(&mut self, _: Cause) {
        self.aborted += 1;
    }
    #[inline]
    fn http(&mut self, _: u16, what: HttpCount, by: u64) {
        count(self.http.get_mut(what as usize), by);
    }
    #[inline]
    fn http_gauge(&mut self, _: u16, _: HttpGauge, by: i64) {
        self.gauges[3] += by;
    }
    #[inline]
    fn cause(&mut self, _: u16, cause: HttpCause) {
        count(self.causes.get_mut(cause as usize), 1);
    }
    #[inline]
    fn backend_http(&mut self, backend: u32, what: BackendHttpCount, by: u64) {
        count(self.backend.get_mut(backend as usize).and_then(|row| row.get_mut(8 + what as usize)), by);
    }
}

/// Buffers for what the proxy writes.
struct Around(Pool);

impl Surroundings<Packet> for Around {
    #[inline]
    fn copy(&mut self, bytes: &[u8]) -> Option<Packet> {
        self.0.copy(bytes)
    }

    fn longest(&self) -> usize {
        1_900
    }

    fn is_taken(&self, _: Endpoint, _: Endpoint) -> bool {
        false
    }
}

/// One worker.
pub(super) struct Worker {
    engine: Engine<Packet>,
    proxy: Proxy<Handle>,
    around: Around,
    /// What was counted.
    pub(super) books: Books,
    /// What left.
    pub(super) wire: Wire,
    parsed: [Parsed; BURST],
    lookups: [Lookup; BURST],
    /// Virtual time.
    pub(super) now: Instant,
    malformed: u64,
}

impl Worker {
    /// A worker for so many clients and so many routes.
    pub(super) fn new(clients: u32, routes: usize) -> Result<Self> {
        let now = Instant(1_000_000_000);
        let connections = clients as usize + 1_024;
        let time_waits = connections.max(1 << 16);
        let config = EngineConfig { connections, time_waits, ..EngineConfig::default() };
        let mut engine = Engine::new(config, [7; 32], now);
        engine.set_listener(LISTENER, ConnectionConfig { backlog: clients, ..ConnectionConfig::default() });
        engine.set_listener(PROFILE, ConnectionConfig::default());
        let (services, rules) = generation(routes)?;
        let config = ProxyConfig { sessions: connections, owner: ReplyOwner::Alone, seed: 7 };
        let proxy = Proxy::new(config, services, rules, now);
        let books = Books {
            http: [0; 16],
            causes: [0; 64],
            listener: [0; 16],
            backend: vec![[0; 16]; BACKENDS as usize],
            gauges: [0; 4],
            aborted: 0,
        };
        Ok(Self {
            engine,
            proxy,
            around: Around(Pool::new()),
            books,
            wire: Wire::new(),
            parsed: [Parsed::default(); BURST],
            lookups: [Lookup::default(); BURST],
            now,
            malformed: 0,
        })
    }

    /// One round of the worker.
    #[inline(never)]
    pub(super) fn burst(&mut self, packets: &mut Vec<Packet>) {
        let Self { engine, proxy, around, books, wire, parsed, lookups, now, malformed } = self;
        *now = now.after(STEP_US);
        let now = *now;
        for packet in packets.iter() {
            prefetch::read(weir_tcp::Buffer::bytes(packet));
        }
        for ((packet, parsed), lookup) in packets.iter().zip(parsed.iter_mut()).zip(lookups.iter_mut()) {
            let frame = weir_tcp::Buffer::bytes(packet);
            *malformed += u64::from(parse::parse_into(frame, &VERIFIED, parsed).is_err());
            *lookup = engine.prepare(frame, parsed);
        }
        for lookup in lookups.iter_mut().take(packets.len()) {
            engine.guess(lookup);
        }
        for lookup in lookups.iter().take(packets.len()) {
            engine.warm(lookup);
        }
        for ((packet, parsed), lookup) in packets.drain(..).zip(parsed.iter()).zip(lookups.iter()) {
            if let Handled::Unknown(packet) = engine.segment(packet, parsed, *lookup, true, now, wire) {
                engine.unknown(packet, parsed, Some(LISTENER), now, wire);
            }
        }
        proxy.run(engine, around, books, now);
        engine.transmit(now, wire);
        engine.advance(now, wire);
        if proxy.next_deadline(now).is_some_and(|due| due <= now) {
            proxy.advance(engine, around, books, now);
            engine.transmit(now, wire);
        }
        wire.flush();
    }

    /// Connections that are open.
    pub(super) fn established(&self) -> u64 {
        u64::from(self.engine.census().established)
    }

    /// Fails where anything was wrong.
    pub(super) fn check(&self) -> Result<()> {
        let counters = self.engine.counters();
        let wrong = self.malformed
            + counters.malformed
            + counters.retransmitted
            + counters.out_of_window
            + counters.no_memory
            + counters.out_of_order
            + counters.duplicate_bytes
            + counters.resets_no_connection
            + self.books.aborted;
        ensure!(wrong == 0, "{wrong} things that should not happen: {:?}, {counters:?}", self.books);
        let causes: u64 = self.books.causes.iter().sum();
        ensure!(causes == 0, "the proxy answered {causes} requests itself: {:?}", self.books.causes);
        Ok(())
    }
}

/// The path that routes are asked for: the one of a number.
pub(super) fn path(number: usize) -> String {
    format!("/service-{number:05}")
}

/// A listener with that many routes, all to one pool.
fn generation(count: usize) -> Result<(Arc<Services>, Arc<Rules>)> {
    let place = |number: u32| Backend {
        address: backend(number).address,
        port: backend(number).port,
        family: 4,
        down: false,
        mtu: 1_500,
        egress: 0,
        next_hop: 0,
        tunnel_source: 0,
    };
    let slots = weir_balance::round_robin::schedule(&vec![1; BACKENDS as usize], 256);
    let pool = Arc::new(ServicesPool {
        index: POOL,
        algorithm: Algorithm::RoundRobin,
        slots: slots.into_boxed_slice(),
        members: (0..BACKENDS).collect(),
    });
    let listener = Listener {
        index: LISTENER,
        vip: VIP.address,
        protocol: 6,
        port_first: VIP.port,
        port_last: VIP.port,
        mode: Mode::Proxy,
        pool: POOL,
        on_down: OnDown::Reset,
        gue_variant: 0,
        gue_port: 0,
        retired: false,
    };
    let services = Services::new(Parts {
        listeners: vec![listener],
        pools: vec![Arc::clone(&pool)],
        backends: (0..BACKENDS).map(|number| (number, place(number))).collect(),
        vips: vec![VIP.address],
        snat: vec![SOURCE],
        snat_ports: (10_000, 60_000),
        ..Parts::default()
    });
    let route = |number: usize| Route {
        name: format!("route-{number}").into(),
        priority: 0,
        host: Host::Exact(HOST.into()),
        path: Path::Prefix(path(number).into()),
        conditions: Vec::new(),
        action: Action::Pools(vec![Split { pool: POOL, weight: 1 }]),
        mirror: None,
        request: Edits::default(),
        response: Edits::default(),
        times: RouteTimes::default(),
        rate_limits: Vec::new(),
    };
    let routes: Vec<Route> = (0..count).map(route).collect();
    let http = HttpListener { routes: routes.into(), ..HttpListener::default() };
    let site = Site::new(http).context("routes")?;
    let rules = Rules::new(
        [(LISTENER, ListenerRules::default())],
        [(POOL, PoolRules::new(&pool, None, None, PROFILE))],
        Vec::new(),
    )
    .with_http([(LISTENER, Arc::new(site))], [(POOL, Arc::new(HttpPool::default()))]);
    Ok((Arc::new(services), Arc::new(rules)))
}

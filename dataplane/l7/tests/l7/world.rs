//! A listener, a pool and backends; a proxy between clients and servers that the test plays.

use std::sync::Arc;

use weir_l4::services::Algorithm;
use weir_l4::snat::ReplyOwner;
use weir_l4::{Backend, Drain, Listener, Mode, OnDown, Parts, Pool, Services, bits_of};
use weir_l7::http::event::HttpGauge;
use weir_l7::http::rules::{HttpListener, HttpPool};
use weir_l7::http::site::Site;
use weir_l7::{
    Counted, Key, Ledger, ListenerCount, ListenerRules, PoolRules, Proxy, ProxyConfig, Rules,
    proxy_protocol::Version,
};
use weir_tcp::{Endpoint, Events, Instant};

use crate::fake::{Around, Books, Fake};

pub(crate) fn end(address: &str, port: u16) -> Endpoint {
    Endpoint { address: bits_of(address.parse().unwrap()), port }
}

pub(crate) const VIP: &str = "198.18.100.1";
/// Index of the one listener.
pub(crate) const LISTENER: u16 = 2;
/// Index of the one pool.
pub(crate) const POOL: u32 = 1;

/// What a test changes of the set-up.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) backends: u32,
    pub(crate) weights: Option<Vec<u32>>,
    pub(crate) algorithm: Algorithm,
    pub(crate) counted: Option<Counted>,
    pub(crate) rules: ListenerRules,
    pub(crate) send_proxy: Option<Version>,
    pub(crate) listener_limit: u32,
    pub(crate) backend_limit: u32,
    pub(crate) on_down: OnDown,
    pub(crate) down: Vec<u32>,
    /// Take no new connections.
    pub(crate) drained: Vec<u32>,
    /// Of the listener.
    pub(crate) drain: Drain,
    pub(crate) snat_ports: (u16, u16),
    pub is_v6: bool,
    pub(crate) sessions: usize,
    /// The listener is HTTP.
    pub(crate) http: Option<HttpListener>,
    pub(crate) http_pool: HttpPool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            backends: 2,
            weights: None,
            algorithm: Algorithm::RoundRobin,
            counted: None,
            rules: ListenerRules::default(),
            send_proxy: None,
            listener_limit: 0,
            backend_limit: 0,
            on_down: OnDown::Reset,
            down: vec![],
            drained: vec![],
            drain: Drain::No,
            snat_ports: (10_000, 10_999),
            is_v6: false,
            sessions: 100,
            http: None,
            http_pool: HttpPool::default(),
        }
    }
}

impl Plan {
    pub(crate) fn build(&self) -> (Arc<Services>, Arc<Rules>) {
        let address = |index: u32| {
            let text = if self.is_v6 {
                format!("2001:db8:1::{}", index + 1)
            } else {
                format!("198.18.1.{}", index + 1)
            };
            bits_of(text.parse().unwrap())
        };
        let backend = |index: u32| Backend {
            address: address(index),
            port: if index == 0 { 0 } else { 8_080 },
            family: if self.is_v6 { 6 } else { 4 },
            down: self.down.contains(&index),
            mtu: 1_500,
            egress: 0,
            next_hop: 0,
            tunnel_source: 0,
        };
        let takes = |index: &u32| !self.down.contains(index) && !self.drained.contains(index);
        let weights = self.weights.clone().unwrap_or_else(|| vec![1; self.backends as usize]);
        let weights: Vec<u32> =
            (0..self.backends).map(|index| if takes(&index) { weights[index as usize] } else { 0 }).collect();
        let mut slots = match self.algorithm {
            Algorithm::RoundRobin => weir_balance::round_robin::schedule(&weights, 100),
            _ => {
                let keyed: Vec<(u64, u32)> = (0u64..).zip(weights.iter().copied()).collect();
                weir_balance::maglev::Table::build(&keyed, 1_009).unwrap()
            }
        };
        if slots.is_empty() {
            slots.push(u16::MAX);
        }
        let pool = Arc::new(Pool {
            index: POOL,
            algorithm: self.algorithm,
            slots: slots.into_boxed_slice(),
            // indices of backends are not their positions
            members: (0..self.backends).map(|position| position + 10).collect(),
        });
        let vip = bits_of(VIP.parse().unwrap());
        let listener = Listener {
            index: LISTENER,
            vip,
            protocol: 6,
            port_first: 80,
            port_last: 80,
            mode: Mode::Proxy,
            pool: POOL,
            on_down: self.on_down,
            gue_variant: 0,
            gue_port: 0,
            retired: false,
        };
        let services = Services::new(Parts {
            listeners: vec![listener],
            pools: vec![pool.clone()],
            backends: (0..self.backends).map(|index| (index + 10, backend(index))).collect(),
            vips: vec![vip],
            snat: vec![end("198.18.0.1", 0).address, end("2001:db8::1", 0).address],
            snat_ports: self.snat_ports,
            drains: vec![(LISTENER, self.drain)],
            ..Parts::default()
        });
        let rules = ListenerRules { is_limited: self.listener_limit != 0, ..self.rules.clone() };
        let limited = if self.backend_limit == 0 { vec![] } else { (10..10 + self.backends).collect() };
        let rules = Rules::new(
            [(LISTENER, rules)],
            [(POOL, PoolRules::new(&pool, self.counted, self.send_proxy, 7))],
            limited,
        );
        let sites = self.http.iter().map(|http| (LISTENER, Arc::new(Site::new(http.clone()).unwrap())));
        let rules = rules.with_http(sites, [(POOL, Arc::new(self.http_pool.clone()))]);
        assert!(rules.is_complete(&services));
        (Arc::new(services), Arc::new(rules))
    }
}

/// A worker's proxy, the node's ledger, and the world around them.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) proxy: Proxy<usize>,
    pub(crate) fake: Fake,
    pub(crate) around: Around,
    pub(crate) books: Books,
    pub(crate) ledger: Ledger,
    /// Whether the ledger's messages get through.
    pub(crate) ledger_answers: bool,
    pub(crate) now: Instant,
    clients: u16,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let (services, rules) = plan.build();
        let config = ProxyConfig { sessions: plan.sessions, owner: ReplyOwner::Alone, seed: 7 };
        let now = Instant(5_000_000);
        let mut ledger = Ledger::new(2);
        ledger.set_limit(Key::Listener(LISTENER), plan.listener_limit);
        (0..plan.backends).for_each(|index| ledger.set_limit(Key::Backend(index + 10), plan.backend_limit));
        Self {
            proxy: Proxy::new(config, services, rules, now),
            plan,
            fake: Fake::default(),
            around: Around::default(),
            books: Books::default(),
            ledger,
            ledger_answers: true,
            now,
            clients: 0,
        }
    }

    pub(crate) fn adopt(&mut self, plan: Plan) {
        let (services, rules) = plan.build();
        self.ledger.set_limit(Key::Listener(LISTENER), plan.listener_limit);
        (0..plan.backends)
            .for_each(|index| self.ledger.set_limit(Key::Backend(index + 10), plan.backend_limit));
        self.plan = plan;
        self.proxy.adopt(services, rules, &mut self.fake, &mut self.books);
        self.advance(0);
    }

    /// News are dealt with, messages go to and fro, until nothing happens.
    pub(crate) fn run(&mut self) {
        let Self { proxy, fake, around, books, ledger, now, .. } = self;
        loop {
            proxy.run(fake, around, books, *now);
            if !self.ledger_answers {
                return;
            }
            let mut quiet = true;
            while let Some(message) = proxy.poll_message() {
                ledger.receive(0, message);
                quiet = false;
            }
            while let Some(message) = ledger.poll(0) {
                proxy.receive(message, fake, around, books, *now);
                quiet = false;
            }
            if quiet {
                return;
            }
        }
    }

    pub(crate) fn advance(&mut self, milliseconds: u64) {
        let end = self.now.after(milliseconds * 1_000);
        loop {
            let due = self.proxy.next_deadline(self.now).filter(|due| *due <= end);
            self.now = due.unwrap_or(end).max(self.now);
            let Self { proxy, fake, around, books, now, .. } = self;
            proxy.advance(fake, around, books, *now);
            self.run();
            if due.is_none() {
                return;
            }
        }
    }

    /// A client connects.
    pub(crate) fn client(&mut self) -> usize {
        self.clients += 1;
        let client = self.fake.client(end("198.18.9.9", self.clients), end(VIP, 80), LISTENER);
        self.run();
        client
    }

    /// The newest SYN to a backend.
    pub(crate) fn syn(&self) -> usize {
        *self.fake.upstreams().last().unwrap()
    }

    /// A client that is connected to a backend.
    pub(crate) fn session(&mut self) -> (usize, usize) {
        let client = self.client();
        let upstream = self.syn();
        self.answer(upstream);
        (client, upstream)
    }

    pub(crate) fn answer(&mut self, upstream: usize) {
        self.fake.tell(upstream, Events::CONNECTED);
        self.run();
    }

    pub(crate) fn arrives(&mut self, handle: usize, bytes: &[u8]) {
        self.fake.arrives(handle, bytes);
        self.run();
    }

    pub(crate) fn finishes(&mut self, handle: usize) {
        self.fake.finishes(handle);
        self.run();
    }

    pub(crate) fn dies(&mut self, handle: usize, ended: weir_tcp::Ended) {
        self.fake.dies(handle, ended);
        self.run();
    }

    pub(crate) fn reads(&mut self, handle: usize, bytes: usize) -> Vec<u8> {
        let read = self.fake.peer_reads(handle, bytes);
        self.run();
        read
    }

    pub(crate) fn is_reset(&self, handle: usize) -> bool {
        self.fake.connections[handle].is_aborted
    }

    pub(crate) fn sent(&self, handle: usize) -> &[u8] {
        &self.fake.connections[handle].sent
    }

    /// The backend of a connection.
    pub(crate) fn backend_of(&self, upstream: usize) -> u32 {
        let address = self.fake.connections[upstream].remote.address;
        10 + (address & 0xff) as u32 - 1
    }

    pub(crate) fn count(&self, count: ListenerCount) -> u64 {
        self.books.of(count)
    }

    /// Nothing is left of anything.
    pub(crate) fn is_clean(&self) {
        assert_eq!((self.proxy.live(), self.proxy.pending()), (0, 0), "sessions");
        assert_eq!((self.proxy.http_clients(), self.proxy.http_upstreams()), (0, 0), "HTTP");
        assert_eq!(self.proxy.http_memory().0, 0, "bytes of heads");
        for gauge in [HttpGauge::Exchanges, HttpGauge::IdleClients, HttpGauge::Tunnels] {
            assert_eq!(self.books.gauge(gauge), 0, "{gauge:?}");
        }
        assert_eq!(self.books.idle(), 0, "idle connections");
        assert_eq!(self.fake.held(), 0, "connections");
        assert_eq!((self.books.active(), self.books.queued(), self.books.all_backends_active()), (0, 0, 0));
        assert_eq!(self.proxy.used(Key::Listener(LISTENER)), 0);
        for index in 10..10 + self.plan.backends {
            assert_eq!(self.proxy.used(Key::Backend(index)), 0, "backend {index}");
        }
    }
}

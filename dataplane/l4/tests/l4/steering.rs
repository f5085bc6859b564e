//! Do all packets of a flow come to one worker, however they are spread?

use std::net::SocketAddr;

use weir_l4::services::Algorithm;
use weir_l4::snat::ReplyOwner;
use weir_l4::steer::{Owner, Spread};
use weir_l4::{Mode, Parts, Services};
use weir_net::hash::{MICROSOFT_KEY, Toeplitz};
use weir_net::{ParseOptions, Parsed, parse};

use crate::packets::{ACK, Packet, TCP, UDP, framed, icmp_error};
use crate::world::{World, address, backend, client, first, host, listener, names, parts, pool};

const MODES: [Mode; 5] = [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Nat, Mode::Fullnat];
const SEED: [u64; 2] = [11, 13];

/// Every mode, protocol and family; mode n listens on port 1000 + n.
fn everything(modes: &[Mode]) -> Parts {
    let mut all = parts();
    for (index, family) in [(0, 4), (1, 6)] {
        let names = names(family);
        let (first, second) = (2 * index, 2 * index + 1);
        all.pools.push(pool(index, Algorithm::Maglev, &[(first, 1), (second, 1)]));
        all.backends.extend([(first, backend(names.backend)), (second, backend(names.second))]);
        for protocol in [TCP, UDP] {
            for (port, mode) in (1_000..).zip(MODES) {
                if modes.contains(&mode) {
                    let vip = vip(family, port);
                    let at = all.listeners.len() as u16;
                    all.listeners.push(listener(at, &vip, protocol, mode, index));
                }
            }
        }
    }
    all
}

fn vip(family: u8, port: u16) -> String {
    SocketAddr::new(names(family).vip.parse::<SocketAddr>().unwrap().ip(), port).to_string()
}

/// How packets are spread: by software, or by a NIC with an unsymmetric key.
#[derive(Clone, Copy, Debug)]
enum Plan {
    Hash(u16),
    Rss(u16),
}

impl Plan {
    fn workers(self) -> u16 {
        match self {
            Self::Hash(workers) | Self::Rss(workers) => workers,
        }
    }

    fn indirection(self) -> Box<[u16]> {
        (0..128).map(|at| at % self.workers()).collect()
    }

    fn spread(self) -> Spread {
        match self {
            Self::Hash(workers) => Spread::Hash { workers },
            Self::Rss(workers) => Spread::Rss {
                workers,
                toeplitz: Box::new(Toeplitz::new(&MICROSOFT_KEY)),
                indirection: self.indirection(),
            },
        }
    }

    fn reply_owner(self, worker: u16) -> ReplyOwner {
        match self {
            Self::Hash(workers) => ReplyOwner::Remainder { worker, workers },
            Self::Rss(_) => ReplyOwner::Rss {
                queue: worker,
                toeplitz: Box::new(Toeplitz::new(&MICROSOFT_KEY)),
                indirection: self.indirection(),
            },
        }
    }

    /// The queue that a NIC puts a whole TCP or UDP packet into.
    fn queue(self, packet: &Packet) -> u16 {
        let mut input = Vec::new();
        match (packet.src.ip(), packet.dst.ip()) {
            (std::net::IpAddr::V4(src), std::net::IpAddr::V4(dst)) => {
                input.extend([src.octets(), dst.octets()].concat());
            }
            (std::net::IpAddr::V6(src), std::net::IpAddr::V6(dst)) => {
                input.extend([src.octets(), dst.octets()].concat());
            }
            _ => panic!("two families"),
        }
        input.extend(packet.src.port().to_be_bytes());
        input.extend(packet.dst.port().to_be_bytes());
        let hash = toeplitz_by_bits(&input);
        self.indirection()[hash as usize % 128]
    }
}

/// The Toeplitz hash as its definition reads: for each input bit set, the 32 key bits from that bit on.
fn toeplitz_by_bits(input: &[u8]) -> u32 {
    let key_bit = |at: usize| u32::from(MICROSOFT_KEY[at / 8] >> (7 - at % 8) & 1);
    let mut hash = 0;
    for at in 0..input.len() * 8 {
        if input[at / 8] >> (7 - at % 8) & 1 == 1 {
            hash ^= (0..32).fold(0, |window, bit| window << 1 | key_bit(at + bit));
        }
    }
    hash
}

struct Cluster {
    plan: Plan,
    spread: Spread,
    services: Services,
    workers: Vec<World>,
}

impl Cluster {
    fn new(plan: Plan, modes: &[Mode]) -> Self {
        let workers = (0..plan.workers())
            .map(|worker| World::seeded(everything(modes), 1_000, plan.reply_owner(worker), SEED))
            .collect();
        Self { plan, spread: plan.spread(), services: Services::new(everything(modes)), workers }
    }

    fn owner_of(&self, frame: &[u8], parsed: &Parsed, own_hash: bool) -> Owner {
        self.spread.owner(&self.services, frame, parsed, own_hash)
    }

    /// The worker of a whole packet: the owner, or whoever the NIC gave it to.
    fn owner(&self, packet: &Packet) -> u16 {
        let frame = packet.frame();
        let parsed = parse(&frame, &ParseOptions::default()).unwrap();
        match (self.owner_of(&frame, &parsed, true), self.plan) {
            (Owner::Worker(worker), _) => worker,
            (Owner::Any, Plan::Rss(_)) => self.plan.queue(packet),
            (Owner::Any, Plan::Hash(_)) => panic!("software steering knows the owner of {packet:?}"),
        }
    }

    /// The worker of a packet that no NIC hashed by its flow.
    fn stray_owner(&self, frame: &[u8], parsed: &Parsed) -> u16 {
        let Owner::Worker(worker) = self.owner_of(frame, parsed, false) else {
            panic!("nobody owns {parsed:?}")
        };
        worker
    }

    fn check_flow(&mut self, mode: Mode, protocol: u8, family: u8, n: u32) -> u16 {
        let names = names(family);
        let port = 1_000 + MODES.iter().position(|other| *other == mode).unwrap() as u16;
        let request = first(protocol, &client(family, n), &vip(family, port));
        let what = format!("{:?} {mode:?} {protocol} {family} {n}", self.plan);
        let worker = self.owner(&request);
        let world = &mut self.workers[usize::from(worker)];
        let (delivery, out) = world.packet(&request).to_backend();
        assert_eq!(self.owner(&request.with(ACK)), worker, "{what}");
        let server: SocketAddr =
            if delivery.backend % 2 == 0 { names.backend } else { names.second }.parse().unwrap();

        // the later fragments of a request
        let long = Packet { payload: vec![7; 200], ..request.with(ACK) };
        self.check_fragments(&long, worker, &what);

        // a router complains to the vip about what the client was sent
        let kind = if family == 4 { 3 } else { 1 };
        let quote = request.answer(ACK).datagram();
        let complaint = framed(&icmp_error(names.router, &host(names.vip), kind, 1, 0, &quote));
        self.check_error(&complaint, worker, &what);

        if !mode.sees_replies() {
            return worker;
        }
        let seen = match mode {
            Mode::Nat => request.src,
            _ => {
                let at = if family == 4 { 20 } else { 40 };
                (address(names.snat), u16::from_be_bytes([out[at], out[at + 1]])).into()
            }
        };
        let reply = Packet { src: server, dst: seen, ..request.answer(ACK) };
        assert_eq!(self.owner(&reply), worker, "{what}: the reply");
        self.workers[usize::from(worker)].packet(&reply).to_client();
        let long = Packet { payload: vec![7; 200], ..reply.clone() };
        self.check_fragments(&long, worker, &what);
        let quote = Packet { src: seen, dst: server, ..request.with(ACK) }.datagram();
        let complaint = framed(&icmp_error(names.router, &seen.ip().to_string(), kind, 1, 0, &quote));
        self.check_error(&complaint, worker, &what);
        worker
    }

    fn check_error(&mut self, frame: &[u8], worker: u16, what: &str) {
        let parsed = parse(frame, &ParseOptions::default()).unwrap();
        assert_eq!(self.stray_owner(frame, &parsed), worker, "{what}: an ICMP error");
        let verdict = self.workers[usize::from(worker)].send(frame).verdict;
        assert!(
            matches!(verdict, weir_l4::Verdict::ToBackend(_) | weir_l4::Verdict::ToClient(_)),
            "{what}: {verdict:?}"
        );
    }

    fn check_fragments(&mut self, packet: &Packet, worker: u16, what: &str) {
        let mut homes = Vec::new();
        for frame in packet.fragments(64) {
            let mut parsed = parse(&frame, &ParseOptions::default()).unwrap();
            let Owner::Worker(home) = self.spread.fragment_home(&frame, &parsed) else {
                panic!("{what}: fragments have no home")
            };
            homes.push(home);
            assert!(self.workers[usize::from(home)].engine.follow_fragment(&frame, &mut parsed, 0), "{what}");
            assert_eq!(self.stray_owner(&frame, &parsed), worker, "{what}: a fragment");
        }
        assert!(homes.len() > 2 && homes.windows(2).all(|two| two[0] == two[1]), "{what}: {homes:?}");
    }
}

fn check(plan: fn(u16) -> Plan, modes: &[Mode]) {
    for workers in 1..=8 {
        let mut cluster = Cluster::new(plan(workers), modes);
        let mut loads = vec![0; usize::from(workers)];
        let mut clients = (1u32..).map(|n| n * 7_919);
        for &mode in modes {
            for (protocol, family) in [(TCP, 4), (UDP, 4), (TCP, 6), (UDP, 6)] {
                for n in clients.by_ref().take(10) {
                    let worker = cluster.check_flow(mode, protocol, family, n);
                    loads[usize::from(worker)] += 1;
                }
            }
        }
        let fair = modes.len() * 40 / usize::from(workers);
        assert!(loads.iter().all(|load| *load > fair / 4), "{workers} workers: {loads:?}");
    }
}

#[test]
fn software_keeps_a_flow_together() {
    check(Plan::Hash, &MODES);
}

#[test]
fn a_nic_and_software_together_keep_a_flow_together() {
    check(Plan::Rss, &MODES);
}

#[test]
fn without_nat_a_nic_alone_keeps_flows_together() {
    let modes = [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Fullnat];
    check(Plan::Rss, &modes);
    let cluster = Cluster::new(Plan::Rss(4), &modes);
    for mode in 0..5u16 {
        let frame = first(TCP, &client(4, 5), &vip(4, 1_000 + mode)).frame();
        let parsed = parse(&frame, &ParseOptions::default()).unwrap();
        assert_eq!(cluster.owner_of(&frame, &parsed, true), Owner::Any, "no packet is handed over");
    }
}

#[test]
fn a_worker_alone_has_it_all() {
    let services = Services::new(everything(&MODES));
    let frame = first(TCP, &client(4, 5), &vip(4, 1_003)).frame();
    let parsed = parse(&frame, &ParseOptions::default()).unwrap();
    assert_eq!(Spread::Alone.owner(&services, &frame, &parsed, true), Owner::Any);
    assert_eq!(Spread::Alone.fragment_home(&frame, &parsed), Owner::Any);
}

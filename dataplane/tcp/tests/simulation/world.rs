//! Two hosts and the links between them, in virtual time.

use std::rc::Rc;

use weir_net::{ParseOptions, parse};
use weir_tcp::segment::Segment;

use crate::host::Host;
use crate::link::{Link, Random};
use crate::plan::Plan;

/// A host.
pub(crate) trait Peer {
    /// Takes in what has arrived, lets timers and applications work, and gives what leaves.
    fn turn(&mut self, arrived: &[Vec<u8>], now: u64, out: &mut Vec<Vec<u8>>);
    /// When it wants its next turn if nothing arrives.
    fn next(&mut self, now: u64) -> Option<u64>;
    /// Whether its applications are done.
    fn is_over(&self) -> bool;
    /// Lets its timers end, then looks for leaks.
    fn assert_nothing_left(&mut self, now: u64);
    /// How it stands, for a failure's report.
    fn describe(&self) -> String;
}

/// Both, and the links between them.
pub(crate) struct World<C, S> {
    pub(crate) plan: Rc<Plan>,
    pub(crate) client: C,
    pub(crate) server: S,
    pub(crate) links: [Link; 2],
    pub(crate) now: u64,
    pub(crate) took_us: u64,
    /// What left, and how both stood after each turn, where somebody asks for it.
    pub(crate) trace: Option<Vec<String>>,
}

impl World<Host, Host> {
    pub(crate) fn new(plan: Plan) -> Self {
        Self::with(
            plan,
            |plan, random, now| Host::new(plan, 0, random, now),
            |plan, random, now| Host::new(plan, 1, random, now),
        )
    }
}

impl<C: Peer, S: Peer> World<C, S> {
    pub(crate) fn with(
        plan: Plan,
        client: impl FnOnce(&Rc<Plan>, Random, u64) -> C,
        server: impl FnOnce(&Rc<Plan>, Random, u64) -> S,
    ) -> Self {
        let mut random = Random(plan.seed);
        let plan = Rc::new(plan);
        let now = random.below(1 << 40);
        let dark: Vec<(u64, u64)> = plan.blackouts.iter().map(|&(from, to)| (now + from, now + to)).collect();
        let mtu = plan.mtu.map(|(at, mtu)| (now + at, mtu));
        let mut link = || Link::new(plan.quality, random.next()).blacked_out(&dark).narrowed(mtu);
        let links = [link(), link()];
        let client = client(&plan, Random(random.next()), now);
        let server = server(&plan, Random(random.next()), now);
        Self { plan, client, server, links, now, took_us: 0, trace: None }
    }

    /// Runs until both are done; the panic says how all stood if that takes too long.
    pub(crate) fn run(&mut self) {
        let start = self.now;
        let deadline = start + self.plan.deadline_s * 1_000_000;
        loop {
            Self::turn(&mut self.client, &mut self.links, &mut self.trace, 0, self.now);
            Self::turn(&mut self.server, &mut self.links, &mut self.trace, 1, self.now);
            let (client, server) = (self.client.next(self.now), self.server.next(self.now));
            let flying = self.links.iter().filter_map(Link::next).min();
            if self.client.is_over() && self.server.is_over() && flying.is_none() {
                break;
            }
            let next = [client, server, flying].into_iter().flatten().min();
            assert!(next.is_some_and(|next| next < deadline), "it never ends\n{}", self.describe());
            self.now = next.unwrap_or(deadline).max(self.now + 1);
        }
        self.took_us = self.now - start;
    }

    fn turn(
        peer: &mut impl Peer,
        links: &mut [Link; 2],
        trace: &mut Option<Vec<String>>,
        side: usize,
        now: u64,
    ) {
        let arrived: Vec<Vec<u8>> = std::iter::from_fn(|| links[1 - side].arrived(now)).collect();
        let mut out = Vec::new();
        peer.turn(&arrived, now, &mut out);
        if let Some(trace) = trace {
            trace.extend(out.iter().map(|frame| format!("{now} {side} {}", shown(frame))));
            trace.push(format!("{now} {side} {}", peer.describe()));
        }
        for frame in out {
            if std::env::var_os("WEIR_TRACE").is_some() {
                println!("{now} {} {}", ["client", "server"][side], shown(&frame));
            }
            if let Some(error) = links[side].send(frame, now) {
                links[1 - side].answer(error, now);
            }
        }
    }

    pub(crate) fn assert_nothing_left(&mut self) {
        self.client.assert_nothing_left(self.now);
        self.server.assert_nothing_left(self.now);
    }

    /// How all stands.
    pub(crate) fn describe(&self) -> String {
        let lost = self.links.each_ref().map(|link| (link.lost, link.carried));
        format!(
            "client: {}\nserver: {}\nlost of carried: {lost:?}",
            self.client.describe(),
            self.server.describe()
        )
    }
}

/// A segment in a line, for traces.
fn shown(frame: &[u8]) -> String {
    let Ok(parsed) = parse(frame, &ParseOptions::default()) else { return "no packet".to_owned() };
    let Ok(segment) = Segment::read(frame, &parsed, false) else { return "no segment".to_owned() };
    format!(
        "{}>{} flags {:02x} seq {} ack {} win {} len {}",
        parsed.src_port,
        parsed.dst_port,
        segment.flags,
        segment.seq.0,
        segment.ack.0,
        segment.window,
        segment.payload_len
    )
}

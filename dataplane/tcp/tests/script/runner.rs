//! Does a stack do what a script says? Runs one case in virtual time, and tells of the first difference with all that led to it.

use std::collections::{BTreeMap, VecDeque};

use weir_net::tcp;
use weir_tcp::{Endpoint, Instant};

use super::language::{Case, Number, OptionShape, Place, Shape, Span, Statement, Verb, number};
use super::stack::Stack;
use super::wire::{Opt, Packet, icmp_error, is_v4};

/// When cases begin, unless `our isn` asks for another time: at an ordinary time, and shortly before the records' clocks of
/// microseconds and of milliseconds pass 2^32.
pub(crate) const STARTS: [Instant; 4] = [
    Instant(1_000_000_000),
    Instant(4_294_967_000 - 150_000),
    Instant((1 << 32) * 1_000 - 150_000),
    Instant((1 << 31) * 1_000 - 1_100_000),
];
/// Calls of `advance` at one instant after which the stack is said to hang.
const STILL: usize = 100;
/// An MSS below this is not kept to (as Linux, CVE-2019-11479).
const LEAST_MSS: usize = 48;
/// What the clock of a peer with `peer timestamps run` shows at the start of a case.
const PEER_CLOCK_MS: u64 = 1_000;

/// The bytes of a stream by their place in it: what went missing, twice or astray shows.
fn pattern(outward: bool, position: i64) -> u8 {
    let position = position as u64;
    (position ^ (position >> 8) ^ (position >> 16)) as u8 ^ if outward { 0x5a } else { 0 }
}

/// One connection as the script sees it.
struct Talk {
    local: Endpoint,
    remote: Endpoint,
    peer_isn: u32,
    our_isn: Option<u32>,
    /// Timestamps of the peer are added where a segment has no options.
    timestamps_run: bool,
    first_timestamp: Option<u32>,
    last_timestamp: u32,
    /// What the peer takes in a segment, options included (RFC 6691).
    peer_mss: usize,
    peer_scale: Option<u8>,
    our_scale: Option<u8>,
    /// Right edge of the window that the peer has granted, relative.
    edge: i64,
    /// Right edge of the window that the stack has granted, relative.
    our_edge: i64,
    sent: i64,
    read: i64,
    frames: Vec<(i64, Vec<u8>)>,
    news: Vec<String>,
    cookie: Option<Vec<u8>>,
}

impl Talk {
    fn new(label: char, ipv6: bool) -> Talk {
        let network = if ipv6 { 0x2001_0db8_u128 << 96 } else { 0xffff_c612_0000 };
        let port = 40_000 + label as u16 - 'a' as u16;
        Talk {
            local: Endpoint { address: network | 1, port: 80 },
            remote: Endpoint { address: network | 2, port },
            peer_isn: 5_000_000,
            our_isn: None,
            timestamps_run: false,
            first_timestamp: None,
            last_timestamp: 0,
            peer_mss: usize::MAX,
            peer_scale: None,
            our_scale: None,
            edge: 0,
            our_edge: 0,
            sent: 0,
            read: 0,
            frames: Vec::new(),
            news: Vec::new(),
            cookie: None,
        }
    }

    /// A new incarnation on the same ports.
    fn begin_again(&mut self, peer_isn: u32) {
        let fresh = Talk::new('a', false);
        *self = Talk {
            local: self.local,
            remote: self.remote,
            peer_isn,
            cookie: self.cookie.take(),
            news: std::mem::take(&mut self.news),
            ..fresh
        };
    }

    fn ours(&self, absolute: u32) -> i64 {
        i64::from(absolute.wrapping_sub(self.our_isn.unwrap_or(0)) as i32)
    }

    fn peers(&self, absolute: u32) -> i64 {
        i64::from(absolute.wrapping_sub(self.peer_isn) as i32)
    }
}

struct Left {
    at: Instant,
    packet: Packet,
}

struct Runner<'a> {
    stack: &'a mut dyn Stack,
    now: Instant,
    start: Instant,
    talks: BTreeMap<char, Talk>,
    ipv6: bool,
    left: VecDeque<Left>,
    trace: Vec<String>,
}

/// Runs a case on a stack that `new` makes. The error is a text for people.
pub(crate) fn run(case: &Case, mut start: Instant, new: &dyn Fn() -> Box<dyn Stack>) -> Result<(), String> {
    if let Some(wanted) = wanted_isn(case) {
        // RFC 9293 §3.4.1: initial numbers follow a clock of 4 µs, so the time of the start chooses them
        let mut stack = new();
        let mut runner = Runner::new(stack.as_mut(), start);
        for statement in &case.statements {
            let _ = runner.step(statement);
            if let Some(isn) = runner.talks.get(&statement.connection).and_then(|talk| talk.our_isn) {
                start = start.after(u64::from(wanted.wrapping_sub(isn)) * 4);
                break;
            }
        }
    }
    let mut stack = new();
    let mut runner = Runner::new(stack.as_mut(), start);
    let mut failed = None;
    for statement in &case.statements {
        if let Err(problem) = runner.step(statement) {
            failed = Some((statement.place.clone(), statement.text.clone(), problem));
            break;
        }
    }
    let failed = failed.or_else(|| {
        let problem = runner.finish().err()?;
        let place = case.statements.last().map_or_else(|| case.place.clone(), |last| last.place.clone());
        Some((place, "the end of the case".into(), problem))
    });
    if std::env::var_os("WEIR_TRACE").is_some() {
        println!("{}\n{}\n", case.name, runner.trace.join("\n"));
    }
    match failed {
        None => Ok(()),
        Some((place, text, problem)) => {
            let begin = format!("{problem}\n  the clock began at {} µs", start.0);
            Err(report(case, &place, &text, &begin, &runner.trace))
        }
    }
}

fn report(case: &Case, place: &Place, text: &str, problem: &str, trace: &[String]) -> String {
    let from = trace.len().saturating_sub(40);
    let trace = trace[from..].iter().map(|line| format!("    {line}\n")).collect::<String>();
    format!("{place}: case `{}`\n  {text}\n  {problem}\n  so far:\n{trace}", case.name)
}

fn wanted_isn(case: &Case) -> Option<u32> {
    case.statements.iter().find_map(|statement| match statement.verb {
        Verb::OurIsn(isn) => Some(isn),
        _ => None,
    })
}

impl<'a> Runner<'a> {
    fn new(stack: &'a mut dyn Stack, start: Instant) -> Runner<'a> {
        Runner {
            stack,
            now: start,
            start,
            talks: BTreeMap::new(),
            ipv6: false,
            left: VecDeque::new(),
            trace: Vec::new(),
        }
    }

    fn talk(&mut self, label: char) -> &mut Talk {
        let ipv6 = self.ipv6;
        self.talks.entry(label).or_insert_with(|| Talk::new(label, ipv6))
    }

    fn note(&mut self, at: Instant, text: &str) {
        let since = at.since(self.start);
        self.trace.push(format!("{:4}.{:06} {text}", since / 1_000_000, since % 1_000_000));
    }

    fn step(&mut self, statement: &Statement) -> Result<(), String> {
        let label = statement.connection;
        self.talk(label);
        match &statement.verb {
            Verb::Expect { .. } | Verb::Inject(_) => {}
            _ => self.note(self.now, &format!("  {}", statement.text)),
        }
        if !matches!(
            statement.verb,
            Verb::Expect { .. } | Verb::Assert { .. } | Verb::Event { .. } | Verb::Pass(_)
        ) {
            self.nothing_left()?;
        }
        self.perform(label, &statement.verb)?;
        self.stack.settle(self.now);
        self.collect()
    }

    fn perform(&mut self, label: char, verb: &Verb) -> Result<(), String> {
        let (now, remote) = (self.now, self.talk(label).remote);
        match verb {
            Verb::Ipv6 => {
                self.ipv6 = true;
                self.talks.clear();
                Ok(())
            }
            Verb::PeerIsn(isn) => {
                self.talk(label).begin_again(*isn);
                Ok(())
            }
            Verb::OurIsn(_) => Ok(()),
            Verb::AutomaticTimestamps => {
                self.talk(label).timestamps_run = true;
                Ok(())
            }
            Verb::Set { key, value } => self.stack.set(key, value),
            Verb::Engine { key, value } => self.stack.set(&format!("engine {key}"), value),
            Verb::Listen => {
                let local = self.talk(label).local;
                self.stack.listen(local);
                Ok(())
            }
            Verb::Connect => {
                let talk = self.talk(label);
                talk.local.port = 50_000 + label as u16 - 'a' as u16;
                let local = talk.local;
                self.stack.connect(local, remote, now)
            }
            Verb::Inject(shape) => self.inject(label, shape),
            Verb::Expect { within, shape } => self.expect(label, *within, shape),
            Verb::Advance(time) => {
                self.run_until(now.after(*time), false)?;
                self.nothing_left()
            }
            Verb::Pass(time) => {
                self.run_until(now.after(*time), false)?;
                self.left.clear();
                Ok(())
            }
            Verb::Send { bytes, refused } => self.send(label, *bytes, *refused),
            Verb::Read { bytes, other } => self.read(label, *bytes, *other),
            Verb::Shutdown => self.stack.shutdown(remote, now),
            Verb::Abort => self.stack.abort(remote, now),
            Verb::Release => self.stack.release(remote, now),
            Verb::Event { name, absent } => self.event(label, name, *absent),
            Verb::Icmp { kind, argument, at } => self.icmp(label, kind, *argument, *at),
            Verb::Link { up } => {
                self.stack.link(*up);
                Ok(())
            }
            Verb::Rotate => {
                self.stack.rotate(now);
                Ok(())
            }
            Verb::Assert { what, argument } => self.assert(label, what, argument),
        }
    }

    /// The case is over: nothing may be left that it did not speak of.
    fn finish(&mut self) -> Result<(), String> {
        self.nothing_left()?;
        for (label, talk) in &self.talks {
            if let Some(news) = talk.news.iter().find(|news| news.starts_with("closed")) {
                return Err(format!(
                    "connection {label} has `event {news}`, of which the case does not speak"
                ));
            }
        }
        match self.stack.leaked(self.now) {
            0 => Ok(()),
            leaked => Err(format!("{leaked} buffers are still held after every connection was aborted")),
        }
    }

    fn nothing_left(&self) -> Result<(), String> {
        match self.left.front() {
            None => Ok(()),
            Some(left) => Err(format!(
                "expected: no further segment\n  got:      {}{}",
                self.shown(&left.packet),
                self.age(left.at)
            )),
        }
    }

    fn age(&self, at: Instant) -> String {
        if at == self.now { String::new() } else { format!(" ({} µs ago)", self.now.since(at)) }
    }

    // --- time ---

    /// Lets timers run until a time, or, if `stops`, until a segment leaves.
    fn run_until(&mut self, until: Instant, stops: bool) -> Result<(), String> {
        let mut still = 0;
        while let Some(deadline) = self.stack.next_deadline().filter(|deadline| *deadline <= until) {
            still = if deadline <= self.now { still + 1 } else { 0 };
            if still > STILL {
                return Err(format!(
                    "the deadline of the stack, {} µs, stays behind the clock, {} µs, after {STILL} calls of advance",
                    deadline.0, self.now.0
                ));
            }
            self.now = self.now.max(deadline);
            self.stack.advance(self.now);
            self.collect()?;
            if stops && !self.left.is_empty() {
                return Ok(());
            }
        }
        self.now = until;
        self.stack.advance(self.now);
        self.collect()
    }

    /// Takes in what has left and what is new.
    fn collect(&mut self) -> Result<(), String> {
        for frame in self.stack.output() {
            let packet = Packet::read(&frame)
                .map_err(|problem| format!("sent a bad packet: {problem}: {frame:02x?}"))?;
            let label = self.label_of(&packet)?;
            self.learn(label, &packet, frame);
            self.note(self.now, &format!("> {}", self.shown(&packet)));
            self.check(label, &packet)?;
            self.left.push_back(Left { at: self.now, packet });
        }
        for news in self.stack.news() {
            self.note(self.now, &format!("  (news: {})", news.name));
            let talk = self.talks.values_mut().find(|talk| talk.remote == news.remote);
            talk.ok_or_else(|| format!("news of an unknown connection: {news:?}"))?.news.push(news.name);
        }
        Ok(())
    }

    fn label_of(&self, packet: &Packet) -> Result<char, String> {
        let talk = self.talks.iter().find(|(_, talk)| {
            packet.dst == (talk.remote.address, talk.remote.port)
                && packet.src == (talk.local.address, talk.local.port)
        });
        talk.map(|(label, _)| *label).ok_or_else(|| {
            format!(
                "a packet between addresses of no connection: {:x} port {} to {:x} port {}",
                packet.src.0, packet.src.1, packet.dst.0, packet.dst.1
            )
        })
    }

    fn learn(&mut self, label: char, packet: &Packet, frame: Vec<u8>) {
        let talk = self.talk(label);
        if packet.flags & tcp::SYN != 0 {
            talk.our_isn.get_or_insert(packet.seq);
            talk.our_scale = packet.options.iter().find_map(|option| match option {
                Opt::WindowScale(shift) => Some(*shift),
                _ => None,
            });
        }
        if let Some((value, _)) = packet.timestamps() {
            talk.first_timestamp.get_or_insert(value);
            talk.last_timestamp = value;
        }
        for option in &packet.options {
            if let Opt::FastOpen(cookie) = option
                && !cookie.is_empty()
            {
                talk.cookie = Some(cookie.clone());
            }
        }
        let seq = talk.ours(packet.seq);
        talk.frames.push((seq, frame));
    }

    /// What holds for every segment that leaves.
    fn check(&mut self, label: char, packet: &Packet) -> Result<(), String> {
        let talk = self.talk(label);
        if packet.flags & (tcp::ACK | tcp::RST) == tcp::ACK {
            let scale = match (talk.our_scale, talk.peer_scale, packet.flags & tcp::SYN) {
                (Some(scale), Some(_), 0) => scale,
                _ => 0,
            };
            let edge = talk.peers(packet.ack) + (i64::from(packet.window) << scale);
            if edge < talk.our_edge {
                return Err(format!(
                    "took back window (RFC 9293 §3.8.6): its end was {}, is {edge}",
                    talk.our_edge
                ));
            }
            talk.our_edge = edge;
        }
        let talk = &self.talks[&label];
        let with_options = packet.payload.len() + packet.options_len();
        if !packet.payload.is_empty() && with_options > talk.peer_mss {
            return Err(format!(
                "sent {with_options} bytes of options and data, but the peer's MSS is {} (RFC 6691)",
                talk.peer_mss
            ));
        }
        if !packet.dont_fragment {
            return Err("sent a packet that may be fragmented: RFC 1191 §3 needs don't-fragment".into());
        }
        let syn = packet.flags & tcp::SYN != 0;
        let seq = talk.ours(packet.seq);
        let first = if syn { seq } else { seq - 1 };
        for (index, byte) in packet.payload.iter().enumerate() {
            let position = first + index as i64;
            if *byte != pattern(true, position) && position >= 0 {
                return Err(format!("sent a wrong byte at {} of the stream: {byte:#04x}", position));
            }
        }
        let end = seq + packet.payload.len() as i64;
        let is_probe = packet.payload.len() <= 1;
        if !syn && packet.flags & tcp::RST == 0 && end > talk.edge + i64::from(is_probe) {
            return Err(format!("sent up to {end}, beyond the peer's window, which ends at {}", talk.edge));
        }
        Ok(())
    }

    // --- segments ---

    fn inject(&mut self, label: char, shape: &Shape) -> Result<(), String> {
        let packet = self.packet(label, shape)?;
        self.note(self.now, &format!("< {}", self.shown(&packet)));
        let talk = self.talk(label);
        if packet.flags & tcp::SYN != 0 {
            talk.peer_scale = packet.options.iter().find_map(|option| match option {
                Opt::WindowScale(shift) => Some((*shift).min(14)),
                _ => None,
            });
            let mss = packet.options.iter().find_map(|option| match option {
                Opt::Mss(mss) if *mss > 0 => Some(usize::from(*mss)),
                _ => None,
            });
            let default = if is_v4(talk.remote.address) { tcp::DEFAULT_MSS_V4 } else { tcp::DEFAULT_MSS_V6 };
            talk.peer_mss = mss.unwrap_or(usize::from(default)).max(LEAST_MSS);
            talk.edge = talk.edge.max(1 + i64::from(packet.window));
        }
        if packet.flags & tcp::ACK != 0 {
            let scale = match (talk.our_scale, talk.peer_scale, packet.flags & tcp::SYN) {
                (Some(_), Some(scale), 0) => scale,
                _ => 0,
            };
            let edge = talk.ours(packet.ack) + (i64::from(packet.window) << scale);
            talk.edge = talk.edge.max(edge);
        }
        self.stack.input(&packet.frame(shape.spoilt), self.now)
    }

    fn packet(&mut self, label: char, shape: &Shape) -> Result<Packet, String> {
        let clock = (PEER_CLOCK_MS + self.now.since(self.start) / 1_000) as u32;
        let talk = self.talk(label);
        let exactly = |number: Number, what: &str| match number {
            Number::Between(value, most) if value == most => Ok(value),
            _ => Err(format!("the {what} of an injected segment must be one number")),
        };
        let (seq, end) = (exactly(shape.seq, "sequence number")?, exactly(shape.end, "end")?);
        let ack = match shape.ack {
            Number::Any => 0,
            ack => talk.our_isn.unwrap_or(0).wrapping_add(exactly(ack, "acknowledgment")? as u32),
        };
        let window = match shape.window {
            Number::Any => 65_535,
            window => exactly(window, "window")? as u16,
        };
        let mut options = Vec::new();
        for option in shape.options.iter().flatten() {
            options.push(match option {
                OptionShape::Exact(option) => option.clone(),
                OptionShape::Timestamps { value, echo } => Opt::Timestamps {
                    value: exactly(*value, "timestamp")? as u32,
                    echo: talk
                        .first_timestamp
                        .unwrap_or(0)
                        .wrapping_add(exactly(*echo, "echoed timestamp")? as u32),
                },
                OptionShape::Sack(blocks) => {
                    let base = talk.our_isn.unwrap_or(0);
                    let edge = |relative: i64| base.wrapping_add(relative as u32);
                    Opt::Sack(blocks.iter().map(|(left, right)| (edge(*left), edge(*right))).collect())
                }
                OptionShape::AnyMss => return Err("the MSS of an injected segment must be one number".into()),
                OptionShape::Cookie { spoilt } => {
                    let mut cookie = talk.cookie.clone().ok_or("no fast open cookie was given before")?;
                    cookie[0] ^= u8::from(*spoilt);
                    Opt::FastOpen(cookie)
                }
            });
        }
        let says_others =
            shape.options.iter().flatten().any(|option| !matches!(option, OptionShape::Sack(_)));
        if talk.timestamps_run && !says_others && shape.flags & tcp::RST == 0 {
            options.insert(0, Opt::Timestamps { value: clock, echo: talk.last_timestamp });
        }
        let first = if shape.flags & tcp::SYN != 0 { seq } else { seq - 1 };
        let flip = if shape.other_bytes { 0xff } else { 0 };
        Ok(Packet {
            src: (talk.remote.address, talk.remote.port),
            dst: (talk.local.address, talk.local.port),
            seq: talk.peer_isn.wrapping_add(seq as u32),
            ack,
            flags: shape.flags,
            window,
            urgent: shape.urgent,
            ecn: shape.ecn.unwrap_or(0),
            options,
            payload: (0..end - seq).map(|index| pattern(false, first + index) ^ flip).collect(),
            hop_limit: shape.hop_limit.unwrap_or(64),
            dont_fragment: true,
            options_len: 0,
        })
    }

    fn expect(&mut self, label: char, within: Span, shape: &Shape) -> Result<(), String> {
        let from = self.now;
        let latest = from.after(within.most);
        if self.left.is_empty() && within.most > 0 {
            self.run_until(latest, true)?;
        }
        let Some(left) = self.left.pop_front() else {
            let deadline = match self.stack.next_deadline() {
                Some(deadline) => format!("the next timer is due in {} µs", deadline.since(self.now)),
                None => "no timer runs".into(),
            };
            return Err(format!(
                "expected: this segment within {} µs\n  got:      nothing; {deadline}",
                within.most
            ));
        };
        let problem = |what: &str| format!("expected: {what}\n  got:      {}", self.shown(&left.packet));
        if within.most > 0 && left.at.since(from) < within.least {
            return Err(problem(&format!(
                "not before {} µs, but it left after {}",
                within.least,
                left.at.since(from)
            )));
        }
        if self.label_of(&left.packet)? != label {
            return Err(problem(&format!("a segment of connection {label}")));
        }
        self.compare(&self.talks[&label], shape, &left.packet).map_err(|what| problem(&what))
    }

    fn compare(&self, talk: &Talk, shape: &Shape, packet: &Packet) -> Result<(), String> {
        let written = shape.flags | tcp::PSH;
        let got = packet.flags | tcp::PSH;
        if written != got || shape.flags & tcp::PSH & !packet.flags != 0 {
            return Err(format!("flags {}", flags(shape.flags)));
        }
        let seq = talk.ours(packet.seq);
        let values = [
            ("sequence number", shape.seq, seq),
            ("end of the data", shape.end, seq + packet.payload.len() as i64),
            ("acknowledgment", shape.ack, talk.peers(packet.ack)),
            ("window", shape.window, i64::from(packet.window)),
        ];
        for (what, wanted, value) in values {
            let unused = what == "acknowledgment" && packet.flags & tcp::ACK == 0;
            if !unused && !wanted.admits(value) {
                return Err(format!("{what} {wanted:?} instead of {value}"));
            }
        }
        if shape.ecn.is_some_and(|ecn| ecn != packet.ecn) {
            return Err(format!("ECN bits {:?} instead of {}", shape.ecn, packet.ecn));
        }
        if shape.hop_limit.is_some_and(|limit| limit != packet.hop_limit) {
            return Err(format!("hop limit {:?} instead of {}", shape.hop_limit, packet.hop_limit));
        }
        compare_options(talk, shape, packet)
    }

    // --- the application ---

    fn send(&mut self, label: char, bytes: usize, refused: bool) -> Result<(), String> {
        let (now, talk) = (self.now, self.talk(label));
        let (remote, from) = (talk.remote, talk.sent);
        let data = (0..bytes as i64).map(|index| pattern(true, from + index)).collect::<Vec<_>>();
        let taken = self.stack.send(remote, &data, now)?;
        self.talk(label).sent += taken as i64;
        match (refused, taken == bytes) {
            (false, true) | (true, false) => Ok(()),
            (false, false) => Err(format!("expected: {bytes} bytes are taken\n  got:      {taken} were")),
            (true, true) => Err(format!("expected: not all bytes are taken\n  got:      all {taken} were")),
        }
    }

    /// Reads exactly so many bytes; more may wait, but in pieces of their own.
    fn read(&mut self, label: char, bytes: usize, other: bool) -> Result<(), String> {
        let (now, remote) = (self.now, self.talk(label).remote);
        let mut got = 0;
        while got < bytes.max(1) {
            let Some(piece) = self.stack.receive(remote, now)? else { break };
            let from = self.talk(label).read;
            for (index, byte) in piece.iter().enumerate() {
                let right = pattern(false, from + index as i64) ^ if other { 0xff } else { 0 };
                if *byte != right {
                    return Err(format!(
                        "expected: byte {right:#04x} at {} of the stream\n  got:      {byte:#04x}",
                        from + index as i64
                    ));
                }
            }
            got += piece.len();
            self.talk(label).read += piece.len() as i64;
        }
        self.talk(label).news.retain(|news| news != "readable");
        if got == bytes { Ok(()) } else { Err(format!("expected: {bytes} bytes\n  got:      {got}")) }
    }

    fn event(&mut self, label: char, name: &str, absent: bool) -> Result<(), String> {
        let talk = self.talk(label);
        let found = talk.news.iter().position(|news| news == name);
        match (found, absent) {
            (Some(at), false) => {
                talk.news.remove(at);
                Ok(())
            }
            (None, true) => Ok(()),
            (Some(_), true) => Err(format!("expected: no such event\n  got:      {:?}", talk.news)),
            (None, false) => Err(format!("expected: this event\n  got:      {:?}", talk.news)),
        }
    }

    fn icmp(
        &mut self,
        label: char,
        kind: &str,
        argument: Option<u32>,
        at: Option<i64>,
    ) -> Result<(), String> {
        let now = self.now;
        let talk = self.talk(label);
        let v4 = is_v4(talk.local.address);
        let (icmp_type, code) = icmp_code(kind, v4)?;
        let isn = talk.our_isn.unwrap_or(0);
        let found = talk.frames.iter().rev().find(|(seq, _)| at.is_none_or(|at| at == *seq));
        let quoted = match (found, talk.frames.last()) {
            (Some((_, frame)), _) => frame.clone(),
            (None, Some((_, frame))) => {
                // a forged quotation: somebody guesses
                let mut frame = frame.clone();
                let l4 = 14 + if v4 { 20 } else { 40 };
                let seq = isn.wrapping_add(at.unwrap_or_default() as u32);
                frame[l4 + 4..l4 + 8].copy_from_slice(&seq.to_be_bytes());
                frame
            }
            (None, None) => return Err("nothing was sent that an ICMP error could quote".into()),
        };
        let router = if v4 { 0xffff_c612_0909 } else { 0x2001_0db8_u128 << 96 | 0x909 };
        self.stack.input(&icmp_error(router, &quoted, icmp_type, code, argument.unwrap_or(0)), now)
    }

    fn assert(&mut self, label: char, what: &str, argument: &str) -> Result<(), String> {
        if what == "nothing" {
            return self.nothing_left();
        }
        let remote = self.talk(label).remote;
        let value = self.stack.inspect(remote, what)?;
        if what == "gone" {
            return match value {
                None => Ok(()),
                Some(state) => Err(format!("expected: no such connection any more\n  got:      {state}")),
            };
        }
        let value =
            value.ok_or_else(|| format!("expected: {what} {argument}\n  got:      no such connection"))?;
        let right = match (value.parse::<i64>(), number(argument)) {
            (Ok(value), Ok(number)) => number.admits(value),
            _ => value == argument,
        };
        if right { Ok(()) } else { Err(format!("expected: {what} {argument}\n  got:      {what} {value}")) }
    }

    // --- texts ---

    /// A packet as scripts write it.
    fn shown(&self, packet: &Packet) -> String {
        let outward = self.talks.values().find(|talk| talk.remote.port == packet.dst.1);
        let inward = self.talks.values().find(|talk| talk.remote.port == packet.src.1);
        let (seq, ack, is_ours) = match (outward, inward) {
            (Some(talk), _) => (talk.ours(packet.seq), talk.peers(packet.ack), Some(talk)),
            (_, Some(talk)) => (talk.peers(packet.seq), talk.ours(packet.ack), None),
            _ => (i64::from(packet.seq), i64::from(packet.ack), None),
        };
        let mut text = format!("{} {seq}:{}", flags(packet.flags), seq + packet.payload.len() as i64);
        if packet.flags & tcp::ACK != 0 {
            text += &format!(" ack {ack}");
        }
        text += &format!(" win {}", packet.window);
        if packet.ecn != 0 {
            text += ["", " ect1", " ect0", " ce"][usize::from(packet.ecn)];
        }
        if !packet.options.is_empty() {
            let options =
                packet.options.iter().map(|option| self.option_shown(option, is_ours)).collect::<Vec<_>>();
            text += &format!(" <{}>", options.join(","));
        }
        text
    }

    fn option_shown(&self, option: &Opt, ours: Option<&Talk>) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        match option {
            Opt::Nop => "nop".into(),
            Opt::Mss(mss) => format!("mss {mss}"),
            Opt::WindowScale(shift) => format!("wscale {shift}"),
            Opt::SackPermitted => "sackOK".into(),
            Opt::Timestamps { value, echo } => match ours {
                Some(talk) => {
                    format!("TS val {} ecr {echo}", value.wrapping_sub(talk.first_timestamp.unwrap_or(0)))
                }
                None => format!("TS val {value} ecr {echo}"),
            },
            Opt::Sack(blocks) => {
                let edge = |edge: u32| match ours {
                    Some(talk) => talk.peers(edge),
                    None => self.talks.values().next().map_or(0, |talk| talk.ours(edge)),
                };
                let blocks = blocks.iter().map(|(left, right)| format!(" {}:{}", edge(*left), edge(*right)));
                format!("sack{}", blocks.collect::<String>())
            }
            Opt::FastOpen(cookie) => format!("FO {}", hex(cookie)),
            Opt::Raw(bytes) => format!("raw {}", hex(bytes)),
        }
    }
}

fn compare_options(talk: &Talk, shape: &Shape, packet: &Packet) -> Result<(), String> {
    let Some(wanted) = &shape.options else {
        // blocks that nobody expects are never right
        let sacked = packet.options.iter().any(|option| matches!(option, Opt::Sack(_)));
        return if sacked { Err("no SACK option".into()) } else { Ok(()) };
    };
    let mut rest = packet.options.clone();
    for option in wanted {
        if matches!(option, OptionShape::Exact(Opt::Nop)) {
            continue;
        }
        let at = rest.iter().position(|candidate| option_admits(talk, option, candidate));
        rest.remove(at.ok_or_else(|| format!("option {option:?}"))?);
    }
    match rest.first() {
        Some(unexpected) if !shape.more_options => Err(format!("no option {unexpected:?}")),
        _ => Ok(()),
    }
}

fn option_admits(talk: &Talk, wanted: &OptionShape, got: &Opt) -> bool {
    match (wanted, got) {
        (OptionShape::Exact(wanted), got) => wanted == got,
        (OptionShape::Timestamps { value, echo }, Opt::Timestamps { value: got_value, echo: got_echo }) => {
            let since = got_value.wrapping_sub(talk.first_timestamp.unwrap_or(0)) as i32;
            value.admits(i64::from(since)) && echo.admits(i64::from(*got_echo))
        }
        (OptionShape::Sack(wanted), Opt::Sack(got)) => {
            let got = got.iter().map(|(left, right)| (talk.peers(*left), talk.peers(*right)));
            got.eq(wanted.iter().copied())
        }
        (OptionShape::AnyMss, Opt::Mss(_)) => true,
        (OptionShape::Cookie { .. }, Opt::FastOpen(got)) => !got.is_empty(),
        _ => false,
    }
}

fn flags(flags: u8) -> String {
    let letters = [
        (tcp::FIN, 'F'),
        (tcp::SYN, 'S'),
        (tcp::RST, 'R'),
        (tcp::PSH, 'P'),
        (tcp::ACK, '.'),
        (tcp::URG, 'U'),
        (tcp::ECE, 'E'),
        (tcp::CWR, 'W'),
    ];
    let text =
        letters.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| *letter).collect::<String>();
    if text.is_empty() { "-".into() } else { text }
}

/// RFC 792 and RFC 4443 numbers by the names that scripts use.
fn icmp_code(kind: &str, v4: bool) -> Result<(u8, u8), String> {
    Ok(match (kind, v4) {
        ("net-unreachable", true) => (3, 0),
        ("host-unreachable", true) => (3, 1),
        ("protocol-unreachable", true) => (3, 2),
        ("port-unreachable", true) => (3, 3),
        ("frag-needed", true) => (3, 4),
        ("admin-prohibited", true) => (3, 13),
        ("source-quench", true) => (4, 0),
        ("redirect", true) => (5, 1),
        ("time-exceeded", true) => (11, 0),
        ("parameter-problem", true) => (12, 0),
        ("no-route", false) => (1, 0),
        ("admin-prohibited", false) => (1, 1),
        ("address-unreachable", false) => (1, 3),
        ("port-unreachable", false) => (1, 4),
        ("too-big", false) => (2, 0),
        ("time-exceeded", false) => (3, 0),
        _ => return Err(format!("`{kind}` is no ICMP error of IPv{}", if v4 { 4 } else { 6 })),
    })
}

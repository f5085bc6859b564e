//! Does a stack do what a script says? Runs one case in virtual time, and tells of the first difference with all that led to it.

use std::collections::{BTreeMap, VecDeque};

use weir_tcp::Instant;

use super::compare::compare;
use super::ladder::shown;
use super::language::{Case, Place, Shape, Span, Statement, Verb, number};
use super::stack::Stack;
use super::talk::{Talk, pattern};
use super::wire::{Packet, icmp_code, icmp_error, is_v4};

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
                shown(&self.talks, &left.packet),
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
            self.talk(label).learn(&packet, frame);
            self.note(self.now, &format!("> {}", shown(&self.talks, &packet)));
            self.talk(label).check(&packet)?;
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

    // --- segments ---

    fn inject(&mut self, label: char, shape: &Shape) -> Result<(), String> {
        let since = self.now.since(self.start);
        let packet = self.talk(label).packet(shape, since)?;
        self.note(self.now, &format!("< {}", shown(&self.talks, &packet)));
        self.talk(label).hear(&packet);
        self.stack.input(&packet.frame(shape.spoilt), self.now)
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
        let problem =
            |what: &str| format!("expected: {what}\n  got:      {}", shown(&self.talks, &left.packet));
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
        compare(&self.talks[&label], shape, &left.packet).map_err(|what| problem(&what))
    }

    // --- the application ---

    fn send(&mut self, label: char, bytes: usize, refused: bool) -> Result<(), String> {
        let (now, talk) = (self.now, self.talk(label));
        let (remote, from) = (talk.remote, talk.sent);
        let data = (0..bytes as i64).map(|index| pattern(true, from + index)).collect::<Vec<_>>();
        let taken = self.stack.send(remote, &data, now)?;
        let talk = self.talk(label);
        talk.sent += taken as i64;
        if refused {
            // what is told of room is told anew
            talk.news.retain(|news| news != "writable");
        }
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
}

//! What does a script say? The parser of `.tcp` files; `tests/scripts/README.md` describes the language.

use super::wire::Opt;

/// Where a statement stands.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) file: &'static str,
    pub(crate) line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "tests/scripts/{}:{}", self.file, self.line)
    }
}

/// One case: a name, the clause that it proves, and its statements.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) place: Place,
    /// It only stands in others, by `use NAME`.
    pub(crate) is_prologue: bool,
    pub(crate) statements: Vec<Statement>,
}

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) place: Place,
    pub(crate) text: String,
    /// The connection that it is about: `[b]`; `a` where nothing is said.
    pub(crate) connection: char,
    pub(crate) verb: Verb,
}

/// A span of virtual time, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) least: u64,
    pub(crate) most: u64,
}

/// A number that an expectation leaves open, or bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    Any,
    Between(i64, i64),
}

impl Number {
    pub(crate) fn admits(self, value: i64) -> bool {
        match self {
            Number::Any => true,
            Number::Between(least, most) => (least..=most).contains(&value),
        }
    }
}

/// A segment as a script writes it, numbers relative to the initial ones.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) flags: u8,
    /// PSH is compared only where it is written.
    pub(crate) seq: Number,
    pub(crate) end: Number,
    pub(crate) ack: Number,
    pub(crate) window: Number,
    pub(crate) urgent: u16,
    pub(crate) ecn: Option<u8>,
    pub(crate) options: Option<Vec<OptionShape>>,
    /// `...` among the options: others are welcome.
    pub(crate) more_options: bool,
    /// `other`: the payload is not what belongs at its place.
    pub(crate) other_bytes: bool,
    /// `spoilt`: the checksum is wrong.
    pub(crate) spoilt: bool,
    pub(crate) hop_limit: Option<u8>,
}

/// An option as a script writes it.
#[derive(Clone, Debug)]
pub(crate) enum OptionShape {
    Exact(Opt),
    /// `mss *`
    AnyMss,
    Timestamps {
        value: Number,
        echo: Number,
    },
    Sack(Vec<(i64, i64)>),
    /// `cookie`: the fast open cookie that the engine gave in this case; `cookie spoilt`: not quite.
    Cookie {
        spoilt: bool,
    },
}

/// What a line asks for.
#[derive(Clone, Debug)]
pub(crate) enum Verb {
    Ipv6,
    /// `peer isn N`, `our isn N`.
    PeerIsn(u32),
    OurIsn(u32),
    AutomaticTimestamps,
    Set {
        key: String,
        value: String,
    },
    Engine {
        key: String,
        value: String,
    },
    Listen,
    Connect,
    Inject(Shape),
    Expect {
        within: Span,
        shape: Shape,
    },
    Advance(u64),
    Pass(u64),
    Send {
        bytes: usize,
        refused: bool,
    },
    Read {
        bytes: usize,
        other: bool,
    },
    Shutdown,
    Abort,
    Release,
    Event {
        name: String,
        absent: bool,
    },
    Icmp {
        kind: String,
        argument: Option<u32>,
        at: Option<i64>,
    },
    Link {
        up: bool,
    },
    /// `rotate secrets`.
    Rotate,
    Assert {
        what: String,
        argument: String,
    },
}

/// Reads all cases of a file. `prologues` are the cases that `use NAME` puts in place.
pub(crate) fn cases(file: &'static str, text: &str, prologues: &[Case]) -> Result<Vec<Case>, String> {
    let mut cases: Vec<Case> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let place = Place { file, line: index + 1 };
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        if let Some(name) = line.strip_prefix("case ") {
            if !name.contains("RFC ") && !name.contains("Linux") {
                return Err(format!(
                    "{place}: case `{name}` cites nothing; name its RFC and section in its title"
                ));
            }
            if cases.iter().any(|case| case.name == name) {
                return Err(format!("{place}: a second case `{name}`; give it a name of its own"));
            }
            cases.push(Case { name: name.to_owned(), place, is_prologue: false, statements: Vec::new() });
            continue;
        }
        if let Some(name) = line.strip_prefix("prologue ") {
            cases.push(Case { name: name.to_owned(), place, is_prologue: true, statements: Vec::new() });
            continue;
        }
        let Some((case, earlier)) = cases.split_last_mut() else {
            return Err(format!("{place}: `{line}` before the first case; begin with `case NAME (RFC …)`"));
        };
        if let Some(name) = line.strip_prefix("use ") {
            let mut known = prologues.iter().chain(earlier.iter());
            let prologue =
                known.find(|prologue| prologue.is_prologue && prologue.name == name).ok_or_else(|| {
                    format!("{place}: no prologue `{name}`; prologues.tcp has those that there are")
                })?;
            case.statements.extend(prologue.statements.iter().cloned());
            continue;
        }
        case.statements
            .push(statement(place.clone(), line).map_err(|problem| format!("{place}: {problem}\n  {line}"))?);
    }
    Ok(cases)
}

fn statement(place: Place, line: &str) -> Result<Statement, String> {
    let text = line.to_owned();
    let (connection, line) = match line.strip_prefix('[') {
        Some(rest) => {
            let (label, rest) = rest.split_once(']').ok_or("`[` without `]`")?;
            let mut letters = label.chars();
            match (letters.next(), letters.next()) {
                (Some(letter), None) => (letter, rest.trim()),
                _ => return Err(format!("`[{label}]`: a connection is one letter")),
            }
        }
        None => ('a', line),
    };
    Ok(Statement { place, text, connection, verb: verb(line)? })
}

fn verb(line: &str) -> Result<Verb, String> {
    if let Some(shape) = line.strip_prefix("< ") {
        return Ok(Verb::Inject(shape_of(shape)?));
    }
    if let Some(shape) = line.strip_prefix("> ") {
        return Ok(Verb::Expect { within: Span { least: 0, most: 0 }, shape: shape_of(shape)? });
    }
    if let Some(rest) = line.strip_prefix('+') {
        let (span, shape) = rest.split_once('>').ok_or("a time without `>`; write `+40ms > …`")?;
        return Ok(Verb::Expect { within: span_of(span.trim())?, shape: shape_of(shape.trim())? });
    }
    let words = line.split_whitespace().collect::<Vec<_>>();
    Ok(match words.as_slice() {
        ["ipv6"] => Verb::Ipv6,
        ["peer", "isn", number] => Verb::PeerIsn(parse(number)?),
        ["our", "isn", number] => Verb::OurIsn(parse(number)?),
        ["peer", "timestamps", "run"] => Verb::AutomaticTimestamps,
        ["set", key, value] => Verb::Set { key: (*key).into(), value: (*value).into() },
        ["engine", key, value] => Verb::Engine { key: (*key).into(), value: (*value).into() },
        ["listen"] => Verb::Listen,
        ["connect"] => Verb::Connect,
        ["advance", time] => Verb::Advance(microseconds(time)?),
        ["pass", time] => Verb::Pass(microseconds(time)?),
        ["send", bytes] => Verb::Send { bytes: parse(bytes)?, refused: false },
        ["send", bytes, "refused"] => Verb::Send { bytes: parse(bytes)?, refused: true },
        ["read", bytes] => Verb::Read { bytes: parse(bytes)?, other: false },
        ["read", bytes, "other"] => Verb::Read { bytes: parse(bytes)?, other: true },
        ["shutdown"] => Verb::Shutdown,
        ["abort"] => Verb::Abort,
        ["release"] => Verb::Release,
        ["event", name @ ..] => Verb::Event { name: name.join(" "), absent: false },
        ["no", "event", name @ ..] => Verb::Event { name: name.join(" "), absent: true },
        ["link", "up"] => Verb::Link { up: true },
        ["link", "down"] => Verb::Link { up: false },
        ["rotate", "secrets"] => Verb::Rotate,
        ["assert", what, argument @ ..] => {
            Verb::Assert { what: (*what).into(), argument: argument.join(" ") }
        }
        ["icmp", kind, rest @ ..] => icmp(kind, rest)?,
        _ => return Err("no such statement".into()),
    })
}

fn icmp(kind: &str, rest: &[&str]) -> Result<Verb, String> {
    let (argument, rest) = match rest {
        [number, rest @ ..] if *number != "at" => (Some(parse(number)?), rest),
        rest => (None, rest),
    };
    let at = match rest {
        ["at", seq] => Some(parse(seq)?),
        [] => None,
        _ => return Err("an ICMP error is `icmp KIND [NUMBER] [at SEQUENCE]`".into()),
    };
    Ok(Verb::Icmp { kind: kind.into(), argument, at })
}

/// `FLAGS SEQ:END [ack N] [win N] [urg N] [ect0|ect1|ce|not-ect] [other] [spoilt] [ttl N] [<options>]`
fn shape_of(text: &str) -> Result<Shape, String> {
    let (before, after, options) = match text.split_once('<') {
        Some((before, rest)) => {
            let (options, after) = rest.split_once('>').ok_or("`<` without a closing `>`")?;
            (before, after, Some(options))
        }
        None => (text, "", None),
    };
    let mut words = before.split_whitespace().chain(after.split_whitespace());
    let flags = flags_of(words.next().ok_or("a segment without flags")?)?;
    let range = words.next().ok_or("a segment without `SEQ:END`")?;
    let (seq, end) = range.split_once(':').ok_or_else(|| format!("`{range}` is not `SEQ:END`"))?;
    let mut shape = Shape {
        flags,
        seq: number(seq)?,
        end: number(end)?,
        ack: Number::Any,
        window: Number::Any,
        urgent: 0,
        ecn: None,
        options: None,
        more_options: false,
        other_bytes: false,
        spoilt: false,
        hop_limit: None,
    };
    let mut has_ack = false;
    while let Some(word) = words.next() {
        let mut argument = || words.next().ok_or_else(|| format!("`{word}` without its number"));
        match word {
            "ack" => {
                shape.ack = number(argument()?)?;
                has_ack = true;
            }
            "win" => shape.window = number(argument()?)?,
            "urg" => shape.urgent = parse(argument()?)?,
            "ttl" => shape.hop_limit = Some(parse(argument()?)?),
            "not-ect" => shape.ecn = Some(0),
            "ect1" => shape.ecn = Some(1),
            "ect0" => shape.ecn = Some(2),
            "ce" => shape.ecn = Some(3),
            "other" => shape.other_bytes = true,
            "spoilt" => shape.spoilt = true,
            _ => return Err(format!("`{word}` is no part of a segment")),
        }
    }
    if has_ack != (flags & weir_net::tcp::ACK != 0) {
        return Err("`.` among the flags and `ack N` go together".into());
    }
    if let Some(options) = options {
        let mut list = Vec::new();
        for option in options.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            if option == "..." {
                shape.more_options = true;
            } else {
                list.push(option_of(option)?);
            }
        }
        shape.options = Some(list);
    }
    Ok(shape)
}

fn flags_of(text: &str) -> Result<u8, String> {
    let mut flags = 0;
    for letter in text.chars() {
        flags |= match letter {
            'F' => weir_net::tcp::FIN,
            'S' => weir_net::tcp::SYN,
            'R' => weir_net::tcp::RST,
            'P' => weir_net::tcp::PSH,
            '.' => weir_net::tcp::ACK,
            'U' => weir_net::tcp::URG,
            'E' => weir_net::tcp::ECE,
            'W' => weir_net::tcp::CWR,
            '-' => 0,
            _ => return Err(format!("`{letter}` is no flag; flags are F S R P . U E W, and - for none")),
        };
    }
    Ok(flags)
}

fn option_of(text: &str) -> Result<OptionShape, String> {
    let words = text.split_whitespace().collect::<Vec<_>>();
    Ok(match words.as_slice() {
        ["nop"] => OptionShape::Exact(Opt::Nop),
        ["mss", "*"] => OptionShape::AnyMss,
        ["mss", mss] => OptionShape::Exact(Opt::Mss(parse(mss)?)),
        ["wscale", shift] => OptionShape::Exact(Opt::WindowScale(parse(shift)?)),
        ["sackOK"] => OptionShape::Exact(Opt::SackPermitted),
        ["TS", "val", value, "ecr", echo] => {
            OptionShape::Timestamps { value: number(value)?, echo: number(echo)? }
        }
        ["sack", blocks @ ..] => {
            let mut edges = Vec::new();
            for block in blocks {
                let (left, right) = block.split_once(':').ok_or_else(|| format!("`{block}` is no block"))?;
                edges.push((parse(left)?, parse(right)?));
            }
            OptionShape::Sack(edges)
        }
        ["FO"] => OptionShape::Exact(Opt::FastOpen(Vec::new())),
        ["FO", "cookie"] => OptionShape::Cookie { spoilt: false },
        ["FO", "cookie", "spoilt"] => OptionShape::Cookie { spoilt: true },
        ["FO", hex] => OptionShape::Exact(Opt::FastOpen(bytes_of(hex)?)),
        ["raw", hex] => OptionShape::Exact(Opt::Raw(bytes_of(hex)?)),
        _ => return Err(format!("`{text}` is no option")),
    })
}

fn bytes_of(hex: &str) -> Result<Vec<u8>, String> {
    (0..hex.len())
        .step_by(2)
        .map(|at| {
            let digits = hex.get(at..at + 2).ok_or_else(|| format!("`{hex}` has half a byte"))?;
            u8::from_str_radix(digits, 16).map_err(|_| format!("`{digits}` is no hexadecimal byte"))
        })
        .collect()
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is no number that fits here"))
}

/// `N`, `N..M` or `*`.
pub(crate) fn number(text: &str) -> Result<Number, String> {
    if text == "*" {
        return Ok(Number::Any);
    }
    Ok(match text.split_once("..") {
        Some((least, most)) => Number::Between(parse(least)?, parse(most)?),
        None => {
            let value = parse(text)?;
            Number::Between(value, value)
        }
    })
}

/// `200ms`, `1.5s` or `200..250ms`. Timers fire at ticks, so a single time may be late by one.
pub(crate) const TICK_US: u64 = 1_000;

fn span_of(text: &str) -> Result<Span, String> {
    match text.split_once("..") {
        Some((least, most)) => {
            // the unit may stand behind the second number only
            let unit = most.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
            let least = microseconds(least).or_else(|_| microseconds(&format!("{least}{unit}")))?;
            Ok(Span { least, most: microseconds(most)? })
        }
        None => {
            let least = microseconds(text)?;
            Ok(Span { least, most: least + TICK_US })
        }
    }
}

fn microseconds(text: &str) -> Result<u64, String> {
    let at = text
        .find(|letter: char| letter.is_ascii_alphabetic())
        .ok_or_else(|| format!("`{text}` has no unit: us, ms, s or m"))?;
    let (digits, unit) = text.split_at(at);
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        _ => return Err(format!("`{unit}` is no unit of time: us, ms, s or m")),
    };
    Ok((parse::<f64>(digits)? * factor).round() as u64)
}

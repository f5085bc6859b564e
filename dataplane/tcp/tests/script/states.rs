//! Does every state answer every kind of segment as RFC 9293 §3.10.7 and RFC 5961 say? A table of states and segments, from
//! which cases in the language of the scripts are made.

/// A synchronised state, with 100 bytes received and acknowledged before and 100 sent and acknowledged, so that there is a past.
struct Situation {
    name: &'static str,
    /// Lines that lead there from ESTABLISHED.
    way: &'static str,
    /// SND.NXT and RCV.NXT, relative.
    next: (i64, i64),
    /// The acknowledgement that the peer's segments carry.
    una: i64,
    /// Whether the peer's data is still read.
    receives: bool,
}

const SITUATIONS: [Situation; 7] = [
    Situation { name: "ESTABLISHED", way: "", next: (101, 101), una: 101, receives: true },
    Situation {
        name: "FIN-WAIT-1",
        way: "shutdown\n> F. 101:101 ack 101\n",
        next: (102, 101),
        una: 101,
        receives: true,
    },
    Situation {
        name: "FIN-WAIT-2",
        way: "shutdown\n> F. 101:101 ack 101\n< . 101:101 ack 102\n",
        next: (102, 101),
        una: 102,
        receives: true,
    },
    Situation {
        name: "CLOSE-WAIT",
        way: "< F. 101:101 ack 101\n> . 101:101 ack 102\nevent finished\n",
        next: (101, 102),
        una: 101,
        receives: false,
    },
    Situation {
        name: "CLOSING",
        way: "shutdown\n> F. 101:101 ack 101\n< F. 101:101 ack 101\n> . 102:102 ack 102\nevent finished\n",
        next: (102, 102),
        una: 101,
        receives: false,
    },
    Situation {
        name: "LAST-ACK",
        way: "< F. 101:101 ack 101\n> . 101:101 ack 102\nevent finished\nshutdown\n> F. 101:101 ack 102\n",
        next: (102, 102),
        una: 101,
        receives: false,
    },
    Situation {
        name: "TIME-WAIT",
        way: "shutdown\n> F. 101:101 ack 101\n< . 101:101 ack 102\n< F. 101:101 ack 102\n> . 102:102 ack 102\n\
              event closed finished\nassert time-waits 1\nadvance 1s\n",
        next: (102, 102),
        una: 102,
        receives: false,
    },
];

/// What a segment brings about.
#[derive(Clone, Copy)]
enum Answer {
    Nothing,
    /// An acknowledgement at once; blocks are welcome.
    Acknowledgement,
    /// An acknowledgement, or none; in any case nothing else changes.
    Perhaps,
    Reset,
}

/// `R`, `E`, `N` and `A` stand for RCV.NXT, RCV.NXT + 100, SND.NXT and SND.UNA.
struct Arrival {
    title: &'static str,
    line: &'static str,
    answer: Answer,
    /// Where TIME-WAIT differs.
    in_time_wait: Answer,
}

const fn arrival(title: &'static str, line: &'static str, answer: Answer, in_time_wait: Answer) -> Arrival {
    Arrival { title, line, answer, in_time_wait }
}

const ARRIVALS: [Arrival; 22] = [
    arrival("the exact RST", "< R R:R", Answer::Reset, Answer::Nothing),
    arrival("the exact RST with ACK", "< R. R:R ack A", Answer::Reset, Answer::Nothing),
    arrival("a RST in the window", "< R R+5:R+5", Answer::Acknowledgement, Answer::Nothing),
    arrival("a RST before the window", "< R R-5:R-5", Answer::Nothing, Answer::Nothing),
    arrival("a RST beyond the window", "< R R+90000:R+90000", Answer::Nothing, Answer::Nothing),
    arrival(
        "a SYN before the window",
        "< S R-5:R-5 <mss 1000>",
        Answer::Acknowledgement,
        Answer::Acknowledgement,
    ),
    arrival(
        "the SYN of the handshake",
        "< S 0:0 <mss 1000>",
        Answer::Acknowledgement,
        Answer::Acknowledgement,
    ),
    arrival(
        "a SYN+ACK in the window",
        "< S. R:R ack A <mss 1000>",
        Answer::Acknowledgement,
        Answer::Acknowledgement,
    ),
    arrival("an ACK of the future", "< . R:R ack N+50", Answer::Acknowledgement, Answer::Perhaps),
    arrival("an ACK of the distant past", "< . R:R ack -200000", Answer::Acknowledgement, Answer::Perhaps),
    arrival("an old ACK", "< . R:R ack 50", Answer::Nothing, Answer::Perhaps),
    arrival("the same ACK again", "< . R:R ack A", Answer::Nothing, Answer::Perhaps),
    arrival(
        "a probe of the window's edge",
        "< . R-1:R-1 ack A",
        Answer::Acknowledgement,
        Answer::Acknowledgement,
    ),
    arrival("old data", "< P. 1:101 ack A", Answer::Acknowledgement, Answer::Acknowledgement),
    arrival(
        "old data that never was",
        "< P. 1:101 ack A other",
        Answer::Acknowledgement,
        Answer::Acknowledgement,
    ),
    arrival(
        "data beyond the window",
        "< P. R+90000:R+90100 ack A",
        Answer::Acknowledgement,
        Answer::Acknowledgement,
    ),
    arrival(
        "data with an ACK of the future",
        "< P. R:E ack N+50",
        Answer::Acknowledgement,
        Answer::Acknowledgement,
    ),
    arrival("data without ACK", "< P R:E", Answer::Nothing, Answer::Perhaps),
    arrival("a FIN without ACK", "< F R:R", Answer::Nothing, Answer::Perhaps),
    arrival(
        "a FIN beyond the window",
        "< F. R+90000:R+90000 ack A",
        Answer::Acknowledgement,
        Answer::Acknowledgement,
    ),
    arrival("an urgent pointer", "< U. R:R ack A urg 9", Answer::Nothing, Answer::Perhaps),
    arrival("a wrong checksum", "< R R:R spoilt", Answer::Nothing, Answer::Nothing),
];

const BEGIN: &str = "use established\n< P. 1:101 ack 1\n+0..40ms > . 1:1 ack 101\nread 100\nsend 100\n> P. 1:101 ack 101\n\
                     < . 101:101 ack 101\n";

/// The text of all cases.
pub(crate) fn text() -> String {
    let mut text = String::new();
    for situation in &SITUATIONS {
        for arrival in &ARRIVALS {
            text += &case(situation, arrival);
        }
        text += &of_data(situation);
        text += &of_fin(situation);
    }
    text
}

fn begin(situation: &Situation, title: &str) -> String {
    let state = situation.name;
    format!("case {title} in {state} (RFC 9293 §3.10.7.4)\n{BEGIN}{}{}", situation.way, stays(situation))
}

fn stays(situation: &Situation) -> String {
    match situation.name {
        "TIME-WAIT" => "assert time-waits 1\n".into(),
        name => format!("assert state {name}\n"),
    }
}

fn acknowledgement(situation: &Situation) -> String {
    let (nxt, rcv) = situation.next;
    format!("> . {nxt}:{nxt} ack {rcv} <...>\n")
}

fn case(situation: &Situation, arrival: &Arrival) -> String {
    let (nxt, rcv) = situation.next;
    let line = arrival.line.split(' ').map(|word| {
        word.split(':').map(|number| relative(number, nxt, rcv, situation.una)).collect::<Vec<_>>().join(":")
    });
    // flags are words too
    let words = arrival.line.split(' ').zip(line.collect::<Vec<_>>()).enumerate();
    let line =
        words.map(|(at, (as_is, number))| if at < 2 { as_is.into() } else { number }).collect::<Vec<_>>();
    let mut text = begin(situation, arrival.title) + &line.join(" ") + "\n";
    let answer = if situation.name == "TIME-WAIT" { arrival.in_time_wait } else { arrival.answer };
    text += &match answer {
        Answer::Nothing => "assert nothing\n".into(),
        Answer::Acknowledgement => acknowledgement(situation),
        Answer::Perhaps => "pass 0ms\n".into(),
        Answer::Reset => return text + "event closed reset\nassert nothing\n",
    };
    text + "no event readable\n" + &stays(situation)
}

/// `R+5` with its number.
fn relative(word: &str, nxt: i64, rcv: i64, una: i64) -> String {
    let base = match word.chars().next() {
        Some('R') => rcv,
        Some('E') => rcv + 100,
        Some('N') => nxt,
        Some('A') => una,
        _ => return word.into(),
    };
    match word[1..].parse::<i64>() {
        Ok(offset) => (base + offset).to_string(),
        Err(_) if word.len() == 1 => base.to_string(),
        Err(_) => word.into(),
    }
}

/// Data in order: read where the peer may still send, else refused.
fn of_data(situation: &Situation) -> String {
    let ((nxt, rcv), una) = (situation.next, situation.una);
    let mut text = begin(situation, "data in order");
    text += &format!("< P. {rcv}:{} ack {una}\n", rcv + 100);
    if situation.receives {
        text += &format!("+0..40ms > . {nxt}:{nxt} ack {}\nread 100\n", rcv + 100);
    } else {
        text += &acknowledgement(situation);
    }
    text + &stays(situation)
}

/// A FIN in order, with the acknowledgement of all that we sent: the next state. Behind a FIN it is the FIN again.
fn of_fin(situation: &Situation) -> String {
    let ((nxt, rcv), una) = (situation.next, situation.una);
    let mut text = begin(situation, "a FIN");
    let seq = if situation.receives { rcv } else { rcv - 1 };
    text += &format!("< F. {seq}:{seq} ack {una}\n> . {nxt}:{nxt} ack {} <...>\n", seq + 1);
    text + match situation.name {
        "ESTABLISHED" => "event finished\nassert state CLOSE-WAIT\n",
        "FIN-WAIT-1" => "event finished\nassert state CLOSING\n",
        "FIN-WAIT-2" => "event closed finished\nassert time-waits 1\n",
        "CLOSE-WAIT" => "no event finished\nassert state CLOSE-WAIT\n",
        "CLOSING" => "no event finished\nassert state CLOSING\n",
        "LAST-ACK" => "no event finished\nassert state LAST-ACK\n",
        _ => "assert time-waits 1\n",
    }
}

//! Is this the segment that the script expects?

use weir_net::tcp;

use super::ladder::flags;
use super::language::{OptionShape, Shape};
use super::talk::Talk;
use super::wire::{Opt, Packet};

/// Tells what was expected instead.
pub(crate) fn compare(talk: &Talk, shape: &Shape, packet: &Packet) -> Result<(), String> {
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

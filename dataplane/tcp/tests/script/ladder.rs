//! How is a segment written? As scripts write it, for reports and traces.

use std::collections::BTreeMap;

use weir_net::tcp;

use super::talk::Talk;
use super::wire::{Opt, Packet};

/// A packet as scripts write it.
pub(crate) fn shown(talks: &BTreeMap<char, Talk>, packet: &Packet) -> String {
    let outward = talks.values().find(|talk| talk.remote.port == packet.dst.1);
    let inward = talks.values().find(|talk| talk.remote.port == packet.src.1);
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
            packet.options.iter().map(|option| option_shown(talks, option, is_ours)).collect::<Vec<_>>();
        text += &format!(" <{}>", options.join(","));
    }
    text
}

fn option_shown(talks: &BTreeMap<char, Talk>, option: &Opt, ours: Option<&Talk>) -> String {
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
                None => talks.values().next().map_or(0, |talk| talk.ours(edge)),
            };
            let blocks = blocks.iter().map(|(left, right)| format!(" {}:{}", edge(*left), edge(*right)));
            format!("sack{}", blocks.collect::<String>())
        }
        Opt::FastOpen(cookie) => format!("FO {}", hex(cookie)),
        Opt::Raw(bytes) => format!("raw {}", hex(bytes)),
    }
}

pub(crate) fn flags(flags: u8) -> String {
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

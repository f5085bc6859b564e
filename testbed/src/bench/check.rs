//! Did the packets come out right? A sample of what Weir sent, compared with what each mode must make of it.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::capture::{BACKENDS, Content, OWN, Traffic, WEIR_MAC, backend, backend_mac, seal};
use crate::config::Mode;
use crate::topology::lab::Family;
use crate::traffic::frames::checksum;
use crate::traffic::pcap;
use crate::traffic::servers::SERVER_PORT;
use crate::traffic::tunnel::GUE_PORT;

/// Frames that are compared, spread evenly over the capture.
const SAMPLE: usize = 2_000;

/// Compares a sample of a capture of what Weir sent. In words: what was compared.
pub(crate) fn output(path: &Path, mode: Mode, traffic: Traffic) -> Result<String> {
    let frames: Vec<Vec<u8>> = pcap::read(path)?.into_iter().filter(|frame| is_traffic(frame)).collect();
    ensure!(frames.len() > SAMPLE, "only {} packets came out of the first pass", frames.len());
    let step = frames.len() / SAMPLE;
    let mut compared = 0;
    for frame in frames.iter().step_by(step).take(SAMPLE) {
        one(frame, mode, traffic).with_context(|| format!("{} came out as {frame:02x?}", mode.name()))?;
        compared += 1;
    }
    Ok(format!("{compared} packets compared to the byte"))
}

/// Neither ARP nor neighbour discovery, which Weir sends of its own.
fn is_traffic(frame: &[u8]) -> bool {
    let ether_type = frame.get(12..14);
    let discovery = ether_type == Some(&[0x86, 0xdd]) && frame.get(20) == Some(&58);
    ether_type != Some(&[8, 6]) && !discovery
}

fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn one(frame: &[u8], mode: Mode, traffic: Traffic) -> Result<()> {
    let number = (0..BACKENDS)
        .find(|&number| frame.get(..6) == Some(&backend_mac(number)))
        .context("it goes to no backend")?;
    ensure!(frame.get(6..12) == Some(&WEIR_MAC), "it comes from another station");
    let target = bytes_of(backend(traffic.family, number));
    let header = if traffic.family == Family::Ipv4 { 20 } else { 40 };
    let outer = match mode {
        Mode::Ipip => header,
        Mode::Gue => header + 8,
        _ => 0,
    };
    let inner = frame.get(14 + outer..).context("it is too short")?;
    let mark = header + if traffic.content == Content::Datagram { 8 } else { 4 };
    let flow = inner.get(mark..mark + 4).and_then(|mark| mark.try_into().ok()).context("it is too short")?;
    let flow = u32::from_be_bytes(flow);
    ensure!(flow < traffic.flows, "flow {flow} was never sent");
    let expected = rewritten(inner, mode, traffic, flow, &target)?;
    let long = expected.len().min(inner.len());
    ensure!(
        expected[..long] == inner[..long] && expected[long..].iter().all(|&byte| byte == 0),
        "the packet of flow {flow} should be {expected:02x?}"
    );
    if outer > 0 {
        wrapped(frame, mode, traffic.family, inner.len(), &target)?;
    }
    Ok(())
}

/// What the client's packet must have become.
fn rewritten(inner: &[u8], mode: Mode, traffic: Traffic, flow: u32, target: &[u8]) -> Result<Vec<u8>> {
    let mut packet = traffic.frame(flow).split_off(14);
    let v4 = traffic.family == Family::Ipv4;
    let (ttl, source, destination, l4) = if v4 { (8, 12, 16, 20) } else { (7, 8, 24, 40) };
    packet[ttl] -= 1;
    if mode.rewrites() {
        packet[destination..destination + target.len()].copy_from_slice(target);
        packet[l4 + 2..l4 + 4].copy_from_slice(&SERVER_PORT.to_be_bytes());
    }
    if mode == Mode::Fullnat {
        let prefix: &[u8] = if v4 { &[198, 18, 2] } else { &[0x20, 1, 0xd, 0xb8, 0, 0x19] };
        let from = inner.get(source..source + target.len()).context("it is too short")?;
        ensure!(from.starts_with(prefix), "{from:?} is not Weir's to send from");
        let port = u16::from_be_bytes([inner[l4], inner[l4 + 1]]);
        ensure!(port >= 1_024, "port {port} is not Weir's to send from");
        packet[source..source + target.len()].copy_from_slice(from);
        packet[l4..l4 + 2].copy_from_slice(&port.to_be_bytes());
    }
    seal(&mut packet);
    Ok(packet)
}

/// The outer headers: addresses, protocol, length, checksums.
fn wrapped(frame: &[u8], mode: Mode, family: Family, inner: usize, target: &[u8]) -> Result<()> {
    let packet = &frame[14..];
    let gue = mode == Mode::Gue;
    // IPIP is 4 inside IPv4 (RFC 2003) and 41 for IPv6 (RFC 2473); padding of short frames belongs to the inner packet here
    let (source, destination, protocol, length, next) = match family {
        Family::Ipv4 => (12, 16, packet[9], usize::from(u16::from_be_bytes([packet[2], packet[3]])), 4),
        Family::Ipv6 => (8, 24, packet[6], 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])), 41),
    };
    let own = bytes_of(if family == Family::Ipv4 { OWN.0.into() } else { OWN.1.into() });
    let size = target.len();
    ensure!(packet[source..source + size] == own[..], "the outer source is not Weir's address");
    ensure!(packet[destination..destination + size] == *target, "the outer destination is another backend");
    ensure!(protocol == if gue { 17 } else { next }, "the outer protocol is {protocol}");
    ensure!(
        length <= packet.len() && length + 6 >= packet.len(),
        "the outer length is {length} of {}",
        packet.len()
    );
    let header = packet.len() - inner - if gue { 8 } else { 0 };
    if family == Family::Ipv4 {
        ensure!(checksum(&[&packet[..20]]) == 0, "the outer header's checksum is wrong");
    }
    if gue {
        ensure!(packet[header + 2..header + 4] == GUE_PORT.to_be_bytes(), "the outer port is not GUE's");
        let mut sealed = packet.to_vec();
        seal(&mut sealed);
        let blank = family == Family::Ipv4 && packet[header + 6..header + 8] == [0, 0];
        ensure!(blank || sealed == packet, "the outer UDP checksum is wrong");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_is_noticed_and_the_right_frame_is_not() {
        for family in Family::BOTH {
            let traffic = Traffic { family, content: Content::Ack, flows: 9 };
            let mut frame = traffic.frame(5);
            frame[..6].copy_from_slice(&backend_mac(3));
            frame[6..12].copy_from_slice(&WEIR_MAC);
            let target = bytes_of(backend(family, 3));
            let packet = rewritten(&frame[14..], Mode::Nat, traffic, 5, &target).unwrap();
            frame.truncate(14);
            frame.extend(packet);
            one(&frame, Mode::Nat, traffic).unwrap();
            assert!(one(&frame, Mode::Dsr, traffic).is_err());
            for at in (0..12).chain(14..frame.len()) {
                let mut wrong = frame.clone();
                wrong[at] ^= 0x10;
                assert!(one(&wrong, Mode::Nat, traffic).is_err(), "byte {at}");
            }
        }
    }
}

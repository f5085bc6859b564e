//! Captures in, captures out: what each mode makes of a packet, to the byte.
//!
//! What Weir may choose (the outer IPv4 identification, the flow label, GUE's and `fullnat`'s source port) is read from
//! the frame that came out and checked for its range; everything else, checksums included, is computed here.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Context, Scenario};
use crate::config::{Config, Mode, Protocol, Service};
use crate::interrupt::wait_for;
use crate::run::Run;
use crate::topology::lab::{CLIENT, Family, Io, LAN, Lab, SNAT, backend};
use crate::traffic::frames::{Ip, Link, Mac, Tcp, arp_reply, flag, neighbour_advertisement};
use crate::traffic::pcap;
use crate::traffic::probe::view;
use crate::traffic::servers::{SERVER_PORT, VIP_PORT};
use crate::traffic::tunnel::GUE_PORT;
use crate::weir::Weir;

/// What net_pcap gives its first two ports.
const WEIR: [Mac; 2] = [[2, 0x70, 0x63, 0x61, 0x70, 0], [2, 0x70, 0x63, 0x61, 0x70, 1]];
const CLIENT_MAC: Mac = [2, 0, 0, 0, 0, 0x01];
const BACKEND_MAC: Mac = [2, 0, 0, 0, 0, 0x11];
/// DSCP AF11 and ECT(1), which must survive.
const TOS: u8 = 0x29;
/// Frames that hold the answers back until the questions have made their flows: some bursts of 32.
const FILLERS: usize = 160;
/// First source port of GUE and of nothing else: the dynamic range (RFC 6335 §6).
const DYNAMIC: u16 = 49_152;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = Mode::ALL
        .into_iter()
        .map(|mode| {
            Scenario::new(format!("capture/{}", mode.name()), move |context| bytes(context, mode, ""))
        })
        .collect();
    scenarios.push(Scenario::new("capture/gue-variant-0", |context| {
        bytes(context, Mode::Gue, "gue_variant = 0\n")
    }));
    scenarios
}

/// What a packet carries, so that it can be built again with other addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Syn,
    Data,
    Datagram,
}

impl Content {
    fn packet(self, from: SocketAddr, to: SocketAddr, ttl: u8) -> Vec<u8> {
        let ip = Ip { tos: TOS, id: 0x1234, ..Ip::new(from.ip(), to.ip()).ttl(ttl) };
        let ports = (from.port(), to.port());
        // an MSS that fits both families' links as it is
        let options = [2, 4, 5, 0x78, 1, 3, 3, 7];
        match self {
            Self::Syn => ip.tcp(&Tcp::new(ports, flag::SYN).options(&options)),
            Self::Data => ip.tcp(&Tcp::new(ports, flag::ACK | flag::PSH).data(b"odd number of bytes")),
            Self::Datagram => ip.udp(ports, b"question"),
        }
    }
}

/// One packet from a client, or one from a backend.
#[derive(Clone, Copy, Debug)]
struct Case {
    content: Content,
    client: SocketAddr,
    vip: SocketAddr,
    backend: SocketAddr,
}

fn cases(mode: Mode) -> Vec<Case> {
    let mut cases = Vec::new();
    for family in Family::BOTH {
        let client: IpAddr = if family == Family::Ipv4 { CLIENT.0.into() } else { CLIENT.1.into() };
        let service = Service::new(mode, Protocol::Tcp, family);
        let port = if mode.rewrites() { SERVER_PORT } else { VIP_PORT };
        for (flow, content) in
            [(0, Content::Syn), (0, Content::Data), (1, Content::Datagram), (2, Content::Datagram)]
        {
            cases.push(Case {
                content,
                client: SocketAddr::new(client, 40_000 + flow),
                vip: service.target(),
                backend: SocketAddr::new(backend(family, 1), port),
            });
        }
    }
    cases
}

fn neighbours(from: Mac, to: Mac, addresses: [IpAddr; 2], weir: [IpAddr; 2]) -> Vec<Vec<u8>> {
    let link = Link::new(from, to);
    addresses
        .into_iter()
        .zip(weir)
        .filter_map(|pair| match pair {
            (IpAddr::V4(from), IpAddr::V4(to)) => Some(arp_reply(&link, from, to)),
            (IpAddr::V6(from), IpAddr::V6(to)) => Some(neighbour_advertisement(&link, from, to)),
            _ => None,
        })
        .collect()
}

fn bytes(context: &Context, mode: Mode, listener_lines: &str) -> Result<()> {
    let run = Run::new()?;
    let lab = Lab::build(run.name(), Io::AfPacket)?;
    let paths = ["wan-in", "wan-out", "lan-in", "lan-out"].map(|name| run.path(&format!("{name}.pcap")));
    let cases = cases(mode);
    let (wan_in, lan_in) = input(mode, &cases);
    pcap::write(&paths[0], &wan_in)?;
    pcap::write(&paths[2], &lan_in)?;
    let device = |input: &PathBuf, output: &PathBuf| format!("pcap:{},{}", input.display(), output.display());
    let services = Protocol::BOTH
        .into_iter()
        .flat_map(|protocol| Family::BOTH.map(|family| Service::new(mode, protocol, family)))
        .map(|service| Service {
            backends: vec![(1, 100)],
            listener_lines: listener_lines.to_owned(),
            ..service
        })
        .collect();
    let mut config = Config::new([device(&paths[0], &paths[1]), device(&paths[2], &paths[3])], services);
    config.wan = format!("gateways = [\"{}\", \"{}\"]\n", CLIENT.0, CLIENT.1);
    let mut weir = Weir::start(&run, &lab, &context.binaries, &config.toml())?;
    wait_for("both captures to be read", Duration::from_secs(10), || {
        weir.must_run()?;
        let status = weir.status()?;
        let read = |port, frames: &[Vec<u8>]| status.port(port, "rx_packets") >= frames.len() as u64;
        Ok((read("wan", &wan_in) && read("lan", &lan_in)).then_some(()))
    })?;
    let status = weir.settle()?;
    weir.dataplane.stop()?;
    let out = [&paths[1], &paths[3]].map(|path| pcap::read(path).map(ip_frames));
    let [wan_out, lan_out] = out;
    let drops = status.drops_in_words();
    let variant_0 = listener_lines.contains("= 0");
    compare("to the backends", lan_out?, cases.iter().map(|case| Expected::forward(mode, *case, variant_0)))
        .with_context(|| format!("drops: {drops}"))?;
    let answers = if mode == Mode::Nat { &cases[..] } else { &[] };
    compare("to the client", wan_out?, answers.iter().map(|case| Expected::answer(*case)))
        .with_context(|| format!("drops: {drops}"))
}

/// Both captures: neighbours first, so that nothing has to wait for them, then packets.
fn input(mode: Mode, cases: &[Case]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let weir_wan = [crate::topology::lab::WAN.0.into(), crate::topology::lab::WAN.1.into()];
    let mut wan = neighbours(CLIENT_MAC, WEIR[0], [CLIENT.0.into(), CLIENT.1.into()], weir_wan);
    let to_weir = Link::new(CLIENT_MAC, WEIR[0]);
    wan.extend(cases.iter().map(|case| to_weir.ip(&case.content.packet(case.client, case.vip, 64))));
    let from_backend = Link::new(BACKEND_MAC, WEIR[1]);
    let hosts = Family::BOTH.map(|family| backend(family, 1));
    let mut lan = neighbours(BACKEND_MAC, WEIR[1], hosts, [LAN.0.into(), LAN.1.into()]);
    if mode == Mode::Nat {
        // hearsay between others: looked at and forgotten
        let filler =
            arp_reply(&Link::new(BACKEND_MAC, CLIENT_MAC), [198, 18, 1, 11].into(), [198, 18, 1, 12].into());
        lan.extend(std::iter::repeat_n(filler, FILLERS));
        lan.extend(
            cases.iter().map(|case| from_backend.ip(&case.content.packet(case.backend, case.client, 64))),
        );
    }
    (wan, lan)
}

/// Only frames that carry IP, and of those not neighbour discovery.
fn ip_frames(frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let is_traffic = |frame: &Vec<u8>| {
        let Some((kind, _, packet)) = view::network(frame) else { return false };
        let discovery = matches!(view::transport(packet), Some((58, message)) if matches!(message.first(), Some(133..=137)));
        matches!(kind, 0x0800 | 0x86dd) && !discovery
    };
    frames.into_iter().filter(is_traffic).collect()
}

/// Makes the frame that is expected, given one that came out.
type Build = Box<dyn Fn(&[u8]) -> Result<Vec<u8>>>;

/// A frame that must come out, given the choices that a candidate shows.
struct Expected {
    what: String,
    build: Build,
}

impl Expected {
    /// From a client to the backend.
    fn forward(mode: Mode, case: Case, variant_0: bool) -> Self {
        let link = Link::new(WEIR[1], BACKEND_MAC);
        let plain = move || case.content.packet(case.client, case.vip, 63);
        let build: Build = match mode {
            Mode::Dsr => Box::new(move |_| Ok(link.ip(&plain()))),
            Mode::Nat => Box::new(move |_| Ok(link.ip(&case.content.packet(case.client, case.backend, 63)))),
            Mode::Proxy => Box::new(|_| bail!("a proxy forwards no packets")),
            Mode::Fullnat => Box::new(move |candidate| {
                let (from, _) = ports_of(candidate)?;
                ensure!(from >= 1_024, "source port {from} is not for Weir to use");
                let own: IpAddr = if case.vip.is_ipv4() { SNAT.0.into() } else { SNAT.1.into() };
                Ok(link.ip(&case.content.packet(SocketAddr::new(own, from), case.backend, 63)))
            }),
            Mode::Ipip => Box::new(move |candidate| {
                let inner = plain();
                Ok(link.ip(&outer(case, candidate)?
                    .packet(if case.vip.is_ipv4() { 4 } else { 41 }, &inner)
                    .with_flow_label(candidate)))
            }),
            Mode::Gue => Box::new(move |candidate| {
                let mut payload = Vec::new();
                if variant_0 {
                    payload.extend([0, if case.vip.is_ipv4() { 4 } else { 41 }, 0, 0]);
                }
                payload.extend(plain());
                let (from, _) = ports_of(candidate)?;
                ensure!(from >= DYNAMIC, "outer source port {from} is below the dynamic range");
                let ip = outer(case, candidate)?;
                let mut datagram = ip.udp_datagram((from, GUE_PORT), &payload);
                // over IPv4 the checksum may be left out (RFC 768); over IPv6 it must not (RFC 8200 §8.1)
                let shown = view::network(candidate).and_then(|(_, _, packet)| view::transport(packet));
                if case.vip.is_ipv4() && shown.and_then(|(_, segment)| segment.get(6..8)) == Some(&[0, 0]) {
                    datagram[6..8].fill(0);
                }
                Ok(link.ip(&ip.packet(17, &datagram).with_flow_label(candidate)))
            }),
        };
        Self { what: format!("{case:?}"), build }
    }

    /// From the backend to the client.
    fn answer(case: Case) -> Self {
        let link = Link::new(WEIR[0], CLIENT_MAC);
        Self {
            what: format!("the answer to {case:?}"),
            build: Box::new(move |_| Ok(link.ip(&case.content.packet(case.vip, case.client, 63)))),
        }
    }
}

fn ports_of(frame: &[u8]) -> Result<(u16, u16)> {
    view::network(frame)
        .and_then(|(_, _, packet)| view::transport(packet))
        .and_then(|(_, segment)| view::ports(segment))
        .context("a frame without ports")
}

/// The outer header: DSCP and ECN copied, DF copied, TTL 64, from Weir's address.
fn outer(case: Case, candidate: &[u8]) -> Result<Ip> {
    let from: IpAddr = if case.vip.is_ipv4() { LAN.0.into() } else { LAN.1.into() };
    let id = candidate.get(18..20).context("a short frame")?;
    Ok(Ip { tos: TOS, id: u16::from_be_bytes([id[0], id[1]]), ..Ip::new(from, case.backend.ip()) })
}

trait FlowLabel {
    fn with_flow_label(self, candidate: &[u8]) -> Self;
}

impl FlowLabel for Vec<u8> {
    /// Takes over the 20 bits that Weir may choose, where it is IPv6.
    fn with_flow_label(mut self, candidate: &[u8]) -> Self {
        if self[0] >> 4 == 6
            && let Some(label) = candidate.get(15..18)
        {
            self[1] = self[1] & 0xf0 | label[0] & 0x0f;
            self[2..4].copy_from_slice(&label[1..]);
        }
        self
    }
}

/// Every expected frame came out once, and no other.
fn compare(what: &str, mut out: Vec<Vec<u8>>, expected: impl Iterator<Item = Expected>) -> Result<()> {
    for expected in expected {
        let fits = |frame: &Vec<u8>| (expected.build)(frame).is_ok_and(|built| built == *frame);
        match out.iter().position(fits) {
            Some(position) => drop(out.swap_remove(position)),
            None => {
                bail!("{what}: no frame for {}; left over are\n{}", expected.what, nearest(&out, &expected))
            }
        }
    }
    if let Some(frame) = out.first() {
        bail!("{what}: {} frames too many, first {}", out.len(), hex(frame));
    }
    Ok(())
}

/// The frames that fitted nothing, each above what it would have to be.
fn nearest(out: &[Vec<u8>], expected: &Expected) -> String {
    let show = |frame: &Vec<u8>| {
        let built = (expected.build)(frame).map_or_else(|error| format!("({error})"), |built| hex(&built));
        format!("  {}\n  not {built}\n", hex(frame))
    };
    if out.is_empty() { "  nothing".to_owned() } else { out.iter().take(4).map(show).collect() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_content_is_asked_for_in_both_families() {
        for mode in Mode::ALL {
            let cases = cases(mode);
            for content in [Content::Syn, Content::Data, Content::Datagram] {
                for is_ipv4 in [true, false] {
                    assert!(
                        cases.iter().any(|case| case.content == content && case.vip.is_ipv4() == is_ipv4)
                    );
                }
            }
        }
    }

    #[test]
    fn a_single_wrong_byte_is_noticed() {
        let case = cases(Mode::Nat)[0];
        let right = (Expected::forward(Mode::Nat, case, false).build)(&[]).unwrap();
        let check = |frame: Vec<u8>| {
            compare("x", vec![frame], std::iter::once(Expected::forward(Mode::Nat, case, false)))
        };
        check(right.clone()).unwrap();
        for at in 0..right.len() {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            assert!(check(wrong).is_err(), "byte {at}");
        }
    }
}

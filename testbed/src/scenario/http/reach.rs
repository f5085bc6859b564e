//! HTTP over IPv6 and between families, and over the drivers that need no XDP.

use std::net::{IpAddr, Shutdown};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{IDLE, Site, Text};
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{Family, Io};
use crate::traffic::backend::{SCRIPT_PORT, pattern};
use crate::traffic::exchange::{get, post};
use crate::traffic::stream::End;

const WEB: u16 = 80;
const SECOND: Duration = Duration::from_secs(1);
/// Bytes of a response's body: many packets, more than a window.
const LARGE: usize = 1_000_000;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for ends in [[Family::Ipv6; 2], [Family::Ipv4, Family::Ipv6], [Family::Ipv6, Family::Ipv4]] {
        let name = format!("http/{}-to-{}", ends[0].name(), ends[1].name());
        scenarios.push(Scenario::new(name, move |context| reach(context, Io::AfXdp, ends)));
    }
    for io in [Io::AfPacket, Io::Tap] {
        let name = format!("http/over-{}", io.name());
        scenarios.push(Scenario::new(name, move |context| reach(context, io, [Family::Ipv4; 2])));
    }
    scenarios
}

fn reach(context: &Context, io: Io, ends: [Family; 2]) -> Result<()> {
    let told = "http = { forwarded = true, rate_limit = [{ name = \"client\", key = \"client\", rate = \"1000/s\", burst = 1000 }] }\n";
    let text = Text::of(ends[0]).listener("web", WEB, "script", told).pool_of(
        ends[1],
        "script",
        &format!("algorithm = \"round-robin\"\n{IDLE}"),
        SCRIPT_PORT,
        &[(1, ""), (2, ""), (3, "")],
    );
    let site = Site::start_as(context, io, ends, text, |_| {})?;
    let mut client = site.client(WEB)?;
    let address = client.stream.local_addr()?.ip();
    ensure!(address.is_ipv6() == (ends[0] == Family::Ipv6), "the client came from {address}");
    let head = client.get("/echo")?.text().to_ascii_lowercase();
    let of = match address {
        IpAddr::V4(address) => format!("for={address}"),
        IpAddr::V6(address) => format!("for=\"[{address}]\""),
    };
    for line in [format!("x-forwarded-for: {address}"), format!("forwarded: {of}")] {
        ensure!(head.contains(&line), "no {line:?} in {head}");
    }
    // bodies both ways, all backends, kept and new connections
    let large = client.get(&format!("/bytes/{LARGE}"))?;
    ensure!(
        large.status == 200 && large.body == pattern(LARGE),
        "{} bytes came, or others",
        large.body.len()
    );
    let sent = "x".repeat(100_000);
    let answer = client.ask(&post("/echo", "", &sent))?;
    ensure!(answer.status == 200 && answer.text().ends_with(&sent), "{}", answer.status);
    let mut names = std::collections::BTreeSet::new();
    for number in 0..60 {
        let answer = if number % 2 == 0 { client.get("/who")? } else { site.get(WEB, "/who")? };
        answer.must_be(200, "")?;
        names.insert(answer.text());
    }
    ensure!(names.len() == 3, "only {names:?} were asked");
    let answer = client.ask(&get("/upgrade", "Connection: Upgrade\r\nUpgrade: echo\r\n"))?;
    ensure!(answer.status == 101, "{answer:?}");
    client.send("word")?;
    ensure!(client.bytes(4)? == b"word", "no echo");
    client.stream.shutdown(Shutdown::Write)?;
    ensure!(client.ended(2 * SECOND)? == End::Finished, "a FIN became a RST");
    site.finish()
}

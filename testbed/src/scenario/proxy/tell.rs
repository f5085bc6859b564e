//! What `weir status` tells of proxied TCP: states, retransmissions, resets and why, in words and in JSON.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{connect, finish, flows, serve, streams};
use crate::config::Service;
use crate::interrupt::wait_for;
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{Family, Io};
use crate::traffic::stream;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("proxy/status", tells)]
}

/// Known traffic, a known outage, known resets: the numbers are these.
fn tells(context: &Context) -> Result<()> {
    const BODY: u64 = 96 << 20;
    let body = Service { backends: vec![(1, 100)], ..streams(Family::Ipv4) };
    let nobody = Service {
        name: "nobody".into(),
        backends: vec![(2, 100)],
        backend_port: Some(1),
        ..streams(Family::Ipv4).on_vip(2)
    };
    let rig = Rig::start(context, Io::AfXdp, vec![body.clone(), nobody.clone()])?;
    let server = serve(&rig, Family::Ipv4, 1, |connection| drop(stream::receive(&connection, u64::MAX)))?;
    let kept = (0..5).map(|_| connect(&rig, &body)).collect::<Result<Vec<_>>>()?;
    for _ in 0..3 {
        drop(connect(&rig, &nobody));
    }
    // the backend hears nothing in the middle of a body, until Weir has asked again
    let client = connect(&rig, &body)?;
    let sent = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| stream::send(&client, BODY, &sent));
        flows(&sent)?;
        rig.lab.switch.ip("link set backend1 down\n")?;
        wait_for("a timeout of Weir", Duration::from_secs(5), || {
            Ok((rig.weir.status()?.tcp("rto_timeouts") > 0).then_some(()))
        })?;
        rig.lab.switch.ip("link set backend1 up\n")?;
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        sent.context("a body with an outage in it")
    })?;
    let status = rig.weir.status()?;
    let told = |counter: &str| status.tcp(counter);
    ensure!(told("established") == 12, "{} are established, 6 clients stand", told("established"));
    ensure!(told("retransmitted") > 0, "no retransmission was counted");
    ensure!(told("rto_timeouts") + told("tlp_probes") > 0, "neither a timeout nor a probe was counted");
    ensure!(told("resets_aborted") == 3, "resets_aborted {}, 3 found no backend", told("resets_aborted"));
    ensure!(told("segments_in") > BODY / 1_460, "segments_in {}", told("segments_in"));
    let text = rig.weir.weir(&["status"])?;
    for (column, counter) in [("established", "established"), ("aborted", "resets_aborted")] {
        let shown = cell(&text, column).with_context(|| format!("no column {column:?} in\n{text}"))?;
        ensure!(shown == told(counter).to_string(), "{column} is shown as {shown:?} in\n{text}");
    }
    for words in ["retransmitted", "resets: no listener", "time wait", &body.name, "nobody/app-2"] {
        ensure!(text.contains(words), "`weir status` does not mention {words:?}:\n{text}");
    }
    ensure!(
        status.proxy(&nobody.name, "no_backend") == 3,
        "no_backend {}",
        status.proxy(&nobody.name, "no_backend")
    );
    ensure!(status.upstream(&nobody.name, "connect_failures", |_| true) == 3, "connect_failures");
    drop((kept, client, server));
    finish(rig)
}

/// The cell under a column's head, in the row that follows it.
fn cell(text: &str, head: &str) -> Option<String> {
    let mut lines = text.lines();
    let at = loop {
        if let Some(at) = column(lines.next()?, head) {
            break at;
        }
    };
    let row: Vec<char> = lines.next()?.chars().collect();
    // columns are two spaces apart; numbers end where their heads end
    let end = (at + head.chars().count()).min(row.len());
    let start = (0..end).rev().find(|&at| row[at] == ' ').map_or(0, |at| at + 1);
    let rest: String = row[start..].iter().collect();
    rest.split_whitespace().next().map(str::to_owned)
}

fn column(line: &str, head: &str) -> Option<usize> {
    let at = line.find(head)?;
    let bounded = |byte: Option<char>| byte.is_none_or(|byte| byte == ' ');
    let right = bounded(line[..at].chars().last()) && bounded(line[at + head.len()..].chars().next());
    right.then(|| line[..at].chars().count())
}

#[cfg(test)]
mod tests {
    use super::cell;

    #[test]
    fn a_cell_is_found_under_its_head() {
        let text = "tcp\n  established  half open \n           12          0 \n";
        assert_eq!(cell(text, "established").as_deref(), Some("12"));
        assert_eq!(cell(text, "half open").as_deref(), Some("0"));
        assert_eq!(cell(text, "closing"), None);
    }
}

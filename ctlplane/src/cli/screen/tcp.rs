//! What does the screen tell of terminated TCP? Connections by state, what went wrong on the way, resets and why, and
//! each proxy listener and its backends.

use weir_abi::columns::{ProxyColumn, TcpColumn, UpstreamColumn};

use super::{Table, cell, title};
use crate::status::{Columns, Status};
use crate::units::format_size;

pub(super) fn render(text: &mut String, colour: bool, status: &Status) {
    if let Some(tcp) = &status.tcp {
        title(text, colour, "tcp");
        states(text, &tcp.counters, tcp.memory_ceiling);
        transmission(text, &tcp.counters);
        handshakes(text, &tcp.counters);
        resets(text, &tcp.counters);
    }
    proxies(text, colour, status);
    upstreams(text, colour, status);
}

fn value(counters: &Columns, column: TcpColumn) -> u64 {
    counters.get(column.name()).copied().unwrap_or(0)
}

fn states(text: &mut String, counters: &Columns, memory_ceiling: u64) {
    use TcpColumn as C;
    let columns = [
        ("established", C::Established),
        ("half open", C::HalfOpen),
        ("syn sent", C::SynSent),
        ("fin wait 1", C::FinWait1),
        ("fin wait 2", C::FinWait2),
        ("close wait", C::CloseWait),
        ("closing", C::Closing),
        ("last ack", C::LastAck),
        ("time wait", C::TimeWait),
        ("capacity", C::ConnectionsCapacity),
    ];
    let mut head: Vec<&'static str> = columns.iter().map(|(name, _)| *name).collect();
    let mut row: Vec<String> = columns.iter().map(|(_, column)| cell(counters, column.name())).collect();
    head.push("memory");
    let pinned = value(counters, C::MemoryPinned);
    row.push(format!("{} of {}", format_size(pinned), format_size(memory_ceiling)));
    one(text, &head, row);
}

fn one(text: &mut String, head: &[&'static str], row: Vec<String>) {
    let mut table = Table::new(head);
    table.row(row);
    table.render(text);
}

fn columns(text: &mut String, counters: &Columns, columns: &[(&'static str, TcpColumn)]) {
    let head: Vec<&'static str> = columns.iter().map(|(name, _)| *name).collect();
    one(text, &head, columns.iter().map(|(_, column)| cell(counters, column.name())).collect());
}

fn transmission(text: &mut String, counters: &Columns) {
    use TcpColumn as C;
    let shown = [
        ("segments in", C::SegmentsIn),
        ("segments out", C::SegmentsOut),
        ("retransmitted", C::Retransmitted),
        ("timeouts", C::RtoTimeouts),
        ("fast", C::FastRetransmits),
        ("tail probes", C::TlpProbes),
        ("spurious", C::Spurious),
        ("bad checksum", C::ChecksumErrors),
        ("old timestamp", C::PawsDrops),
        ("out of window", C::OutOfWindowDrops),
    ];
    columns(text, counters, &shown);
}

fn handshakes(text: &mut String, counters: &Columns) {
    use TcpColumn as C;
    let shown = [
        ("cookies sent", C::SynCookiesSent),
        ("accepted", C::SynCookiesAccepted),
        ("refused", C::SynCookiesRefused),
        ("fast open", C::FastOpenAccepted),
        ("challenge acks", C::ChallengeAcks),
        ("no source port", C::SnatExhausted),
    ];
    columns(text, counters, &shown);
}

fn resets(text: &mut String, counters: &Columns) {
    use TcpColumn as C;
    let shown = [
        ("resets: no listener", C::ResetsNoListener),
        ("aborted", C::ResetsAborted),
        ("timeout", C::ResetsTimeout),
        ("bad ack", C::ResetsBadAck),
        ("memory", C::ResetsMemory),
        ("limit", C::ResetsLimit),
        ("received", C::ResetsReceived),
    ];
    columns(text, counters, &shown);
}

fn proxies(text: &mut String, colour: bool, status: &Status) {
    use ProxyColumn as C;
    let shown = [
        ("accepted", C::ConnectionsAccepted),
        ("active", C::ConnectionsActive),
        ("queued", C::Queued),
        ("limit", C::ConnectionsRefusedLimit),
        ("queue timeout", C::QueueTimeouts),
        ("handshake timeout", C::HandshakeTimeouts),
        ("idle timeout", C::IdleTimeouts),
        ("half-close timeout", C::HalfCloseTimeouts),
        ("bad header", C::ProxyHeaderRefused),
        ("no backend", C::NoBackend),
        ("client resets", C::ClientResets),
        ("bytes in", C::BytesIn),
        ("bytes out", C::BytesOut),
    ];
    let mut head = vec!["listener"];
    head.extend(shown.iter().map(|(name, _)| *name));
    let mut table = Table::new(&head);
    for listener in status.listeners.iter().filter(|listener| !listener.proxy.is_empty()) {
        let cells = shown.iter().map(|(_, column)| cell(&listener.proxy, column.name()));
        table.row(std::iter::once(listener.name.clone()).chain(cells).collect());
    }
    if !table.rows.is_empty() {
        title(text, colour, "proxies");
        table.render(text);
    }
}

fn upstreams(text: &mut String, colour: bool, status: &Status) {
    use UpstreamColumn as C;
    let shown = [
        ("connects", C::Connects),
        ("active", C::Active),
        ("failures", C::ConnectFailures),
        ("timeouts", C::ConnectTimeouts),
        ("retries", C::Retries),
        ("server resets", C::ServerResets),
        ("bytes in", C::BytesIn),
        ("bytes out", C::BytesOut),
    ];
    let mut head = vec!["backend"];
    head.extend(shown.iter().map(|(name, _)| *name));
    let mut table = Table::new(&head);
    for pool in &status.pools {
        for backend in pool.backends.iter().filter(|backend| !backend.upstream.is_empty()) {
            let cells = shown.iter().map(|(_, column)| cell(&backend.upstream, column.name()));
            table.row(std::iter::once(format!("{}/{}", pool.name, backend.name)).chain(cells).collect());
        }
    }
    if !table.rows.is_empty() {
        title(text, colour, "proxied backends");
        table.render(text);
    }
}

//! What does `weir status` look like on one screen?

mod exception;
mod http;
mod tcp;

use std::fmt::Write as _;

use crate::status::{Columns, Health, Pool, Status};

/// Columns of text, as wide as their widest cell; numbers to the right.
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(super) fn render(&self, text: &mut String) {
        if self.rows.is_empty() {
            return;
        }
        let widths: Vec<usize> = self
            .head
            .iter()
            .enumerate()
            .map(|(column, head)| {
                let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count());
                cells.chain([head.chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let numeric: Vec<bool> = (0..self.head.len())
            .map(|column| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .all(|cell| cell.trim_end_matches('%').parse::<f64>().is_ok())
            })
            .collect();
        let head: Vec<String> = self.head.iter().map(|&head| head.to_owned()).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::from(" ");
            for ((cell, width), numeric) in row.iter().zip(&widths).zip(&numeric) {
                let _ = if *numeric {
                    write!(line, " {cell:>width$} ")
                } else {
                    write!(line, " {cell:<width$} ")
                };
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
}

fn cell(counters: &Columns, name: &str) -> String {
    counters.get(name).map_or_else(|| "-".to_owned(), |value| value.cast_signed().to_string())
}

/// L4 flows and proxied connections together.
fn both(flows: (&Columns, &str), proxied: (&Columns, &str)) -> String {
    let Some(flows) = flows.0.get(flows.1) else { return "-".to_owned() };
    let proxied = proxied.0.get(proxied.1).copied().unwrap_or(0);
    flows.wrapping_add(proxied).cast_signed().to_string()
}

fn title(text: &mut String, colour: bool, title: &str) {
    let _ = if colour { writeln!(text, "\n\x1b[1m{title}\x1b[0m") } else { writeln!(text, "\n{title}") };
}

/// The whole screen.
pub(super) fn render(status: &Status, colour: bool) -> String {
    let mut text = String::new();
    let (word, tint) = match status.health() {
        Health::Good => ("ok", "\x1b[32m"),
        Health::Degraded => ("degraded", "\x1b[33m"),
        Health::Unreachable => ("unreachable", "\x1b[31m"),
    };
    let word = if colour { format!("{tint}{word}\x1b[0m") } else { word.to_owned() };
    let _ = writeln!(text, "instance {}: {word}, generation {}", status.instance, status.generation);
    let process = |name: &str, state: &str, pid: u64| {
        if matches!(state, "down" | "unknown") {
            format!("  {name} {state}")
        } else {
            format!("  {name} {state}, pid {pid}")
        }
    };
    let _ = writeln!(text, "{}", process("weir-ctlplane ", &status.ctlplane.state, status.ctlplane.pid));
    let mut dataplane = process("weir-dataplane", &status.dataplane.state, status.dataplane.pid);
    if !matches!(status.dataplane.state.as_str(), "down" | "unknown") {
        let acked: Vec<String> = status.acked.iter().map(u64::to_string).collect();
        let _ = write!(dataplane, ", {} workers, acked {}", status.dataplane.workers, acked.join(" "));
    }
    let _ = writeln!(text, "{dataplane}");
    if let Some(node) = status.node.as_deref().filter(|node| *node != "ready") {
        let words = if node == "drain" { "node draining" } else { "node in maintenance" };
        let _ = writeln!(text, "  {words}: no listener takes new connections; weir ready takes it back");
    }
    for complaint in status.complaints() {
        let _ = writeln!(text, "  ! {complaint}");
    }
    if let Some(waiting) = &status.waiting {
        let left = waiting.confirm_by_unix_ms.saturating_sub(status.unix_ms) / 1_000;
        let _ = writeln!(
            text,
            "  waiting: back to change {} in {left} s unless weir confirm keeps what is in force",
            waiting.back_to
        );
    }
    for note in &status.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    for drift in &status.drift_details {
        let _ = writeln!(text, "  drift: {drift}");
    }
    ports(&mut text, colour, status);
    exception::render(&mut text, colour, status);
    workers(&mut text, colour, status);
    listeners(&mut text, colour, status);
    if !status.pools.is_empty() {
        title(&mut text, colour, "pools");
        text.push_str(&backends(&status.pools));
    }
    http::render(&mut text, colour, status);
    tcp::render(&mut text, colour, status);
    let drops: Vec<_> = status.drops.iter().filter(|(_, count)| **count > 0).collect();
    if !drops.is_empty() {
        title(&mut text, colour, "drops");
        let mut table = Table::new(&["reason", "packets"]);
        drops.into_iter().for_each(|(reason, count)| table.row(vec![reason.clone(), count.to_string()]));
        table.render(&mut text);
    }
    text
}

fn ports(text: &mut String, colour: bool, status: &Status) {
    if status.ports.is_empty() {
        return;
    }
    title(text, colour, "ports");
    let mut table = Table::new(&["name", "device", "rx", "rx bytes", "tx", "tx bytes", "missed", "errors"]);
    for port in &status.ports {
        let errors = ["rx_errors", "rx_no_buffer", "tx_errors"];
        let errors: u64 = errors.iter().filter_map(|name| port.counters.get(*name)).sum();
        let mut row = vec![port.name.clone(), port.device.clone()];
        let names = ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "rx_missed"];
        row.extend(names.iter().map(|name| cell(&port.counters, name)));
        row.push(if port.counters.is_empty() { "-".to_owned() } else { errors.to_string() });
        table.row(row);
    }
    table.render(text);
}

fn workers(text: &mut String, colour: bool, status: &Status) {
    if status.workers.is_empty() {
        return;
    }
    title(text, colour, "workers");
    let mut table = Table::new(&[
        "worker",
        "generation",
        "rx",
        "tx",
        "dropped",
        "flows v4",
        "flows v6",
        "busy",
        "balance",
    ]);
    for (worker, acked) in status.workers.iter().zip(&status.acked) {
        let value = |name: &str| worker.counters.get(name).copied().unwrap_or(0) as f64;
        let busy = 100.0 * value("busy_cycles") / value("total_cycles").max(1.0);
        let mut row = vec![worker.index.to_string(), acked.to_string()];
        let names = ["rx_packets", "tx_packets", "dropped", "flows_ipv4", "flows_ipv6"];
        row.extend(names.iter().map(|name| cell(&worker.counters, name)));
        row.push(format!("{busy:.1}%"));
        row.push(worker.balance.to_string());
        table.row(row);
    }
    table.render(text);
}

fn listeners(text: &mut String, colour: bool, status: &Status) {
    if status.listeners.is_empty() {
        return;
    }
    title(text, colour, "listeners");
    text.push_str(&listener_table(status));
}

/// Listeners: also what `weir listener list` prints.
pub(super) fn listener_table(status: &Status) -> String {
    let mut text = String::new();
    let mut table = Table::new(&[
        "name", "address", "protocol", "port", "mode", "state", "pool", "flows", "active", "in", "out",
    ]);
    for listener in &status.listeners {
        let mut row = vec![
            listener.name.clone(),
            listener.address.clone(),
            listener.protocol.clone(),
            listener.port.clone(),
            listener.mode.clone(),
            listener.state.clone(),
            listener.pool.clone(),
        ];
        for (flows, proxied) in
            [("flows_total", "connections_accepted"), ("flows_active", "connections_active")]
        {
            row.push(both((&listener.counters, flows), (&listener.proxy, proxied)));
        }
        row.extend(["packets_in", "packets_out"].iter().map(|name| cell(&listener.counters, name)));
        table.row(row);
    }
    table.render(&mut text);
    text
}

/// Pools and their backends: also what `weir backend list` prints.
pub(super) fn backends(pools: &[Pool]) -> String {
    let mut text = String::new();
    let mut table =
        Table::new(&["backend", "address", "weight", "state", "share", "active", "flows", "in", "out"]);
    for pool in pools {
        for backend in &pool.backends {
            let unreachable = backend.counters.get("unreachable").is_some_and(|value| *value != 0);
            let by_checks = backend.health.as_ref().is_some_and(|health| health.state == "down");
            let state = match (backend.down, unreachable) {
                (false, _) if by_checks => format!("{}, down but used", backend.state),
                (true, _) => format!("{}, down", backend.state),
                (false, true) => format!("{}, no neighbour", backend.state),
                (false, false) => backend.state.clone(),
            };
            let mut row = vec![
                format!("{}/{}", pool.name, backend.name),
                backend.address.clone(),
                backend.weight.to_string(),
                state,
                format!("{:.1}%", backend.slot_share * 100.0),
            ];
            for (flows, proxied) in [("flows_active", "active"), ("flows_total", "connects")] {
                row.push(both((&backend.counters, flows), (&backend.upstream, proxied)));
            }
            row.extend(["packets_in", "packets_out"].iter().map(|name| cell(&backend.counters, name)));
            table.row(row);
        }
        if pool.backends.is_empty() {
            table.row(vec![format!("{}/", pool.name), "no backends".to_owned()]);
        }
    }
    table.render(&mut text);
    text
}

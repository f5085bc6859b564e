//! What does the screen tell of HTTP? Each listener, its own answers and why, its backends with their breakers, and the access log.

use std::fmt::Write as _;

use weir_abi::columns::{HttpBackendColumn, HttpColumn, HttpWorkerColumn};

use super::{Table, cell, title};
use crate::status::http::BackendHttp;
use crate::status::{Columns, Status};
use crate::units::format_size;

pub(super) fn render(text: &mut String, colour: bool, status: &Status) {
    listeners(text, colour, status);
    causes(text, colour, status);
    backends(text, colour, status);
    events(text, colour, status);
}

fn listeners(text: &mut String, colour: bool, status: &Status) {
    use HttpColumn as C;
    let shown = [
        ("requests", C::Requests),
        ("1xx", C::Informational),
        ("2xx", C::Successful),
        ("3xx", C::Redirection),
        ("4xx", C::ClientError),
        ("5xx", C::ServerError),
        ("own", C::Own),
        ("exchanges", C::Exchanges),
        ("idle clients", C::IdleClients),
        ("tunnels", C::Tunnels),
        ("rate-limited", C::RateLimited),
        ("retries", C::Retries),
        ("denied", C::RetriesDenied),
        ("mirrored", C::Mirrored),
        ("not mirrored", C::MirrorsSkipped),
    ];
    let mut head = vec!["listener"];
    head.extend(shown.iter().map(|(name, _)| *name));
    let mut table = Table::new(&head);
    for listener in &status.listeners {
        let Some(http) = &listener.http else { continue };
        let cells = shown.iter().map(|(_, column)| cell(&http.counters, column.name()));
        table.row(std::iter::once(listener.name.clone()).chain(cells).collect());
    }
    section(text, colour, "http", &table);
}

fn causes(text: &mut String, colour: bool, status: &Status) {
    let mut table = Table::new(&["listener", "cause", "count"]);
    for listener in &status.listeners {
        let Some(http) = &listener.http else { continue };
        let mut causes: Vec<_> = http.causes.iter().collect();
        causes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (cause, count) in causes {
            table.row(vec![listener.name.clone(), cause.clone(), count.to_string()]);
        }
    }
    section(text, colour, "answered or ended by Weir itself", &table);
}

fn backends(text: &mut String, colour: bool, status: &Status) {
    use HttpBackendColumn as C;
    let shown = [
        ("requests", C::Requests),
        ("reused", C::Reused),
        ("idle", C::Idle),
        ("5xx", C::ServerErrors),
        ("failures", C::Failures),
        ("opened", C::BreakerOpened),
    ];
    let mut head = vec!["backend"];
    head.extend(shown.iter().map(|(name, _)| *name));
    head.push("breaker");
    let mut table = Table::new(&head);
    for pool in &status.pools {
        for backend in &pool.backends {
            let Some(http) = &backend.http else { continue };
            let cells = shown.iter().map(|(_, column)| cell(&http.counters, column.name()));
            let mut row: Vec<String> =
                std::iter::once(format!("{}/{}", pool.name, backend.name)).chain(cells).collect();
            row.push(breaker(http, status));
            table.row(row);
        }
    }
    section(text, colour, "http backends", &table);
}

/// `closed`, or the state with how many workers have it, why, and since when.
fn breaker(http: &BackendHttp, status: &Status) -> String {
    let workers = status.dataplane.workers;
    let mut text = http.breaker.clone();
    if workers > 1 && http.breaker != "closed" {
        let column = match http.breaker.as_str() {
            "open" => HttpBackendColumn::BreakerOpen,
            _ => HttpBackendColumn::BreakerHalfOpen,
        };
        let _ = write!(text, " at {} of {workers}", cell(&http.counters, column.name()));
    }
    if let Some(changes) = &http.changes
        && changes.state == http.breaker
    {
        let seconds = status.unix_ms.saturating_sub(changes.since_unix_ms) / 1_000;
        let _ = write!(text, ", {}, for {seconds} s", changes.reason);
    }
    text
}

fn events(text: &mut String, colour: bool, status: &Status) {
    let Some(http) = &status.http else { return };
    title(text, colour, "http memory and events");
    let value =
        |columns: &Columns, column: HttpWorkerColumn| columns.get(column.name()).copied().unwrap_or(0);
    let memory = format!(
        "{} of {}",
        format_size(value(&http.counters, HttpWorkerColumn::MemoryUsed)),
        format_size(value(&http.counters, HttpWorkerColumn::MemoryCeiling))
    );
    let mut head = vec!["memory", "events", "events dropped"];
    let mut row = vec![
        memory,
        cell(&http.counters, HttpWorkerColumn::EventsWritten.name()),
        cell(&http.counters, HttpWorkerColumn::EventsRefused.name()),
    ];
    if let Some(log) = &http.access_log
        && let Some(target) = &log.target
    {
        head.extend(["access log", "lines", "dropped: slow", "dropped: error", "reopened"]);
        row.push(target.clone());
        row.extend(
            [log.written, log.dropped_slow, log.dropped_error, log.reopened].map(|count| count.to_string()),
        );
    }
    let mut table = Table::new(&head);
    table.row(row);
    table.render(text);
}

fn section(text: &mut String, colour: bool, name: &str, table: &Table) {
    if !table.rows.is_empty() {
        title(text, colour, name);
        table.render(text);
    }
}

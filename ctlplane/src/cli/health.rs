//! `weir health`: what do the checks find?

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::screen::Table;
use super::{Exit, complain, failed, print, print_json};
use crate::client::Client;
use crate::health::listing::{Listing, Row};
use crate::units::about_time;

/// Which backends.
#[derive(Debug, Args)]
pub struct HealthArguments {
    /// A POOL, POOL/NAME, or a backend's NAME where that is unique; all where it is left out.
    pub which: Option<String>,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs it. Exit code 0: all that was asked for are up, 1: some are not.
pub(super) fn run(client: &Client, arguments: &HealthArguments) -> Exit {
    let mut listing: Listing = match client.get("/v1/health") {
        Ok(listing) => listing,
        Err(error) => return failed(&error),
    };
    if let Some(which) = &arguments.which {
        let is_meant = |row: &Row| match which.split_once('/') {
            Some((pool, backend)) => row.pool == pool && row.backend == backend,
            None => row.pool == *which,
        };
        let by_name = |row: &Row| row.backend == *which;
        let has_pool = listing.backends.iter().any(is_meant);
        listing.backends.retain(|row| if has_pool { is_meant(row) } else { by_name(row) });
        if listing.backends.is_empty() {
            complain(&format!(
                "no health check probes {which}: add [pool.health_check] to its pool; weir health lists all"
            ));
            return Exit::Bad;
        }
    }
    if arguments.json {
        print_json(&listing);
    } else if listing.backends.is_empty() {
        print("no pool has a [pool.health_check]\n");
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        match listing.backends.as_slice() {
            [one] => print(&detail(one, now)),
            all => print(&table(all, now)),
        }
    }
    if listing.backends.iter().all(|row| row.state == "up") { Exit::Good } else { Exit::Bad }
}

fn ago(unix_ms: u64, now: u64) -> String {
    if unix_ms == 0 { "-".to_owned() } else { about_time(now.saturating_sub(unix_ms)) }
}

fn state(row: &Row) -> String {
    if row.in_doubt { format!("{}, in doubt", row.state) } else { row.state.clone() }
}

fn table(rows: &[Row], now: u64) -> String {
    let mut table =
        Table::new(&["backend", "check", "address", "state", "for", "last result", "took", "reason"]);
    for row in rows {
        table.row(vec![
            format!("{}/{}", row.pool, row.backend),
            row.check.clone(),
            row.address.clone(),
            state(row),
            ago(row.since_unix_ms, now),
            if row.last_result.is_empty() { "-".to_owned() } else { row.last_result.clone() },
            format!("{:.1} ms", row.last_us as f64 / 1_000.0),
            row.reason.clone(),
        ]);
    }
    let mut text = String::new();
    table.render(&mut text);
    text
}

fn detail(row: &Row, now: u64) -> String {
    let next = if row.next_ms == 0 { "under way".to_owned() } else { format!("in {} ms", row.next_ms) };
    let last = if row.last_unix_ms == 0 {
        "none yet".to_owned()
    } else {
        let took = row.last_us as f64 / 1_000.0;
        format!("{} ({} ago, took {took:.1} ms)", row.last_result, ago(row.last_unix_ms, now))
    };
    format!(
        "{}/{} is {} since {}\n  reason       {}\n  check        {} to {}, {}\n  last result  {last}\n  next probe   {next}\n  probes       {}, {} of them not good\n",
        row.pool,
        row.backend,
        state(row),
        ago(row.since_unix_ms, now),
        row.reason,
        row.check,
        row.address,
        row.through,
        row.probes,
        row.failures,
    )
}

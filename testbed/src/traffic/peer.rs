//! `peer`: clients and servers in processes of their own, to be killed or to have descriptors of their own.

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::traffic::http::Connection;
use crate::traffic::rate;

/// What the process is to be.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Peer {
    /// A server that reads and forgets.
    Sink {
        /// Where it listens.
        place: SocketAddr,
    },
    /// A client that keeps connections open and asks on each, as often as it is sent a line; it ends with its input.
    Hold {
        /// Where it connects.
        target: SocketAddr,
        /// How many.
        connections: usize,
    },
    /// A client that asks at a fixed rate and says how long answers took, as JSON.
    Rate {
        /// Whom it asks.
        target: SocketAddr,
        /// Requests per second.
        rate: u32,
        /// Over how many connections.
        connections: usize,
        /// For how many milliseconds.
        ms: u64,
    },
}

/// Runs it to its end.
pub(crate) fn run(peer: &Peer) -> Result<()> {
    match peer {
        Peer::Sink { place } => sink(*place),
        Peer::Hold { target, connections } => hold(*target, *connections),
        Peer::Rate { target, rate, connections, ms } => {
            let outcome = rate::run(*target, *rate, *connections, Duration::from_millis(*ms))?;
            println!("{}", serde_json::to_string(&outcome)?);
            Ok(())
        }
    }
}

fn sink(place: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(place).with_context(|| format!("bind {place}"))?;
    loop {
        let (mut stream, _) = listener.accept()?;
        std::thread::spawn(move || {
            let mut buffer = vec![0u8; 65_536];
            while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
        });
    }
}

fn hold(target: SocketAddr, connections: usize) -> Result<()> {
    let mut open = (0..connections)
        .map(|number| Connection::open(target).with_context(|| format!("connection {number}")))
        .collect::<Result<Vec<_>>>()?;
    let mut output = std::io::stdout();
    writeln!(output, "open")?;
    for line in std::io::stdin().lock().lines() {
        line?;
        for (number, connection) in open.iter_mut().enumerate() {
            connection.get("/", false).with_context(|| format!("request on connection {number}"))?;
        }
        writeln!(output, "answered")?;
    }
    Ok(())
}

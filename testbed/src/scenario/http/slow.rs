//! Clients that take their time, by the thousand, beside those who don't: heads and bodies a byte at a time, answers that nobody reads,
//! connections on which nothing is said.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use socket2::SockRef;

use super::{IDLE, Site, Text, load};
use crate::interrupt;
use crate::scenario::{Context, Scenario};
use crate::traffic::exchange::get;
use crate::traffic::servers::FILE;

const WEB: u16 = 80;
/// Those of [`KINDS`] that do not read.
const READS: usize = 2;
/// Attackers of each kind.
const EACH: usize = 400;
const LENGTH: Duration = Duration::from_secs(8);
/// Clients of the real traffic.
const CLIENTS: usize = 4;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("http/slow-attacks", attacks)]
}

/// How an attacker begins, and what it adds now and then.
const KINDS: [(&str, &str, &str); 4] = [
    ("heads", "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ", "x"),
    ("bodies", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n", "x"),
    ("reads", "", ""),
    ("idle", "", ""),
];

fn attacks(context: &Context) -> Result<()> {
    let times = "timeouts = { request_header = \"3s\", request_body = \"3s\", response_idle = \"3s\", keep_alive = \"3s\" }\n";
    let text = Text::new()
        .listener("web", WEB, "app", times)
        .route("web", "method = \"POST\"\npool = \"script\"\n")
        .scripted("script", IDLE)
        .nginx("app", IDLE);
    let mut site = Site::start(context, text)?;
    let (alone, ()) = load::beside(&mut site, (WEB, "/"), CLIENTS, |_, load| load.more(3_000))?;
    let (beside, (ended, open)) = load::beside(&mut site, (WEB, "/"), CLIENTS, |site, load| {
        let mut attackers = open(site)?;
        let start = Instant::now();
        let mut ended = 0;
        while start.elapsed() < LENGTH {
            interrupt::check()?;
            load.more(1)?;
            for (kind, attacker) in &mut attackers {
                let (_, _, more) = KINDS[*kind];
                let Some(stream) = attacker else { continue };
                if is_over(*kind, stream)
                    || !more.is_empty() && (&mut &*stream).write_all(more.as_bytes()).is_err()
                {
                    *attacker = None;
                    ended += 1;
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        load.more(200)?;
        let open = attackers.iter().filter(|(_, attacker)| attacker.is_some()).count();
        Ok((ended, open))
    })?;
    let status = site.status()?;
    let cause = |name: &str| status.cause("web", name) as usize;
    let (heads, bodies) = (cause("request-header-timeout"), cause("request-body-timeout"));
    let reads = cause("response-idle") + cause("client-slow");
    println!(
        "      {} attackers, {ended} ended by Weir, {open} still open; too slow were {heads} heads, {bodies} bodies and {reads} readers",
        EACH * KINDS.len()
    );
    println!(
        "      slowest of {} requests alone {:.1?}, of {} beside them {:.1?}",
        alone.answered, alone.slowest, beside.answered, beside.slowest
    );
    ensure!(heads >= EACH, "{heads} of {EACH} slow heads were refused");
    // ten bytes a second are less than the least rate, which holds from the sixth second on
    ensure!(bodies >= EACH, "{bodies} of {EACH} slow bodies were refused");
    ensure!(reads >= EACH, "{reads} of {EACH} who don't read were ended; {}", status.causes_in_words("web"));
    ensure!(open == 0, "{open} attackers are still connected");
    ensure!(beside.slowest < Duration::from_secs(2), "a request took {:?}", beside.slowest);
    site.finish()
}

type Attackers = Vec<(usize, Option<TcpStream>)>;

/// Connects all of them.
fn open(site: &Site) -> Result<Attackers> {
    let target = site.place(WEB);
    let mut attackers: Attackers = Vec::new();
    let client = site.rig.client();
    client.run(|| -> Result<()> {
        for number in 0..EACH {
            for (kind, (name, first, _)) in KINDS.iter().enumerate() {
                let stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))
                    .with_context(|| format!("attacker {number} of {name}"))?;
                // what it does not read stays in Weir: as little as may be waits in its kernel
                let request = if *name == "reads" { get(FILE, "") } else { (*first).to_owned() };
                SockRef::from(&stream).set_recv_buffer_size(4_096)?;
                (&mut &stream).write_all(request.as_bytes())?;
                stream.set_nonblocking(*name != "reads")?;
                attackers.push((kind, Some(stream)));
            }
        }
        Ok(())
    })??;
    Ok(attackers)
}

/// Whether Weir has ended it; those that don't read never look.
fn is_over(kind: usize, stream: &TcpStream) -> bool {
    let mut buffer = [0u8; 512];
    match stream.take_error() {
        Ok(None) => {}
        _ => return true,
    }
    if kind == READS {
        return false;
    }
    match (&mut &*stream).read(&mut buffer) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

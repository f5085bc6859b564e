//! `demo`, `up` and `down`: real HTTP through Weir, shown in a table.

use std::net::SocketAddr;

use anyhow::{Result, bail};

use crate::console::{Step, grouped, table};
use crate::run::{self, Run};
use crate::setup::Ready;
use crate::status::Status;
use crate::supervisor::Process;
use crate::topology::lab::{Family, Io, Lab, vip};
use crate::traffic::http::{self, Tally};
use crate::traffic::servers::{VIP_PORT, start_nginx};
use crate::weir::{Options, Weir};

/// The configuration, as the README shows it.
pub(crate) const CONFIG: &str = include_str!("../demo.toml");

const REQUESTS: u64 = 500;
const AT_ONCE: usize = 8;

/// Listener, mode, family, number of its VIP, pool.
const LISTENERS: [(&str, &str, Family, u8, &str); 5] = [
    ("web4-http", "nat", Family::Ipv4, 1, "app4"),
    ("web6-http", "nat", Family::Ipv6, 1, "app6"),
    ("direct4-http", "dsr", Family::Ipv4, 2, "direct4"),
    ("direct6-http", "dsr", Family::Ipv6, 2, "direct6"),
    ("shop4-http", "proxy", Family::Ipv4, 3, "shop4"),
];

/// What the user may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum IoChoice {
    /// The first that works.
    Auto,
    /// XSK on a veth.
    AfXdp,
    /// Packet socket on a veth.
    AfPacket,
    /// TAP.
    Tap,
}

impl IoChoice {
    fn candidates(self) -> Vec<Io> {
        match self {
            Self::Auto => Io::ALL.to_vec(),
            Self::AfXdp => vec![Io::AfXdp],
            Self::AfPacket => vec![Io::AfPacket],
            Self::Tap => vec![Io::Tap],
        }
    }
}

/// Everything that runs. Fields are dropped in this order: processes before namespaces.
struct Stage {
    weir: Weir,
    servers: Vec<Process>,
    lab: Lab,
    run: Run,
}

/// The demo. Leaves everything running when `keep` says so.
pub(crate) fn demo(mut ready: Ready, choice: IoChoice, keep: bool) -> Result<()> {
    let mut stage = set_up(&ready, choice, keep)?;
    let loads = LISTENERS
        .iter()
        .map(|&(listener, mode, family, number, _)| {
            let target = SocketAddr::new(vip(family, number), VIP_PORT);
            let step = Step::start(format!("{REQUESTS} requests to {listener} ({mode}, {})", family.name()));
            let tally = http::load(&stage.lab.client, target, REQUESTS, AT_ONCE)?;
            step.end(&format!("{} answered", tally.answered()));
            Ok(tally)
        })
        .collect::<Result<Vec<Tally>>>()?;
    let status = stage.weir.settle()?;
    print!("\n{}", result_table(&loads, &status));
    print!("{}", packet_summary(&status));
    if keep {
        leave(&mut stage, &mut ready)?;
    } else {
        println!(
            "\n  Look further: `cargo testbed demo --keep` leaves all of this running and prints the commands to"
        );
        println!(
            "  watch and change it (weir status, weir backend, curl, tcpdump); docs/configuration.md has every field."
        );
    }
    verdict(&loads)
}

/// `up`: the demo's lab, running, until `down`.
pub(crate) fn up(mut ready: Ready, choice: IoChoice) -> Result<()> {
    let mut stage = set_up(&ready, choice, true)?;
    leave(&mut stage, &mut ready)
}

/// `down`: ends what `up` or `--keep` left.
pub(crate) fn down() -> Result<()> {
    let kept = run::kept();
    if kept.is_empty() {
        println!("  nothing is running");
    }
    for (name, owner) in kept {
        let step = Step::start(format!("ending {name}"));
        run::end(&name, &owner)?;
        step.end("done");
    }
    crate::setup::settle_pages()
}

fn set_up(ready: &Ready, choice: IoChoice, stays: bool) -> Result<Stage> {
    let candidates = choice.candidates();
    let mut reasons = Vec::new();
    for (position, &io) in candidates.iter().enumerate() {
        let step = Step::start(format!("namespaces, three nginx, Weir on {}", io.name()));
        match try_io(ready, io, stays) {
            Ok(stage) => {
                let why = match (choice, position) {
                    (IoChoice::Auto, 0) => "up: the fastest of the three, and it works here".to_owned(),
                    (IoChoice::Auto, _) => format!("up: {} does not work here", reasons.join(" and ")),
                    _ => "up: as you asked".to_owned(),
                };
                step.end(&why);
                return Ok(stage);
            }
            Err(error) => {
                crate::interrupt::check()?;
                step.end("does not work");
                println!("    {}", format!("{error:#}").replace('\n', "\n    "));
                reasons.push(io.name());
            }
        }
    }
    bail!("Weir could not start on {}; the reasons are above", reasons.join(", "))
}

fn try_io(ready: &Ready, io: Io, stays: bool) -> Result<Stage> {
    let run = Run::new()?;
    let lab = Lab::build(run.name(), io)?;
    for family in Family::BOTH {
        lab.accept_vip(vip(family, 2))?;
    }
    let servers = start_nginx(&run, &lab, stays)?;
    let config = CONFIG.replace("af_xdp:", &format!("{}:", io.name()));
    let options = Options { stays, ..Options::default() };
    let weir = Weir::start_with(&run, &lab, &ready.binaries, &config, &options)?;
    Ok(Stage { weir, servers, lab, run })
}

fn result_table(loads: &[Tally], status: &Status) -> String {
    let mut rows = vec![
        ["listener", "mode", "family", "backend", "requests", "share", "weight", "packets in"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (&(listener, mode, family, _, pool), tally) in LISTENERS.iter().zip(loads) {
        let Some(pool_status) = status.pools.iter().find(|other| other.name == pool) else { continue };
        let weights: u64 = pool_status.backends.iter().map(|backend| backend.weight).sum();
        for (position, backend) in pool_status.backends.iter().enumerate() {
            let requests = tally.of(&backend.name);
            let lead = |text: &str| if position == 0 { text.to_owned() } else { String::new() };
            rows.push(vec![
                lead(listener),
                lead(mode),
                lead(family.name()),
                backend.name.clone(),
                grouped(requests),
                percent(requests, tally.answered()),
                format!("{} = {}", backend.weight, percent(backend.weight, weights)),
                grouped(backend.counters.get("packets_in").copied().unwrap_or(0)),
            ]);
        }
    }
    table(&rows, &[4, 5, 6, 7])
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "–".to_owned() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

fn packet_summary(status: &Status) -> String {
    format!(
        "\n  packets: {} received, {} sent, {} dropped ({})\n",
        grouped(status.worker_sum("rx_packets")),
        grouped(status.worker_sum("tx_packets")),
        grouped(status.worker_sum("dropped")),
        status.drops_in_words()
    )
}

/// Every request must have been answered by the pool it was meant for, every backend must have had its part.
fn verdict(loads: &[Tally]) -> Result<()> {
    for (&(listener, ..), tally) in LISTENERS.iter().zip(loads) {
        if let Err(error) = tally.must_be_clean() {
            bail!("{listener}: {error}");
        }
        if tally.answered() != REQUESTS || tally.answers.len() != crate::topology::lab::BACKENDS {
            bail!("{listener}: {} answers from {:?}", tally.answered(), tally.answers);
        }
    }
    println!("\n  All {} requests were answered.", grouped(REQUESTS * LISTENERS.len() as u64));
    Ok(())
}

fn leave(stage: &mut Stage, ready: &mut Ready) -> Result<()> {
    let mut ids = stage.weir.let_go();
    let heir = ids.last().copied();
    ids.extend(stage.servers.iter().filter_map(Process::id));
    stage.servers.iter_mut().for_each(Process::let_go);
    stage.lab.keep();
    stage.run.keep(&ids)?;
    if let Some(heir) = heir {
        ready.pages.keep(heir)?;
    }
    let weir = crate::command::show(&stage.weir.cli(&[]));
    let client = stage.lab.client.name();
    println!("\n  Left running. Look further:");
    println!("    {weir} status");
    println!("    {weir} backend list");
    println!("    {weir} backend weight app4/app-1 10");
    println!("    ip netns exec {client} curl http://{}/", vip(Family::Ipv4, 1));
    println!("    ip netns exec {} tcpdump -ni br-wan", stage.lab.switch.name());
    println!("    logs: {}", stage.run.logs().display());
    println!("    cargo testbed down     ends it");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_shows_the_configuration_that_runs() {
        let readme = std::fs::read_to_string(crate::setup::repository().join("README.md")).unwrap();
        assert!(readme.contains(CONFIG), "README.md must hold testbed/demo.toml word for word");
    }

    #[test]
    fn the_configuration_names_what_the_demo_asks_for() {
        for (listener, mode, family, number, pool) in LISTENERS {
            assert!(CONFIG.contains(&format!("name = \"{listener}\"")), "{listener}");
            assert!(CONFIG.contains(&format!("mode = \"{mode}\"")), "{mode}");
            assert!(CONFIG.contains(&format!("address = \"{}\"", vip(family, number))), "{listener}");
            assert!(CONFIG.contains(&format!("pool = \"{pool}\"")), "{pool}");
        }
    }
}

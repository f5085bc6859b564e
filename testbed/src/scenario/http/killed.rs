//! Under load: backends die and come back, configurations come and go, and no request fails.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Site, Text, load};
use crate::scenario::{Context, Scenario};
use crate::traffic::servers::SERVER_PORT;

const WEB: u16 = 80;
const CLIENTS: usize = 8;
const APPLIES: u32 = 100;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("http/backend-killed", killed), Scenario::new("http/apply", apply)]
}

/// `kill -9` of one of three nginx, and its return: nobody but the breaker notices.
fn killed(context: &Context) -> Result<()> {
    let pool = "algorithm = \"round-robin\"\nhttp = { idle = \"1s\", retry = { attempts = 2 }, breaker = { consecutive = 5, open = \"1s\" } }\n";
    let text = Text::new().listener("web", WEB, "app", "").nginx("app", pool);
    let mut site = Site::start(context, text)?;
    let (outcome, ()) = load::beside(&mut site, (WEB, "/"), CLIENTS, |site, load| {
        for round in 0..2 {
            load.more(1_000)?;
            site.rig.nginx(1)?.kill()?;
            site.until("the breaker to open", Duration::from_secs(5), |status| {
                status.breaker("app", "app-2") == "open"
            })?;
            load.more(1_000)?;
            site.rig.nginx(1)?.start_again()?;
            let before = site.status()?.backend_http("app", "requests", |name| name == "app-2");
            site.until("the breaker to close, and requests", Duration::from_secs(10), |status| {
                status.breaker("app", "app-2") == "closed"
                    && status.backend_http("app", "requests", |name| name == "app-2") > before + 100
            })?;
            let opened = site.status()?.backend_http("app", "breaker_opened", |name| name == "app-2");
            ensure!(opened > round, "the breaker opened {opened} times");
        }
        Ok(())
    })?;
    let status = site.status()?;
    println!(
        "      {} requests, none failed; {} were tried again, the slowest took {:.1?}",
        outcome.answered,
        status.http("web", "retries"),
        outcome.slowest
    );
    ensure!(status.http("web", "retries") > 0, "nothing was tried again");
    site.finish()
}

/// A hundred configurations: weights, routes, another pool, another timeout.
fn apply(context: &Context) -> Result<()> {
    let version = |number: u32| {
        let weight = format!("weight = {}\n", 1 + number % 90);
        let times = format!("timeouts = {{ response_header = \"{}s\" }}\n", 5 + number % 20);
        let mut text = Text::new().listener("web", WEB, "app", &times);
        for route in 0..number % 7 {
            text = text.route("web", &format!("path_prefix = \"/route-{route}\"\npool = \"app\"\n"));
        }
        if number % 2 == 1 {
            text = text.route("web", "name = \"all\"\nmethod = \"GET\"\npool = \"other\"\n");
            text = text.listener("more", WEB + 1, "other", "").nginx("other", "http = { idle = \"1s\" }\n");
        }
        text.pool("app", "http = { idle = \"1s\" }\n", SERVER_PORT, &[(1, &weight), (2, ""), (3, "")])
    };
    let mut site = Site::start(context, version(0))?;
    let (outcome, ()) = load::beside(&mut site, (WEB, "/"), CLIENTS, |site, load| {
        load.more(500)?;
        for number in 1..=APPLIES {
            site.rig.config.more = version(number).0;
            site.rig.apply()?;
        }
        load.more(500)
    })?;
    println!(
        "      {} requests beside {APPLIES} configurations, none failed; the slowest took {:.1?}",
        outcome.answered, outcome.slowest
    );
    let accepted = site.status()?.proxy("web", "connections_accepted");
    ensure!(accepted == CLIENTS as u64, "{accepted} connections for {CLIENTS} clients");
    site.finish()
}

//! Backends that misbehave: what clients get, what is tried again, and when a backend is left alone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Checks, Site, Text};
use crate::interrupt::wait_for;
use crate::scenario::{Context, Scenario};
use crate::traffic::backend::{BAD_CHUNKS, FIELDS, GARBAGE, ODD, SCRIPT_PORT};
use crate::traffic::exchange::{get, post};

const SECOND: Duration = Duration::from_secs(1);
/// Listener whose pool has no breaker and retries as it does unless told otherwise.
const WEB: u16 = 80;
/// Interim responses of one request that are passed on.
const MOST_INTERIM: usize = 32;
/// Listener whose pool retries all that may be.
const EAGER: u16 = 81;
/// Listener whose pool has nobody listening.
const NOBODY: u16 = 82;
/// Listener whose pool has one backend with a breaker that opens soon.
const FRAGILE: u16 = 83;
/// Listener whose pool has a small budget for retries.
const POOR: u16 = 84;
/// Listener whose backend does not answer to SYNs.
const CUT_OFF: u16 = 85;
/// Listener whose breaker looks at the share of failures, and one that looks at the time.
const RATIO: u16 = 86;
const LATENCY: u16 = 87;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("http/failures", failures)]
}

fn failures(context: &Context) -> Result<()> {
    let times =
        "timeouts = { response_header = \"600ms\", response_idle = \"600ms\", connect = \"400ms\" }\n";
    let fragile = "http = { idle = \"1s\", retry = { attempts = 0 }, breaker = { consecutive = 3, open = \"500ms\" } }\n";
    let ratio = "http = { idle = \"1s\", retry = { attempts = 0 }, breaker = { consecutive = 0, ratio = \"50%\", least_requests = 10, window = \"5s\", open = \"500ms\" } }\n";
    let latency = "http = { idle = \"1s\", breaker = { consecutive = 0, latency = \"100ms\", least_requests = 5, window = \"2s\", open = \"500ms\" } }\n";
    let text = Text::new()
        .listener("web", WEB, "web", times)
        .listener("eager", EAGER, "eager", times)
        .listener("nobody", NOBODY, "nobody", times)
        .listener("fragile", FRAGILE, "fragile", times)
        .listener("poor", POOR, "poor", times)
        .listener("cut-off", CUT_OFF, "cut-off", times)
        .listener("ratio", RATIO, "ratio", times)
        .listener("latency", LATENCY, "latency", times)
        .scripted("web", "http = { idle = \"1s\", breaker = \"off\", retry = { budget = \"100%\", budget_floor = 1000 } }\n")
        .scripted("eager", "http = { idle = \"1s\", breaker = \"off\", retry = { attempts = 2, on = [\"connect\", \"reset\", \"timeout\", 502, 503], budget = \"100%\", budget_floor = 1000 } }\n")
        .pool("nobody", "http = { breaker = \"off\" }\n", 9, &[(1, ""), (2, "")])
        .pool("fragile", fragile, SCRIPT_PORT, &[(1, "")])
        .scripted("poor", "http = { idle = \"1s\", breaker = \"off\", retry = { attempts = 1, on = [503], budget = \"0%\", budget_floor = 2 } }\n")
        .pool("cut-off", "http = { breaker = \"off\", retry = { attempts = 0 } }\n", SCRIPT_PORT, &[(3, "")])
        .pool("ratio", ratio, SCRIPT_PORT, &[(1, "")])
        .pool("latency", latency, SCRIPT_PORT, &[(1, "")]);
    let mut site = Site::start(context, text)?;
    let mut checks = Checks::of(&mut site);
    checks.check("no HTTP", garbage);
    checks.check("odd, but clear", odd);
    checks.check("no answer", no_answer);
    checks.check("bodies cut short", cut_short);
    checks.check("more than announced", too_long);
    checks.check("early answers", early);
    checks.check("storms of interim responses", storms);
    checks.check("slow answers", slow);
    checks.check("retries", retries);
    checks.check("no retry that might do harm", not_retried);
    checks.check("budget", budget);
    checks.check("connections that end when they are needed", races);
    checks.check("nobody listens", nobody);
    checks.check("consecutive failures open a breaker", breaker);
    checks.check("a share of failures opens a breaker", ratio_opens);
    checks.check("slowness opens a breaker", latency_opens);
    checks.check("nobody answers", cut_off);
    checks.done()?;
    site.finish()
}

/// After whatever it was: the next request is served.
fn goes_on(site: &Site) -> Result<()> {
    site.get(WEB, "/who")?.must_be(200, "").context("the next request")
}

fn garbage(site: &mut Site) -> Result<()> {
    for (kind, text) in GARBAGE.iter().enumerate() {
        let answer = site.ask(WEB, &post(&format!("/garbage/{kind}"), "", ""))?;
        answer.must_be(502, "response-malformed").with_context(|| format!("{text:?}"))?;
    }
    site.ask(WEB, &post("/fat", "", ""))?.must_be(502, "response-too-large")?;
    goes_on(site)
}

/// What has one meaning is mended, and comes as it should have been.
fn odd(site: &mut Site) -> Result<()> {
    for (kind, text) in ODD.iter().enumerate() {
        let mut client = site.client(WEB)?;
        for round in 0..2 {
            let answer = client.get(&format!("/odd/{kind}")).with_context(|| format!("{text:?}"))?;
            ensure!(answer.status == 200 && answer.text() == "hello", "{text:?}, {round}: {answer:?}");
            let lengths = answer.all("content-length").len() + answer.all("transfer-encoding").len();
            ensure!(lengths == 1, "{text:?} came with {:?}", answer.fields);
            let folded = answer.field("x-folded").is_none_or(|value| {
                value.split_whitespace().collect::<Vec<_>>() == ["one", "two"] && !value.contains('\n')
            });
            ensure!(folded, "{text:?} came with {:?}", answer.fields);
            client.get("/who")?.must_be(200, "").with_context(|| format!("after {text:?}"))?;
        }
    }
    // where a coding won over a length the backend's connection is not used again
    let both = site.backends.seen_of("/odd/1");
    let after = site.backends.seen();
    for seen in &both {
        let later = after.iter().skip_while(|other| other.number <= seen.number);
        let again =
            later.filter(|other| (&other.backend, other.connection) == (&seen.backend, seen.connection));
        ensure!(again.count() == 0, "a connection that lied was used again");
    }
    let answer = site.get(WEB, "/fields")?;
    let fields = answer.fields.iter().filter(|(name, _)| name.starts_with("x-field-")).count();
    ensure!(fields == FIELDS && answer.text() == "hello", "{fields} of {FIELDS} fields came");
    Ok(())
}

fn no_answer(site: &mut Site) -> Result<()> {
    for path in ["/gone", "/gone-reset"] {
        let mut client = site.client(WEB)?;
        client.ask(&post(path, "", "x"))?.must_be(502, "response-missing")?;
        client.get("/who")?.must_be(200, "").context("on the same connection")?;
    }
    let start = Instant::now();
    site.ask(WEB, &post("/never", "", ""))?.must_be(504, "response-timeout")?;
    let took = start.elapsed();
    ensure!((SECOND / 2..4 * SECOND).contains(&took), "the timeout of 600 ms came after {took:?}");
    goes_on(site)
}

/// The client must see that something is missing, never a body that looks whole.
///
/// A reset may come together with the head that it follows, and a bad chunk with the first one: Weir, which knows
/// both before it answered, then says 502.
fn cut_short(site: &mut Site) -> Result<()> {
    let mut cut = 0;
    for path in ["/short", "/short-chunked", "/short-reset"] {
        let is_cut = looks_cut(site, path)?;
        ensure!(is_cut || path == "/short-reset", "{path}: 502 for an answer that had begun");
        cut += u64::from(is_cut);
    }
    site.until("response-truncated for each", SECOND, |status| {
        status.cause("web", "response-truncated") == cut
    })?;
    for kind in 0..BAD_CHUNKS.len() {
        looks_cut(site, &format!("/bad-chunk/{kind}"))?;
    }
    goes_on(site)
}

/// Whether an answer began and then ended too early; otherwise it must be a 502.
fn looks_cut(site: &Site, path: &str) -> Result<bool> {
    match site.client(WEB)?.get(path) {
        Ok(answer) => {
            ensure!(answer.status == 502, "{path} looks whole: {answer:?}");
            Ok(false)
        }
        Err(error) => {
            let error = format!("{error:#}");
            ensure!(error.contains("within an answer") || error.contains("reset"), "{path}: {error}");
            Ok(true)
        }
    }
}

fn too_long(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    for round in 0..6 {
        let answer = client.get("/long")?;
        ensure!(answer.text() == "hello", "round {round}: {answer:?}");
        let answer = client.get("/who")?;
        ensure!(answer.text().starts_with("app-"), "round {round}: a stolen answer: {answer:?}");
    }
    Ok(())
}

fn early(site: &mut Site) -> Result<()> {
    for path in ["/early", "/early-close"] {
        let mut client = site.client(WEB)?;
        client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n"))?;
        let answer = client.response("POST").with_context(|| path.to_owned())?;
        ensure!(answer.status == 413 && answer.text() == "early", "{path}: {answer:?}");
    }
    goes_on(site)
}

fn storms(site: &mut Site) -> Result<()> {
    for count in [100, 3_000] {
        let answer = site.get(WEB, &format!("/storm/{count}"))?;
        answer.must_be(502, "response-interim").with_context(|| format!("{count} interim responses"))?;
        ensure!(answer.interim.len() <= MOST_INTERIM, "{} interim responses came", answer.interim.len());
    }
    let answer = site.get(WEB, &format!("/storm/{MOST_INTERIM}"))?;
    answer.must_be(200, "")?;
    ensure!(answer.interim.len() == MOST_INTERIM, "{} interim responses came", answer.interim.len());
    goes_on(site)
}

fn slow(site: &mut Site) -> Result<()> {
    let answer = site.get(WEB, "/trickle/8/200")?;
    ensure!(answer.text() == "tttttttt", "{answer:?}");
    let start = Instant::now();
    let outcome = site.get(WEB, "/trickle/3/3000");
    ensure!(outcome.is_err(), "a body that stopped looks whole: {outcome:?}");
    ensure!(
        start.elapsed() < 2 * SECOND + SECOND / 2,
        "the timeout of 600 ms came after {:?}",
        start.elapsed()
    );
    ensure!(site.status()?.cause("web", "response-idle") == 1, "response-idle was not counted");
    goes_on(site)
}

fn retries(site: &mut Site) -> Result<()> {
    // a GET whose connection ends without an answer is tried once more, unless told otherwise
    site.get(WEB, "/flaky/a/1/gone")?.must_be(200, "")?;
    site.get(WEB, "/flaky/b/1/gone-reset")?.must_be(200, "")?;
    site.get(WEB, "/flaky/c/2/gone")?.must_be(502, "response-missing")?;
    ensure!(site.backends.seen_of("/flaky/c").len() == 2, "not two attempts");
    for (path, attempts) in
        [("/flaky/d/2/gone", 3), ("/flaky/e/1/503", 2), ("/flaky/f/2/502", 3), ("/flaky/g/1/never", 2)]
    {
        site.get(EAGER, path)?.must_be(200, "").with_context(|| path.to_owned())?;
        let seen = site.backends.seen_of(path);
        ensure!(seen.len() == attempts, "{path}: {} attempts", seen.len());
        ensure!(seen[0].backend != seen[1].backend, "{path}: the same backend again");
    }
    // when all attempts fail, the last answer is the client's
    let answer = site.get(EAGER, "/status/503")?;
    ensure!(answer.status == 503 && answer.cause().is_empty(), "{answer:?}");
    ensure!(site.backends.seen_of("/status/503").len() == 3, "not three attempts");
    let status = site.status()?;
    ensure!(status.http("eager", "retries") >= 8, "{} retries are counted", status.http("eager", "retries"));
    Ok(())
}

fn not_retried(site: &mut Site) -> Result<()> {
    for (path, wanted) in [("/flaky/p/1/gone", 502), ("/flaky/q/1/503", 503), ("/flaky/r/1/never", 504)] {
        let answer = site.ask(EAGER, &post(path, "", "an order"))?;
        ensure!(answer.status == wanted, "{path}: {answer:?}");
        let seen = site.backends.seen_of(path).len();
        ensure!(seen == 1, "{path}: a POST was made {seen} times");
    }
    Ok(())
}

fn budget(site: &mut Site) -> Result<()> {
    let mut client = site.client(POOR)?;
    let mut saved = 0;
    for number in 0..30 {
        saved += u32::from(client.get(&format!("/flaky/poor-{number}/1/503"))?.status == 200);
    }
    ensure!((1..=10).contains(&saved), "{saved} of 30 were tried again with a budget of 2 per second");
    let denied = site.status()?.http("poor", "retries_denied");
    ensure!(denied >= 20, "{denied} denied retries are counted");
    Ok(())
}

/// A connection that ends just when it is used again costs no client an error.
fn races(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    for round in 0..60 {
        client.get("/race")?.must_be(200, "").with_context(|| format!("round {round}"))?;
        client.get("/who")?.must_be(200, "").with_context(|| format!("round {round}, after a race"))?;
    }
    // here the FIN follows the answer at once: even what can't be repeated is safe
    for round in 0..100 {
        client
            .ask(&post("/parting", "", "x"))?
            .must_be(200, "")
            .with_context(|| format!("round {round}, POST"))?;
    }
    ensure!(site.backends.seen_of("/parting").len() == 100, "a POST was made twice");
    Ok(())
}

fn nobody(site: &mut Site) -> Result<()> {
    let mut client = site.client(NOBODY)?;
    client.get("/who")?.must_be(502, "connect-failed")?;
    client.ask(&post("/who", "", "body"))?.must_be(502, "connect-failed")?;
    let failures = site.status()?.upstream("nobody", "connect_failures", |_| true);
    ensure!(failures == 4, "{failures} failed connects for two requests with one retry each");
    Ok(())
}

fn breaker(site: &mut Site) -> Result<()> {
    let mut client = site.client(FRAGILE)?;
    for _ in 0..3 {
        client.ask(&post("/gone", "", ""))?.must_be(502, "response-missing")?;
    }
    client.get("/who")?.must_be(503, "no-backend")?;
    ensure!(site.backends.seen_of("/who").is_empty(), "an open breaker let a request through");
    let status = site.status()?;
    ensure!(
        status.breaker("fragile", "app-1") == "open",
        "the breaker is {:?}",
        status.breaker("fragile", "app-1")
    );
    ensure!(status.backend_http("fragile", "breaker_opened", |_| true) == 1, "not counted");
    let text = site.rig.weir.weir(&["status"]).or_else(|error| {
        let text = format!("{error:#}");
        if text.contains("open") { Ok(text) } else { Err(error) }
    })?;
    ensure!(text.contains("open"), "`weir status` says nothing of it:\n{text}");
    // a test that fails keeps it open
    wait_for("a test request", 3 * SECOND, || {
        let answer = site.ask(FRAGILE, &post("/gone", "", ""))?;
        Ok((answer.status == 502).then_some(()))
    })?;
    client.get("/who")?.must_be(503, "no-backend").context("after a failed test")?;
    // one that succeeds closes it
    wait_for("the breaker to close", 3 * SECOND, || Ok((client.get("/who")?.status == 200).then_some(())))?;
    for _ in 0..5 {
        client.get("/who")?.must_be(200, "")?;
    }
    let status =
        site.until("a closed breaker", SECOND, |status| status.breaker("fragile", "app-1") == "closed")?;
    ensure!(status.backend_http("fragile", "failures", |_| true) >= 4, "failures are not counted");
    Ok(())
}

fn ratio_opens(site: &mut Site) -> Result<()> {
    let mut client = site.client(RATIO)?;
    let mut opened = None;
    for round in 0..40 {
        let request = if round % 3 == 0 { get("/who", "") } else { post("/gone", "", "") };
        if client.ask(&request)?.cause() == "no-backend" {
            opened = Some(round);
            break;
        }
    }
    let round = opened.context("two thirds of 40 requests failed, and the breaker is closed")?;
    ensure!(round >= 9, "opened after {round} requests, 10 are the least");
    Ok(())
}

fn latency_opens(site: &mut Site) -> Result<()> {
    let mut client = site.client(LATENCY)?;
    let mut opened = false;
    for _ in 0..30 {
        opened |= client.get("/wait/150")?.cause() == "no-backend";
        if opened {
            break;
        }
    }
    ensure!(opened, "30 answers took 150 ms each, 100 ms are allowed");
    wait_for("the breaker to close", 3 * SECOND, || Ok((client.get("/who")?.status == 200).then_some(())))
}

/// The last: this backend stays without a link.
fn cut_off(site: &mut Site) -> Result<()> {
    site.rig.lab.backends[2].ip("link set eth0 down\n")?;
    let start = Instant::now();
    site.get(CUT_OFF, "/who")?.must_be(504, "connect-timeout")?;
    ensure!(start.elapsed() < 3 * SECOND, "the timeout of 400 ms came after {:?}", start.elapsed());
    site.rig.lab.backends[2].ip("link set eth0 up\n")?;
    Ok(())
}

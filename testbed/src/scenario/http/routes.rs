//! Routes: which request goes where, and what is changed on its way.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::{Checks, IDLE, Site, Text};
use crate::command;
use crate::scenario::{Context, Scenario};
use crate::traffic::backend::SCRIPT_PORT;
use crate::traffic::exchange::get;

/// Listener of the routes, with a pool for all other requests.
const WEB: u16 = 80;
/// Listener without such a pool.
const STRICT: u16 = 81;
/// A second address of the client's.
const OTHER_CLIENT: &str = "198.18.0.9";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("http/routes", routes)]
}

const ROUTES: [&str; 20] = [
    "name = \"exact\"\nhost = \"shop.test\"\npath_prefix = \"/v1\"\npool = \"one\"\n",
    "name = \"wildcard\"\nhost = \"*.shop.test\"\npath_prefix = \"/v1\"\npool = \"two\"\n",
    "name = \"path\"\npath = \"/only\"\npool = \"three\"\n",
    "name = \"regex\"\npath_regex = \"/item/[0-9]{1,4}\"\npool = \"two\"\n",
    "name = \"method\"\npath_prefix = \"/m\"\nmethod = [\"DELETE\", \"PATCH\"]\npool = \"three\"\n",
    "name = \"header\"\npath_prefix = \"/h\"\nheaders = { X-Canary = \"yes\" }\npool = \"two\"\n",
    "name = \"header-there\"\npath_prefix = \"/h\"\nheaders = { X-Beta = true }\npool = \"three\"\n",
    "name = \"header-regex\"\npath_prefix = \"/h\"\nheaders = { X-Version = { regex = \"2[.][0-9]+\" } }\npool = \"three\"\n",
    "name = \"query\"\npath_prefix = \"/q\"\nquery = { v = \"2\" }\npool = \"three\"\n",
    "name = \"source\"\npath_prefix = \"/s\"\nsource = \"198.18.0.9/32\"\npool = \"two\"\n",
    "name = \"low\"\npath_prefix = \"/p/deeper\"\npool = \"two\"\n",
    "name = \"high\"\npriority = 10\npath_prefix = \"/p\"\npool = \"three\"\n",
    "name = \"split\"\npath_prefix = \"/split\"\nsplit = [{ pool = \"one\", weight = 3 }, { pool = \"two\", weight = 1 }]\n",
    "name = \"mirrored\"\npath_prefix = \"/mirror\"\npool = \"one\"\nmirror = { pool = \"three\" }\n",
    "name = \"moved\"\npath_prefix = \"/moved\"\nredirect = { status = 308, host = \"new.test\", path_prefix = \"/here\" }\n",
    "name = \"secure\"\nhost = \"secure.test\"\nredirect = { status = 301, scheme = \"https\" }\n",
    "name = \"fixed\"\npath = \"/teapot\"\nrespond = { status = 418, body = \"short and stout\", content_type = \"text/x-tea\" }\n",
    "name = \"edits\"\npath_prefix = \"/cookies\"\npool = \"one\"\nrequest_headers = { remove = [\"X-Gone\"], set = { X-Set = \"new\" }, add = { X-Client = \"%{client}\" } }\n\
     response_headers = { remove = [\"X-Secret\", \"Server\"], set = { X-Route = \"%{route}\" }, add = { X-From = \"%{backend_address}\" } }\n",
    "name = \"rewritten\"\npath_prefix = \"/from\"\npool = \"one\"\nrewrite = { path_prefix = \"/echo\", host = \"inner.test\" }\n",
    "name = \"to-backend\"\npath = \"/self\"\npool = \"one\"\nrewrite = { path = \"/echo\", host = \"backend\" }\n",
];

fn routes(context: &Context) -> Result<()> {
    let mut text = Text::new().listener("web", WEB, "one", "").listener("strict", STRICT, "", "");
    for route in ROUTES {
        text = text.route("web", route);
    }
    text = text.route("strict", "name = \"strict\"\nhost = \"known.test\"\npool = \"one\"\n");
    for (number, name) in ["one", "two", "three"].into_iter().enumerate() {
        text = text.pool(name, IDLE, SCRIPT_PORT, &[(number + 1, "")]);
    }
    let mut site = Site::start(context, text)?;
    site.rig.lab.client.ip(&format!("addr add {OTHER_CLIENT}/24 dev eth0\n"))?;
    let mut checks = Checks::of(&mut site);
    checks.check("hosts and paths", hosts_and_paths);
    checks.check("conditions", conditions);
    checks.check("sources", sources);
    checks.check("splits", splits);
    checks.check("mirrors", mirrors);
    checks.check("answers", answers);
    checks.check("edits", edits);
    checks.check("rewrites", rewrites);
    checks.check("explain", explain);
    checks.done()?;
    site.finish()
}

/// A request of one line and fields goes to that backend.
fn goes(site: &Site, request: &str, backend: &str) -> Result<()> {
    let answer = site.ask(WEB, request)?;
    let got = answer.field("x-backend").unwrap_or_default();
    ensure!(
        answer.status == 200 && got == backend,
        "{request:?} got {} of {got:?}, not {backend}",
        answer.status
    );
    Ok(())
}

fn at(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

fn hosts_and_paths(site: &mut Site) -> Result<()> {
    for (host, path, backend) in [
        ("shop.test", "/v1", "app-1"),
        ("SHOP.Test:80", "/v1/x?y", "app-1"),
        ("a.shop.test", "/v1/x", "app-2"),
        ("a.b.shop.test", "/v1", "app-2"),
        ("other.test", "/only", "app-3"),
        ("other.test", "/only/not", "app-1"),
        ("other.test", "/x/../only", "app-3"),
        ("other.test", "/%6fnly", "app-3"),
        ("other.test", "/item/77", "app-2"),
        ("other.test", "/item/77777", "app-1"),
        ("other.test", "/item/77/x", "app-1"),
        ("other.test", "/p/deeper/still", "app-3"),
        ("other.test", "/", "app-1"),
    ] {
        goes(site, &at(host, path), backend)?;
    }
    site.ask(STRICT, &at("unknown.test", "/"))?.must_be(404, "no-route")?;
    site.ask(STRICT, &at("known.test", "/"))?.must_be(200, "")
}

fn conditions(site: &mut Site) -> Result<()> {
    for (method, backend) in [("GET", "app-1"), ("DELETE", "app-3"), ("PATCH", "app-3")] {
        goes(site, &format!("{method} /m HTTP/1.1\r\nHost: a\r\n\r\n"), backend)?;
    }
    for (path, fields, backend) in [
        ("/h", "X-Canary: yes\r\n", "app-2"),
        ("/h", "x-canary: yes\r\n", "app-2"),
        ("/h", "X-Canary: no\r\n", "app-1"),
        ("/h", "X-Beta: anything\r\n", "app-3"),
        ("/h", "X-Version: 2.17\r\n", "app-3"),
        ("/h", "X-Version: 12.17\r\n", "app-1"),
        ("/q?v=2", "", "app-3"),
        ("/q?a=1&v=2&b", "", "app-3"),
        ("/q?v=22", "", "app-1"),
        ("/q", "", "app-1"),
    ] {
        goes(site, &get(path, fields), backend)?;
    }
    Ok(())
}

fn sources(site: &mut Site) -> Result<()> {
    goes(site, &get("/s", ""), "app-1")?;
    let url = format!("http://{}/s", site.place(WEB));
    let mut command = site.rig.lab.client.command("curl");
    command.args(["--silent", "--show-error", "--max-time", "5", "--interface", OTHER_CLIENT, &url]);
    let said = command::run(&mut command)?;
    ensure!(said.trim() == "app-2", "{OTHER_CLIENT} got {said:?}");
    Ok(())
}

fn splits(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    let mut answers: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..400 {
        *answers.entry(client.get("/split")?.text()).or_default() += 1;
    }
    let (one, two) = (answers.get("app-1").copied().unwrap_or(0), answers.get("app-2").copied().unwrap_or(0));
    ensure!(one + two == 400 && (60..=140).contains(&two), "weights 3 and 1 got {answers:?}");
    Ok(())
}

fn mirrors(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    for number in 0..10 {
        client.get(&format!("/mirror/{number}"))?.must_be(200, "")?;
    }
    let backends = &site.backends;
    let of = |name: &str| backends.seen_of("/mirror").iter().filter(|seen| seen.backend == name).count();
    crate::interrupt::wait_for("all copies", std::time::Duration::from_secs(3), || {
        Ok((of("app-3") == 10).then_some(()))
    })?;
    ensure!(of("app-1") == 10 && of("app-2") == 0, "{} at the pool itself", of("app-1"));
    ensure!(site.status()?.http("web", "mirrored") == 10, "not 10 are counted");
    // a copy that fails is nobody's loss
    client.get("/mirror/gone")?.must_be(200, "")
}

fn answers(site: &mut Site) -> Result<()> {
    let answer = site.get(WEB, "/moved/a?b=c")?;
    ensure!(answer.status == 308, "{answer:?}");
    ensure!(answer.field("location") == Some("http://new.test/here/a?b=c"), "{answer:?}");
    let answer = site.ask(WEB, &at("secure.test", "/x?y=z"))?;
    ensure!(answer.field("location") == Some("https://secure.test/x?y=z"), "{answer:?}");
    let mut client = site.client(WEB)?;
    for _ in 0..2 {
        let answer = client.get("/teapot")?;
        ensure!(answer.status == 418 && answer.text() == "short and stout", "{answer:?}");
        ensure!(answer.field("content-type") == Some("text/x-tea"), "{answer:?}");
    }
    let head = client.ask("HEAD /teapot HTTP/1.1\r\nHost: a\r\n\r\n")?;
    ensure!(head.status == 418 && head.field("content-length") == Some("15"), "{head:?}");
    // a body that nobody reads is never taken for a request
    client.send(format!(
        "POST /teapot HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{}",
        get("/who", "").len(),
        get("/who", "")
    ))?;
    let answer = client.response("POST")?;
    ensure!(answer.status == 418, "a POST got {answer:?}");
    if answer.field("connection") != Some("close") {
        ensure!(client.get("/teapot")?.status == 418, "the connection is out of step");
    }
    ensure!(site.backends.seen_of("/teapot").is_empty(), "a backend saw what was answered here");
    Ok(())
}

fn edits(site: &mut Site) -> Result<()> {
    let answer = site.ask(WEB, &get("/cookies", "X-Gone: 1\r\nX-Set: old\r\nX-Set: older\r\n"))?;
    ensure!(answer.all("set-cookie") == ["a=1", "b=2"], "{answer:?}");
    ensure!(answer.field("x-secret").is_none() && answer.field("server").is_none(), "{answer:?}");
    ensure!(answer.field("x-route") == Some("edits"), "{answer:?}");
    ensure!(answer.field("x-from").is_some_and(|from| from == "198.18.1.11:9100"), "{answer:?}");
    let seen = site.backends.seen_of("/cookies");
    let head = seen.first().map_or(String::new(), |seen| seen.head.to_ascii_lowercase());
    ensure!(head.matches("x-set:").count() == 1 && head.contains("x-set: new\r\n"), "{head}");
    ensure!(head.contains("x-client: 198.18.0.1\r\n") && !head.contains("x-gone"), "{head}");
    Ok(())
}

fn rewrites(site: &mut Site) -> Result<()> {
    let head = site.get(WEB, "/from/here?a=b")?.text().to_ascii_lowercase();
    ensure!(head.starts_with("get /echo/here?a=b http/1.1"), "{head}");
    ensure!(head.contains("host: inner.test\r\n"), "{head}");
    let head = site.get(WEB, "/self")?.text().to_ascii_lowercase();
    ensure!(head.contains("host: 198.18.1.11:9100\r\n"), "{head}");
    Ok(())
}

/// What `weir explain request` says is what happens.
fn explain(site: &mut Site) -> Result<()> {
    let asks: [(&[&str], [&str; 2]); 4] = [
        (&["--url", "http://a.shop.test/v1/x"], ["wildcard", "two"]),
        (&["--url", "http://x/h", "--header", "X-Beta: 1"], ["header-there", "three"]),
        (&["--url", "http://x/s", "--source", "198.18.0.9"], ["source", "two"]),
        (&["--url", "http://x/m", "--method", "DELETE"], ["method", "three"]),
    ];
    for (arguments, words) in asks {
        let said =
            site.rig.weir.weir(&[&["explain", "request", "--listener", "web"][..], arguments].concat())?;
        ensure!(words.iter().all(|word| said.contains(word)), "{arguments:?}, {words:?}: {said}");
    }
    Ok(())
}

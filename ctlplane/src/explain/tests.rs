use std::sync::Arc;

use weir_abi::PoolTable;
use weir_abi::TableKind;
use weir_l4::bits_of;
use weir_l7::http::choose::{StickyIds, hash_of, hash_of_source};
use weir_net::hash::StableKey;

use super::*;
use crate::compile::down::Down;
use crate::compile::{TableCache, compile};
use crate::diagnostic::{Source, render as render_findings};
use crate::machine::Machine;
use crate::state::{Indices, Override, Overrides};
use crate::validate;

const KEY: &str = "00112233445566778899aabbccddeeff";

/// A listener `web` on port 80 whose pool has backends `a` to `d`; `more` belongs to the pool, `rest` stands behind it.
fn model(more: &str, rest: &str) -> Model {
    let mut text = format!(
        "[dataplane]\nworkers = 1\nidle = \"adaptive\"\nhash_key = \"{KEY}\"\n[[port]]\nname = \"p\"\ndevice = \"null:\"\n\
         addresses = [\"198.18.0.254/16\"]\n[[vip]]\nname = \"v\"\naddress = \"198.19.0.1\"\n\
         [[listener]]\nname = \"web\"\nvip = \"v\"\nport = 80\nprotocol = \"http\"\nmode = \"proxy\"\npool = \"app\"\n\
         [[pool]]\nname = \"app\"\n{more}\n"
    );
    for (name, number) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        let _ = write!(text, "[[pool.backend]]\nname = \"{name}\"\naddress = \"198.18.1.{number}:80\"\n");
    }
    text += rest;
    let source = Source { name: "t", text: &text };
    let (model, findings) = validate::load(source, &Machine::with_cpus(vec![0, 1]));
    model.unwrap_or_else(|| panic!("{}", render_findings(&source.reports(&findings), false)))
}

fn request(headers: &[(&str, &str)], source: &str) -> Request {
    Request {
        listener: None,
        url: Some("http://shop.example/x/../y?q=1".to_owned()),
        method: "GET".to_owned(),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        source: source.parse().unwrap(),
    }
}

fn key() -> StableKey {
    let digits = |at: usize| u8::from_str_radix(&KEY[2 * at..2 * at + 2], 16).unwrap();
    StableKey::from_bytes(&std::array::from_fn(digits))
}

/// The backend whose slot a hash falls on in the table that workers get.
fn published(model: &Model, down: &Down, hash: u64) -> String {
    let mut indices = Arc::new(Indices::default());
    indices.assign(model, 1).unwrap();
    let compiled = compile(model, &Overrides::default(), down, &indices, &mut TableCache::default()).unwrap();
    let image = compiled.tables.iter().find(|table| table.reference.kind == TableKind::Pool as u32).unwrap();
    let table = PoolTable::parse(&image.reference, &image.bytes).unwrap();
    let position = table.slots[weir_balance::slot(hash, table.slots.len())];
    table.backends[usize::from(position)].name.as_str().to_owned()
}

fn known<'a>(overrides: &'a Overrides, down: &'a Down) -> Known<'a> {
    Known { overrides, health: Some(down), breaker: &|_, _| None }
}

fn first(found: &Explanation) -> &PoolShare {
    &found.pools[0]
}

#[test]
fn a_hashed_request_gets_the_backend_of_the_published_table() {
    let overrides = Overrides::default();
    let mut down = Down::default();
    down.set_down("app", "c", "no answer within 1s");
    let by_header = model("slots = 4093\n[pool.http]\nhash = \"header:X-User\"", "");
    let by_path = model("slots = 4093\n[pool.http]\nhash = \"path\"", "");
    let by_cookie = model("slots = 4093\n[pool.http]\nhash = \"cookie:user\"", "");
    let by_source = model("algorithm = \"source-hash\"\nslots = 4093", "");
    let (nobody, mut seen) = (Down::default(), std::collections::BTreeSet::new());
    for number in 0..64 {
        let (user, source) = (format!("user-{number}"), format!("192.0.2.{number}"));
        let hash = hash_of(key(), user.as_bytes());
        let of_source = hash_of_source(key(), bits_of(source.parse().unwrap()));
        let cookie = format!("a=1; user={user}");
        for (model, headers, hash) in [
            (&by_header, vec![("X-User", user.as_str())], hash),
            (&by_header, vec![], of_source),
            (&by_cookie, vec![("Cookie", cookie.as_str())], hash),
            (&by_source, vec![], of_source),
            (&by_path, vec![], hash_of(key(), b"/x/../y")),
        ] {
            for down in [&nobody, &down] {
                let found = explain(model, &known(&overrides, down), &request(&headers, &source)).unwrap();
                let backend = first(&found).backend.clone().unwrap();
                assert_eq!(backend, published(model, down, hash), "{headers:?} from {source}");
                seen.insert(backend);
            }
        }
    }
    assert_eq!(seen.len(), 4, "all of them get some: {seen:?}");
    let found = explain(&by_header, &known(&overrides, &down), &request(&[], "192.0.2.1")).unwrap();
    let pool = first(&found);
    assert!(pool.because.contains("there is no header x-user"), "{}", pool.because);
    let c = &pool.backends[2];
    assert!(!c.usable && c.why == "it is down: no answer within 1s", "{c:?}");
    assert!(render(&found).contains("c 198.18.1.3:80 weight 100: cannot: it is down: no answer within 1s"));
}

#[test]
fn a_cookie_decides_before_the_algorithm() {
    let sticky = model("algorithm = \"round-robin\"\n[pool.http]\nsticky = { cookie = \"weir\" }", "");
    let addresses = (1..=4).map(|number| (bits_of(format!("198.18.1.{number}").parse().unwrap()), 80));
    let ids = StickyIds::new(key(), addresses);
    let value = String::from_utf8(ids.value(1).unwrap().to_vec()).unwrap();
    let cookie = format!("x=y; weir={value}");
    let asked = request(&[("Cookie", &cookie)], "192.0.2.1");
    let state = |state| Override { weight: None, state: Some(state) };
    let mut overrides = Overrides::default();
    let mut down = Down::default();
    let told = |overrides: &Overrides, down: &Down| {
        let found = explain(&sticky, &known(overrides, down), &asked).unwrap();
        let pool = first(&found).clone();
        (pool.backend.clone(), pool)
    };
    assert_eq!(told(&overrides, &down).0.as_deref(), Some("b"));
    overrides.entry("app".to_owned()).or_default().insert("b".to_owned(), state(Admin::Drain));
    let (backend, pool) = told(&overrides, &down);
    assert_eq!(backend.as_deref(), Some("b"), "also when it is drained");
    assert!(pool.backends[1].why.contains("its state is drain"), "{pool:?}");
    overrides.entry("app".to_owned()).or_default().insert("b".to_owned(), state(Admin::Maint));
    let (backend, pool) = told(&overrides, &down);
    assert_eq!((backend, pool.backends[1].usable), (None, false));
    overrides.clear();
    down.set_down("app", "b", "refused");
    let (backend, pool) = told(&overrides, &down);
    assert_eq!((backend, pool.backends[1].why.as_str()), (None, "it is down: refused"));
    let foreign = request(&[("Cookie", "weir=0123456789abcdef")], "192.0.2.1");
    let found = explain(&sticky, &known(&overrides, &Down::default()), &foreign).unwrap();
    assert_eq!(first(&found).backend, None);
}

#[test]
fn what_depends_on_the_moment_is_told_as_shares() {
    for algorithm in ["round-robin", "least-conn", "random-two"] {
        let turns = model(&format!("algorithm = \"{algorithm}\""), "");
        let mut overrides = Overrides::default();
        let heavy = Override { weight: Some(300), state: None };
        overrides.entry("app".to_owned()).or_default().insert("a".to_owned(), heavy);
        let mut down = Down::default();
        down.set_down("app", "d", "refused");
        let found = explain(&turns, &known(&overrides, &down), &request(&[], "192.0.2.1")).unwrap();
        let pool = first(&found);
        let shares: Vec<_> = pool.backends.iter().map(|backend| backend.share.as_deref()).collect();
        assert_eq!(shares, [Some("60%"), Some("20%"), Some("20%"), None], "{algorithm}");
        assert!(pool.backend.is_none() && pool.picks.contains("moment"), "{}", pool.picks);
        assert!(render(&found).contains("a 198.18.1.1:80 weight 300: can get it: 60% of these do"));
    }
}

#[test]
fn health_is_ignored_where_all_are_down_and_unknown_to_a_file() {
    let hashed = model("slots = 251", "");
    let overrides = Overrides::default();
    let mut down = Down::default();
    for name in ["a", "b", "c", "d"] {
        down.set_down("app", name, "refused");
    }
    let found = explain(&hashed, &known(&overrides, &down), &request(&[], "192.0.2.1")).unwrap();
    assert!(first(&found).backend.is_some() && found.cause.is_none());
    assert!(first(&found).backends.iter().all(|one| one.usable && one.why.contains("health is ignored")));
    let stubborn = model("slots = 251\npanic_threshold = \"off\"", "");
    let found = explain(&stubborn, &known(&overrides, &down), &request(&[], "192.0.2.1")).unwrap();
    assert_eq!((found.cause.as_deref(), &first(&found).backend), (Some("no-backend"), &None));
    let file = explain(&hashed, &Known::nothing(&overrides), &request(&[], "192.0.2.1")).unwrap();
    assert!(!file.health_known && render(&file).contains("which backends are down is not known here"));
    let open =
        |_: &str, name: &str| (name != "a").then(|| "its breaker is open: failures in a row".to_owned());
    let known = Known { breaker: &open, ..known(&overrides, &down) };
    let healthy = Known { health: Some(&Down::default()), ..known };
    let found = explain(&hashed, &healthy, &request(&[], "192.0.2.1")).unwrap();
    assert_eq!(first(&found).backend.as_deref(), Some("a"), "the only one that is permitted");
}

#[test]
fn drained_listeners_are_told() {
    let mut overrides = Overrides::default();
    let served = model("slots = 251", "");
    drain::set_listener(&mut overrides, &served.listeners[0], Admin::Drain);
    let found = explain(&served, &Known::nothing(&overrides), &request(&[], "192.0.2.1")).unwrap();
    assert!(render(&found).contains("the listener's state is drain"));
}

#[test]
fn a_path_alone_takes_its_host_from_the_header() {
    let overrides = Overrides::default();
    let served = model(
        "slots = 251",
        "[[route]]\nname = \"shop\"\nlistener = \"web\"\nhost = \"shop.example\"\npool = \"app\"\n",
    );
    let ask = |listener: Option<&str>, url: Option<&str>, host: Option<&str>| {
        let asked = Request {
            listener: listener.map(str::to_owned),
            url: url.map(str::to_owned),
            ..request(&host.map(|host| ("hOsT", host)).into_iter().collect::<Vec<_>>(), "192.0.2.1")
        };
        explain(&served, &Known::nothing(&overrides), &asked)
    };
    for (listener, host) in
        [(None, "shop.example"), (None, "shop.example:80"), (Some("web"), "shop.example:8080")]
    {
        let found = ask(listener, Some("/y?q"), Some(host)).unwrap();
        assert_eq!((found.route.as_deref(), found.path.as_str()), (Some("shop"), "/y"), "{host}");
    }
    assert_eq!(ask(Some("web"), Some("/y"), Some("")).unwrap().route, None, "a request without a host");
    let fails = |listener, url, host| ask(listener, url, host).unwrap_err().to_string();
    assert_eq!(
        fails(Some("web"), Some("/y"), None),
        "the request to /y names no host: add --header \"Host: shop.example.com\", or give --url http://shop.example.com/y"
    );
    assert!(fails(Some("web"), None, None).contains("names no host"));
    assert!(fails(None, Some("/y"), None).contains("--header \"Host:"));
    assert!(fails(None, Some("/y"), Some("shop.example:x")).contains("its port is not a port"));
    assert!(fails(None, Some("/y"), Some("shop.example:81")).contains("port 81"));
}

#[test]
fn a_mirror_says_what_it_copies() {
    let route = "[[route]]\nname = \"all\"\nlistener = \"web\"\npool = \"app\"\nmirror = { pool = \"shadow\", share = \"5%\" }\n";
    let pool = |more: &str| {
        format!(
            "{route}[[pool]]\nname = \"shadow\"\nslots = 251\n{more}\n[[pool.backend]]\nname = \"s\"\naddress = \"198.18.2.1:80\"\n"
        )
    };
    let overrides = Overrides::default();
    let told = |model: &Model, headers: &[(&str, &str)]| {
        explain(model, &Known::nothing(&overrides), &request(headers, "192.0.2.1")).unwrap()
    };
    let plain = model("slots = 251", &pool(""));
    let found = told(&plain, &[]);
    assert_eq!(
        found.mirror.as_deref(),
        Some("5% of such requests to pool shadow, whose responses are dropped")
    );
    let copies = found.copies.as_ref().unwrap();
    assert_eq!(
        (copies.backends[0].share.as_deref(), copies.picks.as_str()),
        (Some("100%"), "drawn by weight")
    );
    assert!(render(&found).contains("  copies: 5% of such requests to pool shadow"));
    let mirror = |model: &Model, headers: &[(&str, &str)]| told(model, headers).mirror.unwrap();
    assert!(mirror(&plain, &[("Content-Length", "7")]).contains("client_body_buffer is off"));
    assert!(mirror(&plain, &[("Connection", "upgrade"), ("Upgrade", "x")]).contains("tunnel"));
    let telling = model("slots = 251", &pool("send_proxy = \"v2\""));
    assert!(mirror(&telling, &[]).contains("none to pool shadow: the pool has send_proxy"));
}

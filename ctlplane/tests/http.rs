//! HTTP from the file to the tables, to explanations and to the plan.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use support::{Instance, machine};
use weir_abi::HttpTable;
use weir_abi::image::MAX_TABLE_BYTES;
use weir_abi::record::{Application, NO_INDEX};
use weir_abi::{TableKind, table_name};
use weir_ctlplane::diagnostic::{Source, render};
use weir_ctlplane::explain::{self, Explanation, Known, Request};
use weir_ctlplane::model::Model;
use weir_ctlplane::{plan, validate};
use weir_http::cause::Cause;
use weir_http::routes::spec::{Action, Condition, Host, Path, Value};

const HEAD: &str = r#"
[dataplane]
workers = 1
idle = "adaptive"
[[port]]
name = "wan"
device = "null:"
addresses = ["198.18.0.254/16", "2001:db8::fe/32"]
[[vip]]
name = "web"
address = "198.19.0.1"
"#;

fn listener(name: &str, port: u16, more: &str) -> String {
    format!(
        "[[listener]]\nname = \"{name}\"\nvip = \"web\"\nport = {port}\nprotocol = \"http\"\nmode = \"proxy\"\n{more}\n"
    )
}

fn pool(name: &str, number: u8) -> String {
    format!(
        "[[pool]]\nname = \"{name}\"\nslots = 251\n[[pool.backend]]\nname = \"a\"\naddress = \"198.18.{number}.1:80\"\n\
         [[pool.backend]]\nname = \"b\"\naddress = \"198.18.{number}.2:80\"\n"
    )
}

fn model(text: &str) -> Model {
    let source = Source { name: "test.toml", text };
    let (model, diagnostics) = validate::load(source, &machine());
    model.unwrap_or_else(|| panic!("{}", render(&source.reports(&diagnostics), false)))
}

fn ask(model: &Model, url: &str, change: impl FnOnce(&mut Request)) -> Explanation {
    let mut request = Request {
        listener: None,
        url: Some(url.to_owned()),
        method: "GET".to_owned(),
        headers: Vec::new(),
        source: "192.0.2.1".parse::<IpAddr>().unwrap(),
    };
    change(&mut request);
    explain::explain(model, &Known::nothing(&Default::default()), &request).unwrap()
}

fn http_tables(instance: &Instance, generation: u64) -> Vec<HttpTable> {
    let directory = instance.segments();
    let root = instance.read(generation).root;
    root.of_kind(TableKind::Http)
        .map(|reference| {
            let bytes = directory.read(&table_name(reference.id), MAX_TABLE_BYTES).unwrap();
            HttpTable::parse(reference, &bytes).unwrap()
        })
        .collect()
}

#[test]
fn the_example_of_http_starts() {
    let instance = Instance::new(include_str!("../../docs/weir.http.example.toml"));
    let engine = instance.start();
    let tables = http_tables(&instance, engine.generation());
    assert_eq!(tables.len(), 1);
    assert_eq!((tables[0].routes.len(), tables[0].rates.len()), (5, 2));
    let root = instance.read(engine.generation());
    assert_eq!(root.listeners.listeners[0].application, Application::Http as u8);
    assert_eq!(root.pool("shop").backends[2].backup, 1);
    assert!(engine.model().access_log.is_some());
}

/// The table in the reference is the list of causes, in order, with their statuses.
#[test]
fn the_reference_lists_all_causes() {
    let reference = include_str!("../../docs/configuration.md");
    let section = reference.split("\n## Causes\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<(&str, &str)> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|row| {
            let (code, rest) = row.split_once("` | ")?;
            Some((code, rest.split_once(" |")?.0))
        })
        .collect();
    let status = |cause: &Cause| match cause.status() {
        0 => "none".to_owned(),
        status => status.to_string(),
    };
    let expected: Vec<(&str, String)> =
        Cause::ALL.iter().map(|cause| (cause.code(), status(cause))).collect();
    assert_eq!(rows.len(), expected.len());
    for ((code, status), (expected, expected_status)) in rows.iter().zip(&expected) {
        assert_eq!((*code, *status), (*expected, expected_status.as_str()));
    }
}

#[test]
fn routes_become_what_the_packet_path_asks() {
    let text = format!(
        "{HEAD}{}{}{}[[route]]\nlistener = [\"web\", \"other\"]\nname = \"api\"\npriority = -3\nhost = \"*.Example.com\"\n\
         path_regex = \"/[a-z]+\"\nmethod = [\"GET\", \"HEAD\"]\nheaders = {{ X-User = true, Cookie = {{ prefix = \"a=\" }} }}\n\
         query = {{ v = false }}\nsource = \"2001:db8::/32\"\nsplit = [{{ pool = \"two\", weight = 3 }}, {{ pool = \"one\", weight = 0 }}]\n",
        listener("web", 80, "pool = \"one\""),
        listener("other", 81, ""),
        [pool("one", 1), pool("two", 2)].concat(),
    );
    let model = model(&text);
    let [web, other] = model.listeners.as_slice() else { panic!("two listeners") };
    let (web, other) = (web.http.as_ref().unwrap(), other.http.as_ref().unwrap());
    assert_eq!((web.default_pool, other.default_pool), (Some(0), None));
    assert_eq!(web.routes, other.routes);
    let route = &web.routes[0];
    assert_eq!((route.priority, &route.host), (-3, &Host::Suffix(".example.com".into())));
    assert_eq!(route.path, Path::Regex("/[a-z]+".into()));
    assert_eq!(
        route.conditions,
        [
            Condition::Method(vec!["GET".into(), "HEAD".into()]),
            Condition::Header("x-user".into(), Value::Present),
            Condition::Header("cookie".into(), Value::Prefix("a=".into())),
            Condition::Query("v".into(), Value::Absent),
            Condition::Source(vec![weir_net::Prefix::new("2001:db8::".parse().unwrap(), 32).unwrap()]),
        ]
    );
    let Action::Pools(splits) = &route.action else { panic!("{:?}", route.action) };
    assert_eq!(splits.iter().map(|split| (split.pool, split.weight)).collect::<Vec<_>>(), [(1, 3)]);
}

/// A made name is readable, stays as long as the conditions do, and differs where they differ.
#[test]
fn made_names_are_stable() {
    let names = |routes: &str| -> Vec<String> {
        let model = model(&format!("{HEAD}{}{}{routes}", listener("web", 80, ""), pool("one", 1)));
        let http = model.listeners[0].http.clone().unwrap();
        http.routes.iter().map(|route| route.name.to_string()).collect()
    };
    let first =
        "[[route]]\nlistener = \"web\"\nhost = \"a.example\"\npath_prefix = \"/v1/\"\npool = \"one\"\n";
    let second = "[[route]]\nlistener = \"web\"\nmethod = \"PUT\"\npool = \"one\"\n";
    let third = "[[route]]\nlistener = \"web\"\nmethod = \"POST\"\nrespond = { status = 204 }\n";
    let all = names(&[first, second, third].concat());
    assert_eq!(all[0], "a.example/v1/*");
    assert!(all[1].starts_with("*/*#") && all[2].starts_with("*/*#") && all[1] != all[2]);
    let turned =
        names(&[third, first, &second.replace("pool = \"one\"", "respond = { status = 200 }")].concat());
    assert_eq!(turned, [all[2].clone(), all[0].clone(), all[1].clone()]);
}

/// One listener's routes change: its table is written, nothing else.
#[test]
fn what_is_unchanged_keeps_its_table() {
    let text = |host: &str| {
        format!(
            "{HEAD}{}{}{}[[route]]\nlistener = \"web\"\nhost = \"{host}\"\npool = \"one\"\n\
             [[route]]\nlistener = \"other\"\npath = \"/x\"\npool = \"one\"\n",
            listener("web", 80, "pool = \"one\""),
            listener("other", 81, ""),
            pool("one", 1)
        )
    };
    let instance = Instance::new(&text("a.example"));
    let mut engine = instance.start();
    let first = http_tables(&instance, 1);
    assert_eq!(first.iter().map(|table| table.head.default_pool).collect::<Vec<_>>(), [0, NO_INDEX]);
    let change = engine.apply(&text("b.example"), "test.toml").unwrap();
    assert_eq!(change.published.unwrap().tables_written, 1);
    let (before, after) = (instance.read(1).root.tables, instance.read(2).root.tables);
    let changed = before.iter().zip(&after).filter(|(before, after)| before.id != after.id).count();
    assert_eq!((before.len(), after.len(), changed), (5, 5, 1));
    assert!(engine.apply(&text("b.example"), "test.toml").unwrap().published.is_none());
}

/// Pools that leave the file and come back keep routes pointing at the right index.
#[test]
fn routes_follow_their_pools_index() {
    let text = |pools: &[(&str, u8)]| {
        let pools: String = pools.iter().map(|(name, number)| pool(name, *number)).collect();
        format!(
            "{HEAD}{}{pools}[[route]]\nlistener = \"web\"\npath = \"/x\"\npool = \"two\"\n",
            listener("web", 80, "")
        )
    };
    let instance = Instance::new(&text(&[("one", 1), ("two", 2)]));
    let mut engine = instance.start();
    let index = |generation: u64| instance.read(generation).pool("two").pool.index;
    assert_eq!(http_tables(&instance, 1)[0].splits[0].pool, index(1));
    engine.apply(&text(&[("two", 2), ("zero", 3)]), "test.toml").unwrap();
    let generation = engine.generation();
    assert_eq!(http_tables(&instance, generation)[0].splits[0].pool, index(generation));
    assert_eq!(index(generation), index(1));
}

#[test]
fn bodies_are_read_from_files_and_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("503.html"), "<p>later").unwrap();
    std::fs::write(path("large.html"), vec![b'x'; (64 << 10) + 1]).unwrap();
    let text = |page: &str, file: &str| {
        format!(
            "{HEAD}{}[[route]]\nlistener = \"web\"\nrespond = {{ status = 200, file = \"{}\" }}\n",
            listener("web", 80, &format!("http = {{ error_page = {{ 503 = \"{}\" }} }}", path(page))),
            path(file)
        )
    };
    let good = model(&text("503.html", "503.html"));
    let http = good.listeners[0].http.clone().unwrap();
    assert_eq!((http.error_pages[0].status, &*http.error_pages[0].body), (503, &b"<p>later"[..]));
    assert_eq!(&*http.error_pages[0].content_type, "text/html; charset=utf-8");
    let Action::Respond(respond) = &http.routes[0].action else { panic!("no response") };
    assert_eq!((&*respond.body, &*respond.content_type), (&b"<p>later"[..], "text/html; charset=utf-8"));
    for (page, file) in [("large.html", "503.html"), ("503.html", "none.txt")] {
        let text = text(page, file);
        let source = Source { name: "test.toml", text: &text };
        let (none, diagnostics) = validate::load(source, &machine());
        let found = render(&source.reports(&diagnostics), false);
        let named = if page == "large.html" { path(page) } else { path(file) };
        assert!(none.is_none() && found.contains(&named), "{found}");
    }
}

/// A file is what it was when it was applied, whatever becomes of it: the daemon comes back with it, and says so.
#[test]
fn a_file_that_is_gone_is_served_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("503.html");
    std::fs::write(&page, "<p>later").unwrap();
    let http = format!("pool = \"one\"\nhttp = {{ error_page = {{ 503 = \"{}\" }} }}", page.display());
    let instance = Instance::new(&format!("{HEAD}{}{}", listener("web", 80, &http), pool("one", 1)));
    let generation = instance.start().generation();
    let told = |engine: &weir_ctlplane::engine::Engine| {
        let drift = engine.drift();
        drift.iter().any(|line| line.contains(page.to_str().unwrap()))
    };
    let engine = instance.start();
    assert!(!told(&engine) && engine.generation() == generation);
    drop(engine);
    let body = |engine: &weir_ctlplane::engine::Engine| {
        let http = engine.model().listeners[0].http.clone().unwrap();
        String::from_utf8(http.error_pages[0].body.to_vec()).unwrap()
    };
    for change in ["<p>sooner", ""] {
        match change {
            "" => std::fs::remove_file(&page).unwrap(),
            text => std::fs::write(&page, text).unwrap(),
        }
        let engine = instance.start();
        assert!(told(&engine), "{:?}", engine.drift());
        assert_eq!((body(&engine), engine.generation()), ("<p>later".to_owned(), generation));
    }
    // after a restart of the machine there is no snapshot to go on with
    std::fs::remove_dir_all(instance.shm().join("weir-test")).unwrap();
    let mut engine = instance.start();
    assert_eq!(body(&engine), "<p>later");
    let text = std::fs::read_to_string(&instance.options.config).unwrap();
    assert!(engine.apply(&text, "weir.toml").is_err(), "a new application needs the file");
    std::fs::write(&page, "<p>sooner").unwrap();
    assert!(engine.apply(&text, "weir.toml").unwrap().published.is_some());
    assert_eq!((body(&engine), told(&engine)), ("<p>sooner".to_owned(), false));
}

/// Ten thousand routes: read, checked, indexed and published in less than a second.
#[test]
fn many_routes_apply_quickly() {
    let text = |changed: usize| {
        let mut text = format!("{HEAD}{}{}", listener("web", 80, "pool = \"one\""), pool("one", 1));
        for number in 0..10_000 {
            let path = if number == changed { "changed" } else { "v1" };
            let _ = write!(
                text,
                "[[route]]\nlistener = \"web\"\nhost = \"h{}.example.com\"\npath_prefix = \"/{path}/{number}\"\npool = \"one\"\n",
                number % 500
            );
        }
        text
    };
    let instance = Instance::new(&text(usize::MAX));
    let mut engine = instance.start();
    let changed = text(77);
    let begin = Instant::now();
    let change = engine.apply(&changed, "test.toml").unwrap();
    let took = begin.elapsed();
    assert_eq!(change.published.unwrap().tables_written, 1);
    assert_eq!(http_tables(&instance, 2)[0].routes.len(), 10_000);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn the_location_of_a_redirect_is_the_one_that_clients_get() {
    let route = |name: &str, rest: &str| {
        format!(
            "[[route]]\nname = \"{name}\"\nlistener = \"web\"\npath_prefix = \"/{name}\"\nredirect = {{ path_prefix = \"/new\"{rest} }}\n"
        )
    };
    let text = format!(
        "{HEAD}{}{}{}{}{}",
        listener("web", 80, "pool = \"one\"\nhttp = { trusted = [\"198.18.0.0/15\"] }"),
        pool("one", 1),
        route("plain", ""),
        route("relative", ", relative = true"),
        route("https", ", scheme = \"https\""),
    );
    let model = model(&text);
    for (path, is_trusted, location) in [
        ("plain", false, "http://a.example/new/x?q"),
        ("plain", true, "https://b.example:444/new/x?q"),
        ("relative", true, "/new/x?q"),
        ("https", false, "https://a.example/new/x?q"),
    ] {
        let found = ask(&model, &format!("http://a.example/{path}/x?q"), |request| {
            request.source = if is_trusted { [198, 18, 0, 9] } else { [192, 0, 2, 1] }.into();
            request.headers = vec![
                ("X-Forwarded-Proto".to_owned(), "https".to_owned()),
                ("X-Forwarded-Host".to_owned(), "b.example:444".to_owned()),
            ];
        });
        assert!(found.action.ends_with(&format!(": Location: {location}")), "{}", found.action);
    }
}

#[test]
fn requests_are_explained() {
    let text = format!(
        "{HEAD}{}{}{}[[route]]\nname = \"api\"\nlistener = \"web\"\nhost = \"api.example\"\npath_prefix = \"/v1\"\n\
         headers = {{ X-Key = \"k\" }}\nsplit = [{{ pool = \"one\", weight = 3 }}, {{ pool = \"two\", weight = 1 }}]\n\
         [[route]]\nname = \"all\"\nlistener = \"web\"\nhost = \"api.example\"\nredirect = {{ status = 301, host = \"www.example\" }}\n",
        listener("web", 80, "pool = \"one\""),
        listener("other", 81, "http = { upgrade = false }"),
        [pool("one", 1), pool("two", 2)].concat().replace("name = \"b\"", "state = \"drain\"\nname = \"b\""),
    );
    let model = model(&text);
    let found = ask(&model, "http://api.example/x/../v1/%61?q=1", |request| {
        request.headers.push(("X-Key".to_owned(), "k".to_owned()));
    });
    assert_eq!((found.route.as_deref(), found.path.as_str()), (Some("api"), "/v1/a"));
    let shares: Vec<(&str, &str)> = found.pools.iter().map(|p| (p.pool.as_str(), p.share.as_str())).collect();
    assert_eq!(shares, [("one", "75%"), ("two", "25%")]);
    let usable: Vec<bool> = found.pools[0].backends.iter().map(|backend| backend.usable).collect();
    assert_eq!((usable, found.pools[0].backends[1].why.as_str()), (vec![true, false], "its state is drain"));
    let text = explain::render(&found);
    assert!(
        text.contains("75% to pool one")
            && text.contains("b 198.18.1.2:80 weight 100: cannot: its state is drain"),
        "{text}"
    );

    let found = ask(&model, "http://api.example/v1", |_| ());
    assert_eq!((found.route.as_deref(), found.cause), (Some("all"), None));
    assert_eq!(found.considered[0].verdict, "wants header x-key = \"k\"");
    let found = ask(&model, "http://198.19.0.1:80/", |_| ());
    assert_eq!((found.route, found.pools.len()), (None, 1));
    let found = ask(&model, "http://x:81/", |_| ());
    assert_eq!(found.cause.as_deref(), Some("no-route"));
    let found = ask(&model, "http://x:81/", |request| {
        request.headers = vec![
            ("Connection".to_owned(), "upgrade".to_owned()),
            ("Upgrade".to_owned(), "websocket".to_owned()),
        ];
    });
    assert_eq!(found.cause.as_deref(), Some("upgrade-refused"));
    let found = ask(&model, "http://x/", |request| {
        request.headers.push(("Content-Length".to_owned(), "1, 2".to_owned()))
    });
    assert_eq!(found.cause.as_deref(), Some("request-framing"));

    let fails = |url: Option<&str>, name: Option<&str>| {
        let request = Request {
            listener: name.map(str::to_owned),
            url: url.map(str::to_owned),
            method: "GET".to_owned(),
            headers: Vec::new(),
            source: "192.0.2.1".parse().unwrap(),
        };
        explain::explain(&model, &Known::nothing(&Default::default()), &request).unwrap_err().to_string()
    };
    assert!(fails(None, None).contains("--listener"));
    assert!(fails(None, Some("wep")).contains("did you mean \"web\"?"));
    assert!(fails(Some("http://x:9/"), None).contains("port 9"));
    assert!(fails(Some("https://x/"), None).contains("TLS"));
    assert!(fails(Some("http://x/\r\nA: b"), None).contains("control characters"));
}

#[test]
fn the_plan_adds_up() {
    let text = format!("{HEAD}{}{}", listener("web", 80, "pool = \"one\""), pool("one", 1));
    let small = plan::plan(&model(&text));
    let sum: u64 = small.per_worker.iter().filter(|part| !part.is_huge).map(|part| part.bytes).sum();
    assert_eq!(small.ordinary, sum * small.workers);
    assert!(small.huge_pages * (2 << 20) >= small.packet_buffers + small.flow_tables);
    let more = text.replace("workers = 1", "workers = 2\ntcp_connections = 131072\nhttp_memory = \"128MiB\"");
    let more = plan::plan(&model(&more));
    assert!(more.workers == 2 && more.ordinary > 3 * small.ordinary / 2);
    let ceiling = |plan: &plan::Plan, field: &str| {
        plan.ceilings.iter().find(|ceiling| ceiling.field == field).map(|ceiling| ceiling.per_worker)
    };
    assert_eq!(
        (ceiling(&small, "http_memory"), ceiling(&more, "http_memory")),
        (Some(64 << 20), Some(128 << 20))
    );
    assert_eq!(ceiling(&more, "tcp_connections"), Some(131_072));
    let states: Vec<&str> = small.per_connection.iter().map(|state| state.state.as_str()).collect();
    assert_eq!(states.len(), 6);
    let text = plan::render(&small);
    assert!(text.contains("idle client of HTTP") && text.contains("huge pages for both"), "{text}");
    let layer4 = plan::plan(&model(&text_of_layer4()));
    assert!(layer4.per_connection.is_empty() && layer4.ceilings.is_empty());
}

fn text_of_layer4() -> String {
    support::one_pool(&[("a", 1, 100)])
}

//! Whom an HTTPS probe believes: servers with certificates of every kind, made for each run.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, Stream};

use super::check::{Check, Http, Kind, Tls};
use super::tests::{check, listing, named};
use super::*;

/// One that signs others.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }
}

/// A certificate for names, from one year to another, and its key; by its own key where nobody signs it.
fn certificate(
    names: &[&str],
    years: (i32, i32),
    by: Option<&Authority>,
) -> (CertificateDer<'static>, KeyPair) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "server");
    (params.not_before, params.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
    let key = KeyPair::generate().unwrap();
    let made = match by {
        Some(authority) => params.signed_by(&key, &authority.issuer),
        None => params.self_signed(&key),
    };
    (made.unwrap().der().clone(), key)
}

/// Answers with 200 inside TLS; tells the names (SNI) and the heads that it is sent. Gives its address.
fn serve(
    (certificate, key): (CertificateDer<'static>, KeyPair),
) -> (String, mpsc::Receiver<(Option<String>, String)>) {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, asked) = mpsc::channel();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = Stream::new(&mut connection, &mut socket);
            let mut head = [0; 1024];
            // who does not believe us hangs up
            let Ok(length) = stream.read(&mut head) else { continue };
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            let head = String::from_utf8_lossy(&head[..length]).into_owned();
            let _ = sender.send((connection.server_name().map(str::to_owned), head));
        }
    });
    (address, asked)
}

fn rules(ca_file: Option<&Path>, server_name: Option<&str>) -> Tls {
    Tls {
        verify: true,
        ca_file: ca_file.map(|path| path.display().to_string()),
        server_name: server_name.map(str::to_owned),
        client: None,
    }
}

fn https(tls: Tls, host: Option<&str>) -> Check {
    let http = Http {
        method: "GET".to_owned(),
        path: "/".to_owned(),
        host: host.map(str::to_owned),
        statuses: vec![(200, 200)],
        headers: Vec::new(),
        body: String::new(),
    };
    Check { timeout: Duration::from_secs(5), ..check(Kind::Https(http, tls)) }
}

/// State and last result of each backend, once all were probed.
fn probed(targets: Vec<Target>) -> BTreeMap<String, (String, String)> {
    let wanted = targets.len();
    let health = Health::start(targets, &Down::default(), None).unwrap();
    let started = Instant::now();
    loop {
        let rows = listing(&health);
        if rows.iter().filter(|row| !row.last_result.is_empty()).count() == wanted {
            return rows.into_iter().map(|row| (row.backend, (row.state, row.last_result))).collect();
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{rows:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_certificate_is_believed_or_refused_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (trusted, empty) = (file("ours.pem", &ours.pem), file("empty.pem", "nothing\n"));
    let names: &[&str] = &["web.example", "127.0.0.1"];
    let (now, past, future) = ((2020, 2100), (2000, 2001), (2099, 2100));
    let (good, _asked) = serve(certificate(names, now, Some(&ours)));
    let (expired, _asked) = serve(certificate(names, past, Some(&ours)));
    let (early, _asked) = serve(certificate(names, future, Some(&ours)));
    let (own, _asked) = serve(certificate(names, now, None));
    let (foreign, _asked) = serve(certificate(names, now, Some(&other)));
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain_address = plain.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for socket in plain.incoming() {
            let mut socket = socket.unwrap();
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            let _ = socket.read(&mut [0; 1024]);
        }
    });
    let missing = directory.path().join("missing.pem");
    let anybody = || Tls { verify: false, ..rules(None, None) };
    let web = || rules(Some(&trusted), Some("web.example"));
    let by = |ca: &Path| rules(Some(ca), None);
    let table = [
        ("good by name", &good, web(), "up", ""),
        ("good by address", &good, by(&trusted), "up", ""),
        (
            "wrong name",
            &good,
            rules(Some(&trusted), Some("shop.example")),
            "down",
            "is not for shop.example; set server_name",
        ),
        ("expired", &expired, web(), "down", "its certificate has expired"),
        ("too early", &early, web(), "down", "is not valid yet"),
        (
            "self-signed",
            &own,
            web(),
            "down",
            "not signed by an authority that is trusted; name its authority with ca_file",
        ),
        ("another authority", &foreign, web(), "down", "not signed by an authority"),
        ("expired, unverified", &expired, anybody(), "up", ""),
        ("self-signed, unverified", &own, anybody(), "up", ""),
        ("no TLS", &plain_address, web(), "down", "does not speak TLS"),
        ("no TLS, unverified", &plain_address, anybody(), "down", "does not speak TLS"),
        // the operator's mistakes are not the backend's
        ("no file", &good, by(&missing), "unknown", "missing.pem"),
        ("no certificate", &good, by(&empty), "unknown", "empty.pem"),
    ];
    let targets = table.iter().map(|(name, address, tls, ..)| named(name, address, https(tls.clone(), None)));
    let found = probed(targets.collect());
    for (name, _, _, state, says) in &table {
        let (now, result) = &found[*name];
        if *state != "unknown" {
            assert_eq!(now, state, "{name}: {result}");
        } else {
            assert_ne!(now, "down", "{name}: {result}");
        }
        assert!(result.contains(says), "{name}: {result}");
    }
}

#[test]
fn the_name_that_is_sent_is_server_name_or_host_and_never_an_address() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let trusted = directory.path().join("ours.pem");
    std::fs::write(&trusted, &authority.pem).unwrap();
    for (server_name, host, sni, header) in [
        (None, Some("web.example:8443"), Some("web.example"), "host: web.example:8443\r\n"),
        (Some("web.example"), Some("shop.example"), Some("web.example"), "host: shop.example\r\n"),
        (Some("web.example"), None, Some("web.example"), "host: 127.0.0.1:"),
        (None, None, None, "host: 127.0.0.1:"),
    ] {
        let (address, asked) =
            serve(certificate(&["web.example", "127.0.0.1"], (2020, 2100), Some(&authority)));
        let target = named("a", &address, https(rules(Some(&trusted), server_name), host));
        let found = probed(vec![target]);
        assert_eq!(found["a"].0, "up", "{found:?}");
        let (name, head) = asked.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(name.as_deref(), sni, "{server_name:?} {host:?}");
        assert!(head.contains(header), "{head}");
    }
}

//! A backend that hangs, refuses, answers wrongly or flaps; all of them at once; and what a restart of the daemon forgets.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{all_up, becomes, detected, recovered, row, rows, spared, used};
use crate::config::{Mode, Protocol, Service};
use crate::interrupt::{pause, wait_for};
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{BACKENDS, Family, Io, Lab, backend};
use crate::traffic::stream::Server;

/// Where the backends answer checks.
const CHECK_PORT: u16 = 9_200;
/// The one that fails.
const PATIENT: usize = 2;

/// What a backend answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Answer {
    Good,
    Hang,
    Status,
    Header,
    Body,
    Close,
    /// Good and bad in turn.
    Flap,
}

const ALL: [Answer; 7] =
    [Answer::Good, Answer::Hang, Answer::Status, Answer::Header, Answer::Body, Answer::Close, Answer::Flap];

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut list: Vec<Scenario> = [
        ("hangs", Answer::Hang, "no answer within 250ms"),
        ("status", Answer::Status, "status 503, expected 200-399"),
        ("header", Answer::Header, "header x-role is \"replica\""),
        ("body", Answer::Body, "does not contain \"all good\""),
        ("closes", Answer::Close, "closed"),
    ]
    .into_iter()
    .map(|(name, fault, reason)| {
        Scenario::new(format!("health/{name}"), move |context| answers(context, fault, reason))
    })
    .collect();
    list.push(Scenario::new("health/refuses", refuses));
    list.push(Scenario::new("health/flaps", flaps));
    list.push(Scenario::new("health/all-down", all_down));
    list.push(Scenario::new("health/restart", restart));
    list
}

/// Servers for checks, one in each backend's namespace.
struct Checked {
    answers: Vec<Arc<AtomicU8>>,
    servers: Vec<Option<Server>>,
}

impl Checked {
    fn start(lab: &Lab) -> Result<Self> {
        let mut checked = Self { answers: Vec::new(), servers: Vec::new() };
        for number in 1..=BACKENDS {
            checked.answers.push(Arc::new(AtomicU8::new(Answer::Good as u8)));
            checked.servers.push(None);
            checked.listen(lab, number)?;
        }
        Ok(checked)
    }

    fn listen(&mut self, lab: &Lab, number: usize) -> Result<()> {
        let answer = Arc::clone(&self.answers[number - 1]);
        let asked = AtomicU64::new(0);
        let place = SocketAddr::new(backend(Family::Ipv4, number), CHECK_PORT);
        let server = Server::start(&lab.backends[number - 1], place, move |stream| {
            let asked = asked.fetch_add(1, Ordering::Relaxed);
            let answer = ALL[usize::from(answer.load(Ordering::Relaxed))];
            // who asked may be gone
            let _ = talk(stream, answer, asked);
        })?;
        self.servers[number - 1] = Some(server);
        Ok(())
    }

    fn set(&self, number: usize, answer: Answer) {
        self.answers[number - 1].store(answer as u8, Ordering::Relaxed);
    }
}

fn talk(mut stream: TcpStream, answer: Answer, asked: u64) -> std::io::Result<()> {
    let mut request = [0; 1_024];
    let length = stream.read(&mut request)?;
    let is_whole = request[..length].starts_with(b"GET /health HTTP/1.1\r\n");
    let response = |status: &str, role: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nX-Role: {role}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let good = response("200 OK", "primary", "it is all good");
    let text = match answer {
        _ if !is_whole => response("400 Bad Request", "primary", ""),
        Answer::Good => good,
        Answer::Flap if asked.is_multiple_of(2) => good,
        Answer::Flap | Answer::Status => response("503 Busy", "primary", "it is all good"),
        Answer::Header => response("200 OK", "replica", "it is all good"),
        Answer::Body => response("200 OK", "primary", "it is not"),
        Answer::Close => return Ok(()),
        Answer::Hang => {
            std::thread::sleep(Duration::from_secs(1));
            return Ok(());
        }
    };
    stream.write_all(text.as_bytes())
}

fn service(more: &str) -> Service {
    let times = super::TIMES;
    let pool_lines = format!(
        "health_check = {{ type = \"http\", port = {CHECK_PORT}, path = \"/health\", expect_body = \"all good\", \
         expect_headers = {{ x-role = \"primary\" }}, {times} }}\n{more}"
    );
    Service { pool_lines, ..Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4) }
}

fn start(context: &Context, service: &Service) -> Result<(Rig, Checked)> {
    let rig = Rig::start_with(context, Io::AfXdp, vec![service.clone()], |config| {
        config.timeouts = "tcp_closing = \"1s\"\ntcp_embryonic = \"2s\"\n".into();
    })?;
    let checked = Checked::start(&rig.lab)?;
    Ok((rig, checked))
}

fn answers(context: &Context, fault: Answer, reason: &str) -> Result<()> {
    let service = service("");
    let (mut rig, checked) = start(context, &service)?;
    all_up(&mut rig)?;
    used(&rig, &service, PATIENT)?;
    for _ in 0..2 {
        checked.set(PATIENT, fault);
        let down = becomes(&mut rig, &service, PATIENT, "down", detected())?;
        ensure!(down.reason.contains(reason), "\"{}\" does not tell \"{reason}\"", down.reason);
        ensure!(down.through == "direct", "{down:?}");
        spared(&rig, &service, PATIENT)?;
        checked.set(PATIENT, Answer::Good);
        becomes(&mut rig, &service, PATIENT, "up", recovered())?;
        used(&rig, &service, PATIENT)?;
    }
    rig.finish()
}

fn refuses(context: &Context) -> Result<()> {
    let service = service("");
    let (mut rig, mut checked) = start(context, &service)?;
    all_up(&mut rig)?;
    checked.servers[PATIENT - 1] = None;
    let down = becomes(&mut rig, &service, PATIENT, "down", detected())?;
    ensure!(down.reason.contains("connection refused"), "\"{}\"", down.reason);
    spared(&rig, &service, PATIENT)?;
    let screen = rig.weir.cli(&["status"]).output()?;
    let screen = String::from_utf8_lossy(&screen.stdout).into_owned();
    ensure!(screen.contains("connection refused") && screen.contains("ready, down"), "{screen}");
    checked.listen(&rig.lab, PATIENT)?;
    becomes(&mut rig, &service, PATIENT, "up", recovered())?;
    used(&rig, &service, PATIENT)?;
    rig.finish()
}

/// Who fails every other time never fails twice in a row.
fn flaps(context: &Context) -> Result<()> {
    let service = service("");
    let (mut rig, checked) = start(context, &service)?;
    all_up(&mut rig)?;
    let before = row(&rig, &service, PATIENT)?;
    let generation = rig.weir.status()?.generation;
    checked.set(PATIENT, Answer::Flap);
    let mut doubts = 0;
    wait_for("enough failures", Duration::from_secs(20), || {
        let now = row(&rig, &service, PATIENT)?;
        ensure!(now.state == "up", "{now:?}");
        doubts += u32::from(now.in_doubt);
        Ok((now.failures >= before.failures + 10 && now.probes >= before.probes + 20 && doubts > 0)
            .then_some(()))
    })?;
    let after = rig.weir.status()?.generation;
    ensure!(
        after == generation,
        "generations {generation} to {after} were published for a backend that flaps"
    );
    rig.finish()
}

/// All are used where all are down: the checks may be what is broken.
fn all_down(context: &Context) -> Result<()> {
    let service = service("");
    let (mut rig, checked) = start(context, &service)?;
    all_up(&mut rig)?;
    (1..=BACKENDS).for_each(|number| checked.set(number, Answer::Status));
    let down = wait_for("all to be down", detected() + Duration::from_secs(2), || {
        Ok(rows(&rig)?.iter().all(|row| row.state == "down").then_some(()))
    });
    down.context("not all were found down")?;
    rig.wait_until_adopted()?;
    (1..=BACKENDS).try_for_each(|number| used(&rig, &service, number))?;
    let screen = rig.weir.cli(&["status"]).output()?;
    let screen = String::from_utf8_lossy(&screen.stdout).into_owned();
    ensure!(screen.contains("down but used"), "{screen}");
    // one that is up again has all of it
    checked.set(PATIENT, Answer::Good);
    becomes(&mut rig, &service, PATIENT, "up", recovered())?;
    spared(&rig, &service, 1)?;
    spared(&rig, &service, 3)?;
    // and one of them is made to take part whatever its checks say: the rest is the operator's
    rig.weir.weir(&[
        "backend",
        "maint",
        "--force",
        &format!("{}/{}", service.name, crate::topology::lab::backend_name(PATIENT)),
    ])?;
    rig.wait_until_adopted()?;
    spared(&rig, &service, PATIENT)?;
    rig.finish()
}

/// What was down stays down until it was probed again, and is found up if it is.
fn restart(context: &Context) -> Result<()> {
    let service = service("");
    let (mut rig, checked) = start(context, &service)?;
    all_up(&mut rig)?;
    checked.set(PATIENT, Answer::Hang);
    becomes(&mut rig, &service, PATIENT, "down", detected())?;
    for _ in 0..2 {
        rig.weir.ctlplane.kill()?;
        spared(&rig, &service, PATIENT)?;
        rig.weir.ctlplane.start_again()?;
        spared(&rig, &service, PATIENT)?;
        wait_for("ctlplane to come back", Duration::from_secs(10), || Ok(rows(&rig).ok().map(drop)))?;
        spared(&rig, &service, PATIENT)?;
    }
    pause(Duration::from_secs(1))?;
    spared(&rig, &service, PATIENT)?;
    checked.set(PATIENT, Answer::Good);
    becomes(&mut rig, &service, PATIENT, "up", recovered())?;
    used(&rig, &service, PATIENT)?;
    rig.finish()
}

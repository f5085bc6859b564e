//! A lab with backends, and all who stand between them and the client: nobody, Weir, HAProxy, nginx. Each proxy runs on CPU 1, all
//! else on CPU 0.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::bench::Context;
use crate::config::Config;
use crate::interrupt::wait_for;
use crate::run::Run;
use crate::supervisor::{Process, Program};
use crate::topology::lab::{BACKENDS, Family, Io, Lab, backend, vip};
use crate::topology::namespace::{Namespace, link};
use crate::traffic::http;
use crate::weir::Weir;

/// CPU of clients and backends.
pub(super) const OTHERS: usize = 0;
/// CPU of the proxy.
pub(super) const PROXY: usize = 1;
/// Bytes of a body.
pub(super) const BODY: usize = 1_024;
/// A path that answers with a large file, and its size.
pub(super) const LARGE: &str = "/large";
pub(super) const LARGE_BYTES: usize = 256 << 10;
/// A path that answers once it has a whole body.
pub(super) const UPLOAD: &str = "/upload";
/// Port of the backends.
const SERVER: u16 = 8_080;
/// Where HAProxy and nginx listen, on the router between both segments.
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 253);
const HAPROXY: u16 = 9_301;
const NGINX: u16 = 9_302;
/// The first backend, over a link of its own.
const DIRECT: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 2);

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rival {
    /// A backend.
    Direct,
    /// Weir.
    Weir,
    /// HAProxy.
    Haproxy,
    /// nginx.
    Nginx,
}

impl Rival {
    /// All, the proxyless first.
    pub(super) const ALL: [Self; 4] = [Self::Direct, Self::Weir, Self::Haproxy, Self::Nginx];

    /// As results have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Weir => "weir",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// Where it is asked.
    pub(super) fn place(self) -> SocketAddr {
        match self {
            Self::Direct => (DIRECT, SERVER).into(),
            Self::Weir => SocketAddr::new(vip(Family::Ipv4, 1), 80),
            Self::Haproxy => (ROUTER, HAPROXY).into(),
            Self::Nginx => (ROUTER, NGINX).into(),
        }
    }
}

/// Everything that runs. Fields are dropped in this order.
pub(super) struct Stage {
    weir: Weir,
    haproxy: Process,
    nginx: Process,
    _servers: Vec<Process>,
    lab: Lab,
    _run: Run,
}

impl Stage {
    /// Starts all of it.
    pub(super) fn start(context: &Context) -> Result<Self> {
        let run = Run::new()?;
        let lab = Lab::build(run.name(), Io::AfXdp)?;
        link(&lab.client, "direct", &lab.backends[0], "direct", 1_500)?;
        lab.client.ip("addr add 198.18.7.1/24 dev direct\n")?;
        lab.backends[0].ip(&format!("addr add {DIRECT}/24 dev direct\n"))?;
        lab.client.plain_frames(&["direct"])?;
        lab.backends[0].plain_frames(&["direct"])?;
        let root = run.path("servers");
        std::fs::write(root.join("large"), vec![b'x'; LARGE_BYTES])
            .with_context(|| format!("could not write in {}", root.display()))?;
        let text = server(&root);
        let servers = (1..=BACKENDS)
            .map(|number| {
                let server =
                    nginx(&run, &format!("server-{number}"), OTHERS, &lab.backends[number - 1], &text)?;
                ready(&lab.backends[number - 1], SocketAddr::new(backend(Family::Ipv4, number), SERVER))?;
                Ok(server)
            })
            .collect::<Result<Vec<_>>>()?;
        let haproxy = haproxy(&run, &lab.router)?;
        let nginx = nginx(&run, "nginx-proxy", PROXY, &lab.router, &reverse())?;
        let mut config = Config::new([lab.device("wan"), lab.device("lan")], Vec::new());
        config.dataplane = config.dataplane.replace("workers = 1", &format!("workers = [{PROXY}]"));
        config.more = listener();
        let weir = Weir::start(&run, &lab, &context.binaries, &config.toml())?;
        for rival in Rival::ALL {
            ready(&lab.client, rival.place()).with_context(|| rival.name())?;
        }
        Ok(Self { weir, haproxy, nginx, _servers: servers, lab, _run: run })
    }

    /// A command on the CPU of clients, in their namespace.
    pub(super) fn client_command(&self, program: &str) -> std::process::Command {
        let mut command = self.lab.client.command("taskset");
        command.args(["-c", &OTHERS.to_string(), program]);
        command
    }

    /// The namespace of clients.
    pub(super) fn client(&self) -> &Namespace {
        &self.lab.client
    }

    /// Seconds of CPU that a proxy has used: outside system calls, and all.
    pub(super) fn used(&self, rival: Rival) -> Result<(f64, f64)> {
        let process = match rival {
            Rival::Direct => return Ok((0.0, 0.0)),
            Rival::Weir => &self.weir.dataplane,
            Rival::Haproxy => &self.haproxy,
            Rival::Nginx => &self.nginx,
        };
        let id = process.id().context("a proxy does not run")?;
        let text = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        let fields: Vec<&str> = text.rsplit_once(')').context("no stat")?.1.split_whitespace().collect();
        let ticks =
            |at: usize| -> Result<f64> { Ok(fields.get(at).context("no times")?.parse::<f64>()? / 100.0) };
        // utime and stime are fields 14 and 15 of proc(5), counted from the process's number
        let (user, system) = (ticks(11)?, ticks(12)?);
        Ok((user, user + system))
    }

    /// Ends the processes that are not asked now, so that they take no time: the others are stopped, not ended.
    pub(super) fn only(&self, rival: Rival) -> Result<()> {
        for (other, process) in [
            (Rival::Weir, &self.weir.dataplane),
            (Rival::Haproxy, &self.haproxy),
            (Rival::Nginx, &self.nginx),
        ] {
            if other == rival { process.thaw()? } else { process.freeze()? }
        }
        Ok(())
    }

    /// Everything in order at the end.
    pub(super) fn finish(mut self) -> Result<()> {
        self.only(Rival::Weir)?;
        self.haproxy.thaw()?;
        self.nginx.thaw()?;
        self.weir.settle().map(drop)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // a stopped process does not hear that it is to end
        for process in [&self.weir.dataplane, &self.haproxy, &self.nginx] {
            let _ = process.thaw();
        }
    }
}

/// Waits until somebody answers there.
fn ready(from: &Namespace, place: SocketAddr) -> Result<()> {
    wait_for(&format!("{place} to answer"), Duration::from_secs(10), || {
        from.run(|| http::fetch(place, "/").ok().map(drop))
    })
}

fn nginx(run: &Run, name: &str, cpu: usize, namespace: &Namespace, http: &str) -> Result<Process> {
    let root = run.path("servers");
    let path = |kind: &str| root.join(format!("{name}-{kind}")).display().to_string();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {};\n", path(kind)))
        .collect();
    std::fs::write(
        path("conf"),
        format!(
            "daemon off;\nmaster_process off;\nworker_processes 1;\npid {};\nerror_log stderr crit;\nworker_rlimit_nofile 16384;\n\
             events {{ worker_connections 8192; multi_accept on; }}\nhttp {{\n{temporary}access_log off;\ntcp_nodelay on;\n\
             keepalive_timeout 600s;\nkeepalive_requests 100000000;\n{http}}}\n",
            path("pid")
        ),
    )?;
    let arguments = ["-c", &path("conf"), "-e", "stderr", "-p", &root.display().to_string()];
    Process::start(
        Program::new(name, "nginx", &arguments).within(namespace).on_cpus(&cpu.to_string()),
        &run.logs(),
    )
}

/// A backend. nginx passes a request on once it has all of its body: that nobody is where those of [`UPLOAD`] go is never found out.
fn server(root: &Path) -> String {
    let (body, root) = ("x".repeat(BODY), root.display());
    format!(
        "server {{ listen {SERVER} backlog=4096; location / {{ return 200 \"{body}\"; }}\n\
         location = {LARGE} {{ root {root}; }}\nlocation = {UPLOAD} {{ proxy_pass http://127.0.0.1:9; }} }}\n"
    )
}

fn backends(line: impl Fn(usize, SocketAddr) -> String) -> String {
    (1..=BACKENDS)
        .map(|number| line(number, SocketAddr::new(backend(Family::Ipv4, number), SERVER)))
        .collect()
}

/// nginx as its documents have a reverse proxy with kept connections.
fn reverse() -> String {
    let servers = backends(|_, place| format!("server {place};\n"));
    format!(
        "upstream app {{ {servers} keepalive 256; keepalive_requests 100000000; keepalive_timeout 600s; }}\n\
         server {{ listen {NGINX} backlog=4096; location / {{ proxy_pass http://app; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
         proxy_buffers 16 8k; }} }}\n"
    )
}

/// HAProxy as its documents have it: one thread, no log, connections shared by all requests.
fn haproxy(run: &Run, namespace: &Namespace) -> Result<Process> {
    let path = run.path("servers").join("haproxy.cfg");
    let servers = backends(|number, place| format!(" server app-{number} {place} pool-max-conn 256\n"));
    let text = format!(
        "global\n nbthread 1\n maxconn 8000\ndefaults\n mode http\n timeout connect 5s\n timeout client 600s\n timeout server 600s\n \
         timeout http-keep-alive 600s\n option http-keep-alive\n option forwardfor\n http-reuse always\nfrontend web\n \
         bind :{HAPROXY} backlog 4096\n default_backend app\nbackend app\n balance roundrobin\n{servers}"
    );
    std::fs::write(&path, text)?;
    let arguments = ["-db", "-f", &path.display().to_string()];
    let program = Program::new("haproxy", "haproxy", &arguments);
    Process::start(program.within(namespace).on_cpus(&PROXY.to_string()), &run.logs())
}

fn listener() -> String {
    let address: IpAddr = vip(Family::Ipv4, 1);
    let servers = backends(|number, place| {
        format!("\n[[pool.backend]]\nname = \"app-{number}\"\naddress = \"{place}\"\n")
    });
    format!(
        "\n[[vip]]\nname = \"web\"\naddress = \"{address}\"\n\n[[listener]]\nname = \"web\"\nvip = \"web\"\nprotocol = \"http\"\nport = 80\n\
         mode = \"proxy\"\npool = \"app\"\n\n[[pool]]\nname = \"app\"\nalgorithm = \"round-robin\"\nhttp = {{ idle_connections = 256 }}\n{servers}"
    )
}

//! A lab with servers and Weir in it, and the checks that end every scenario.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::Context;
use crate::config::{Config, Mode, Protocol, Service};
use crate::interrupt::wait_for;
use crate::run::Run;
use crate::status::Status;
use crate::supervisor::Process;
use crate::topology::lab::{BACKENDS, Io, Lab, backend};
use crate::topology::namespace::Namespace;
use crate::traffic::datagram::Servers;
use crate::traffic::http::Connection;
use crate::traffic::servers::{SERVER_PORT, VIP_PORT, start_nginx};
use crate::traffic::tunnel::Decapsulator;
use crate::weir::{Options, Weir};

/// How long ended connections may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// Everything of one scenario. Fields are dropped in this order: processes before namespaces.
pub(crate) struct Rig {
    /// Weir.
    pub(crate) weir: Weir,
    /// Decapsulators, by backend.
    pub(crate) decapsulators: Vec<Decapsulator>,
    _datagrams: Vec<Servers>,
    nginx: Vec<Process>,
    /// The namespaces.
    pub(crate) lab: Lab,
    /// The run's directory.
    pub(crate) run: Run,
    /// What Weir was started with.
    pub(crate) config: Config,
}

impl Rig {
    /// A lab with what these services need, Weir serving them through `io`.
    pub(crate) fn start(context: &Context, io: Io, services: Vec<Service>) -> Result<Self> {
        Self::start_with(context, io, services, |_| {})
    }

    /// The same, the configuration changed first.
    pub(crate) fn start_with(
        context: &Context,
        io: Io,
        services: Vec<Service>,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        Self::start_as(context, io, services, change, &Options::default())
    }

    /// The same, Weir started with options.
    pub(crate) fn start_as(
        context: &Context,
        io: Io,
        services: Vec<Service>,
        change: impl FnOnce(&mut Config),
        options: &Options,
    ) -> Result<Self> {
        let run = Run::new()?;
        let lab = Lab::build(run.name(), io)?;
        let mut config = Config::new([lab.device("wan"), lab.device("lan")], services);
        change(&mut config);
        let mut vips: Vec<IpAddr> = Vec::new();
        for service in config.services.iter().filter(|service| !service.mode.rewrites()) {
            if !vips.contains(&service.address()) {
                lab.accept_vip(service.address())?;
                vips.push(service.address());
            }
        }
        let wants = |protocol| config.services.iter().any(|service| service.protocol == protocol);
        let nginx = if wants(Protocol::Tcp) || !config.more.is_empty() {
            start_nginx(&run, &lab, false)?
        } else {
            Vec::new()
        };
        let datagrams = if wants(Protocol::Udp) { datagram_servers(&lab, &config)? } else { Vec::new() };
        let decapsulators = if config.services.iter().any(|service| service.mode.is_tunnel()) {
            lab.backends.iter().map(Decapsulator::start).collect::<Result<Vec<_>>>()?
        } else {
            Vec::new()
        };
        let weir = Weir::start_with(&run, &lab, &context.binaries, &config.toml(), options)?;
        Ok(Self { weir, decapsulators, _datagrams: datagrams, nginx, lab, run, config })
    }

    /// Another handle to the client's namespace, for loads that run while the rig is changed.
    pub(crate) fn client(&self) -> Namespace {
        Namespace::existing(self.lab.client.name())
    }

    /// A connection from the client that stays open.
    pub(crate) fn connect(&self, service: &Service) -> Result<Connection> {
        let target = service.target();
        self.lab.client.run(|| Connection::open(target))?
    }

    /// A connection that ends up on that backend; others are closed again.
    pub(crate) fn connect_to(&self, service: &Service, name: &str) -> Result<Connection> {
        for _ in 0..200 {
            let mut connection = self.connect(service)?;
            if who(&mut connection)? == name {
                return Ok(connection);
            }
        }
        bail!("200 connections, and none went to {name}")
    }

    /// Puts the changed configuration in force and waits until every worker runs it.
    pub(crate) fn apply(&mut self) -> Result<()> {
        self.weir.apply(&self.config.toml())?;
        self.wait_until_adopted()
    }

    /// Waits until every worker runs what was published.
    pub(crate) fn wait_until_adopted(&mut self) -> Result<()> {
        wait_for("every worker to adopt the new generation", Duration::from_secs(10), || {
            self.weir.must_run()?;
            Ok(self.weir.status()?.serving().then_some(()))
        })
    }

    /// What must hold after every scenario. Returns the last status, for what the scenario itself wants to check.
    pub(crate) fn settle(&mut self) -> Result<Status> {
        for server in &mut self.nginx {
            server.must_run()?;
        }
        self.weir.settle()
    }

    /// Waits until no connection is left, and checks the books.
    pub(crate) fn emptied(&mut self) -> Result<Status> {
        let mut left = String::new();
        let gone = wait_for("every connection to be gone", GONE, || {
            self.weir.must_run()?;
            left = self.weir.status()?.connections_left().unwrap_or_default();
            Ok(left.is_empty().then_some(()))
        });
        gone.with_context(|| format!("left: {left}"))?;
        self.settle()
    }

    /// Settles, then ends Weir in the ordinary way, which must succeed.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.settle()?;
        self.end_weir()
    }

    /// Kills the nginx of a backend, counted from 0, as `kill -9` does.
    pub(crate) fn kill_nginx(&mut self, position: usize) -> Result<()> {
        let mut server = self.nginx.remove(position);
        server.kill()
    }

    /// The nginx of a backend, counted from 0, to be killed and started again.
    pub(crate) fn nginx(&mut self, position: usize) -> Result<&mut Process> {
        self.nginx.get_mut(position).with_context(|| format!("there is no nginx {position}"))
    }

    fn end_weir(&mut self) -> Result<()> {
        for process in [&mut self.weir.dataplane, &mut self.weir.ctlplane] {
            let name = process.name().to_owned();
            let status = process.stop()?;
            if let Some(status) = status
                && !status.success()
            {
                bail!(
                    "{name} ended with {status} after SIGTERM; its last words:\n{}",
                    process.last_words(15)
                );
            }
        }
        Ok(())
    }
}

/// UDP servers where the services need them: at the backends' own addresses, or at the VIPs.
fn datagram_servers(lab: &Lab, config: &Config) -> Result<Vec<Servers>> {
    let mut servers = Vec::new();
    let udp = || config.services.iter().filter(|service| service.protocol == Protocol::Udp);
    for (rewrites, port) in [(true, SERVER_PORT), (false, VIP_PORT)] {
        let mut places: Vec<Vec<IpAddr>> = vec![Vec::new(); BACKENDS];
        for service in udp().filter(|service| service.mode.rewrites() == rewrites) {
            for (position, places) in places.iter_mut().enumerate() {
                let place = if rewrites { backend(service.family, position + 1) } else { service.address() };
                if !places.contains(&place) {
                    places.push(place);
                }
            }
        }
        servers.push(Servers::start(lab, &places, port).context("UDP servers")?);
    }
    Ok(servers)
}

/// Which backend a connection is on.
pub(crate) fn who(connection: &mut Connection) -> Result<String> {
    let answer = connection.get("/", false)?;
    Ok(String::from_utf8_lossy(&answer.body).trim().to_owned())
}

/// One service per family and protocol of a mode.
pub(crate) fn every_kind(mode: Mode) -> Vec<Service> {
    use crate::topology::lab::Family;
    Protocol::BOTH
        .into_iter()
        .flat_map(|protocol| Family::BOTH.map(|family| Service::new(mode, protocol, family)))
        .collect()
}

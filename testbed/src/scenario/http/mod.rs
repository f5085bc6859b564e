//! HTTP: requests of real clients through routes to real and to misbehaving backends. One start of Weir serves many checks; after
//! each scenario no connection is left, packets are conserved and no buffer is owned.

mod failures;
mod killed;
mod limits;
pub(super) mod load;
mod log;
mod many;
mod messages;
mod pools;
mod reach;
mod routes;
mod slow;
mod smuggling;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::rig::Rig;
use super::{Context, Scenario};
use crate::config::Config;
use crate::interrupt::{self, wait_for};
use crate::status::Status;
use crate::topology::lab::{Family, Io, backend, backend_name, vip};
use crate::traffic::backend::{Backends, SCRIPT_PORT};
use crate::traffic::exchange::{Client, Response};
use crate::traffic::servers::SERVER_PORT;

/// What pools here say of idle connections.
pub(super) const IDLE: &str = "http = { idle = \"1s\" }\n";

pub(super) fn scenarios() -> Vec<Scenario> {
    let groups = [
        messages::scenarios(),
        routes::scenarios(),
        pools::scenarios(),
        failures::scenarios(),
        limits::scenarios(),
        log::scenarios(),
        killed::scenarios(),
        smuggling::scenarios(),
        slow::scenarios(),
        many::scenarios(),
        reach::scenarios(),
    ];
    groups.into_iter().flatten().collect()
}

/// Sections of a configuration, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Text(pub(super) String);

impl Text {
    /// The vip that all listeners share.
    pub(super) fn new() -> Self {
        Self::of(Family::Ipv4)
    }

    /// The same, of a family.
    pub(super) fn of(family: Family) -> Self {
        Self(format!("\n[[vip]]\nname = \"web\"\naddress = \"{}\"\n", vip(family, 1)))
    }

    /// A listener; its pool where `pool` is not empty.
    pub(super) fn listener(mut self, name: &str, port: u16, pool: &str, lines: &str) -> Self {
        let pool = if pool.is_empty() { String::new() } else { format!("pool = \"{pool}\"\n") };
        self.0 += &format!(
            "\n[[listener]]\nname = \"{name}\"\nvip = \"web\"\nprotocol = \"http\"\nport = {port}\nmode = \"proxy\"\n{pool}{lines}"
        );
        self
    }

    /// A route.
    pub(super) fn route(mut self, listener: &str, lines: &str) -> Self {
        self.0 += &format!("\n[[route]]\nlistener = \"{listener}\"\n{lines}");
        self
    }

    /// A pool of backends at a port, by their numbers in the lab, each with more lines.
    pub(super) fn pool(self, name: &str, lines: &str, port: u16, backends: &[(usize, &str)]) -> Self {
        self.pool_of(Family::Ipv4, name, lines, port, backends)
    }

    /// The same, of backends of a family.
    pub(super) fn pool_of(
        mut self,
        family: Family,
        name: &str,
        lines: &str,
        port: u16,
        backends: &[(usize, &str)],
    ) -> Self {
        self.0 += &format!("\n[[pool]]\nname = \"{name}\"\n{lines}");
        for &(number, lines) in backends {
            let place = SocketAddr::new(backend(family, number), port);
            let name = backend_name(number);
            self.0 += &format!("\n[[pool.backend]]\nname = \"{name}\"\naddress = \"{place}\"\n{lines}");
        }
        self
    }

    /// A pool of all scripted backends.
    pub(super) fn scripted(self, name: &str, lines: &str) -> Self {
        self.pool(name, lines, SCRIPT_PORT, &[(1, ""), (2, ""), (3, "")])
    }

    /// A pool of all nginx.
    pub(super) fn nginx(self, name: &str, lines: &str) -> Self {
        self.pool(name, lines, SERVER_PORT, &[(1, ""), (2, ""), (3, "")])
    }
}

/// A rig with scripted backends beside its nginx.
pub(super) struct Site {
    /// Of the vip.
    family: Family,
    /// Those that are scripted.
    pub(super) backends: Backends,
    /// Weir and the rest of the lab.
    pub(super) rig: Rig,
}

impl Site {
    pub(super) fn start(context: &Context, text: Text) -> Result<Self> {
        Self::start_with(context, text, |_| {})
    }

    pub(super) fn start_with(
        context: &Context,
        text: Text,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        Self::start_as(context, Io::AfXdp, [Family::Ipv4; 2], text, change)
    }

    /// Through any driver; families of the vip and of the backends.
    pub(super) fn start_as(
        context: &Context,
        io: Io,
        [family, of_backends]: [Family; 2],
        text: Text,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let rig = Rig::start_with(context, io, Vec::new(), |config| {
            config.more = text.0;
            change(config);
        })?;
        let backends = Backends::start(&rig.lab, of_backends)?;
        Ok(Self { family, backends, rig })
    }

    /// Where clients find a listener.
    pub(super) fn place(&self, port: u16) -> SocketAddr {
        SocketAddr::new(vip(self.family, 1), port)
    }

    /// A client of the listener at that port.
    pub(super) fn client(&self, port: u16) -> Result<Client> {
        Client::open(&self.rig.lab.client, self.place(port))
    }

    /// One request on a connection of its own.
    pub(super) fn ask(&self, port: u16, request: &str) -> Result<Response> {
        self.client(port)?.ask(request)
    }

    /// A GET on a connection of its own.
    pub(super) fn get(&self, port: u16, path: &str) -> Result<Response> {
        self.client(port)?.get(path)
    }

    pub(super) fn status(&self) -> Result<Status> {
        self.rig.weir.status()
    }

    /// Waits until what the status says is right.
    pub(super) fn until(
        &self,
        what: &str,
        patience: Duration,
        right: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        wait_for(what, patience, || Ok(Some(self.status()?).filter(|status| right(status))))
    }

    /// The end of every scenario here.
    pub(super) fn finish(mut self) -> Result<()> {
        self.rig.emptied()?;
        drop(self.backends);
        self.rig.finish()
    }
}

/// A directory for files that a configuration names; it goes with this value.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("weir-http-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("could not create {}", directory.display()))?;
        Ok(Self(directory))
    }

    /// The path of a file in it.
    pub(super) fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Checks of one start of Weir: all of them are made, then those that failed are told.
struct Checks<'a> {
    site: &'a mut Site,
    made: usize,
    failed: Vec<String>,
}

impl<'a> Checks<'a> {
    fn of(site: &'a mut Site) -> Self {
        Self { site, made: 0, failed: Vec::new() }
    }

    /// Makes one.
    fn check(&mut self, name: &str, body: impl FnOnce(&mut Site) -> Result<()>) {
        if interrupt::arrived() {
            return;
        }
        self.made += 1;
        self.site.backends.forget();
        if let Err(error) = body(self.site) {
            self.failed.push(format!("{name}: {error:#}"));
        }
    }

    /// An error that tells all failures.
    fn done(self) -> Result<()> {
        self.site.rig.weir.must_run()?;
        if !self.failed.is_empty() {
            bail!("{} of {} checks failed\n{}", self.failed.len(), self.made, self.failed.join("\n"));
        }
        Ok(())
    }
}

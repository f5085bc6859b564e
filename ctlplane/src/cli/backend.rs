//! `weir backend …`: which backends are there, and how is one changed at run time?

use clap::Subcommand;

use super::changes::{self, Manner};
use super::drain::{Target, Waiting};
use super::{Exit, complain, failed, print, print_json, report, screen};
use crate::api::{Applied, BackendRequest, Backends, percent_encode};
use crate::changes::edit::{Kind, Operation};
use crate::client::{Client, ClientError};
use crate::state::Admin;

/// What to do with backends. A backend is POOL/NAME, or NAME alone where that is unique.
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// All backends with weight, state and flows.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Add one to a pool.
    Add {
        /// POOL/NAME.
        backend: String,
        /// Its address, with a port or without: 198.18.1.5:8080.
        #[arg(long)]
        address: Option<String>,
        /// 0 to 65535.
        #[arg(long)]
        weight: Option<u16>,
        /// More fields as in the file, KEY=VALUE.
        fields: Vec<String>,
        /// How.
        #[command(flatten)]
        manner: Manner,
    },
    /// Change fields of one.
    Set {
        /// POOL/NAME, or NAME where unique.
        backend: String,
        /// Fields as in the file, KEY=VALUE; KEY= takes a field away.
        #[arg(required = true)]
        fields: Vec<String>,
        /// Also for the last backend of its pool that takes new flows.
        #[arg(long)]
        force: bool,
        /// How.
        #[command(flatten)]
        manner: Manner,
    },
    /// Remove one; its flows end by themselves.
    Remove {
        /// POOL/NAME, or NAME where unique.
        backend: String,
        /// Also the last backend of its pool that takes new flows.
        #[arg(long)]
        force: bool,
        /// How.
        #[command(flatten)]
        manner: Manner,
    },
    /// Change the share of new flows.
    Weight {
        /// POOL/NAME, or NAME where unique.
        backend: String,
        /// 0 to 65535; 0 = no new flows.
        weight: u16,
        /// Also for the last backend of its pool that takes new flows.
        #[arg(long)]
        force: bool,
    },
    /// No new flows; established ones go on.
    Drain {
        /// POOL/NAME, or NAME where unique.
        backend: String,
        /// Also for the last backend of its pool that takes new flows.
        #[arg(long)]
        force: bool,
        /// How long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Takes new flows again.
    Ready {
        /// POOL/NAME, or NAME where unique.
        backend: String,
    },
    /// No new flows; established ones by the listener's on_down.
    Maint {
        /// POOL/NAME, or NAME where unique.
        backend: String,
        /// Also for the last backend of its pool that takes new flows.
        #[arg(long)]
        force: bool,
    },
}

pub(super) fn run(client: &Client, command: &BackendCommand) -> Exit {
    let result = match command {
        BackendCommand::List { json } => list(client, *json),
        BackendCommand::Add { backend, address, weight, fields, manner } => {
            let address = address.as_ref().map(|address| ("address".to_owned(), address.as_str().into()));
            let weight = weight.map(|weight| ("weight".to_owned(), weight.into()));
            let given = address.into_iter().chain(weight).collect();
            Ok(changes::edit(client, Operation::Add, Kind::Backend, backend, fields, given, false, manner))
        }
        BackendCommand::Set { backend, fields, force, manner } => {
            edit(client, Operation::Set, backend, fields, *force, manner)
        }
        BackendCommand::Remove { backend, force, manner } => {
            edit(client, Operation::Remove, backend, &[], *force, manner)
        }
        BackendCommand::Weight { backend, weight, force } => {
            let request = BackendRequest { weight: Some(*weight), state: None, force: *force };
            change(client, backend, &request)
        }
        BackendCommand::Drain { backend, force, waiting } => resolve(client, backend).and_then(|found| {
            let Some((pool, backend)) = found else { return Ok(Exit::Bad) };
            Target::Backend(pool, backend).drain(client, *waiting, *force)
        }),
        BackendCommand::Ready { backend } => change(client, backend, &set(Admin::Ready, false)),
        BackendCommand::Maint { backend, force } => change(client, backend, &set(Admin::Maint, *force)),
    };
    result.unwrap_or_else(|error| failed(&error))
}

fn edit(
    client: &Client,
    op: Operation,
    wanted: &str,
    fields: &[String],
    force: bool,
    manner: &Manner,
) -> Result<Exit, ClientError> {
    let Some((pool, backend)) = resolve(client, wanted)? else { return Ok(Exit::Bad) };
    let name = format!("{pool}/{backend}");
    Ok(changes::edit(client, op, Kind::Backend, &name, fields, Vec::new(), force, manner))
}

fn set(state: Admin, force: bool) -> BackendRequest {
    BackendRequest { weight: None, state: Some(state), force }
}

fn list(client: &Client, json: bool) -> Result<Exit, ClientError> {
    let backends: Backends = client.get("/v1/backends")?;
    if json {
        print_json(&backends);
    } else {
        print(&screen::backends(&backends.pools));
        backends.missing.iter().for_each(|missing| complain(missing));
    }
    Ok(Exit::Good)
}

/// POOL and NAME of what the operator wrote; `None` (and said so) where it is not one backend.
fn resolve(client: &Client, wanted: &str) -> Result<Option<(String, String)>, ClientError> {
    if let Some((pool, backend)) = wanted.split_once('/') {
        return Ok(Some((pool.to_owned(), backend.to_owned())));
    }
    let backends: Backends = client.get("/v1/backends")?;
    let matches: Vec<(String, String)> = backends
        .pools
        .iter()
        .filter(|pool| pool.backends.iter().any(|b| b.name == wanted && b.state != "removed"))
        .map(|pool| (pool.name.clone(), wanted.to_owned()))
        .collect();
    match matches.as_slice() {
        [one] => Ok(Some(one.clone())),
        [] => {
            complain(&format!("there is no backend named {wanted}; weir backend list shows all"));
            Ok(None)
        }
        many => {
            let names: Vec<String> = many.iter().map(|(pool, name)| format!("{pool}/{name}")).collect();
            complain(&format!("{wanted} is in several pools; write one of {}", names.join(", ")));
            Ok(None)
        }
    }
}

fn change(client: &Client, wanted: &str, request: &BackendRequest) -> Result<Exit, ClientError> {
    let Some((pool, backend)) = resolve(client, wanted)? else { return Ok(Exit::Bad) };
    let path = format!("/v1/backends/{}/{}", percent_encode(&pool), percent_encode(&backend));
    let applied: Applied = client.post(&path, request)?;
    Ok(report(&applied, false))
}

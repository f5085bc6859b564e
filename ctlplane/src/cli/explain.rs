//! `weir explain request|access`: what the daemon, or a file, says would become of it.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Exit, complain, failed, print, print_json, read_file};
use crate::api::percent_encode;
use crate::client::{Client, ClientError};
use crate::diagnostic::{self, Source};
use crate::explain::{self, AccessExplanation, Explanation, Known, Request};
use crate::machine::Machine;
use crate::model::Model;
use crate::validate;

/// What is to be explained.
#[derive(Debug, Subcommand)]
pub enum ExplainCommand {
    /// Which route and which backends a request would get, and why not others.
    Request(RequestArguments),
    /// Whether a client may begin flows at a listener, and which prefix says so.
    Access(AccessArguments),
}

/// The client.
#[derive(Debug, Args)]
pub struct AccessArguments {
    /// Name of the listener.
    pub listener: String,
    /// The client's address.
    pub address: IpAddr,
    /// By this file instead of the running configuration; "-" reads standard input.
    pub file: Option<PathBuf>,
    /// The answer as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The request.
#[derive(Debug, Args)]
pub struct RequestArguments {
    /// Name of the listener; found by the URL where it is left out.
    #[arg(long)]
    pub listener: Option<String>,
    /// http://host:port/path?query, or /path?query with --header "Host: …".
    #[arg(long)]
    pub url: Option<String>,
    /// The method.
    #[arg(long, default_value = "GET")]
    pub method: String,
    /// A field, "Name: value"; as often as needed.
    #[arg(long = "header", value_parser = parse_header)]
    pub headers: Vec<(String, String)>,
    /// The client's address.
    #[arg(long, default_value = "192.0.2.1")]
    pub source: IpAddr,
    /// By this file instead of the running configuration; "-" reads standard input.
    pub file: Option<PathBuf>,
    /// The answer as JSON.
    #[arg(long)]
    pub json: bool,
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.trim().to_owned())),
        _ => Err(format!("\"{text}\" is no field; write \"Name: value\"")),
    }
}

/// Runs it.
pub(super) fn run(client: &Client, command: &ExplainCommand) -> Exit {
    let arguments = match command {
        ExplainCommand::Request(arguments) => arguments,
        ExplainCommand::Access(arguments) => return access(client, arguments),
    };
    let request = Request {
        listener: arguments.listener.clone(),
        url: arguments.url.clone(),
        method: arguments.method.clone(),
        headers: arguments.headers.clone(),
        source: arguments.source,
    };
    let explained = match &arguments.file {
        Some(file) => match by_file(file, &request) {
            Ok(explained) => explained,
            Err(exit) => return exit,
        },
        None => match client.post::<Explanation>("/v1/explain", &request) {
            Ok(explained) => explained,
            Err(ClientError::Refused(failure)) if arguments.json => {
                print_json(&failure);
                return Exit::Bad;
            }
            Err(error) => {
                let exit = failed(&error);
                if matches!(error, ClientError::Unreachable { .. }) {
                    complain(
                        "a FILE can be asked without it: weir explain request --url http://host/path FILE",
                    );
                }
                return exit;
            }
        },
    };
    if arguments.json {
        print_json(&explained);
    } else {
        print(&explain::render(&explained));
    }
    Exit::Good
}

fn access(client: &Client, arguments: &AccessArguments) -> Exit {
    let AccessArguments { listener, address, file, json } = arguments;
    let explained = match file {
        Some(file) => model_of(file).and_then(|model| {
            explain::explain_access(&model, listener, *address).map_err(|error| {
                complain(&error.to_string());
                Exit::Bad
            })
        }),
        None => {
            let path = format!("/v1/explain/access/{}/{address}", percent_encode(listener));
            client.get::<AccessExplanation>(&path).map_err(|error| failed(&error))
        }
    };
    match explained {
        Ok(explained) if *json => print_json(&explained),
        Ok(explained) => print(&explain::render_access(&explained)),
        Err(exit) => return exit,
    }
    Exit::Good
}

fn by_file(file: &std::path::Path, request: &Request) -> Result<Explanation, Exit> {
    let overrides = Default::default();
    explain::explain(&model_of(file)?, &Known::nothing(&overrides), request).map_err(|error| {
        complain(&error.to_string());
        Exit::Bad
    })
}

fn model_of(file: &std::path::Path) -> Result<Model, Exit> {
    let (text, name) = read_file(file)?;
    let source = Source { name: &name, text: &text };
    let (model, diagnostics) = validate::load(source, &Machine::detect());
    let Some(model) = model else {
        print(&diagnostic::render(&source.reports(&diagnostics), false));
        complain(&format!("{name} has errors; weir check tells them"));
        return Err(Exit::Bad);
    };
    Ok(model)
}

//! May a client begin flows at a listener, and which prefix says so?

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use weir_access::policy::Rates;
use weir_access::{Per, Prefix};

use crate::api::SCHEMA;
use crate::diagnostic::closest;
use crate::model::Model;

/// What becomes of a client's new flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessExplanation {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The listener.
    pub listener: String,
    /// The client.
    pub address: String,
    /// Whether the list lets it in.
    pub allowed: bool,
    /// Name of the list; none where the listener has none.
    pub list: Option<String>,
    /// The prefix that decides; none where the list's default does.
    pub prefix: Option<String>,
    /// The rates that its flows count on.
    pub rates: Vec<String>,
    /// Flows that it may have at once; none where there is no limit.
    pub connections: Option<u32>,
}

/// Why nothing can be explained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no listener named \"{name}\"{}", near.as_ref().map_or(String::new(), |near| format!("; did you mean \"{near}\"?")))]
pub struct UnknownListener {
    name: String,
    near: Option<String>,
}

/// Asks the model.
pub fn explain_access(
    model: &Model,
    listener: &str,
    address: IpAddr,
) -> Result<AccessExplanation, UnknownListener> {
    let Some(found) = model.listeners.iter().find(|other| other.name == listener) else {
        let near = closest(listener, model.listeners.iter().map(|listener| listener.name.as_str()));
        return Err(UnknownListener { name: listener.to_owned(), near: near.map(str::to_owned) });
    };
    let address = address.to_canonical();
    let list = found.access.list.and_then(|at| model.access_lists.get(at));
    let has = |(prefix, _): &&(Prefix, bool)| prefix.contains(address);
    let decides =
        list.and_then(|list| list.prefixes.iter().filter(has).max_by_key(|(prefix, _)| prefix.length));
    let rate = |rate: &weir_access::Rate| {
        let whose = if rate.per == Per::Source { "each source of it" } else { "all of it" };
        format!("{}: {} a second, {} at once, for {whose}", rate.prefix, rate.per_second, rate.burst)
    };
    let most = found.access.connections_per_source;
    Ok(AccessExplanation {
        schema: SCHEMA,
        listener: listener.to_owned(),
        address: address.to_string(),
        // what the workers' own table says
        allowed: !list.is_some_and(|list| list.built.denies_address(address)),
        list: list.map(|list| list.name.clone()),
        prefix: decides.map(|(prefix, _)| prefix.to_string()),
        rates: Rates::new(&found.access.rates).of(address).map(rate).collect(),
        connections: (most != 0).then_some(most),
    })
}

/// As text for people.
pub fn render_access(explanation: &AccessExplanation) -> String {
    let word = if explanation.allowed { "allowed" } else { "denied" };
    let mut text = String::new();
    let AccessExplanation { address, listener, .. } = explanation;
    let why = match (&explanation.list, &explanation.prefix) {
        (None, _) => "the listener has no access list".to_owned(),
        (Some(list), Some(prefix)) => format!("by {prefix} of access list \"{list}\""),
        (Some(list), None) => format!("by default of access list \"{list}\": no prefix has it"),
    };
    let _ = writeln!(text, "new flows of {address} to {listener} are {word}: {why}");
    for rate in &explanation.rates {
        let _ = writeln!(text, "  rate         {rate}");
    }
    if let Some(most) = explanation.connections {
        let _ = writeln!(text, "  at once      {most} for each source");
    }
    if !explanation.allowed {
        let _ = writeln!(text, "  established flows are not asked");
    }
    text
}

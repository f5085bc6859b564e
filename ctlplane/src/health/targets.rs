//! What is probed? A configuration's backends whose pool has a check.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weir_abi::record::Mode;

use super::check::{BackendName, Check, Kind, Target, Through, Tunnel};
use crate::compile::down::Down;
use crate::model::{Backend, Listener, Model, Node, Pool, Port};
use crate::state::{Indices, Phase};
use crate::units::covers;

/// All targets, in the order of the file.
pub fn targets(model: &Model, indices: &Indices) -> Vec<Target> {
    let mut list = Vec::new();
    for (position, pool) in model.pools.iter().enumerate() {
        let Some(check) = &pool.health else { continue };
        let name: Arc<str> = pool.name.as_str().into();
        let listeners: Vec<&Listener> =
            model.listeners.iter().filter(|listener| listener.pool == Some(position)).collect();
        for backend in &pool.backends {
            list.push(target(model, indices, &name, pool, check, &listeners, backend));
        }
    }
    list
}

/// Takes those as down that may not serve before they were probed: backends of such pools that `before` does not know.
pub fn begin_down(down: &mut Down, model: &Model, before: impl Fn(&str, &str) -> bool) {
    let is_cautious = |pool: &&Arc<Pool>| pool.health.as_ref().is_some_and(|check| check.initially_down);
    for pool in model.pools.iter().filter(is_cautious) {
        for backend in pool.backends.iter().filter(|backend| !before(&pool.name, &backend.name)) {
            down.set_down(&pool.name, &backend.name, "not probed yet");
        }
    }
}

fn target(
    model: &Model,
    indices: &Indices,
    name: &Arc<str>,
    pool: &Pool,
    check: &Arc<Check>,
    listeners: &[&Listener],
    backend: &Backend,
) -> Target {
    let tunnel = tunnel(model, indices, pool, check, listeners, backend);
    let port = check.port.unwrap_or_else(|| match tunnel {
        // in these modes the client's port is the backend's
        Some((_, _, port)) => port,
        None if backend.port != 0 => backend.port,
        None => listeners.first().map_or(0, |listener| listener.ports.0),
    });
    let address = match tunnel {
        Some((_, vip, _)) => vip,
        None => check.address.unwrap_or(backend.address),
    };
    // a tunnel's packets leave by the port that reaches the backend too
    let reached = if tunnel.is_some() { backend.address } else { address };
    let leaves_by = leaves_by(&model.node, reached);
    let own = leaves_by.and_then(|port| own_address(port, reached, address));
    Target {
        name: BackendName { pool: Arc::clone(name), backend: backend.name.as_str().into() },
        to: SocketAddr::new(address, port),
        source: check.source.or(own),
        interface: leaves_by.and_then(|port| port.exception.as_deref()).map(Into::into),
        tunnel: tunnel.map(|(tunnel, _, _)| tunnel),
        check: Arc::clone(check),
    }
}

/// The listener whose mode probes take, its vip and port.
fn tunnel(
    model: &Model,
    indices: &Indices,
    pool: &Pool,
    check: &Check,
    listeners: &[&Listener],
    backend: &Backend,
) -> Option<(Tunnel, IpAddr, u16)> {
    let is_told = check.through == Through::Tunnel;
    let is_asked = check.through == Through::Auto && check.address.is_none();
    if !(is_told || is_asked) || matches!(check.kind, Kind::Exec(_)) {
        return None;
    }
    let is_of_mode = |listener: &&&Listener| matches!(listener.mode, Mode::Dsr | Mode::Ipip | Mode::Gue);
    let listener = listeners.iter().find(is_of_mode)?;
    // without the kernel's interface there is no way into the tunnel
    let has_way = leaves_by(&model.node, backend.address).is_some_and(|port| port.exception.is_some());
    if is_asked && !has_way {
        return None;
    }
    let vip = model.vips.get(listener.vip)?.address;
    let index = indices.listeners.iter().find(|entry| {
        let is_active = entry.phase == Phase::Active;
        is_active
            && entry.name == listener.name
            && entry.vip == vip
            && entry.protocol == listener.protocol
            && entry.mode == listener.mode.name()
    })?;
    let entry = indices.pools.get(&pool.name)?;
    let backend = entry.backends.iter().find(|entry| {
        entry.phase == Phase::Active
            && (entry.name.as_str(), entry.address, entry.port)
                == (backend.name.as_str(), backend.address, backend.port)
    })?;
    Some((Tunnel { listener: index.index, backend: backend.index }, vip, listener.ports.0))
}

/// The port by which an address is reached: on its link, by its longest route, or by a gateway.
fn leaves_by(node: &Node, address: IpAddr) -> Option<&Port> {
    let on_link = |port: &&Port| port.addresses.iter().any(|(own, length)| covers(*own, *length, address));
    if let Some(port) = node.ports.iter().find(on_link) {
        return Some(port);
    }
    let routes = node.ports.iter().flat_map(|port| port.routes.iter().map(move |route| (port, route)));
    let fitting = routes.filter(|(_, route)| covers(route.prefix, route.length, address));
    fitting.max_by_key(|(_, route)| route.length).map(|(port, _)| port)
}

/// The port's own address that fits best: of the link that the backend is on, and of the family that is spoken.
fn own_address(port: &Port, reached: IpAddr, spoken: IpAddr) -> Option<IpAddr> {
    let same_family = |address: &IpAddr| address.is_ipv4() == spoken.is_ipv4();
    let near = port.addresses.iter().find(|(own, length)| covers(*own, *length, reached) && same_family(own));
    let own = near.or_else(|| port.addresses.iter().find(|(own, _)| same_family(own)));
    own.map(|(own, _)| *own)
}

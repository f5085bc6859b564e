//! Do the listeners of mode `proxy` and their pools make sense, and does nobody else use what is theirs?

use std::collections::HashMap;

use weir_abi::proxy::AcceptProxy;
use weir_abi::record::{Algorithm, Mode, OnDown};

use super::{DEFAULT_MTU, IPV4_MINIMUM_MTU, Reach, Rules, build, routes};
use crate::diagnostic::{Diagnostic, Located, Span};
use crate::model::{algorithm_name, format_ports};
use crate::schema;
use crate::units::{family_name, format_duration, format_size};

/// IP and TCP headers without options.
const fn headers(is_ipv4: bool) -> u32 {
    if is_ipv4 { 40 } else { 60 }
}

impl Rules<'_> {
    /// What a listener's own fields say.
    pub(super) fn proxy_fields(&mut self, listener: &schema::Listener) {
        let Some(mode) = &listener.mode else { return };
        if mode.value != Mode::Proxy {
            for (name, span) in &listener.proxy.given {
                self.push(
                    Diagnostic::error(*span, format!("{name} has no meaning here: the mode is not proxy"))
                        .related(mode.span, "mode here")
                        .help("remove it, or set mode = \"proxy\""),
                );
            }
            return;
        }
        if let Some(protocol) = listener.protocol.as_ref().filter(|protocol| protocol.value != 6) {
            self.push(
                Diagnostic::error(protocol.span, "mode \"proxy\" is for tcp only")
                    .related(mode.span, "mode here")
                    .help("use nat, fullnat, dsr, ipip or gue for udp"),
            );
        }
        self.proxy_headers(&listener.proxy);
        self.proxy_times(&listener.proxy);
        self.buffer_fits(&listener.proxy.tcp);
    }

    fn proxy_headers(&mut self, proxy: &schema::proxy::Proxy) {
        let accepting = proxy.accept_proxy.as_ref().filter(|accept| accept.value != AcceptProxy::Off);
        let place = |name: &str| proxy.given.iter().find(|(given, _)| *given == name).map(|(_, span)| *span);
        if let Some(accept) = accepting.filter(|_| proxy.trusted_listed == 0) {
            self.push(
                Diagnostic::error(accept.span, "accept_proxy needs to know whose PROXY headers are true")
                    .label("any client could claim any address")
                    .help("add: trusted = [\"198.18.0.0/24\"], the networks of the proxies in front"),
            );
        }
        if let Some(span) = place("trusted").filter(|_| accepting.is_none())
            && (proxy.accept_proxy.is_some() || place("accept_proxy").is_none())
        {
            self.push(
                Diagnostic::error(span, "trusted has no meaning here: accept_proxy is off")
                    .help("remove it, or set accept_proxy to \"v1\", \"v2\" or \"any\""),
            );
        }
        for prefix in &proxy.trusted {
            self.is_network(prefix);
        }
    }

    /// Probes that can't come before the connection is given up.
    fn proxy_times(&mut self, proxy: &schema::proxy::Proxy) {
        let Some(keep_alive) = &proxy.tcp.keep_alive else { return };
        let Some(settings) = keep_alive.value else { return };
        let idle = proxy.timeouts.idle.as_ref();
        let limit = idle.map_or(build::DEFAULT_IDLE, |idle| idle.value);
        if settings.idle >= limit {
            let mut finding = Diagnostic::warning(
                keep_alive.span,
                format!(
                    "keep_alive.idle = {} is never reached: idle connections end after {}",
                    format_duration(settings.idle),
                    format_duration(limit)
                ),
            );
            if let Some(idle) = idle {
                finding = finding.related(idle.span, "idle timeout here");
            }
            self.push(finding.help("use a shorter keep_alive.idle, or a longer timeouts.idle"));
        }
    }

    fn buffer_fits(&mut self, tcp: &schema::proxy::Tcp) {
        let memory = self.schema.dataplane.tcp_memory.as_ref();
        let most = memory.map_or(build::DEFAULT_TCP_MEMORY, |memory| memory.value);
        let Some(buffer) = tcp.buffer.as_ref().filter(|buffer| u64::from(buffer.value) > most) else {
            return;
        };
        let mut finding = Diagnostic::error(
            buffer.span,
            format!(
                "buffer = {} is more than all connections of a worker may hold",
                format_size(buffer.value.into())
            ),
        );
        if let Some(memory) = memory {
            finding = finding.related(memory.span, "all of them together");
        }
        self.push(
            finding
                .help(format!("use at most [dataplane] tcp_memory = {}, or raise that", format_size(most))),
        );
    }

    /// What a proxy listener and its pool say about each other.
    pub(super) fn proxy_fits(
        &mut self,
        listener: &schema::Listener,
        mode: &Located<Mode>,
        vip: &schema::Vip,
        pool: &schema::Pool,
    ) {
        let on_down = listener.on_down.as_ref().or(pool.on_down.as_ref());
        if let Some(on_down) = on_down.filter(|on_down| on_down.value == OnDown::Reselect) {
            let mut finding = Diagnostic::error(
                on_down.span,
                "on_down \"reselect\" is impossible in mode \"proxy\": a connection cannot change its backend",
            )
            .related(mode.span, "mode here");
            finding = if listener.on_down.is_some() {
                finding.help("use \"reset\" or \"keep\"")
            } else {
                finding.help("give the listener its own: on_down = \"reset\" or \"keep\"")
            };
            self.push(finding);
        }
        self.backends_fit(listener, mode, pool);
        self.trusted_can_be_clients(listener, vip);
        self.client_mss_fits(listener, vip);
        self.queue_is_used(&listener.proxy, pool);
    }

    /// Whether a proxy listener can reach the backends of a pool.
    pub(super) fn backends_fit(
        &mut self,
        listener: &schema::Listener,
        mode: &Located<Mode>,
        pool: &schema::Pool,
    ) {
        for backend in &pool.backends {
            let Some(address) = &backend.address else { continue };
            let (ip, port) = address.value;
            if let Some(ports) = listener.ports.as_ref().filter(|p| port == 0 && p.value.0 != p.value.1) {
                self.push(
                    Diagnostic::error(
                        address.span,
                        format!("the backend {ip} has no port, and its listener has many"),
                    )
                    .related(ports.span, format!("ports {} here", format_ports(ports.value)))
                    .help("write \"ip:port\", or a listener for each port"),
                );
            }
        }
        self.sources_exist(mode, pool);
    }

    /// Told once: what one backend lacks, others of its family lack too.
    fn sources_exist(&mut self, mode: &Located<Mode>, pool: &schema::Pool) {
        let without = pool.backends.iter().find_map(|backend| {
            let ip = backend.address.as_ref()?.value.0;
            let (Reach::OnLink(egress) | Reach::Routed(egress)) = self.reach(ip) else { return None };
            let own = egress.addresses.iter().map(|address| address.value.0);
            let mut sources = egress.snat.iter().map(|address| address.value).chain(own);
            let has = sources.any(|source| source.is_ipv4() == ip.is_ipv4());
            (!has).then_some((ip, egress.span))
        });
        if let Some((ip, egress)) = without {
            let family = family_name(ip);
            self.push(
                Diagnostic::error(
                    mode.span,
                    format!("mode \"proxy\" has no {family} source address towards {ip}"),
                )
                .related(egress, "the port that leads there")
                .help(format!("add an {family} address to the port's snat or addresses")),
            );
        }
    }

    /// A client has the family of the address that it connects to.
    pub(super) fn trusted_can_be_clients(&mut self, listener: &schema::Listener, vip: &schema::Vip) {
        let Some(address) = &vip.address else { return };
        for prefix in &listener.proxy.trusted {
            let (ip, length) = prefix.value;
            if ip.is_ipv4() == address.value.is_ipv4() {
                continue;
            }
            let (of_prefix, of_vip) = (family_name(ip), family_name(address.value));
            self.push(
                Diagnostic::error(
                    prefix.span,
                    format!("no client of this listener can be in {ip}/{length}: its vip is {of_vip}"),
                )
                .label(format!("{of_prefix} prefix"))
                .related(address.span, format!("{of_vip} address here"))
                .help(format!(
                    "trust {of_vip} prefixes here, and {of_prefix} ones at a listener on an {of_prefix} vip"
                )),
            );
        }
    }

    /// A client may come in by any port: the largest decides.
    pub(super) fn client_mss_fits(&mut self, listener: &schema::Listener, vip: &schema::Vip) {
        let (Some(mss), Some(address)) = (&listener.proxy.tcp.mss, &vip.address) else { return };
        let mtu = |port: &schema::Port| port.mtu.as_ref().map_or(DEFAULT_MTU, |mtu| mtu.value);
        let Some(largest) = self.schema.ports.iter().map(mtu).max() else { return };
        self.mss_fits(mss, largest, address.value.is_ipv4());
    }

    fn mss_fits(&mut self, mss: &Located<u32>, mtu: u32, is_ipv4: bool) {
        let room = mtu.saturating_sub(headers(is_ipv4));
        if mss.value > room {
            self.push(
                Diagnostic::error(mss.span, format!("mss = {} does not fit mtu = {mtu}", mss.value))
                    .help(format!("use at most {room}, or leave it out: the path's MTU is found by itself")),
            );
        }
    }

    fn queue_is_used(&mut self, proxy: &schema::proxy::Proxy, pool: &schema::Pool) {
        let Some(queue) = proxy.queue.as_ref().filter(|queue| queue.value.size > 0) else { return };
        let limited =
            |backend: &schema::Backend| backend.max_connections.as_ref().is_none_or(|most| most.value == 0);
        if !pool.backends.is_empty() && pool.backends.iter().all(limited) {
            self.push(
                Diagnostic::warning(
                    queue.span,
                    "the queue is never used: no backend of the pool has a limit",
                )
                .related(pool.span, "pool here")
                .help("give its backends max_connections, or remove the queue"),
            );
        }
    }

    /// What pools have for proxy listeners, and what they are used for.
    pub(super) fn proxied_pools(&mut self) {
        let schema = self.schema;
        let mut modes: HashMap<&str, Vec<&Located<Mode>>> = HashMap::new();
        for listener in &schema.listeners {
            if let (Some(pool), Some(mode)) = (&listener.pool, &listener.mode) {
                modes.entry(pool.value.as_str()).or_default().push(mode);
            }
        }
        for (listener, pool) in routes::routed_pools(schema) {
            if let Some(mode) = &listener.mode {
                modes.entry(pool).or_default().push(mode);
            }
        }
        for pool in &schema.pools {
            self.pool_tcp(pool);
            let Some(modes) = pool.name.as_ref().and_then(|name| modes.get(name.value.as_str())) else {
                continue;
            };
            let other = modes.iter().find(|mode| mode.value != Mode::Proxy);
            if let (Some(algorithm), Some(mode)) = (&pool.algorithm, other)
                && matches!(algorithm.value, Algorithm::LeastConn | Algorithm::RandomTwo)
            {
                let name = algorithm_name(algorithm.value);
                self.push(
                    Diagnostic::error(
                        algorithm.span,
                        format!("algorithm \"{name}\" is impossible in mode \"{}\"", mode.value.name()),
                    )
                    .related(mode.span, "mode of a listener of this pool")
                    .help(
                        "use maglev, round-robin or source-hash: only a proxy knows how many connections are open",
                    ),
                );
            }
            if modes.iter().all(|mode| mode.value != Mode::Proxy) {
                self.proxy_only(pool, modes);
            }
        }
    }

    fn proxy_only(&mut self, pool: &schema::Pool, modes: &[&Located<Mode>]) {
        let limits = pool.backends.iter().filter_map(|backend| backend.max_connections.as_ref());
        let limits = limits.filter(|most| most.value > 0).map(|most| ("max_connections", most.span));
        let fields: Vec<(&str, Span)> = pool.upstream.given.iter().copied().chain(limits).collect();
        for (name, span) in fields {
            let mut finding =
                Diagnostic::error(span, format!("{name} has no effect: no listener of the pool is a proxy"));
            if let Some(mode) = modes.first() {
                finding = finding.related(mode.span, "mode of a listener of this pool");
            }
            self.push(finding.help("remove it, or use the pool in a listener of mode \"proxy\""));
        }
    }

    fn pool_tcp(&mut self, pool: &schema::Pool) {
        let tcp = &pool.upstream.tcp;
        self.buffer_fits(tcp);
        let Some(mss) = &tcp.mss else { return };
        let egresses = pool.backends.iter().filter_map(|backend| {
            let ip = backend.address.as_ref()?.value.0;
            let (Reach::OnLink(port) | Reach::Routed(port)) = self.reach(ip) else { return None };
            Some((port.mtu.as_ref().map_or(DEFAULT_MTU, |mtu| mtu.value), ip.is_ipv4()))
        });
        let smallest = egresses.min_by_key(|(mtu, is_ipv4)| mtu.saturating_sub(headers(*is_ipv4)));
        if let Some((mtu, is_ipv4)) = smallest {
            self.mss_fits(mss, mtu, is_ipv4);
        }
    }

    /// The smallest MTU of all ports bounds every segment: clients and replies may come by any.
    pub(super) fn proxy_mtu(&mut self) {
        let schema = self.schema;
        let modes = schema.listeners.iter().filter_map(|listener| listener.mode.as_ref());
        let Some(mode) = modes.into_iter().find(|mode| mode.value == Mode::Proxy) else { return };
        for mtu in schema.ports.iter().filter_map(|port| port.mtu.as_ref()) {
            if mtu.value < IPV4_MINIMUM_MTU {
                let room = mtu.value.saturating_sub(headers(true));
                self.push(
                    Diagnostic::error(mtu.span, format!("mtu = {} is too small for mode \"proxy\"", mtu.value))
                        .label(format!("leaves {room} bytes of a segment"))
                        .related(mode.span, "mode of a listener")
                        .help(format!(
                            "use at least {IPV4_MINIMUM_MTU} bytes on every port (RFC 791, section 3.1), or an L4 mode"
                        )),
                );
            }
        }
    }

    /// More connections than the engines hold: the limit is never what decides.
    pub(super) fn proxy_capacity(&mut self, workers: usize) {
        let schema = self.schema;
        let each = schema.dataplane.tcp_connections.as_ref();
        let per_worker = each.map_or(build::DEFAULT_TCP_CONNECTIONS, |each| each.value);
        // both sides of a proxied connection take a place
        let most = u64::from(per_worker) * workers as u64 / 2;
        for listener in &schema.listeners {
            let Some(limit) = &listener.proxy.max_connections else { continue };
            if u64::from(limit.value) > most {
                self.push(
                    Diagnostic::warning(
                        limit.span,
                        format!(
                            "max_connections = {} is more than the {most} proxied connections that {workers} workers hold",
                            limit.value
                        ),
                    )
                    .help(format!(
                        "set [dataplane] tcp_connections to at least {}",
                        (u64::from(limit.value) * 2).div_ceil(workers.max(1) as u64)
                    )),
                );
            }
        }
    }
}

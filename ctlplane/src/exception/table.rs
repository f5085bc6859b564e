//! The kernel's addresses, routes and rules of one interface: what there is, what is too much, what is missing.
//!
//! Numbers are those of linux/rtnetlink.h, linux/if_addr.h and linux/fib_rules.h.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;

use weir_abi::probes;
use weir_os::netlink::{Body, CREATE, EXCLUSIVE, Message, Netlink, REPLACE, attributes};
use weir_os::{OsError, interface};

use super::Wanted;
use crate::units::network;

/// The table of an interface: this and its index.
pub const FIRST_TABLE: u32 = 7_000_000;
/// Priorities of the two rules of an interface.
const BY_SOURCE: u32 = 7_000;
const BY_INTERFACE: u32 = 7_001;
/// Who made a route or rule: `proto 87` in what `ip` shows.
const PROTOCOL: u8 = 87;
/// Behind every other interface's route to the same network.
const METRIC: u32 = 4_096;
const FAMILIES: [u8; 2] = [libc_af::INET, libc_af::INET6];

/// Families of sockets.
mod libc_af {
    pub(super) const INET: u8 = 2;
    pub(super) const INET6: u8 = 10;
}

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;

mod ifa {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const LOCAL: u16 = 2;
    pub(super) const BROADCAST: u16 = 4;
    pub(super) const FLAGS: u16 = 8;
    pub(super) const RT_PRIORITY: u16 = 9;
    pub(super) const NODAD: u32 = 0x02;
}

mod rta {
    pub(super) const DST: u16 = 1;
    pub(super) const OIF: u16 = 4;
    pub(super) const GATEWAY: u16 = 5;
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const PREFSRC: u16 = 7;
    pub(super) const TABLE: u16 = 15;
    pub(super) const UNICAST: u8 = 1;
    pub(super) const UNREACHABLE: u8 = 7;
    pub(super) const UNIVERSE: u8 = 0;
    pub(super) const LINK: u8 = 253;
    pub(super) const ONLINK: u32 = 4;
}

mod fra {
    pub(super) const SRC: u16 = 2;
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const TABLE: u16 = 15;
    pub(super) const OIFNAME: u16 = 17;
    pub(super) const PROTOCOL: u16 = 21;
    pub(super) const TO_TABLE: u8 = 1;
}

fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc_af::INET } else { libc_af::INET6 }
}

fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
        16 => bytes.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
        _ => None,
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn attribute(message: &Message, header: usize, wanted: u16) -> Option<&[u8]> {
    attributes(&message.body, header).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn byte(message: &Message, at: usize) -> u8 {
    message.body.get(at).copied().unwrap_or(0)
}

/// Adds the addresses that are missing and removes those that are not the port's; link-local ones are the kernel's own.
pub(super) fn keep_addresses(netlink: &mut Netlink, index: u32, wanted: &Wanted) -> Result<(), OsError> {
    let mut header = [0; ADDRESS_HEADER];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    let what = format!("list the addresses of {}", wanted.interface);
    let mut there = HashSet::new();
    for message in netlink.dump(RTM_GETADDR, &Body::new(&header), &what)? {
        let of_link = message.body.get(4..).map(number);
        if of_link != Some(index) || byte(&message, 3) == rta::LINK {
            continue;
        }
        let local = attribute(&message, ADDRESS_HEADER, ifa::LOCAL);
        let local = local.or_else(|| attribute(&message, ADDRESS_HEADER, ifa::ADDRESS));
        if let Some(address) = local.and_then(address_of) {
            there.insert((address, byte(&message, 1)));
        }
    }
    for &(address, length) in &there {
        if !wanted.addresses.contains(&(address, length)) {
            let what = format!("remove {address}/{length} from {}", wanted.interface);
            netlink.change(RTM_DELADDR, 0, &address_body(index, address, length), &what)?;
            tracing::info!("removed {address}/{length} from {}: it is not the port's", wanted.interface);
        }
    }
    for &(address, length) in &wanted.addresses {
        if there.contains(&(address, length)) {
            continue;
        }
        let what = format!("add {address}/{length} to {}", wanted.interface);
        let mut body = address_body(index, address, length).with(ifa::RT_PRIORITY, &METRIC.to_ne_bytes());
        match address {
            // the dataplane watches for others with this address
            IpAddr::V6(_) => body = body.with(ifa::FLAGS, &ifa::NODAD.to_ne_bytes()),
            IpAddr::V4(v4) if length < 31 => {
                let broadcast = u32::from(v4) | u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
                body = body.with(ifa::BROADCAST, &broadcast.to_be_bytes());
            }
            IpAddr::V4(_) => {}
        }
        netlink.change(RTM_NEWADDR, CREATE | REPLACE, &body, &what)?;
        tracing::info!("{address}/{length} is on {}", wanted.interface);
    }
    Ok(())
}

fn address_body(index: u32, address: IpAddr, length: u8) -> Body {
    let [a, b, c, d] = index.to_ne_bytes();
    let bytes = bytes_of(address);
    Body::new(&[family_of(address), length, 0, rta::UNIVERSE, a, b, c, d])
        .with(ifa::LOCAL, &bytes)
        .with(ifa::ADDRESS, &bytes)
}

/// A next hop of a family that stands for the dataplane: nobody on the link has such an address.
fn next_hop(family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => IpAddr::from([169, 254, 87, 1]),
        IpAddr::V6(_) => IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0x5745, 0x4952]),
    }
}

/// Makes the kernel know the link address of the next hops that probes go to. Nothing tells when somebody took them away, so they are
/// put there each time.
pub(super) fn keep_next_hops(netlink: &mut Netlink, index: u32, wanted: &Wanted) -> Result<(), OsError> {
    let families =
        [true, false].into_iter().filter_map(|v4| wanted.vips.iter().find(|vip| vip.is_ipv4() == v4));
    for hop in families.map(|vip| next_hop(*vip)) {
        let [a, b, c, d] = index.to_ne_bytes();
        let [permanent, high] = NUD_PERMANENT.to_ne_bytes();
        let body = Body::new(&[family_of(hop), 0, 0, 0, a, b, c, d, permanent, high, 0, 0])
            .with(NDA_DST, &bytes_of(hop))
            .with(NDA_LLADDR, &probes::NEXT_HOP);
        let what = format!("add the neighbour {hop} to {}", wanted.interface);
        netlink.change(RTM_NEWNEIGH, CREATE | REPLACE, &body, &what)?;
    }
    Ok(())
}

/// A route of an interface's table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TableRoute {
    prefix: IpAddr,
    length: u8,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    /// Where nothing else leads: not to the main table's default.
    unreachable: bool,
}

impl TableRoute {
    fn body(&self, index: u32) -> Body {
        let kind = if self.unreachable { rta::UNREACHABLE } else { rta::UNICAST };
        let near = self.gateway.is_none() && !self.unreachable && self.prefix.is_ipv4();
        let scope = if near { rta::LINK } else { rta::UNIVERSE };
        let flags =
            if self.gateway.is_some_and(|gateway| gateway == next_hop(gateway)) { rta::ONLINK } else { 0 };
        let [a, b, c, d] = flags.to_ne_bytes();
        let header = [family_of(self.prefix), self.length, 0, 0, 0, PROTOCOL, scope, kind, a, b, c, d];
        let mut body = Body::new(&header).with(rta::TABLE, &(FIRST_TABLE + index).to_ne_bytes());
        if self.length > 0 {
            body = body.with(rta::DST, &bytes_of(self.prefix));
        }
        if let Some(gateway) = self.gateway {
            body = body.with(rta::GATEWAY, &bytes_of(gateway));
        }
        if let Some(source) = self.source {
            body = body.with(rta::PREFSRC, &bytes_of(source));
        }
        if self.unreachable {
            return body.with(rta::PRIORITY, &(METRIC + 1).to_ne_bytes());
        }
        body.with(rta::OIF, &index.to_ne_bytes()).with(rta::PRIORITY, &METRIC.to_ne_bytes())
    }

    fn read(message: &Message) -> Option<Self> {
        let value = |kind| attribute(message, ROUTE_HEADER, kind).and_then(address_of);
        let family = byte(message, 0);
        let all = if family == libc_af::INET { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        Some(Self {
            prefix: value(rta::DST).or((byte(message, 1) == 0).then_some(all))?,
            length: byte(message, 1),
            gateway: value(rta::GATEWAY),
            source: value(rta::PREFSRC),
            unreachable: byte(message, 7) == rta::UNREACHABLE,
        })
    }
}

impl fmt::Display for TableRoute {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unreachable = if self.unreachable { "unreachable " } else { "" };
        write!(out, "{unreachable}{}/{}", self.prefix, self.length)?;
        if let Some(gateway) = self.gateway {
            write!(out, " via {gateway}")?;
        }
        match self.source {
            Some(source) => write!(out, " src {source}"),
            None => Ok(()),
        }
    }
}

/// The routes of a port's table: its networks, its routes, and an end.
pub(super) fn routes_of(wanted: &Wanted) -> Vec<TableRoute> {
    let source = |family: IpAddr| {
        let same = |(address, _): &&(IpAddr, u8)| address.is_ipv4() == family.is_ipv4();
        wanted.addresses.iter().find(same).map(|(address, _)| *address)
    };
    let mut routes: Vec<TableRoute> = Vec::new();
    let mut push = |route: TableRoute| {
        if !routes.iter().any(|other| {
            (other.prefix, other.length, other.unreachable) == (route.prefix, route.length, route.unreachable)
        }) {
            routes.push(route);
        }
    };
    for &(address, length) in &wanted.addresses {
        let prefix = network(address, length);
        push(TableRoute { prefix, length, gateway: None, source: Some(address), unreachable: false });
    }
    for route in &wanted.routes {
        let prefix = network(route.prefix, route.length);
        let (gateway, source) = (Some(route.gateway), source(route.gateway));
        push(TableRoute { prefix, length: route.length, gateway, source, unreachable: false });
    }
    for &vip in &wanted.vips {
        let source = source(vip);
        if source.is_some() {
            let length = if vip.is_ipv4() { 32 } else { 128 };
            push(TableRoute {
                prefix: vip,
                length,
                gateway: Some(next_hop(vip)),
                source,
                unreachable: false,
            });
        }
    }
    for (address, _) in &wanted.addresses {
        let prefix = network(*address, 0);
        push(TableRoute { prefix, length: 0, gateway: None, source: None, unreachable: true });
    }
    routes
}

/// Makes the interface's table hold the port's routes and no other.
pub(super) fn keep_routes(netlink: &mut Netlink, index: u32, wanted: &Wanted) -> Result<(), OsError> {
    let table = FIRST_TABLE + index;
    let routes = routes_of(wanted);
    let mut there = HashSet::new();
    for family in FAMILIES {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family;
        let body = Body::new(&header).with(rta::TABLE, &table.to_ne_bytes());
        let what = format!("list the routes of table {table}");
        let messages = match netlink.dump(RTM_GETROUTE, &body, &what) {
            Ok(messages) => messages,
            // a table without a route may not be there at all
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for message in messages {
            let of_table = attribute(&message, ROUTE_HEADER, rta::TABLE).map(number);
            if of_table != Some(table) || byte(&message, 5) != PROTOCOL {
                continue;
            }
            there.extend(TableRoute::read(&message));
        }
    }
    for route in there.iter().filter(|route| !routes.contains(route)) {
        let what = format!("remove the route {route} from table {table}");
        netlink.change(RTM_DELROUTE, 0, &route.body(index), &what)?;
    }
    for route in routes.iter().filter(|route| !there.contains(*route)) {
        let what = format!("add the route {route} by {} to table {table}", wanted.interface);
        netlink.change(RTM_NEWROUTE, CREATE | REPLACE, &route.body(index), &what)?;
    }
    Ok(())
}

/// A rule that leads to an interface's table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rule {
    family: u8,
    priority: u32,
    table: u32,
    source: Option<IpAddr>,
    interface: Option<String>,
}

impl Rule {
    fn body(&self) -> Body {
        let source_length = self.source.map_or(0, |source| if source.is_ipv4() { 32 } else { 128 });
        let header = [self.family, 0, source_length, 0, 0, 0, 0, fra::TO_TABLE, 0, 0, 0, 0];
        let mut body = Body::new(&header)
            .with(fra::PRIORITY, &self.priority.to_ne_bytes())
            .with(fra::TABLE, &self.table.to_ne_bytes())
            .with(fra::PROTOCOL, &[PROTOCOL]);
        if let Some(source) = self.source {
            body = body.with(fra::SRC, &bytes_of(source));
        }
        if let Some(name) = &self.interface {
            body = body.with(fra::OIFNAME, &[name.as_bytes(), &[0]].concat());
        }
        body
    }

    fn read(message: &Message) -> Option<Self> {
        let value = |kind| attribute(message, ROUTE_HEADER, kind);
        let name =
            |bytes: &[u8]| String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned();
        (value(fra::PROTOCOL) == Some(&[PROTOCOL])).then_some(())?;
        Some(Self {
            family: byte(message, 0),
            priority: value(fra::PRIORITY).map_or(0, number),
            table: value(fra::TABLE).map(number)?,
            source: value(fra::SRC).and_then(address_of),
            interface: value(fra::OIFNAME).map(name),
        })
    }
}

fn rules(netlink: &mut Netlink) -> Result<HashSet<Rule>, OsError> {
    let mut rules = HashSet::new();
    for family in FAMILIES {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family;
        let messages = netlink.dump(RTM_GETRULE, &Body::new(&header), "list the routing rules")?;
        rules.extend(messages.iter().filter_map(Rule::read));
    }
    Ok(rules)
}

/// Makes exactly the port's rules lead to the interface's table.
pub(super) fn keep_rules(netlink: &mut Netlink, index: u32, wanted: &Wanted) -> Result<(), OsError> {
    let table = FIRST_TABLE + index;
    let by_source = wanted.addresses.iter().map(|(address, _)| Rule {
        family: family_of(*address),
        priority: BY_SOURCE,
        table,
        source: Some(*address),
        interface: None,
    });
    let by_interface = FAMILIES
        .into_iter()
        .filter(|family| wanted.addresses.iter().any(|(address, _)| family_of(*address) == *family));
    let by_interface = by_interface.map(|family| Rule {
        family,
        priority: BY_INTERFACE,
        table,
        source: None,
        interface: Some(wanted.interface.clone()),
    });
    let needed: HashSet<Rule> = by_source.chain(by_interface).collect();
    let there: HashSet<Rule> = rules(netlink)?.into_iter().filter(|rule| rule.table == table).collect();
    for rule in there.difference(&needed) {
        netlink.change(RTM_DELRULE, 0, &rule.body(), &format!("remove a rule for table {table}"))?;
    }
    for rule in needed.difference(&there) {
        netlink.change(
            RTM_NEWRULE,
            CREATE | EXCLUSIVE,
            &rule.body(),
            &format!("add a rule for table {table}"),
        )?;
    }
    Ok(())
}

/// Removes rules to tables of interfaces that are gone; those of other instances' interfaces stay.
pub(super) fn remove_stale_rules(netlink: &mut Netlink) -> Result<(), OsError> {
    for rule in rules(netlink)? {
        let Some(index) = rule.table.checked_sub(FIRST_TABLE) else { continue };
        let name = interface::name(index)?;
        if name.is_none() || rule.interface.is_some() && rule.interface != name {
            netlink.change(
                RTM_DELRULE,
                0,
                &rule.body(),
                &format!("remove a rule for table {}", rule.table),
            )?;
        }
    }
    Ok(())
}

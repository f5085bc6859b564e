//! Which changes can't a running dataplane adopt?

use crate::model::{Node, Port};

/// What a running dataplane can't change.
pub(super) fn static_differences(old: &Node, new: &Node) -> Vec<String> {
    let mut list = Vec::new();
    let mut compare = |what: &str, old: String, new: String| {
        if old != new {
            list.push(format!("{what}: {old} to {new}"));
        }
    };
    let cpus = |cpus: &[u16]| {
        let names: Vec<String> = cpus
            .iter()
            .map(|cpu| if *cpu == u16::MAX { "any".to_owned() } else { cpu.to_string() })
            .collect();
        format!("CPUs {}", names.join(", "))
    };
    let idle = |adaptive: bool| if adaptive { "adaptive" } else { "spin" };
    compare("workers", cpus(&old.worker_cpus), cpus(&new.worker_cpus));
    compare("idle", idle(old.adaptive).to_owned(), idle(new.adaptive).to_owned());
    compare("flow_table.ipv4", old.flows_ipv4.to_string(), new.flows_ipv4.to_string());
    compare("flow_table.ipv6", old.flows_ipv6.to_string(), new.flows_ipv6.to_string());
    compare("buffers", or_default(old.buffers), or_default(new.buffers));
    compare("buffer_bytes", or_default(old.buffer_bytes), or_default(new.buffer_bytes));
    compare("max_backends", old.max_backends.to_string(), new.max_backends.to_string());
    compare("tcp_connections", old.tcp_connections.to_string(), new.tcp_connections.to_string());
    port_differences(&old.ports, &new.ports, &mut compare);
    list
}

/// Each field of each port that differs; ports are told apart by name.
fn port_differences(old: &[Port], new: &[Port], compare: &mut impl FnMut(&str, String, String)) {
    let named = |ports: &[Port]| ports.iter().map(|port| port.name.clone()).collect::<Vec<_>>().join(", ");
    let none = |names: String| if names.is_empty() { "none".to_owned() } else { names };
    compare("ports", none(named(old)), none(named(new)));
    for new in new {
        let Some(old) = old.iter().find(|port| port.name == new.name) else { continue };
        let mut field = |field: &str, old: String, new_value: String| {
            compare(&format!("port {}: {field}", new.name), old, new_value);
        };
        field("device", old.device.clone(), new.device.clone());
        field("mtu", old.mtu.to_string(), new.mtu.to_string());
        field("queues", or_default(old.queues.into()), or_default(new.queues.into()));
        let exception = |port: &Port| port.exception.clone().unwrap_or_else(|| "off".to_owned());
        field("exception", exception(old), exception(new));
        field("descriptors", or_default(old.descriptors.into()), or_default(new.descriptors.into()));
    }
}

fn or_default(number: u32) -> String {
    if number == 0 { "default".to_owned() } else { number.to_string() }
}

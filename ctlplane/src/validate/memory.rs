//! Is there room for what the file asks for: data of connections in packet buffers, and all tables in this machine?

use weir_abi::buffers::Buffers;
use weir_abi::columns::{BackendColumn, UpstreamColumn};
use weir_abi::record::Mode;

use super::{Rules, build};
use crate::diagnostic::{Diagnostic, Located, Span};
use crate::machine::Machine;
use crate::units::{about_size, format_size};

/// Bytes of a flow of IPv4: its record of 32, and two words of the index with their share of empty ones.
const FLOW_V4: u64 = 48;
/// The same of IPv6, whose record takes 48.
const FLOW_V6: u64 = 64;
/// Bytes of a terminated connection, its share of session, timer and table included.
const CONNECTION: u64 = 400;

/// As the schema allows.
const MOST_BUFFERS: u64 = 1 << 24;
/// Bytes of a backend's counters, per worker.
const COUNTERS: u64 = 8 * (BackendColumn::COLUMNS.len() + UpstreamColumn::COLUMNS.len()) as u64;

/// One thing that takes memory.
struct Need {
    what: &'static str,
    bytes: u64,
    field: Option<Span>,
}

impl Rules<'_> {
    pub(super) fn memory(&mut self, workers: usize, machine: &Machine) {
        let dataplane = &self.schema.dataplane;
        let value = |field: &Option<Located<u32>>| field.as_ref().map_or(0, |field| field.value);
        let buffers = Buffers::new(value(&dataplane.buffers), value(&dataplane.buffer_bytes));
        self.data_fits(workers, buffers);
        if let Some(total) = machine.memory {
            self.machine_suffices(workers, buffers, total);
        }
    }

    /// What connections hold lies in packet buffers, of which one half is for them.
    fn data_fits(&mut self, workers: usize, buffers: Buffers) {
        let dataplane = &self.schema.dataplane;
        let most = buffers.of_queues(workers as u32);
        let Some(memory) = dataplane.tcp_memory.as_ref().filter(|memory| memory.value > most) else { return };
        let each = buffers.each();
        let enough = memory.value.saturating_mul(workers as u64).div_ceil(each).saturating_mul(2);
        let mut finding = Diagnostic::warning(
            memory.span,
            format!(
                "tcp_memory = {} is more than packet buffers allow: {} per worker act",
                format_size(memory.value),
                about_size(most)
            ),
        );
        if let Some(given) = dataplane.buffers.as_ref().or(dataplane.buffer_bytes.as_ref()) {
            finding = finding.related(given.span, "buffers of each port here");
        }
        let shared = if workers > 1 { format!(", shared by {workers} workers,") } else { String::new() };
        let remedy = if enough <= MOST_BUFFERS {
            format!("set buffers = {enough}, or tcp_memory to what acts")
        } else {
            "set tcp_memory to what acts, or use more buffers".to_owned()
        };
        let count = buffers.count;
        self.push(finding.help(format!("half of a port's {count} buffers{shared} is for queues: {remedy}")));
    }

    fn machine_suffices(&mut self, workers: usize, buffers: Buffers, total: u64) {
        let schema = self.schema;
        let dataplane = &schema.dataplane;
        let workers = workers as u64;
        let span = |field: &Option<Located<u32>>| field.as_ref().map(|field| field.span);
        let number = |field: &Option<Located<u32>>, default: u32| {
            u64::from(field.as_ref().map_or(default, |field| field.value))
        };
        let mut needs = vec![
            Need {
                what: "packet buffers",
                bytes: buffers.of_port() * schema.ports.len() as u64,
                field: span(&dataplane.buffers).or(span(&dataplane.buffer_bytes)),
            },
            Need {
                what: "flow tables of IPv4",
                bytes: number(&dataplane.flows_ipv4, build::DEFAULT_FLOWS_V4) * FLOW_V4 * workers,
                field: span(&dataplane.flows_ipv4),
            },
            Need {
                what: "flow tables of IPv6",
                bytes: number(&dataplane.flows_ipv6, build::DEFAULT_FLOWS_V6) * FLOW_V6 * workers,
                field: span(&dataplane.flows_ipv6),
            },
            Need {
                what: "counters of backends",
                bytes: number(&dataplane.max_backends, build::DEFAULT_MAX_BACKENDS) * COUNTERS * workers,
                field: span(&dataplane.max_backends),
            },
        ];
        let is_proxy = |listener: &crate::schema::Listener| {
            listener.mode.as_ref().is_some_and(|mode| mode.value == Mode::Proxy)
        };
        if schema.listeners.iter().any(is_proxy) {
            let connections = number(&dataplane.tcp_connections, build::DEFAULT_TCP_CONNECTIONS);
            needs.push(Need {
                what: "TCP connections",
                bytes: connections * CONNECTION * workers,
                field: span(&dataplane.tcp_connections),
            });
        }
        let all: u64 = needs.iter().map(|need| need.bytes).sum();
        if all <= total {
            return;
        }
        needs.sort_by_key(|need| std::cmp::Reverse(need.bytes));
        let place = needs.iter().find_map(|need| need.field);
        let place = place.or(dataplane.workers.as_ref().map(|workers| workers.span));
        let parts: Vec<String> =
            needs.iter().map(|need| format!("{} {}", need.what, about_size(need.bytes))).collect();
        let largest = needs.first().map_or("tables", |need| need.what);
        self.push(
            Diagnostic::warning(
                place.unwrap_or_default(),
                format!(
                    "this needs about {} of memory, the machine has {}",
                    about_size(all),
                    about_size(total)
                ),
            )
            .label(parts.join(", "))
            .help(format!("use smaller sizes, above all of {largest}, or fewer workers")),
        );
    }
}

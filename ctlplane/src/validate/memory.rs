//! Is there room for what the file asks for: data of connections in packet buffers, and all tables in this machine?

use weir_abi::buffers::Buffers;

use super::Rules;
use crate::diagnostic::{Diagnostic, Located, Span};
use crate::machine::Machine;
use crate::model::Model;
use crate::plan;
use crate::units::{about_size, format_size};

/// As the schema allows.
const MOST_BUFFERS: u64 = 1 << 24;

/// One thing that takes memory.
struct Need<'a> {
    what: &'a str,
    bytes: u64,
    field: Option<Span>,
}

impl Rules<'_> {
    /// What connections hold lies in packet buffers, of which one half is for them.
    pub(super) fn data_fits(&mut self, workers: usize) {
        let dataplane = &self.schema.dataplane;
        let value = |field: &Option<Located<u32>>| field.as_ref().map_or(0, |field| field.value);
        let buffers = Buffers::new(value(&dataplane.buffers), value(&dataplane.buffer_bytes));
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

    /// Whether the machine has what the plan of this file's model adds up to.
    pub(super) fn machine_suffices(&mut self, model: &Model, machine: &Machine) {
        let Some(total) = machine.memory else { return };
        let plan = plan::plan(model);
        let all = plan.total();
        if all <= total {
            return;
        }
        let dataplane = &self.schema.dataplane;
        let span = |field: &Option<Located<u32>>| field.as_ref().map(|field| field.span);
        let place_of = |field: &str| match field {
            "flow_table.ipv4" => span(&dataplane.flows_ipv4),
            "flow_table.ipv6" => span(&dataplane.flows_ipv6),
            "max_backends" => span(&dataplane.max_backends),
            "tcp_connections" => span(&dataplane.tcp_connections),
            "http_memory" => dataplane.http_memory.as_ref().map(|memory| memory.span),
            _ => None,
        };
        let mut needs = vec![Need {
            what: "packet buffers",
            bytes: plan.packet_buffers,
            field: span(&dataplane.buffers).or(span(&dataplane.buffer_bytes)),
        }];
        needs.extend(plan.per_worker.iter().map(|part| Need {
            what: &part.what,
            bytes: part.bytes * plan.workers,
            field: place_of(&part.field),
        }));
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

//! The exception paths on the screen of `weir status`.

use super::{Table, cell, title};
use crate::status::Status;

pub(super) fn render(text: &mut String, colour: bool, status: &Status) {
    let mut table = Table::new(&[
        "port",
        "interface",
        "to kernel",
        "over rate",
        "full",
        "not taken",
        "from kernel",
        "refused",
        "state",
    ]);
    for port in &status.ports {
        let Some(exception) = &port.exception else { continue };
        let mut row = vec![port.name.clone(), exception.interface.clone()];
        let names = ["punted", "rate_limited", "ring_full", "not_written", "from_kernel", "kernel_refused"];
        row.extend(names.iter().map(|name| cell(&exception.counters, name)));
        row.push(exception.state().to_owned());
        table.row(row);
    }
    if table.rows.is_empty() {
        return;
    }
    title(text, colour, "exception path");
    table.render(text);
}

//! What does `weir status` tell of a port's exception path?

use serde::{Deserialize, Serialize};
use weir_abi::columns::ExceptionColumn;

use super::{Columns, Status};
use crate::exception::Exceptions;

/// A port's way to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// The kernel's interface.
    pub interface: String,
    /// Whether the dataplane has it.
    pub attached: bool,
    /// `ready`, or what keeps its addresses and routes from being there; absent while ctlplane, which knows, is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// [`ExceptionColumn`]s.
    pub counters: Columns,
}

impl Exception {
    pub(super) fn of(interface: &str, mut counters: Columns) -> Option<Self> {
        let attached = counters.remove(ExceptionColumn::Attached.name()) == Some(1);
        (!interface.is_empty()).then(|| Self {
            interface: interface.to_owned(),
            attached,
            kernel: None,
            counters,
        })
    }

    /// Its state in a word or a sentence.
    pub(crate) fn state(&self) -> &str {
        match (&self.kernel, self.attached) {
            (Some(kernel), true) => kernel,
            (None, true) => "attached",
            (_, false) => "not attached (weir-dataplane says why in its log)",
        }
    }
}

impl Status {
    /// Adds what only the daemon knows.
    pub(crate) fn add_exceptions(&mut self, exceptions: &Exceptions) {
        for exception in self.ports.iter_mut().filter_map(|port| port.exception.as_mut()) {
            exception.kernel = exceptions.state(&exception.interface);
        }
    }
}

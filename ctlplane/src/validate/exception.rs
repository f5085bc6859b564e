//! Can every port have the kernel's interface that it names?

use std::collections::HashMap;

use super::Rules;
use crate::diagnostic::Diagnostic;
use crate::schema::{self, exception};

impl Rules<'_> {
    pub(super) fn exceptions(&mut self) {
        let ports = &self.schema.ports;
        let mut names: HashMap<String, &schema::Port> = HashMap::new();
        for port in ports {
            let Some(name) = exception::name(port) else { continue };
            let span = port.exception.as_ref().map_or(port.span, |exception| exception.span);
            let device = |other: &schema::Port| {
                other.device.as_ref().is_some_and(|device| {
                    device
                        .value
                        .split_once(':')
                        .is_some_and(|(_, rest)| rest.split(',').next() == Some(&name))
                })
            };
            if ports.iter().any(device) {
                self.push(
                    Diagnostic::error(
                        span,
                        format!("exception = \"{name}\" is the interface of a port's device"),
                    )
                    .help("give it a name that no interface has: Weir makes it"),
                );
            }
            // two ports of one name were found already
            let same_name = |first: &&schema::Port| {
                let name = |port: &schema::Port| port.name.as_ref().map(|name| name.value.clone());
                first.exception.is_none() && port.exception.is_none() && name(first) == name(port)
            };
            if let Some(first) = names.insert(name.clone(), port).filter(|first| !same_name(first)) {
                let first = first.exception.as_ref().map_or(first.span, |exception| exception.span);
                self.push(
                    Diagnostic::error(span, format!("two ports have the exception interface {name}"))
                        .related(first, "first here")
                        .help("set exception = \"...\" to a name of its own (15 bytes at most), or \"off\""),
                );
            }
        }
    }
}

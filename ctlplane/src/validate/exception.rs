//! Can every port have the kernel's interface that it names?

use std::collections::HashMap;

use super::Rules;
use crate::diagnostic::{Diagnostic, Span};
use crate::schema::exception;

impl Rules<'_> {
    pub(super) fn exceptions(&mut self) {
        let schema = self.schema;
        let mut names: HashMap<String, Span> = HashMap::new();
        for port in &schema.ports {
            let Some(name) = exception::name(port) else { continue };
            let span = port.exception.as_ref().map_or(port.span, |exception| exception.span);
            let device = |other: &crate::schema::Port| {
                other.device.as_ref().is_some_and(|device| {
                    device
                        .value
                        .split_once(':')
                        .is_some_and(|(_, rest)| rest.split(',').next() == Some(&name))
                })
            };
            if schema.ports.iter().any(device) {
                self.push(
                    Diagnostic::error(
                        span,
                        format!("exception = \"{name}\" is the interface of a port's device"),
                    )
                    .help("give it a name that no interface has: Weir makes it"),
                );
            }
            if let Some(first) = names.insert(name.clone(), span) {
                self.push(
                    Diagnostic::error(span, format!("two ports have the exception interface {name}"))
                        .related(first, "first here")
                        .help("set exception = \"...\" to a name of its own (15 bytes at most), or \"off\""),
                );
            }
        }
    }
}

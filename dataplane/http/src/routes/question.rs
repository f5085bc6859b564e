//! What of a request do routes ask, and do its conditions hold?

use std::net::IpAddr;

use weir_net::Prefix;

use super::pattern::Pattern;
use super::spec::{Condition, Value};
use crate::target::parameters;

/// The fields of a request's head.
pub trait Fields {
    /// Whether one of the fields of this name (lower case; names are compared without case) has a value that passes the test.
    fn any(&self, name: &str, test: impl FnMut(&[u8]) -> bool) -> bool;
}

/// Fields as a list of names (lower case) and values: of `weir explain request`, and of tests.
impl<N: AsRef<str>, V: AsRef<[u8]>> Fields for [(N, V)] {
    fn any(&self, name: &str, mut test: impl FnMut(&[u8]) -> bool) -> bool {
        self.iter().any(|(field, value)| field.as_ref().eq_ignore_ascii_case(name) && test(value.as_ref()))
    }
}

/// What of a request its route depends on.
#[derive(Debug)]
pub struct Question<'a, F: ?Sized> {
    /// The host without port, in any case; empty where there is none.
    pub host: &'a [u8],
    /// The path as [`Path`](super::spec::Path) wants it: without query, dot segments resolved.
    pub path: &'a [u8],
    /// What follows the `?`; empty where there is none.
    pub query: &'a [u8],
    /// The method.
    pub method: &'a [u8],
    /// The client.
    pub source: IpAddr,
    /// The fields.
    pub fields: &'a F,
}

impl<F: ?Sized> Clone for Question<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: ?Sized> Copy for Question<'_, F> {}

/// A condition, built.
#[derive(Clone, Debug)]
pub(super) enum Test {
    Method(Box<[Box<str>]>),
    Header(Box<str>, Check),
    Query(Box<str>, Check),
    Source(Box<[Prefix]>),
}

/// A condition on a value, built.
#[derive(Clone, Debug)]
pub(super) enum Check {
    Present,
    Absent,
    Exact(Box<str>),
    Prefix(Box<str>),
    Regex(Box<Pattern>),
}

impl Test {
    /// Builds it; an error says what is wrong with an expression.
    pub(super) fn new(condition: &Condition) -> Result<Self, String> {
        Ok(match condition {
            Condition::Method(methods) => Self::Method(methods.clone().into_boxed_slice()),
            Condition::Header(name, value) => {
                Self::Header(name.to_ascii_lowercase().into_boxed_str(), Check::new(value)?)
            }
            Condition::Query(name, value) => Self::Query(name.clone(), Check::new(value)?),
            Condition::Source(prefixes) => Self::Source(prefixes.clone().into_boxed_slice()),
        })
    }

    /// Whether a request passes.
    pub(super) fn passes<F: Fields + ?Sized>(&self, question: &Question<'_, F>) -> bool {
        match self {
            Self::Method(methods) => methods.iter().any(|method| method.as_bytes() == question.method),
            Self::Header(name, check) => check.passes(|test| question.fields.any(name, test)),
            Self::Query(name, check) => check.passes(|test| {
                parameters(question.query).any(|(key, value)| key == name.as_bytes() && test(value))
            }),
            Self::Source(prefixes) => prefixes.iter().any(|prefix| prefix.contains(question.source)),
        }
    }

    /// Memory that its expression takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Header(_, Check::Regex(pattern)) | Self::Query(_, Check::Regex(pattern)) => pattern.bytes(),
            _ => 0,
        }
    }
}

/// A test of one value.
type OfValue<'a> = &'a mut dyn FnMut(&[u8]) -> bool;

impl Check {
    fn new(value: &Value) -> Result<Self, String> {
        Ok(match value {
            Value::Present => Self::Present,
            Value::Absent => Self::Absent,
            Value::Exact(text) => Self::Exact(text.clone()),
            Value::Prefix(text) => Self::Prefix(text.clone()),
            Value::Regex(text) => Self::Regex(Box::new(Pattern::new(text)?)),
        })
    }

    /// `any` tells whether one of the values passes a test.
    fn passes(&self, any: impl FnOnce(OfValue<'_>) -> bool) -> bool {
        match self {
            Self::Present => any(&mut |_| true),
            Self::Absent => !any(&mut |_| true),
            Self::Exact(text) => any(&mut |value| value == text.as_bytes()),
            Self::Prefix(text) => any(&mut |value| value.starts_with(text.as_bytes())),
            Self::Regex(pattern) => any(&mut |value| pattern.matches(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[(&str, &str)] =
        &[("accept", "text/html"), ("x-tier", "gold"), ("x-tier", "silver"), ("x-empty", "")];

    fn passes(condition: &Condition) -> bool {
        let question = Question {
            host: b"",
            path: b"/",
            query: b"a=1&b&a=2&&=x&c=d=e&%61=9",
            method: b"GET",
            source: "198.18.0.9".parse().unwrap(),
            fields: FIELDS,
        };
        Test::new(condition).unwrap().passes(&question)
    }

    #[test]
    fn conditions_are_what_they_say() {
        let header = |name: &str, value| Condition::Header(name.into(), value);
        let query = |name: &str, value| Condition::Query(name.into(), value);
        let source = |prefix: &str| Condition::Source(vec![prefix.parse().unwrap()]);
        for (condition, expected) in [
            (Condition::Method(vec!["GET".into(), "HEAD".into()]), true),
            (Condition::Method(vec!["get".into()]), false),
            (header("accept", Value::Present), true),
            (header("X-Tier", Value::Exact("silver".into())), true),
            (header("x-tier", Value::Exact("bronze".into())), false),
            (header("x-tier", Value::Exact("gold, silver".into())), false),
            (header("x-tier", Value::Prefix("go".into())), true),
            (header("x-tier", Value::Regex("(gold|lead)".into())), true),
            (header("x-tier", Value::Regex("old".into())), false),
            (header("x-empty", Value::Present), true),
            (header("x-empty", Value::Exact("".into())), true),
            (header("x-none", Value::Absent), true),
            (header("x-none", Value::Prefix("".into())), false),
            (header("accept", Value::Absent), false),
            (query("a", Value::Exact("2".into())), true),
            (query("a", Value::Exact("3".into())), false),
            (query("b", Value::Exact("".into())), true),
            (query("b", Value::Present), true),
            (query("c", Value::Exact("d=e".into())), true),
            (query("A", Value::Present), false),
            (query("", Value::Exact("x".into())), true),
            (query("d", Value::Absent), true),
            (source("198.18.0.0/24"), true),
            (source("198.18.1.0/24"), false),
            (source("2001:db8::/32"), false),
        ] {
            assert_eq!(passes(&condition), expected, "{condition:?}");
        }
    }
}

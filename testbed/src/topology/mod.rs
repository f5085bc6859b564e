//! Who is wired to whom: namespaces, links and addresses as Rust code. Nothing else in the testbed calls `ip`.

pub(crate) mod lab;
pub(crate) mod namespace;

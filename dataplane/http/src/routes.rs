//! Which route does a request take, and why?

pub mod spec;

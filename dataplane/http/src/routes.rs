//! Which route does a request take, and why?
//!
//! Of all routes whose host, path and conditions fit, the first one in this order is taken:
//!
//! 1. the higher `priority`;
//! 2. the closer host: an exact name, then the longest wildcard, then any host;
//! 3. the closer path: an exact one, then an expression, then the longest prefix, then any path;
//! 4. more conditions;
//! 5. the earlier place in the file.
//!
//! Without priorities this is what one would guess; a priority puts a route before all others that fit, whatever they say. A route
//! whose conditions fail is passed over as if it weren't there.
//!
//! A [`RouteTable`] is built off the packet path, is immutable and is shared by workers: [`RouteTable::find`] allocates nothing, locks
//! nothing, and looks at a number of places that depends on the request and on the kinds of routes, not on how many there are.

mod build;
mod check;
pub mod edit;
pub mod explain;
pub mod fuzz;
mod hash;
mod pattern;
mod question;
pub mod spec;
mod table;
#[cfg(test)]
mod table_tests;

pub use check::{Flaw, RouteError};
pub use explain::{Considered, Explanation, Verdict};
pub use pattern::{PATTERN_BYTES, STATES_BYTES};
pub use question::{Fields, Question};
pub use table::{ALTERNATIVES, REGEX_BYTES, REGEXES, ROUTES, RouteTable};

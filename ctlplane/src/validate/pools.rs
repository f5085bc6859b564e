//! Do the pools make sense: sizes, slots, addresses that a port reaches?

use std::collections::HashMap;
use std::net::IpAddr;

use weir_abi::record::{AdminState, Algorithm, MAX_POOL_BACKENDS};
use weir_balance::maglev::{DEFAULT_SLOTS, is_prime, next_prime};

use super::{Reach, Rules, is_host, routes};
use crate::diagnostic::{Diagnostic, Span};
use crate::schema;
use crate::units::family_name;

impl Rules<'_> {
    pub(super) fn pools(&mut self) {
        let schema = self.schema;
        let most = schema.dataplane.max_backends.as_ref().map_or(65_536, |most| most.value);
        let total: usize = schema.pools.iter().map(|pool| pool.backends.len()).sum();
        if total as u64 > u64::from(most) {
            let span = schema.dataplane.max_backends.as_ref().map_or(Span::default(), |m| m.span);
            self.push(
                Diagnostic::error(span, format!("{total} backends are more than max_backends = {most}"))
                    .help(format!(
                        "set [dataplane] max_backends to {total} or more, with room for removed ones"
                    )),
            );
        }
        let answering = routes::pools_that_answer(schema);
        for pool in &schema.pools {
            let answers = pool.name.as_ref().is_some_and(|name| answering.contains(name.value.as_str()));
            self.pool(pool);
            self.somebody_serves(pool, answers);
        }
    }

    fn pool(&mut self, pool: &schema::Pool) {
        let algorithm = pool.algorithm.as_ref().map_or(Algorithm::Maglev, |a| a.value);
        if let Some(slots) = &pool.slots {
            if matches!(algorithm, Algorithm::Maglev | Algorithm::SourceHash) && !is_prime(slots.value) {
                self.push(
                    Diagnostic::error(slots.span, format!("slots = {} is not a prime number", slots.value))
                        .help(format!("use {} (the default is {DEFAULT_SLOTS})", next_prime(slots.value))),
                );
            } else if (slots.value as usize) < pool.backends.len() {
                self.push(
                    Diagnostic::error(
                        slots.span,
                        format!(
                            "slots = {} is less than the pool's {} backends",
                            slots.value,
                            pool.backends.len()
                        ),
                    )
                    .help("use at least 100 slots per backend for even shares"),
                );
            }
        }
        if pool.backends.len() > MAX_POOL_BACKENDS {
            let message = format!("{} backends in one pool are too many", pool.backends.len());
            self.push(Diagnostic::error(pool.span, message).help(format!("use at most {MAX_POOL_BACKENDS}")));
        }
        let mut seen: HashMap<(IpAddr, u16), Span> = HashMap::new();
        for address in pool.backends.iter().filter_map(|b| b.address.as_ref()) {
            if let Some(first) = seen.insert(address.value, address.span) {
                let text = crate::units::format_backend_address(address.value.0, address.value.1);
                self.push(
                    Diagnostic::error(
                        address.span,
                        format!("two backends of this pool have the address {text}"),
                    )
                    .related(first, "first here")
                    .help("remove one, and give the other the weight of both"),
                );
            }
            let ip = address.value.0;
            if is_host(ip) && matches!(self.reach(ip), Reach::Nowhere) && !self.schema.ports.is_empty() {
                self.push(
                    Diagnostic::error(address.span, format!("no port reaches {ip}"))
                        .label("not on-link, and no route or gateway covers it")
                        .help(format!(
                            "add an {} gateway or a [[port.route]] for it, or an address of its network to a port",
                            family_name(ip)
                        )),
                );
            }
        }
    }

    /// `answers`: clients of HTTP get its responses.
    fn somebody_serves(&mut self, pool: &schema::Pool, answers: bool) {
        let (what, fate) = if answers {
            ("requests", "clients get 503 (no-backend)")
        } else {
            ("flows", "they will be dropped")
        };
        if pool.backends.is_empty() {
            let message = format!("the pool has no backends for its {what}: {fate}");
            let help = "add [[pool.backend]] with a name and an address";
            self.push(Diagnostic::warning(pool.span, message).help(help));
            return;
        }
        // what was not understood is an error of its own
        let takes_flows = |backend: &schema::Backend| {
            backend.weight.as_ref().is_none_or(|weight| weight.value > 0)
                && backend.state.as_ref().is_none_or(|state| state.value == AdminState::Ready)
        };
        if !pool.backends.iter().any(takes_flows) {
            let message = format!("no backend of the pool takes new {what}: {fate}");
            self.push(
                Diagnostic::warning(pool.span, message)
                    .label("each has weight 0 or is not ready")
                    .help("give one a weight above 0 and the state \"ready\""),
            );
        }
    }
}

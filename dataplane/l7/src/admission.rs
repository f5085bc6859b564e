//! How many connections has a client? What a listener's limit per source counts, from acceptance to the client's release.

use weir_l4::Services;

use crate::connections::{Accepted, Accounts, Connections, ListenerCount};

/// Whether a client may have another connection; if not, it is counted as refused. L4 asked for its SYN already: this is about
/// those that began together.
pub(crate) fn may_open(services: &Services, accepted: &Accepted, accounts: &mut impl Accounts) -> bool {
    let Some(policy) = services.policy(accepted.listener) else { return true };
    let may = policy.has_room(accepted.remote.address);
    if !may {
        accounts.listener(accepted.listener, ListenerCount::RefusedSource, 1);
    }
    may
}

/// A client's connection counts from here on.
pub(crate) fn opened(services: &Services, accepted: &Accepted) {
    if let Some(policy) = services.policy(accepted.listener) {
        policy.opened(accepted.remote.address);
    }
}

/// Lets go of a client's connection that counted.
pub(crate) fn release<C: Connections>(services: &Services, connections: &mut C, handle: C::Handle) {
    if services.policies().next().is_some()
        && let Some(accepted) = connections.accepted(handle)
        && let Some(policy) = services.policy(accepted.listener)
    {
        policy.closed(accepted.remote.address);
    }
    connections.release(handle);
}

/// Counts connections of clients where none of them is counted yet.
pub(crate) fn count_anew<C: Connections>(
    services: &Services,
    connections: &C,
    clients: impl Iterator<Item = C::Handle>,
) {
    for accepted in clients.filter_map(|handle| connections.accepted(handle)) {
        opened(services, &accepted);
    }
}

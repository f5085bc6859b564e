//! Is a copy of a request sent to its route's mirror?

use weir_abi::proxy::SendProxy;
use weir_http::head::{Body, Method, Request as Head};
use weir_http::routes::spec::Mirror;
use weir_l7::http::rules::HttpListener;

use crate::model::Model;
use crate::units::{format_share, format_size};

/// Where copies go, and whether one of this request does; by the rules of the workers.
pub(super) fn copies(model: &Model, rules: &HttpListener, mirror: Mirror, head: &Head) -> Option<String> {
    let pool = model.pools.get(mirror.pool as usize)?;
    let share = format_share(mirror.per_ten_thousand.into());
    let collected = rules.limits.client_body_buffer;
    let not = if pool.send_proxy != SendProxy::Off {
        Some("the pool has send_proxy, and copies have no client".to_owned())
    } else if head.upgrade || head.method == Method::Connect {
        Some("it asks for a tunnel".to_owned())
    } else {
        match head.body {
            Body::None | Body::Length(0) => None,
            _ if collected == 0 => {
                Some("it has a body, and the listener's client_body_buffer is off".to_owned())
            }
            _ if head.expect_continue => Some("it waits for a 100, so its body is not collected".to_owned()),
            Body::Length(bytes) if bytes > u64::from(collected) => Some(format!(
                "its body of {bytes} bytes is more than client_body_buffer = \"{}\"",
                format_size(collected.into())
            )),
            Body::Length(_) | Body::Chunked | Body::UntilClose => None,
        }
    };
    Some(match not {
        Some(reason) => format!("none to pool {}: {reason}", pool.name),
        None => format!("{share} of such requests to pool {}, whose responses are dropped", pool.name),
    })
}

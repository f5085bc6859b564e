//! Where would a redirect send the client? Written by the code that answers requests.

use weir_http::routes::edit::{Asked, write_location};
use weir_http::routes::spec::{Path, Redirect};

/// Room for a `Location`: a head has at most 64 KiB, configured texts 2 KiB each.
const ROOM: usize = 80 << 10;

/// The `Location` of a redirect; `matched` is its route's path.
pub(super) fn of(redirect: &Redirect, matched: &Path, asked: &Asked<'_>) -> String {
    let mut out = Vec::with_capacity(ROOM);
    match write_location(redirect, matched, asked, &mut out) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        Err(error) => error.to_string(),
    }
}

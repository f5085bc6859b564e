//! An HTTP listener with all that its requests are looked up in.

use std::sync::Arc;

use weir_http::routes::{RouteError, RouteTable};

use super::rules::HttpListener;

/// Why a listener can't be built. The configuration's checks come before; who meets this reports it and keeps the old generation.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SiteError(#[from] RouteError);

/// An HTTP listener, its routes indexed.
#[derive(Debug)]
pub struct Site {
    /// As the configuration says.
    pub rules: HttpListener,
    /// Its routes.
    pub table: RouteTable,
}

impl Site {
    /// Indexes a listener's routes. To be called off the packet path.
    pub fn new(rules: HttpListener) -> Result<Self, SiteError> {
        let table = RouteTable::new(Arc::clone(&rules.routes))?;
        Ok(Self { rules, table })
    }
}

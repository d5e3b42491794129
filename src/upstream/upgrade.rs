//! An upstream's connection after a 101: no longer HTTP, and never again in the pool.
//!
//! Whether the 101 agrees to what was asked is not decided here; until somebody has, nothing may be sent on it.

use http::Response;
use hyper::upgrade::Upgraded;

use super::pool::Lease;
use super::{UpstreamBody, UpstreamError};

/// A connection that has switched to another protocol.
#[derive(Debug)]
pub struct Switched {
    /// Both ways, what came right behind the 101 included.
    pub io: Upgraded,
    /// Its place among the upstream's connections, until it ends.
    _lease: Option<Lease>,
}

/// Takes the connection of a 101 out of HTTP.
pub async fn switch(response: &mut Response<UpstreamBody>) -> Result<Switched, UpstreamError> {
    let io = hyper::upgrade::on(&mut *response).await.map_err(|_| UpstreamError::Malformed)?;
    Ok(Switched { io, _lease: response.body_mut().take_lease() })
}

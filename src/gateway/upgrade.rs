//! A request whose connection becomes a tunnel: what of it is the gateway's, beyond copying octets.
//!
//! The request itself has walked the usual path; it is charged and counted like any other, once. Its record lives as long as the
//! tunnel, and when its key would no longer be given the same grant, the tunnel ends ([`lasting`](super::lasting)).

use std::time::Duration;

use http::{Response, StatusCode};

use super::context::RequestRecord;
use super::lasting::{Revoked, watch};
use super::respond::ProxyBody;
use crate::policy::websocket::Handshake;
use crate::upstream::{Switched, UpstreamBody, UpstreamError, switch};

/// What a 101 carries instead of a body.
#[derive(Debug)]
pub struct Switching {
    upstream: Switched,
    idle: Duration,
}

/// A connection of a client and one of an upstream that will speak another protocol with each other.
pub struct Tunnel {
    /// The upstream's end.
    pub upstream: Switched,
    /// How long neither side may say anything.
    pub idle: Duration,
    /// When the key that asked for it is no longer good.
    pub revoked: Option<Revoked>,
    /// The request's record; counts and logs when it is dropped.
    pub record: Box<RequestRecord>,
}

impl Tunnel {
    /// Of an answer that is a 101: nothing can become of it but a success.
    pub(super) fn new(Switching { upstream, idle }: Switching, mut record: Box<RequestRecord>) -> Self {
        record.complete = true;
        Self { upstream, idle, revoked: watch(&record, Duration::ZERO), record }
    }
}

/// The answer to a request for a WebSocket. A 101 must agree to what was asked; any other status is an answer like all others.
pub(super) async fn agree(
    handshake: &Handshake,
    mut answer: Response<UpstreamBody>,
    idle: Duration,
) -> Result<Response<ProxyBody>, UpstreamError> {
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(ProxyBody::Upstream));
    }
    if !handshake.is_agreed_by(answer.headers()) {
        return Err(UpstreamError::Malformed);
    }
    let upstream = switch(&mut answer).await?;
    Ok(answer.map(|_| ProxyBody::Switched(Box::new(Switching { upstream, idle }))))
}

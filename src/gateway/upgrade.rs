//! A request whose connection becomes a tunnel: what of it is the gateway's, beyond copying octets.
//!
//! The request itself has walked the usual path; it is charged and counted like any other, once. Its record lives as long as the
//! tunnel, and so does its grant: when the key would no longer be given it, the tunnel ends.

use std::time::Duration;

use http::{Response, StatusCode};

use super::Gateway;
use super::context::RequestRecord;
use super::respond::ProxyBody;
use crate::auth::{Ended, KeyWatch};
use crate::policy::access::Grant;
use crate::policy::websocket::Handshake;
use crate::upstream::{Switched, UpstreamBody, UpstreamError, switch};

/// What a 101 carries instead of a body.
#[derive(Debug)]
pub struct Switching {
    upstream: Switched,
    idle: Duration,
}

/// A connection of a client and one of an upstream that will speak another protocol with each other.
#[derive(Debug)]
pub struct Tunnel {
    /// The upstream's end.
    pub upstream: Switched,
    /// How long neither side may say anything.
    pub idle: Duration,
    /// The request's record; counts and logs when it is dropped.
    pub record: Box<RequestRecord>,
}

impl Tunnel {
    /// Of an answer that is a 101: nothing can become of it but a success.
    pub(super) fn new(Switching { upstream, idle }: Switching, mut record: Box<RequestRecord>) -> Self {
        record.complete = true;
        Self { upstream, idle, record }
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

impl Gateway {
    /// Until the grant of this request is no longer due, and why. On a public route it always is.
    pub fn until_revoked(&self, record: &RequestRecord) -> impl Future<Output = Ended> + use<'_> {
        let grant = record.permit.as_ref().map(|permit| permit.grant().clone());
        let watched: Option<(KeyWatch, Grant)> = grant.and_then(|grant| {
            let watch = self.shared.auth.watch(record.secret?, grant.profile()?);
            Some((watch, grant))
        });
        async move {
            match &watched {
                Some((watch, grant)) => watch.ended(grant, &self.front).await,
                None => std::future::pending().await,
            }
        }
    }
}

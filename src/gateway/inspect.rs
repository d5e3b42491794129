//! Reading a bound value from a request body: only for keys that are limited in that dimension, bounded in bytes and memory,
//! and forwarded byte for byte afterwards (contract 2, "Values").

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use super::context::{Inbound, RequestRecord};
use super::{Gateway, GatewayError, head};
use crate::config::model::Config;
use crate::policy::access::{Scoped, Values};
use crate::policy::route::Match;
use crate::policy::values::{bound_values, needs_body};
use crate::upstream::BodyError;

impl Gateway {
    /// What the request names; and its body, if it had to be read for that.
    pub(super) async fn bound_values(
        &self,
        config: &Config,
        found: &Match,
        scoped: &Scoped,
        inbound: &mut Inbound,
        record: &mut RequestRecord,
    ) -> Result<(Values, Option<Bytes>), GatewayError> {
        let held = match needs_body(found, scoped, &inbound.head.headers)? {
            true => Some(Box::pin(self.hold(config, found, inbound, record)).await?),
            false => None,
        };
        let values = bound_values(found, scoped, inbound.head.uri.query(), &inbound.head.headers, held.as_deref())?;
        Ok((values, held))
    }

    /// Reads the whole body into memory, within `limits.inspect_bytes` for itself and `limits.inspect_total` for all.
    async fn hold(
        &self,
        config: &Config,
        found: &Match,
        inbound: &mut Inbound,
        record: &mut RequestRecord,
    ) -> Result<Bytes, GatewayError> {
        let limits = &config.limits;
        let route_limit = head::body_limit(&found.route, limits).unwrap_or(u64::MAX);
        let limit = route_limit.min(limits.inspect_bytes as u64);
        head::check_declared_body(&inbound.head, Some(limit))?;
        // As much as it may become: a body that does not say its length could grow to the limit.
        let room = head::declared_length(&inbound.head).unwrap_or(limit).min(limit);
        let reserved = u32::try_from(room).unwrap_or(u32::MAX);
        let _reserved = self.shared.inspection.try_acquire_many(reserved).map_err(|_| GatewayError::Overloaded)?;
        let Some(body) = inbound.body.as_mut() else { return Ok(Bytes::new()) };
        let held = read(body, limit, config.timeouts.body_idle).await;
        if !matches!(held, Err(GatewayError::RequestBody(BodyError::TooLarge, _))) {
            inbound.body = None;
        }
        let held = held?;
        record.held(held.len() as u64);
        Ok(held)
    }
}

/// Reads a body up to a limit, waiting only so long between two parts of it.
pub(super) async fn read(body: &mut Incoming, limit: u64, idle: std::time::Duration) -> Result<Bytes, GatewayError> {
    // What is grown into holds twice as much on its way.
    let declared = body.size_hint().exact().unwrap_or(0).min(limit);
    let mut held = BytesMut::with_capacity(usize::try_from(declared).unwrap_or(0));
    loop {
        match timeout(idle, body.frame()).await {
            Err(_elapsed) => return Err(GatewayError::RequestBody(BodyError::Idle, None)),
            Ok(None) => return Ok(held.freeze()),
            Ok(Some(Err(error))) => return Err(GatewayError::RequestBody(BodyError::of(&error), None)),
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else { continue };
                if (held.len() + data.len()) as u64 > limit {
                    return Err(GatewayError::RequestBody(BodyError::TooLarge, Some(limit)));
                }
                held.extend_from_slice(&data);
            }
        }
    }
}

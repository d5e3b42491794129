//! Management calls over HTTP: the same authentication, then [`crate::management`] does the work.
//!
//! They are not charged to the plan but to `management.rate`, and count in usage like every other request.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};

use super::context::{Inbound, RequestRecord};
use super::respond::ProxyBody;
use super::{Gateway, GatewayError, head, inspect};
use crate::config::model::Config;
use crate::management::api::ManagementResponse;
use crate::management::body::BODY_LIMIT;
use crate::management::call::{Call, Operation};
use crate::policy::access::{KeyProfile, Scoped};
use crate::policy::credential::Credential;
use crate::policy::headers::X_REQUEST_ID;
use crate::policy::quota::QuotaState;
use crate::policy::rejection::Rejection;
use crate::policy::route::Access;

impl Gateway {
    /// Carries out one call, or says why not, in the order of contract 4.
    pub(super) async fn manage(
        &self,
        config: &Arc<Config>,
        call: Result<Call, Rejection>,
        inbound: &mut Inbound,
        record: &mut RequestRecord,
    ) -> Result<Response<ProxyBody>, GatewayError> {
        let call = call?;
        record.endpoint = Some(call.endpoint().clone());
        head::check_declared_body(&inbound.head, Some(BODY_LIMIT as u64))?;
        let credential = Credential::extract(&inbound.head.headers, config.key_shape)?;
        let access = call.scope().map_or(Access::Authenticated, |scope| Access::AnyScope(vec![scope]));
        let caller = self.authenticate(config, credential, &access, record).await?.check_scope(&access)?;
        let caller = self.charge(config, &caller)?;
        let body = match inbound.body.as_mut().filter(|_| call.takes_body()) {
            Some(body) => inspect::read(body, BODY_LIMIT as u64, config.timeouts.body_idle).await?,
            None => Bytes::new(),
        };
        record.held(body.len() as u64);
        let quota = self.quota_of(&call, &caller).await;
        let from = record.client().to_string();
        match self.shared.management.handle(config, &call, &caller, quota, &body, &from).await {
            ManagementResponse::Done { status, json } => Ok(answer(status, &json, record)),
            ManagementResponse::Refused(problem) => Err(GatewayError::Problem(problem)),
        }
    }

    fn charge(&self, config: &Config, caller: &Scoped) -> Result<Arc<KeyProfile>, GatewayError> {
        let profile = caller.profile().cloned().ok_or(Rejection::MissingKey)?;
        self.shared.management.charge(config, &profile.record.id).map_err(GatewayError::TooManyCalls)?;
        Ok(profile)
    }

    /// What is left of the caller's plan, for the one call that shows it.
    async fn quota_of(&self, call: &Call, caller: &KeyProfile) -> Option<QuotaState> {
        if call.operation != Operation::Current {
            return None;
        }
        self.shared.limiter.state_of(caller).await.ok()
    }
}

fn answer(status: u16, json: &serde_json::Value, record: &RequestRecord) -> Response<ProxyBody> {
    let mut response = Response::new(ProxyBody::Own(Bytes::from(json.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // A secret may be in it.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_REQUEST_ID, record.request_id.to_value());
    response
}

//! The life of a request, on one screen.
//!
#![doc = include_str!("../life_of_a_request.md")]

pub mod connection;
pub mod context;
mod error;
mod head;
mod http2;
mod inspect;
pub(crate) mod lasting;
mod management;
pub mod respond;
mod shared;
pub mod upgrade;

use std::convert::Infallible;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::auth::Front;
use crate::config::model::Config;
use crate::limit::Permit;
use crate::limit::address::{AddressLimit, TooManyFromAddress};
use crate::management::call::Call;
use crate::policy::access::{Authenticated, KeyProfile};
use crate::policy::credential::{Credential, KeyHash};
use crate::policy::headers::{self, Origin, QuotaFields};
use crate::policy::key::Environment;
use crate::policy::rejection::Rejection;
use crate::policy::route::{Access, Route};
use crate::policy::websocket::{Handshake, set_upgrade};
use crate::telemetry::names::UpstreamMetrics;
use crate::upstream::{Forwarding, RequestBody, UpstreamError};

pub use error::GatewayError;
pub use shared::{InForce, Shared, Snapshot};

use connection::ConnInfo;
use context::{Inbound, RequestRecord};
use respond::{ProxyBody, RecordedBody};

/// The gateway, as one worker runs it.
pub struct Gateway {
    shared: Arc<Shared>,
    worker: usize,
    current: ArcSwap<Snapshot>,
    front: Front,
}

impl Gateway {
    /// A gateway for one worker.
    pub fn new(shared: Arc<Shared>, worker: usize) -> Self {
        let snapshot = Snapshot::of(&shared.in_force.borrow(), worker);
        Self { shared, worker, current: ArcSwap::from_pointee(snapshot), front: Front::default() }
    }

    /// Takes a new configuration into force for requests that begin from now on. What is under way keeps the one it began with.
    pub fn reload(&self, in_force: &InForce) {
        self.current.store(Arc::new(Snapshot::of(in_force, self.worker)));
    }

    /// What is in force now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// One request, from its head to the answer. The record it leaves ends with the answer's body.
    pub async fn handle(
        &self,
        conn: &Arc<ConnInfo>,
        request: Request<Incoming>,
    ) -> Result<Response<RecordedBody>, Infallible> {
        let snapshot = self.snapshot();
        let (head, body) = request.into_parts();
        let mut inbound = Inbound { head, body: Some(body), handshake: None };
        let mut record = Box::new(RequestRecord::start(&self.shared, &snapshot, conn, &inbound.head));
        let cross_origin =
            snapshot.config.cors.as_ref().map(|cors| cors.look(&inbound.head.method, &inbound.head.headers));
        let mut response = match self.serve(&snapshot, conn, &mut inbound, &mut record).await {
            Ok(response) => response,
            Err(error) => {
                self.identify(&snapshot.config, &inbound, &mut record).await;
                respond::render(error, conn, &mut inbound, &mut record)
            }
        };
        if let Some(cross_origin) = cross_origin {
            cross_origin.answer(response.status(), response.headers_mut());
        }
        Ok(respond::attach(response, record))
    }

    /// The order is that of contract 4 and never changes.
    async fn serve(
        &self,
        snapshot: &Snapshot,
        conn: &ConnInfo,
        inbound: &mut Inbound,
        record: &mut RequestRecord,
    ) -> Result<Response<ProxyBody>, GatewayError> {
        let config = &snapshot.config;
        if let Some(refused) = conn.refused(&inbound.head) {
            record.stands_for(refused);
            return Err(refused.rejection.clone().into());
        }
        if inbound.head.version == Version::HTTP_2 {
            record.is_grpc = respond::is_grpc(&inbound.head.headers);
            http2::normalize(&mut inbound.head, conn)?;
        }
        let path = head::check(&inbound.head, &config.limits, conn)?;
        if is_preflight(config, &inbound.head) {
            Box::pin(self.identify(config, inbound, record)).await;
            return Ok(respond::no_content(conn, inbound, record));
        }
        if let Some(call) =
            Call::recognise(&config.management.base_path, &inbound.head.method, &path, inbound.head.uri.query())
        {
            // Boxed: rare, and large enough to weigh on every request's future.
            return Box::pin(self.manage(config, call, inbound, record)).await;
        }
        inbound.handshake = Handshake::requested(&inbound.head)?;
        let found = config.routes.find(&inbound.head.method, &path)?;
        record.matched(&found.route);
        if let Some(limit) = config.limits.per_address.public
            && found.route.access == Access::Public
        {
            self.shared.public_requests.charge(
                AddressLimit::Public,
                record.client(),
                limit,
                self.shared.clock.mono(),
            )?;
        }
        head::check_declared_body(&inbound.head, head::body_limit(&found.route, &config.limits))?;
        let credential = Credential::extract(&inbound.head.headers, config.key_shape)?;
        let key = self.authenticate(config, credential, &found.route.access, record).await?;
        let scoped = key.check_scope(&found.route.access)?;
        let (values, held) = self.bound_values(config, &found, &scoped, inbound, record).await?;
        let grant = scoped.check_resources(found, values)?;
        if inbound.head.method == Method::OPTIONS && !head::may_go_on(&mut inbound.head.headers) {
            return Ok(respond::options(grant.route(), conn, inbound, record));
        }
        let upstream = config.upstream_of(grant.route(), grant.environment());
        // Before quota is charged: what is refused costs nothing.
        let slot = snapshot.upstreams.admit(upstream);
        record.slot = slot.map_err(|error| self.upstream_failed(error, snapshot.upstreams.metrics(upstream), None))?;
        let permit = self.shared.limiter.admit(grant).await?;
        self.forward(snapshot, permit, held, conn, inbound, record).await
    }

    /// Cache, then store; then whether the key is in force. A public route needs none and checks none.
    async fn authenticate(
        &self,
        config: &Arc<Config>,
        credential: Credential,
        access: &Access,
        record: &mut RequestRecord,
    ) -> Result<Authenticated, GatewayError> {
        let hash = match (credential, access) {
            (Credential::Key(hash), _) => hash,
            (_, Access::Public) => return Ok(Authenticated::anonymous()),
            (Credential::Absent, _) => return Err(Rejection::MissingKey.into()),
            (Credential::Other, _) => {
                self.charge_failed_auth(config, record)?;
                return Err(Rejection::InvalidKey.into());
            }
        };
        record.secret = Some(hash);
        let found = self.look_up(config, hash, record).await;
        if *access == Access::Public {
            // Only to be counted.
            record.key = found.unwrap_or_default();
            return Ok(Authenticated::anonymous());
        }
        let profile = found?.ok_or(Rejection::InvalidKey)?;
        record.key = Some(profile.clone());
        Ok(Authenticated::check(profile, record.time(), record.client())?)
    }

    /// A key by its secret. An address that tried too many unknown ones may use only keys that are known here already: neither the
    /// store nor whoever shares the address with a guesser shall suffer.
    async fn look_up(
        &self,
        config: &Arc<Config>,
        hash: KeyHash,
        record: &RequestRecord,
    ) -> Result<Option<Arc<KeyProfile>>, GatewayError> {
        let (auth, limit) = (&self.shared.auth, config.limits.per_address.failed_auth);
        if let Some(limit) = limit
            && !auth.is_known(&hash, &self.front, config)
        {
            self.shared.failed_auth.check(
                AddressLimit::FailedAuth,
                record.client(),
                limit,
                self.shared.clock.mono(),
            )?;
        }
        let found = auth.look_up(hash, &self.front, config).await?;
        if found.is_none() {
            self.charge_failed_auth(config, record)?;
        }
        Ok(found)
    }

    /// Counts a key that does not exist, where that is limited.
    fn charge_failed_auth(&self, config: &Config, record: &RequestRecord) -> Result<(), TooManyFromAddress> {
        match config.limits.per_address.failed_auth {
            None => Ok(()),
            Some(limit) => {
                let now = self.shared.clock.mono();
                self.shared.failed_auth.charge(AddressLimit::FailedAuth, record.client(), limit, now)
            }
        }
    }

    /// A request that was refused before its key was looked at is counted all the same, if it carries a known one.
    async fn identify(&self, config: &Arc<Config>, inbound: &Inbound, record: &mut RequestRecord) {
        if record.secret.is_none()
            && let Ok(Credential::Key(hash)) = Credential::extract(&inbound.head.headers, config.key_shape)
        {
            record.secret = Some(hash);
            record.key = self.look_up(config, hash, record).await.unwrap_or_default();
        }
    }

    /// Sends an admitted request to its upstream. Takes a [`Permit`]: what was not decided cannot be forwarded.
    async fn forward(
        &self,
        snapshot: &Snapshot,
        permit: Permit,
        held: Option<Bytes>,
        conn: &ConnInfo,
        inbound: &mut Inbound,
        record: &mut RequestRecord,
    ) -> Result<Response<ProxyBody>, GatewayError> {
        let (config, upstreams, route) = (&snapshot.config, &snapshot.upstreams, permit.grant().route().clone());
        let (upstream, quota) =
            (config.upstream_of(&route, permit.grant().environment()), permit.quota().copied().map(QuotaFields::new));
        let mut fields = std::mem::take(&mut inbound.head.headers);
        let origin = Origin {
            peer: &conn.peer_value,
            forwarded: fields.get(HOST).and_then(|host| conn.forwarded(host)),
            passed: record.passed.as_ref(),
            secure: conn.secure,
            version: inbound.head.version,
            request_id: record.request_id.to_value(),
            traceparent: record.traceparent(),
        };
        let profile = permit.grant().profile().map(|profile| &**profile);
        let request_id = origin.request_id.clone();
        headers::for_upstream(&mut fields, origin, profile, quota.as_ref(), route.forward_authorization);
        if let Some(handshake) = &inbound.handshake {
            handshake.ask(&mut fields);
        }
        let body = request_body(config, held, &route, inbound, record);
        let request = head::for_upstream(&inbound.head, fields, body, upstreams.authority(upstream));

        record.permit = Some(permit);
        record.upstream = Some(upstreams.name(upstream).clone());
        let sent = Instant::now();
        let limits = Forwarding {
            since: sent,
            response: route.response_timeout.unwrap_or(config.timeouts.response),
            idle: route.idle_timeout.unwrap_or(config.timeouts.idle),
            upgrade: inbound.handshake.is_some(),
            aside: (inbound.head.version == Version::HTTP_11).then_some(&conn.aside),
        };
        let progress = record.progress.clone();
        let answer = upstreams.forward(upstream, request, progress.as_ref(), limits).await;
        let waited = sent.elapsed().as_secs_f64();
        record.upstream_ms = Some(waited * 1000.0);
        upstreams.metrics(upstream).duration.record(waited);

        let failed =
            |error| self.upstream_failed(error, upstreams.metrics(upstream), head::body_limit(&route, &config.limits));
        if matches!(answer, Err(UpstreamError::OutOfDescriptors))
            && let Some(permit) = record.permit.take()
        {
            // Our own trouble, and nothing was forwarded.
            self.shared.limiter.take_back(&permit);
        }
        let answer = answer.map_err(failed)?;
        if waited > lasting::LASTS.as_secs_f64() {
            // Boxed: rare.
            Box::pin(lasting::check(record)).await?;
        }
        let mut response = match &inbound.handshake {
            Some(handshake) => Box::pin(upgrade::agree(handshake, answer, limits.idle)).await.map_err(failed)?,
            None => answer.map(ProxyBody::Upstream),
        };
        headers::for_client(response.headers_mut(), request_id, quota);
        // A gateway speaks for itself, whatever version its backend spoke (RFC 9110 section 2.5).
        *response.version_mut() = Version::HTTP_11;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            set_upgrade(response.headers_mut());
        }
        Ok(response)
    }

    fn upstream_failed(
        &self,
        error: UpstreamError,
        upstream: &UpstreamMetrics,
        body_limit: Option<u64>,
    ) -> GatewayError {
        match error {
            UpstreamError::RequestBody(error) => GatewayError::RequestBody(error, body_limit),
            error => {
                let error = GatewayError::Upstream(error);
                self.shared.metrics.upstream_error(upstream, error.problem().code);
                error
            }
        }
    }

    /// Housekeeping of this worker, every few seconds.
    pub fn maintain(&self) {
        self.snapshot().upstreams.prune();
    }

    /// What all workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// Whether a browser asks what one of its pages may send.
fn is_preflight(config: &Config, head: &Parts) -> bool {
    // Nearly every request is none for its method alone.
    head.method == Method::OPTIONS
        && config.cors.as_ref().is_some_and(|cors| cors.look(&head.method, &head.headers).is_preflight())
}

/// The body to forward: held already, or streamed within the route's limits.
fn request_body(
    config: &Config,
    held: Option<Bytes>,
    route: &Route,
    inbound: &mut Inbound,
    record: &mut RequestRecord,
) -> RequestBody {
    match (held, inbound.body.take().filter(|body| !body.is_end_stream())) {
        (Some(held), _) => RequestBody::Held(held),
        (None, None) => RequestBody::Empty,
        (None, Some(body)) => {
            let progress = record.progress.insert(Arc::default()).clone();
            let limit = head::body_limit(route, &config.limits);
            RequestBody::stream(body, inbound.head.version, limit, config.timeouts.body_idle, progress)
        }
    }
}

impl Config {
    /// The route's own upstream, or the one of the key's environment.
    fn upstream_of(&self, route: &Route, environment: Environment) -> crate::policy::route::UpstreamId {
        let by_environment = || self.environments.map(|environments| environments.of(environment));
        // Compiled so that one of them is there; the first upstream is the only one otherwise.
        route.upstream.or_else(by_environment).unwrap_or(crate::policy::route::UpstreamId(0))
    }
}

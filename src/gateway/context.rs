//! What accompanies a request: the connection it came on, its inbound message, and the record of how it went.
//!
//! [`RequestRecord`] is where usage, metrics and the access log come from. It is finished by being dropped, so none of the
//! four ends of a response (complete, failed, future dropped, body dropped) can be forgotten.

use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Method, Version};
use hyper::body::Incoming;

use super::connection::{ConnInfo, Phase};
use super::{Shared, Snapshot};
use crate::limit::Permit;
use crate::policy::access::KeyProfile;
use crate::policy::credential::KeyHash;
use crate::policy::forwarded::Passed;
use crate::policy::instant::Mono;
use crate::policy::key::Timestamp;
use crate::policy::route::{Route, RouteId};
use crate::policy::websocket::Handshake;
use crate::store::StatusClass;
use crate::telemetry::access_log::Line;
use crate::telemetry::names::Place;
use crate::telemetry::trace::Id;
use crate::upstream::{Progress, Slot};
use crate::usage::Hit;
use crate::wire::http1::Refused;

/// A request as it came in. The body is taken by whoever reads it; what is left is refused properly.
#[derive(Debug)]
pub struct Inbound {
    /// Method, target, head.
    pub head: Parts,
    /// The body, until somebody takes it.
    pub body: Option<Incoming>,
    /// A WebSocket is asked for.
    pub handshake: Option<Handshake>,
}

/// What is learnt of a request on its way.
pub struct RequestRecord {
    shared: Arc<Shared>,
    snapshot: Arc<Snapshot>,
    started: Mono,
    time: Timestamp,
    conn: Arc<ConnInfo>,
    method: Method,
    version: Version,
    path: String,
    /// What a trusted proxy says of it.
    pub passed: Option<Passed>,
    /// Its id.
    pub request_id: Id,
    /// Trace id and parent span, as `traceparent` carries them on.
    trace_id: Id,
    /// Method and route template, once a route or a management call was recognised.
    pub endpoint: Option<Arc<str>>,
    route: Option<RouteId>,
    /// The key, once it is known; also when it is then refused.
    pub key: Option<Arc<KeyProfile>>,
    /// The secret it came with.
    pub secret: Option<KeyHash>,
    /// Leave to forward it, once it was admitted.
    pub permit: Option<Permit>,
    /// Its slot among those that the upstream may have at a time.
    pub slot: Option<Slot>,
    /// Code of a refusal.
    pub code: Option<&'static str>,
    /// Status of the answer, once there is one.
    pub status: u16,
    /// The answer reached its end.
    pub complete: bool,
    /// The client left before it had sent its request.
    pub client_gone: bool,
    /// It is a call of gRPC.
    pub is_grpc: bool,
    /// Progress of the request body, if there is one.
    pub progress: Option<Arc<Progress>>,
    held: u64,
    /// Body bytes sent.
    pub bytes_out: u64,
    /// Where it was forwarded.
    pub upstream: Option<Arc<str>>,
    /// From forwarding to the upstream's head.
    pub upstream_ms: Option<f64>,
}

impl RequestRecord {
    /// Starts the record of one request.
    pub fn start(shared: &Arc<Shared>, snapshot: &Arc<Snapshot>, conn: &Arc<ConnInfo>, head: &Parts) -> Self {
        // From the first byte of the head, which was noted when it came; a pipelined request has no such note.
        let started = match conn.phase() {
            (Phase::Head, since) => since,
            _ => shared.clock.mono(),
        };
        conn.begin(started);
        shared.metrics.in_flight.increment(1.0);
        let path = if shared.log.is_on() { head.uri.path().to_owned() } else { String::new() };
        let request_id = shared.ids.next();
        let trace_id = Id::inherited(&head.headers).unwrap_or(request_id);
        Self {
            started,
            time: shared.clock.wall(),
            conn: conn.clone(),
            method: head.method.clone(),
            version: head.version,
            path,
            passed: conn.trusted.as_ref().map(|trusted| Passed::read(conn.peer, &head.headers, trusted)),
            request_id,
            trace_id,
            endpoint: None,
            route: None,
            key: None,
            secret: None,
            permit: None,
            slot: None,
            code: None,
            status: 499,
            complete: false,
            client_gone: false,
            is_grpc: false,
            progress: None,
            held: 0,
            bytes_out: 0,
            upstream: None,
            upstream_ms: None,
            shared: shared.clone(),
            snapshot: snapshot.clone(),
        }
    }

    /// It stands for a request that was refused before it was parsed: that one is told of.
    pub fn stands_for(&mut self, refused: &Refused) {
        if let Some(method) = &refused.method {
            self.method = method.clone();
        }
        if self.shared.log.is_on() {
            self.path.clone_from(&refused.path);
        }
    }

    /// What all workers share.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Wall-clock time at which the request began.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// Who sent it: what logs, events and everything per address go by.
    pub fn client(&self) -> IpAddr {
        self.passed.map_or(self.conn.peer, |passed| passed.client)
    }

    /// The route was found.
    pub fn matched(&mut self, route: &Route) {
        self.route = Some(route.id);
        self.endpoint = Some(route.endpoint(&self.method).clone());
        if let Some(idle) = route.idle_timeout {
            self.conn.set_idle(idle);
        }
    }

    /// The body was read here, this many bytes of it.
    pub fn held(&mut self, bytes: u64) {
        self.held = bytes;
    }

    /// So many more bytes were received, of no body.
    pub fn received(&mut self, bytes: u64) {
        self.held += bytes;
    }

    /// A body was begun to be forwarded and has not been read to its end.
    pub fn is_unread(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.is_unread())
    }

    fn was_answered(&self) -> bool {
        self.complete && !self.client_gone
    }

    /// The answer breaks off. In HTTP/1.0 its end is that of the connection, and a clean one would make it look whole.
    pub fn breaks_off(&self) {
        if self.version == Version::HTTP_10 {
            self.conn.reset();
        }
    }

    /// A HEAD request: its answer has no body to wait for.
    pub fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// `traceparent` for the upstream: the trace goes on, the parent is this request.
    pub fn traceparent(&self) -> HeaderValue {
        self.trace_id.to_traceparent(self.request_id)
    }

    /// An endpoint that is no route's is a management call's.
    fn place(&self) -> Place {
        match (self.route, &self.endpoint) {
            (Some(id), _) => Place::Route(id),
            (None, Some(_)) => Place::Management,
            (None, None) => Place::Nowhere,
        }
    }

    fn line(&mut self, duration: f64) -> Line {
        Line {
            time: self.time,
            request_id: self.request_id,
            trace_id: self.trace_id,
            client: self.client(),
            method: self.method.clone(),
            route: self.endpoint.clone(),
            path: std::mem::take(&mut self.path),
            status: if self.was_answered() { self.status } else { 499 },
            code: self.code,
            duration_ms: duration * 1000.0,
            upstream_ms: self.upstream_ms,
            upstream: self.upstream.clone(),
            bytes_in: self.progress.as_ref().map_or(self.held, |progress| progress.bytes()),
            bytes_out: self.bytes_out,
            key: self.key.clone(),
            values: self.permit.as_ref().map(|permit| permit.grant().values().clone()).unwrap_or_default(),
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let shared = self.shared.clone();
        let class = if self.was_answered() { StatusClass::of(self.status) } else { StatusClass::ClientGone };
        let now = shared.clock.mono();
        self.conn.end(now);
        if self.is_unread() {
            self.conn.linger();
        }
        let duration = now.since(self.started).as_secs_f64();
        shared.metrics.in_flight.decrement(1.0);
        shared.metrics.request(&self.snapshot.counters, self.place(), class);
        shared.metrics.duration.record(duration);
        if let Some(code) = self.code {
            shared.metrics.refusal(code);
        }
        if let Some(key) = &self.key {
            shared.usage.count(Hit {
                key,
                secret: self.secret,
                at: self.time,
                endpoint: self.endpoint.as_ref(),
                class,
                admitted: self.permit.as_ref().map(|permit| (permit.grant().route(), permit.grant().values())),
            });
        }
        if shared.log.is_on() && !shared.log.write(self.line(duration)) {
            shared.metrics.log_lines_dropped.increment(1);
        }
    }
}

impl std::fmt::Debug for RequestRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestRecord").field("request_id", &self.request_id).finish_non_exhaustive()
    }
}

//! What accompanies a request: the connection it came on, its inbound message, and the record of how it went.
//!
//! [`RequestRecord`] is where usage, metrics and the access log come from. It is finished by being dropped, so none of the
//! four ends of a response (complete, failed, future dropped, body dropped) can be forgotten.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Method, Version};
use hyper::body::Incoming;

use super::{Shared, Snapshot};
use crate::clock::Clock;
use crate::limit::Permit;
use crate::policy::access::KeyProfile;
use crate::policy::credential::KeyHash;
use crate::policy::forwarded::{self, Passed};
use crate::policy::instant::Mono;
use crate::policy::key::Timestamp;
use crate::policy::network::Networks;
use crate::policy::route::{Route, RouteId};
use crate::policy::websocket::Handshake;
use crate::store::StatusClass;
use crate::telemetry::access_log::Line;
use crate::telemetry::names::Place;
use crate::telemetry::trace::Id;
use crate::upstream::{Aside, Progress, Slot};
use crate::usage::Hit;
use crate::wire::http1::Refused;

/// Of a connection's gate: between two requests, nothing of the next one has come.
const BETWEEN: u8 = 2;
/// Of a connection's gate: the beginning of a head is held. Its time runs also while it waits behind a request.
const IN_HEAD: u8 = 1;

/// A client connection.
#[derive(Debug)]
pub struct ConnInfo {
    /// Who is at the other end, or whom its PROXY header named. The client of a request: [`RequestRecord::client`].
    pub peer: IpAddr,
    /// The peer, ready for `X-Forwarded-For`.
    pub peer_value: HeaderValue,
    /// The peer is a proxy that is believed, and so are these.
    trusted: Option<Arc<Networks>>,
    /// Whether it is encrypted.
    pub secure: bool,
    /// The peer, as a node of `Forwarded` (RFC 7239 section 6).
    forwarded_node: String,
    /// `Forwarded` of the first Host that came on this connection, which is nearly always the only one.
    forwarded: OnceLock<(HeaderValue, HeaderValue)>,
    /// For interim responses.
    pub aside: Aside,
    linger: AtomicBool,
    draining: AtomicBool,
    waker: OnceLock<Waker>,
    /// What the gate on its octets refused, if it did: the last request of the connection.
    refused: OnceLock<Refused>,
    /// Where its gate stands: [`BETWEEN`], [`IN_HEAD`] or 0.
    gate: AtomicU8,
    answered: AtomicU64,
    /// It has been idle for a moment: it is to give up what it needs only while it serves.
    to_rest: AtomicBool,
    /// It has done so.
    resting: AtomicBool,
    /// The connection is to be woken when the request that is being served has ended.
    waits: AtomicBool,
    /// [`Phase`] and when it began.
    phase: AtomicU8,
    since: AtomicU64,
    /// Requests that are being served; HTTP/1 has one at most.
    in_flight: AtomicU32,
    /// HTTP/2: since when a head has been open, whatever else goes on; 0: none is.
    head_since: AtomicU64,
    multiplexed: AtomicBool,
    /// HTTP/2: targets of requests that are malformed in a way that the library hides.
    malformed: Mutex<Vec<Vec<u8>>>,
    any_malformed: AtomicBool,
    /// Since when the client has taken nothing of what waits for it; 0: it takes.
    stalled: AtomicU64,
    /// Since when the client sends no more and waits; 0: it may send, `u64::MAX`: it has taken something since.
    half_closed: AtomicU64,
}

/// Malformed requests of one connection that are remembered until they are seen.
const MALFORMED: usize = 256;

/// What a connection is doing, for its timeouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Between requests.
    Idle,
    /// The first bytes of a head came.
    Head,
    /// A request is being served.
    Busy,
}

impl ConnInfo {
    /// A connection from this address.
    pub fn new(peer: IpAddr, secure: bool, now: Mono) -> Self {
        let peer = peer.to_canonical();
        let peer_value = HeaderValue::try_from(peer.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        Self {
            peer,
            peer_value,
            trusted: None,
            secure,
            forwarded_node: forwarded::node(peer),
            forwarded: OnceLock::new(),
            aside: Aside::default(),
            linger: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            waker: OnceLock::new(),
            refused: OnceLock::new(),
            gate: AtomicU8::new(BETWEEN),
            to_rest: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            waits: AtomicBool::new(false),
            phase: AtomicU8::new(Phase::Idle as u8),
            since: AtomicU64::new(now.0),
            in_flight: AtomicU32::new(0),
            head_since: AtomicU64::new(0),
            multiplexed: AtomicBool::new(false),
            malformed: Mutex::default(),
            any_malformed: AtomicBool::new(false),
            stalled: AtomicU64::new(0),
            half_closed: AtomicU64::new(0),
        }
    }

    /// Believes what the peer says of its clients, if it is in one of these networks.
    pub fn trusting(mut self, networks: &Arc<Networks>) -> Self {
        self.trusted = networks.contains(self.peer).then(|| networks.clone());
        self
    }

    /// What it is doing, and since when. One thread writes; a reader that catches it in between judges a little late.
    pub fn phase(&self) -> (Phase, Mono) {
        let phase = match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            _ => Phase::Busy,
        };
        (phase, Mono(self.since.load(Ordering::Relaxed)))
    }

    /// The client will send no more, and waits for an answer.
    pub fn stops_sending(&self, clock: &dyn Clock) {
        if self.half_closed.load(Ordering::Relaxed) == 0 {
            self.half_closed.store(clock.mono().0.max(1), Ordering::Relaxed);
        }
    }

    /// For how long a client that sends no more has got nothing.
    pub fn half_closed_for(&self, now: Mono) -> Duration {
        match self.half_closed.load(Ordering::Relaxed) {
            0 | u64::MAX => Duration::ZERO,
            since => now.since(Mono(since)),
        }
    }

    /// An attempt to write: the socket took something, or had no room.
    pub fn wrote(&self, something: bool, clock: &dyn Clock) {
        if something && self.half_closed.load(Ordering::Relaxed) != 0 {
            self.half_closed.store(u64::MAX, Ordering::Relaxed);
        }
        let stalled = self.stalled.load(Ordering::Relaxed) != 0;
        if something && stalled {
            self.stalled.store(0, Ordering::Relaxed);
        } else if !something && !stalled {
            self.stalled.store(clock.mono().0.max(1), Ordering::Relaxed);
        }
    }

    /// For how long the client has taken nothing of what waits for it.
    pub fn stalled_for(&self, now: Mono) -> Duration {
        match self.stalled.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => now.since(Mono(since)),
        }
    }

    fn enter(&self, phase: Phase, now: Mono) {
        self.since.store(now.0, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Bytes came. The first ones after a pause begin a head.
    pub fn received(&self, clock: &dyn Clock) {
        if self.phase.load(Ordering::Relaxed) == Phase::Idle as u8 {
            self.enter(Phase::Head, clock.mono());
        }
    }

    /// A request begins to be served. One thread writes, so plain loads and stores will do.
    pub fn begin(&self, since: Mono) {
        self.in_flight.store(self.in_flight.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.enter(Phase::Busy, since);
    }

    /// A request has ended.
    pub fn end(&self, now: Mono) {
        let left = self.in_flight.load(Ordering::Relaxed) - 1;
        self.in_flight.store(left, Ordering::Relaxed);
        if left == 0 {
            // Of a request that was pipelined behind this one, a part may have come.
            let begun = self.gate.load(Ordering::Relaxed) == IN_HEAD;
            self.enter(if begun { Phase::Head } else { Phase::Idle }, now);
        }
        self.answered.store(self.answered() + 1, Ordering::Relaxed);
        if self.waits.load(Ordering::Relaxed) {
            self.waits.store(false, Ordering::Relaxed);
            self.wake();
        }
    }

    /// Who is to be woken for this connection. A task has one waker for life.
    pub fn is_driven_by(&self, waker: &Waker) {
        self.waker.get_or_init(|| waker.clone());
    }

    /// It speaks HTTP/2: many requests at once, and heads are told of by [`Self::in_head`].
    pub fn multiplex(&self, now: Mono) {
        self.multiplexed.store(true, Ordering::Relaxed);
        self.enter(Phase::Idle, now);
    }

    /// See [`Self::multiplex`].
    pub fn is_multiplexed(&self) -> bool {
        self.multiplexed.load(Ordering::Relaxed)
    }

    /// HTTP/2: octets came; whether a head is open after them.
    pub fn in_head(&self, open: bool, clock: &dyn Clock) {
        match (open, self.head_since.load(Ordering::Relaxed)) {
            (true, 0) => self.head_since.store(clock.mono().0.max(1), Ordering::Relaxed),
            (false, 1..) => self.head_since.store(0, Ordering::Relaxed),
            _ => {}
        }
    }

    /// HTTP/2: a request for this target comes next or soon, and is malformed.
    pub fn found_malformed(&self, target: Vec<u8>) {
        let mut malformed = self.malformed.lock().unwrap_or_else(PoisonError::into_inner);
        // More than can be under way at once: the library refused some, so nobody will ask for them.
        if malformed.len() >= MALFORMED {
            malformed.remove(0);
        }
        malformed.push(target);
        self.any_malformed.store(true, Ordering::Relaxed);
    }

    /// See [`Self::found_malformed`]; asked once a request.
    pub fn take_malformed(&self, target: &str) -> bool {
        if !self.any_malformed.load(Ordering::Relaxed) {
            return false;
        }
        let mut malformed = self.malformed.lock().unwrap_or_else(PoisonError::into_inner);
        let found = malformed.iter().position(|odd| odd == target.as_bytes());
        found.inspect(|place| drop(malformed.swap_remove(*place))).is_some()
    }

    /// Since when a head has been open beside what the phase says.
    pub fn head_since(&self) -> Option<Mono> {
        Some(self.head_since.load(Ordering::Relaxed)).filter(|since| *since != 0).map(Mono)
    }

    /// `Forwarded` for a request to this host.
    pub fn forwarded(&self, host: &HeaderValue) -> Option<HeaderValue> {
        let make = || forwarded::element(&self.forwarded_node, forwarded::scheme(self.secure), host);
        match self.forwarded.get() {
            Some((known, value)) if known == host => Some(value.clone()),
            Some(_) => make(),
            None => {
                let value = make()?;
                // A copy: the field itself is a part of what was read, all of which it would keep for as long as the connection.
                let host = HeaderValue::from_bytes(host.as_bytes()).ok()?;
                // Whoever comes second finds the first one's: either will do.
                let _ = self.forwarded.set((host, value.clone()));
                Some(value)
            }
        }
    }

    /// Asks the connection to end after the request in flight.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// Whether [`Self::drain`] was called.
    pub fn is_leaving(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether [`Self::drain`] was called; if not yet, `waker` will be woken. A task has one waker for life.
    pub fn is_draining(&self, waker: &Waker) -> bool {
        self.waker.get_or_init(|| waker.clone());
        self.draining.load(Ordering::Acquire)
    }

    /// The octets of a request were refused before anybody parsed them; hyper sees a stand-in for it.
    pub fn refuse(&self, refused: Refused) {
        // One at most: nothing passes after it.
        let _ = self.refused.set(refused);
    }

    /// What was refused, if this is the stand-in for it: a head of HTTP/1.1 without a Host, which no request has that passes.
    pub fn refused(&self, head: &Parts) -> Option<&Refused> {
        self.refused.get().filter(|_| head.version == Version::HTTP_11 && !head.headers.contains_key(HOST))
    }

    /// How many requests have been answered to their end.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// What came behind the request that is being served waits for its end.
    pub fn wake_when_answered(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    /// Where its gate stands after octets came: between two requests, or with the beginning of a head that is held.
    pub fn gate_stands(&self, between: bool, in_head: bool) {
        self.gate.store(if between { BETWEEN } else { u8::from(in_head) * IN_HEAD }, Ordering::Relaxed);
    }

    /// Asks an idle connection to give up its buffers until octets come; again and again, for one may not be able to yet.
    pub fn rest(&self) {
        if !self.resting.load(Ordering::Relaxed) {
            self.to_rest.store(true, Ordering::Relaxed);
            self.wake();
        }
    }

    /// Whether it waits as a bare socket.
    pub fn rests(&self, resting: bool) {
        self.to_rest.store(false, Ordering::Relaxed);
        self.resting.store(resting, Ordering::Relaxed);
    }

    /// Since when it has been idle, if [`Self::rest`] was called and nothing is under way: no request, no octets, no write.
    pub fn rests_since(&self) -> Option<Mono> {
        if !self.to_rest.load(Ordering::Relaxed) {
            return None;
        }
        let (phase, since) = self.phase();
        let quiet = self.stalled.load(Ordering::Relaxed) == 0 && self.gate.load(Ordering::Relaxed) == BETWEEN;
        (phase == Phase::Idle && quiet).then_some(since)
    }

    /// A refused request left a body unread: the connection must be closed slowly, or the client that is still sending gets a
    /// reset instead of the answer (RFC 9112 section 9.6).
    pub fn linger(&self) {
        self.linger.store(true, Ordering::Relaxed);
    }

    /// See [`Self::linger`].
    pub fn must_linger(&self) -> bool {
        self.linger.load(Ordering::Relaxed)
    }
}

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

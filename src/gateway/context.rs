//! What accompanies a request: the connection it came on, its inbound message, and the record of how it went.
//!
//! [`RequestRecord`] is where usage, metrics and the access log come from. It is finished by being dropped, so none of the
//! four ends of a response (complete, failed, future dropped, body dropped) can be forgotten.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use http::request::Parts;
use http::{HeaderValue, Method};
use hyper::body::Incoming;

use super::Shared;
use crate::policy::access::{KeyProfile, Values};
use crate::policy::credential::KeyHash;
use crate::policy::instant::Mono;
use crate::policy::key::Timestamp;
use crate::policy::quota::QuotaState;
use crate::policy::route::{Route, RouteId};
use crate::store::{Counted, StatusClass};
use crate::telemetry::access_log::Line;
use crate::upstream::Progress;

/// A client connection.
#[derive(Debug)]
pub struct ConnInfo {
    /// The peer.
    pub client: IpAddr,
    /// The peer, ready for `X-Forwarded-For`.
    pub client_value: HeaderValue,
    /// The peer, as a node of `Forwarded` (RFC 7239 section 6).
    pub forwarded_node: String,
    linger: AtomicBool,
    fragment: AtomicBool,
    /// [`Phase`] and when it began.
    phase: AtomicU8,
    since: AtomicU64,
}

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
    pub fn new(client: IpAddr, now: Mono) -> Self {
        let client = client.to_canonical();
        let forwarded_node = match client {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("\"[{v6}]\""),
        };
        let client_value = HeaderValue::try_from(client.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        Self {
            client,
            client_value,
            forwarded_node,
            linger: AtomicBool::new(false),
            fragment: AtomicBool::new(false),
            phase: AtomicU8::new(Phase::Idle as u8),
            since: AtomicU64::new(now.0),
        }
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

    fn enter(&self, phase: Phase, now: Mono) {
        self.since.store(now.0, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Bytes came. The first ones after a pause begin a head.
    pub fn received(&self, now: Mono) {
        if self.phase.load(Ordering::Relaxed) == Phase::Idle as u8 {
            self.enter(Phase::Head, now);
        }
    }

    /// The target of the request that begins has a fragment, which the parser will drop.
    pub fn found_fragment(&self) {
        self.fragment.store(true, Ordering::Relaxed);
    }

    /// See [`Self::found_fragment`]; asked once a request.
    pub fn take_fragment(&self) -> bool {
        // A load is cheaper than the exchange, and nearly always enough.
        self.fragment.load(Ordering::Relaxed) && self.fragment.swap(false, Ordering::Relaxed)
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
}

/// Ids of requests and traces: unique, unguessable in their first half, and cheap (no system call a request).
#[derive(Debug)]
pub struct IdSource {
    random: u64,
    count: AtomicU64,
}

impl IdSource {
    /// Seeds itself once from the operating system.
    pub fn new() -> Self {
        let mut seed = [0; 8];
        // Without randomness the ids are merely predictable; they guard nothing.
        let _ = getrandom::fill(&mut seed);
        Self { random: u64::from_le_bytes(seed), count: AtomicU64::new(1) }
    }

    /// A new id: 32 hexadecimal digits, never all zero.
    fn next(&self) -> Arc<str> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        // splitmix64 spreads the counter, so that neighbours do not look alike.
        let mut mixed = count.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let mut text = [0_u8; 32];
        write_hex(&mut text[..16], self.random);
        write_hex(&mut text[16..], mixed ^ (mixed >> 31));
        std::str::from_utf8(&text).unwrap_or_default().into()
    }
}

impl Default for IdSource {
    fn default() -> Self {
        Self::new()
    }
}

fn write_hex(out: &mut [u8], value: u64) {
    for (i, digit) in out.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(value >> (60 - 4 * i)) as usize & 15];
    }
}

/// What is learnt of a request on its way.
pub struct RequestRecord {
    shared: Arc<Shared>,
    started: Mono,
    time: Timestamp,
    conn: Arc<ConnInfo>,
    method: Method,
    path: String,
    /// Its id.
    pub request_id: Arc<str>,
    /// Trace id and parent span, as `traceparent` carries them on.
    trace_id: Arc<str>,
    /// Method and route template, once a route or a management call was recognised.
    pub endpoint: Option<Arc<str>>,
    route: Option<RouteId>,
    /// The key, once it is known; also when it is then refused.
    pub key: Option<Arc<KeyProfile>>,
    /// The secret it came with.
    pub secret: Option<KeyHash>,
    /// What the request named.
    pub values: Values,
    /// Scopes that opened the route; filled for admitted requests.
    scopes_used: Option<Arc<Route>>,
    /// Code of a refusal.
    pub code: Option<&'static str>,
    /// Status of the answer, once there is one.
    pub status: u16,
    /// The answer reached its end.
    pub complete: bool,
    /// Progress of the request body.
    pub progress: Arc<Progress>,
    /// Body bytes sent.
    pub bytes_out: u64,
    /// When it was forwarded, and where.
    pub forwarded: Option<(Arc<str>, Mono)>,
    /// From forwarding to the upstream's head.
    pub upstream_ms: Option<f64>,
    /// What the client is told of its quota, should an admitted request fail.
    pub quota: Option<QuotaState>,
}

impl RequestRecord {
    /// Starts the record of one request.
    pub fn start(shared: &Arc<Shared>, conn: &Arc<ConnInfo>, head: &Parts) -> Self {
        let started = shared.clock.mono();
        conn.enter(Phase::Busy, started);
        shared.metrics.in_flight.increment(1.0);
        let path = if shared.log.is_on() { head.uri.path().to_owned() } else { String::new() };
        let request_id = shared.ids.next();
        let trace_id = inherited_trace(head).unwrap_or_else(|| request_id.clone());
        Self {
            started,
            time: shared.clock.wall(),
            conn: conn.clone(),
            method: head.method.clone(),
            path,
            request_id,
            trace_id,
            endpoint: None,
            route: None,
            key: None,
            secret: None,
            values: Values::default(),
            scopes_used: None,
            code: None,
            status: 499,
            complete: false,
            progress: Arc::default(),
            bytes_out: 0,
            forwarded: None,
            upstream_ms: None,
            quota: None,
            shared: shared.clone(),
        }
    }

    /// Wall-clock time at which the request began.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// The route was found.
    pub fn matched(&mut self, route: &Route) {
        self.route = Some(route.id);
        self.endpoint = Some(route.endpoint(&self.method).clone());
    }

    /// The request was admitted on this route.
    pub fn admitted(&mut self, route: &Arc<Route>, values: &Values) {
        self.scopes_used = Some(route.clone());
        self.values = values.clone();
    }

    /// The body was read here, this many bytes of it.
    pub fn held(&mut self, bytes: u64) {
        self.progress.add(bytes);
    }

    /// A HEAD request: its answer has no body to wait for.
    pub fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// The id as a header value.
    pub fn request_id_value(&self) -> HeaderValue {
        HeaderValue::from_str(&self.request_id).unwrap_or(HeaderValue::from_static("-"))
    }

    /// `traceparent` for the upstream: the trace goes on, the parent is this request (W3C Trace Context section 3.2).
    pub fn traceparent(&self) -> HeaderValue {
        let span = self.request_id.get(16..).unwrap_or("0000000000000001");
        HeaderValue::try_from(format!("00-{}-{span}-01", self.trace_id)).unwrap_or(HeaderValue::from_static("-"))
    }

    fn counted(&self, class: StatusClass) -> Vec<Counted> {
        let endpoint = self.endpoint.clone().unwrap_or_else(|| Arc::from("(no route)"));
        let mut counted = vec![Counted::Endpoint(endpoint, class)];
        if let (Some(route), Some(key)) = (&self.scopes_used, &self.key) {
            let used = route.access.scopes().iter().filter(|scope| key.grants.allows(scope));
            counted.extend(used.cloned().map(Counted::Scope));
            for kind in crate::policy::resource::Kind::ALL {
                if let Some(id) = self.values.of(kind).filter(|id| crate::policy::key::ResourceId::parse(id).is_ok()) {
                    counted.push(Counted::Resource(kind, id.into()));
                }
            }
        }
        counted
    }

    fn line(&mut self, duration: f64) -> Line {
        Line {
            time: self.time,
            request_id: self.request_id.clone(),
            trace_id: self.trace_id.clone(),
            client: self.conn.client,
            method: self.method.clone(),
            route: self.endpoint.clone(),
            path: std::mem::take(&mut self.path),
            status: if self.complete { self.status } else { 499 },
            code: self.code,
            duration_ms: duration * 1000.0,
            upstream_ms: self.upstream_ms,
            upstream: self.forwarded.as_ref().map(|(name, _)| name.clone()),
            bytes_in: self.progress.bytes(),
            bytes_out: self.bytes_out,
            key: self.key.clone(),
            values: std::mem::take(&mut self.values),
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let shared = self.shared.clone();
        let class = if self.complete { StatusClass::of(self.status) } else { StatusClass::ClientGone };
        let now = shared.clock.mono();
        self.conn.enter(Phase::Idle, now);
        if self.progress.is_unread() {
            self.conn.linger();
        }
        let duration = now.since(self.started).as_secs_f64();
        shared.metrics.in_flight.decrement(1.0);
        shared.metrics.request(self.route, class);
        shared.metrics.duration.record(duration);
        if let Some(code) = self.code {
            shared.metrics.refusal(code);
        }
        if let Some(key) = &self.key {
            let secret = self.secret.map(|hash| (hash, self.time));
            shared.usage.count(&key.record.id, self.time.day(), secret, self.counted(class));
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

/// The trace id of a well-formed `traceparent`, of which there may be one only.
fn inherited_trace(head: &Parts) -> Option<Arc<str>> {
    let mut fields = head.headers.get_all(crate::policy::headers::TRACEPARENT).iter();
    let (value, None) = (fields.next()?.to_str().ok()?, fields.next()) else { return None };
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let mut parts = value.split('-');
    let (version, trace, parent) = (parts.next()?, parts.next()?, parts.next()?);
    let fits =
        version.len() == 2 && trace.len() == 32 && parent.len() == 16 && hex(version) && hex(trace) && hex(parent);
    (fits && version != "ff" && trace.bytes().any(|b| b != b'0')).then(|| trace.into())
}

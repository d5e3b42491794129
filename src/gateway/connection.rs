//! A client connection, as its requests and the worker's sweep know it: who is there, what it is doing and since when.
//!
//! One thread writes; no lock is taken on the way of a usual request. The socket itself is the server's.

use crate::clock::Clock;
use crate::policy::forwarded::{self};
use crate::policy::instant::Mono;
use crate::policy::network::Networks;
use crate::upstream::Aside;
use crate::wire::http1::Refused;
use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Version};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

/// Of a connection's gate: between two requests, nothing of the next one has come.
const BETWEEN: u8 = 2;
/// Of a connection's gate: the beginning of a head is held. Its time runs also while it waits behind a request.
const IN_HEAD: u8 = 1;

/// A client connection.
#[derive(Debug)]
pub struct ConnInfo {
    /// Who is at the other end, or whom its PROXY header named. The client of a request: [`super::context::RequestRecord::client`].
    pub peer: IpAddr,
    /// The peer, ready for `X-Forwarded-For`.
    pub peer_value: HeaderValue,
    /// The peer is a proxy that is believed, and so are these.
    pub(super) trusted: Option<Arc<Networks>>,
    /// Whether it is encrypted.
    pub secure: bool,
    /// The peer, as a node of `Forwarded` (RFC 7239 section 6).
    forwarded_node: String,
    /// `Forwarded` of the first Host that came on this connection, which is nearly always the only one.
    forwarded: OnceLock<(HeaderValue, HeaderValue)>,
    /// For interim responses.
    pub aside: Aside,
    linger: AtomicBool,
    reset: AtomicBool,
    draining: AtomicBool,
    /// HTTP/2: it is to end if nothing is under way.
    leaves: AtomicBool,
    /// HTTP/2: both sides know that nothing more will be asked on it.
    parted: AtomicBool,
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
    /// How long it may, in nanoseconds, where a route says so; 0: as everywhere.
    idle: AtomicU64,
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
            reset: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            leaves: AtomicBool::new(false),
            parted: AtomicBool::new(false),
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
            idle: AtomicU64::new(0),
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

    /// The route of a request says how long the client may take nothing of the answer.
    pub fn set_idle(&self, idle: Duration) {
        let idle = u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX);
        // Of many requests at once the most patient one decides about their connection; each stream has its own limit besides.
        let most = if self.is_multiplexed() { self.idle.load(Ordering::Relaxed) } else { 0 };
        self.idle.store(idle.max(most), Ordering::Relaxed);
    }

    /// How long the client may take nothing; `usual` where no route says otherwise.
    pub fn idle(&self, usual: Duration) -> Duration {
        match self.idle.load(Ordering::Relaxed) {
            0 => usual,
            nanos if self.is_multiplexed() => usual.max(Duration::from_nanos(nanos)),
            nanos => Duration::from_nanos(nanos),
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
        let others = self.in_flight.load(Ordering::Relaxed);
        self.in_flight.store(others + 1, Ordering::Relaxed);
        if others == 0 {
            // That of the one before held until now: its answer may have been on its way still.
            self.idle.store(0, Ordering::Relaxed);
        }
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

    /// Asks the connection to end after the request in flight. A client of HTTP/2 is told now, so its time to leave begins.
    pub fn drain(&self, now: Mono) {
        if self.is_multiplexed() && self.phase().0 == Phase::Idle && !self.is_leaving() {
            self.enter(Phase::Idle, now);
        }
        self.draining.store(true, Ordering::Release);
        self.wake();
    }

    /// HTTP/2: asks the connection to end now, unless something is under way.
    pub fn leave(&self) {
        self.leaves.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// See [`Self::leave`]; asked by the connection itself, behind the streams that it has begun.
    pub fn takes_leave(&self) -> bool {
        self.leaves.load(Ordering::Relaxed)
            && self.leaves.swap(false, Ordering::Relaxed)
            && self.phase().0 == Phase::Idle
            && self.head_since().is_none()
    }

    /// HTTP/2: the client has answered the goodbye, and has had the last word.
    pub fn parts(&self) {
        self.parted.store(true, Ordering::Relaxed);
    }

    /// See [`Self::parts`].
    pub fn has_parted(&self) -> bool {
        self.parted.load(Ordering::Relaxed)
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

    /// The connection must end as no whole answer does, and with whatever was not taken of it.
    pub fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// See [`Self::reset`].
    pub fn must_reset(&self) -> bool {
        self.reset.load(Ordering::Relaxed)
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

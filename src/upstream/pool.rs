//! Idle connections of one worker to one address of an upstream, last in first out: the warmest one is used, cold ones age and go.
//!
//! Belongs to one worker, so its lock is never contended. hyper-util's shared pool costs about a tenth of a whole request
//! (measured: 1.3 to 2 µs); this is what replaces it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::connect::Connected;
use super::http2::Connections;
use super::peer::{Peer, UnderWay};
use super::sender::{Http1, Sender};

/// Idle connections that one worker keeps to one address.
const MAX_IDLE: usize = 256;
/// Idle for so many rounds of the worker's sweep (half a second each), a connection is closed: most servers would do it soon after.
const MAX_ROUNDS: u32 = 110;

struct Idle {
    connection: Box<Http1>,
    /// The round in which it became idle.
    since: u32,
}

/// The pool. Each worker has its own; workers must not share a cache line either.
#[repr(align(64))]
pub(super) struct Pool {
    peer: Arc<Peer>,
    idle: Mutex<Vec<Idle>>,
    /// Those that many exchanges share; none on an upstream of HTTP/1.
    shared: Connections,
    /// Held while one is opened that others will share: they wait for it.
    pub(super) opening: tokio::sync::Mutex<()>,
    /// Connections that could not be opened: whoever waited for one fails with it.
    pub(super) failed: AtomicU32,
    /// Counts sweeps: a clock that costs a request nothing.
    round: AtomicU32,
    /// The address is gone: nothing is kept any more.
    retired: AtomicBool,
}

/// A connection in use. Dropped, it closes; [`Lease::give_back`] keeps it.
pub(super) struct Lease {
    sender: Sender,
    pool: Arc<Pool>,
    /// Counts the request where there is a choice of endpoints, until the answer has ended.
    pub(super) under_way: Option<UnderWay>,
}

impl Pool {
    pub(super) fn new(peer: Arc<Peer>) -> Self {
        let (idle, round, retired) = (Mutex::default(), AtomicU32::new(0), AtomicBool::new(false));
        let (shared, opening, failed) = (Connections::default(), tokio::sync::Mutex::default(), AtomicU32::new(0));
        Self { peer, idle, shared, opening, failed, round, retired }
    }

    /// Where its connections lead.
    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// The most recently used connection that still looks alive.
    pub(super) fn take(self: &Arc<Self>) -> Option<Lease> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(Idle { connection, .. }) = idle.pop() {
            if !connection.is_over() {
                return Some(self.lend(Sender::Http1(connection)));
            }
        }
        None
    }

    /// Room on a connection that others share.
    pub(super) fn share(self: &Arc<Self>) -> Option<Lease> {
        self.shared.slot().map(|slot| self.lend(Sender::Http2(slot)))
    }

    /// A lease of a new connection.
    pub(super) fn lease(self: &Arc<Self>, connected: Connected) -> Lease {
        self.lend(match connected {
            Connected::Http1(http1) => Sender::Http1(http1),
            Connected::Http2(new) => Sender::Http2(self.shared.keep(new)),
        })
    }

    fn lend(self: &Arc<Self>, sender: Sender) -> Lease {
        Lease { sender, pool: self.clone(), under_way: None }
    }

    /// The address is gone: closes what is idle now, and whatever comes back.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.shared.clear();
    }

    /// Closes what has been idle too long. Called by the worker's sweep, never on a request.
    pub(super) fn prune(&self) {
        let round = self.round.fetch_add(1, Ordering::Relaxed);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| !idle.connection.is_over() && round.wrapping_sub(idle.since) < MAX_ROUNDS);
        self.shared.prune(MAX_ROUNDS);
    }
}

#[cfg(test)]
impl Pool {
    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }
}

impl Lease {
    /// Where it leads.
    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.pool.peer
    }

    pub(super) fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// The exchange ended cleanly: keep the connection, unless the upstream closes it.
    pub(super) fn give_back(self) {
        // A shared one is kept by others, and the slot on it is free again.
        let Sender::Http1(connection) = self.sender else { return };
        if connection.is_over() {
            return;
        }
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE && !self.pool.retired.load(Ordering::Relaxed) {
            idle.push(Idle { connection, since: self.pool.round.load(Ordering::Relaxed) });
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({})", self.peer.address)
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lease")
    }
}

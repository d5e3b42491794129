//! One address of an upstream as all workers see it: what is under way there, and how it has been doing.
//!
//! Numbers only. What follows from them is decided by [`super::cluster`].

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use http::HeaderValue;

use super::cluster::Cluster;
use crate::config::model::Endpoint;

/// An address.
#[derive(Debug)]
pub(super) struct Peer {
    /// Where it is.
    pub(super) address: SocketAddr,
    /// The endpoint of the file that it belongs to.
    pub(super) endpoint: Endpoint,
    /// Its own `Host`.
    pub(super) host: HeaderValue,
    in_flight: AtomicU32,
    failures: AtomicU32,
    /// Who judges it; another one after a reload.
    cluster: Mutex<Weak<Cluster>>,
}

impl Peer {
    pub(super) fn new(address: SocketAddr, endpoint: &Endpoint) -> Self {
        // A port that the scheme stands for is not written (RFC 9110 section 4.2.3).
        let usual_port = if endpoint.encrypted { ":443" } else { ":80" };
        let host = endpoint.authority.strip_suffix(usual_port).unwrap_or(&endpoint.authority);
        Self {
            address,
            endpoint: endpoint.clone(),
            host: HeaderValue::from_str(host).unwrap_or(HeaderValue::from_static("")),
            in_flight: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            cluster: Mutex::default(),
        }
    }

    /// From now on this one judges it.
    pub(super) fn belongs_to(&self, cluster: Weak<Cluster>) {
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner) = cluster;
    }

    /// Requests under way.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// A complete answer came, of whatever status.
    pub(super) fn answered(&self) {
        // Nearly always nothing to write, and a cache line that workers share stays with all of them.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// An outlier failure: no connection, one that broke, a timeout, an answer that is none.
    pub(super) fn failed(&self) {
        let in_a_row = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(cluster) = self.cluster() {
            cluster.failed(self, in_a_row);
        }
    }

    /// Its time aside is over.
    pub(super) fn readmit(&self) {
        if let Some(cluster) = self.cluster() {
            cluster.readmit(self);
        }
    }

    fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// So many failures in a row, from now on.
    pub(super) fn set_failures(&self, failures: u32) {
        self.failures.store(failures, Ordering::Relaxed);
    }
}

/// Counts a request while it is under way at a peer.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Peer>);

impl UnderWay {
    pub(super) fn at(peer: &Arc<Peer>) -> Self {
        peer.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(peer.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

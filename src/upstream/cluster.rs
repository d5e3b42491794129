//! One upstream as the whole process sees it: its addresses, which of them are usable, and how much is under way.
//!
//! Every change (an address found or gone, put aside, back, found ill) happens under one lock and publishes a new [`Selection`];
//! a request only reads the last one. So a request neither locks nor asks what time it is.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::UpstreamError;
use super::balance::{Endpoint, Selection};
use super::dns::{self, Resolve};
use super::fields::{self, Fields};
use super::health;
use super::peer::Peer;
use super::pool::Pool;
use super::tls::UpstreamConnector;
use crate::config::model::{self, Host, Retries, Secret, Upstream};
use crate::telemetry::Metrics;
use crate::telemetry::names::UpstreamMetrics;

/// Failed health checks in a row after which an endpoint is unhealthy; one good one makes it healthy again.
const UNHEALTHY: u32 = 2;
/// What a weight of 1 is shared in by the addresses of one name.
const WEIGHT: u64 = 1_000_000;

/// All upstreams of a configuration. One for the process; every worker has its own [`super::Upstreams`] on it.
pub struct Clusters {
    all: Vec<Arc<Cluster>>,
    workers: usize,
    control: Handle,
}

/// One upstream.
pub(super) struct Cluster {
    pub(super) config: Upstream,
    pub(super) metrics: Arc<UpstreamMetrics>,
    pub(super) tls: UpstreamConnector,
    pub(super) resolve: Resolve,
    /// When a look-up on demand failed last; held while one is under way.
    pub(super) asked: tokio::sync::Mutex<Option<Instant>>,
    workers: usize,
    control: Handle,
    selection: ArcSwap<Selection>,
    members: Mutex<Vec<Member>>,
    in_flight: AtomicU32,
    /// Values of `set_headers`.
    pub(super) fields: ArcSwap<Fields>,
}

/// An address with what is held against it.
struct Member {
    endpoint: Endpoint,
    ejected: bool,
    failed_probes: u32,
}

impl Member {
    fn is_usable(&self) -> bool {
        !self.ejected && self.failed_probes < UNHEALTHY
    }
}

/// A request in flight to an upstream that has a limit of them.
#[derive(Debug)]
pub struct Slot(Arc<Cluster>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Clusters {
    /// For these upstreams, with what they get of their own, and so many workers. Look-ups and health checks run on `control`.
    pub fn new(
        upstreams: &[Upstream],
        fields: Vec<Fields>,
        workers: usize,
        metrics: &Metrics,
        control: &Handle,
    ) -> Self {
        Self { all: Vec::new(), workers, control: control.clone() }.under(upstreams, fields, metrics)
    }

    /// The same under another configuration. What is still the same goes on as it is: connections, health, what is counted.
    pub fn under(&self, upstreams: &[Upstream], fields: Vec<Fields>, metrics: &Metrics) -> Self {
        let Self { workers, control, .. } = self;
        let cluster = |(upstream, fields): (&Upstream, Fields)| {
            let earlier = self.all.iter().find(|cluster| cluster.config.name == upstream.name);
            if let Some(same) = earlier.filter(|earlier| earlier.config == *upstream) {
                same.set_fields(fields);
                return same.clone();
            }
            let metrics =
                earlier.map_or_else(|| Arc::new(metrics.upstream(&upstream.name)), |earlier| earlier.metrics.clone());
            Cluster::start(upstream.clone(), fields, *workers, metrics, control, dns::system(), earlier)
        };
        let all = upstreams.iter().zip(fields).map(cluster).collect();
        Self { all, workers: *workers, control: control.clone() }
    }

    pub(super) const fn workers(&self) -> usize {
        self.workers
    }

    pub(super) fn all(&self) -> &[Arc<Cluster>] {
        &self.all
    }
}

impl Cluster {
    /// With its tasks, which end when it is dropped.
    pub(super) fn start(
        config: Upstream,
        fields: Fields,
        workers: usize,
        metrics: Arc<UpstreamMetrics>,
        control: &Handle,
        resolve: Resolve,
        earlier: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let tls = UpstreamConnector::new(&config);
        let cluster = Arc::new(Self {
            fields: ArcSwap::from_pointee(fields),
            config,
            tls,
            metrics,
            resolve,
            asked: tokio::sync::Mutex::default(),
            workers,
            control: control.clone(),
            selection: ArcSwap::default(),
            members: Mutex::default(),
            in_flight: AtomicU32::new(0),
        });
        if let Some(earlier) = earlier.filter(|earlier| dials_alike(&earlier.config, &cluster.config)) {
            cluster.take_over(earlier);
        }
        for endpoint in cluster.endpoints() {
            if let Ok(address) = endpoint.authority.parse() {
                cluster.set_addresses(endpoint, &[address]);
            }
        }
        if cluster.named_endpoints().next().is_some() {
            control.spawn(dns::keep_resolved(Arc::downgrade(&cluster)));
        }
        if cluster.config.set_headers.iter().any(|(_, secret)| matches!(secret, Secret::File(_))) {
            control.spawn(fields::keep_read(Arc::downgrade(&cluster)));
        }
        if let Some(check) = &cluster.config.health_check {
            control.spawn(health::keep_checked(Arc::downgrade(&cluster), check.clone()));
        }
        cluster
    }

    /// Addresses of endpoints that are still there, with everything that hangs on them.
    fn take_over(self: &Arc<Self>, earlier: &Self) {
        let mut taken = Vec::new();
        // A verdict holds as long as what passed it: without a check, or with another one, nobody could take it back.
        let checked_alike = self.config.health_check == earlier.config.health_check;
        for Member { endpoint, ejected, failed_probes } in &*earlier.members() {
            let failed_probes = if checked_alike { *failed_probes } else { 0 };
            if self.endpoints().any(|ours| is_same(ours, &endpoint.peer.endpoint)) {
                endpoint.peer.belongs_to(Arc::downgrade(self));
                taken.push(Member { endpoint: endpoint.clone(), ejected: *ejected, failed_probes });
            }
        }
        for endpoint in self.endpoints() {
            let belongs = |member: &&mut Member| is_same(&member.endpoint.peer.endpoint, endpoint);
            let count = taken.iter_mut().filter(belongs).count() as u64;
            taken
                .iter_mut()
                .filter(belongs)
                .for_each(|member| member.endpoint.weight = share_of(endpoint.weight, count));
        }
        let mut members = self.members();
        *members = taken;
        self.publish(&members);
    }

    /// Endpoints that get requests at all.
    fn endpoints(&self) -> impl Iterator<Item = &model::Endpoint> {
        self.config.endpoints.iter().filter(|endpoint| endpoint.weight > 0)
    }

    /// Those whose host is a name.
    pub(super) fn named_endpoints(&self) -> impl Iterator<Item = &model::Endpoint> {
        self.endpoints().filter(|endpoint| endpoint.authority.parse::<SocketAddr>().is_err())
    }

    /// These are the addresses of the endpoint now; others of it get no more requests.
    pub(super) fn set_addresses(self: &Arc<Self>, configured: &model::Endpoint, addresses: &[SocketAddr]) {
        let weight = share_of(configured.weight, addresses.len() as u64);
        let mut members = self.members();
        let is_of = |member: &Member| is_same(&member.endpoint.peer.endpoint, configured);
        members.retain(|member| {
            let stays = !is_of(member) || addresses.contains(&member.endpoint.peer.address);
            if !stays {
                member.endpoint.pools.iter().for_each(|pool| pool.retire());
            }
            stays
        });
        for address in addresses {
            match members.iter_mut().find(|member| is_of(member) && member.endpoint.peer.address == *address) {
                Some(known) => known.endpoint.weight = weight,
                None => members.push(self.member(configured, *address, weight)),
            }
        }
        self.publish(&members);
    }

    fn member(self: &Arc<Self>, configured: &model::Endpoint, address: SocketAddr, weight: u64) -> Member {
        let peer = Arc::new(Peer::new(address, configured));
        peer.belongs_to(Arc::downgrade(self));
        let pools = (0..self.workers).map(|_| Arc::new(Pool::new(peer.clone()))).collect();
        Member { endpoint: Endpoint { peer, weight, pools }, ejected: false, failed_probes: 0 }
    }

    /// What requests see from now on. If nobody is usable everybody is: a guess is better than a certain refusal.
    fn publish(&self, members: &[Member]) {
        let usable: Vec<Endpoint> =
            members.iter().filter(|member| member.is_usable()).map(|member| member.endpoint.clone()).collect();
        self.metrics.health.endpoints.set(members.len() as f64);
        self.metrics.health.usable.set(usable.len() as f64);
        let all = || members.iter().map(|member| member.endpoint.clone()).collect();
        self.selection.store(Arc::new(Selection::new(if usable.is_empty() { all() } else { usable })));
    }

    /// Whom requests may go to.
    pub(super) fn selection(&self) -> arc_swap::Guard<Arc<Selection>> {
        self.selection.load()
    }

    /// Every address, whatever is held against it.
    pub(super) fn peers(&self) -> Vec<Arc<Peer>> {
        self.members().iter().map(|member| member.endpoint.peer.clone()).collect()
    }

    /// A slot among `max_requests`, where there is such a limit.
    pub(super) fn admit(self: &Arc<Self>) -> Result<Option<Slot>, UpstreamError> {
        let Some(most) = self.config.max_requests else { return Ok(None) };
        let slot = Slot(self.clone());
        if self.in_flight.fetch_add(1, Ordering::Relaxed) < most { Ok(Some(slot)) } else { Err(UpstreamError::Busy) }
    }

    /// A peer has failed so many times in a row. The last usable one is never put aside.
    pub(super) fn failed(&self, peer: &Peer, in_a_row: u32) {
        let Some(outlier) = self.config.outlier.filter(|outlier| in_a_row >= outlier.failures) else { return };
        let mut members = self.members();
        let is_it = |member: &Member| std::ptr::eq(&*member.endpoint.peer, peer);
        if !members.iter().any(|member| member.is_usable() && !is_it(member)) {
            return;
        }
        let Some(member) = members.iter_mut().find(|member| is_it(member) && !member.ejected) else { return };
        member.ejected = true;
        self.metrics.health.ejections.increment(1);
        tracing::warn!(upstream = %self.config.name, address = %peer.address, "put aside for {:?}: {in_a_row} failures in a row", outlier.eject_for);
        self.control.spawn(readmit_after(outlier.eject_for, Arc::downgrade(&member.endpoint.peer)));
        self.publish(&members);
    }

    /// Its time aside is over. One more failure puts it aside again; an answer forgets them all.
    pub(super) fn readmit(&self, peer: &Peer) {
        let mut members = self.members();
        if let Some(member) = members.iter_mut().find(|member| std::ptr::eq(&*member.endpoint.peer, peer)) {
            member.ejected = false;
            peer.set_failures(self.config.outlier.map_or(0, |outlier| outlier.failures.saturating_sub(1)));
        }
        self.publish(&members);
    }

    /// What a health check found.
    pub(super) fn probed(&self, peer: &Peer, is_well: bool) {
        let mut members = self.members();
        let Some(member) = members.iter_mut().find(|member| std::ptr::eq(&*member.endpoint.peer, peer)) else { return };
        let before = member.is_usable();
        member.failed_probes = if is_well { 0 } else { member.failed_probes.saturating_add(1) };
        if member.is_usable() != before {
            tracing::warn!(upstream = %self.config.name, address = %peer.address, healthy = is_well, "health check");
            self.publish(&members);
        }
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether two endpoints are one, whatever their weights.
fn is_same(a: &model::Endpoint, b: &model::Endpoint) -> bool {
    (&a.authority, a.encrypted) == (&b.authority, b.encrypted)
}

/// A weight shared by so many addresses; never nothing.
fn share_of(weight: u32, addresses: u64) -> u64 {
    (u64::from(weight) * WEIGHT / addresses.max(1)).max(1)
}

/// Whether connections made under one configuration are as good under the other: it differs at most in what no connection knows.
fn dials_alike(a: &Upstream, b: &Upstream) -> bool {
    let dialling = |upstream: &Upstream| Upstream {
        endpoints: Vec::new(),
        connect_timeout: Duration::ZERO,
        dns_refresh: Duration::ZERO,
        host: Host::Preserve,
        strip_prefix: Vec::new(),
        add_prefix: String::new(),
        set_headers: Vec::new(),
        health_check: None,
        outlier: None,
        retries: Retries { attempts: 0, budget: 0 },
        max_requests: None,
        ..upstream.clone()
    };
    dialling(a) == dialling(b)
}

/// By way of the peer, which knows who judges it then.
async fn readmit_after(pause: Duration, peer: Weak<Peer>) {
    sleep(pause).await;
    if let Some(peer) = peer.upgrade() {
        peer.readmit();
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({})", self.config.name)
    }
}

impl std::fmt::Debug for Clusters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.all).finish()
    }
}

#[cfg(test)]
mod tests;

//! What all workers of a process share, and what is in force: replaced as a whole by a reload, never changed in place.

use std::sync::Arc;

use tokio::sync::watch;

use crate::auth::Authenticator;
use crate::clock::Clock;
use crate::config::model::Config;
use crate::limit::Limiter;
use crate::limit::address::AddressRate;
use crate::management::api::Management;
use crate::telemetry::Metrics;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::names::RouteCounters;
use crate::telemetry::trace::IdSource;
use crate::upstream::{Clusters, Fields, Upstreams};
use crate::usage::Usage;

/// A configuration, and its upstreams as the whole process knows them.
pub struct InForce {
    /// The configuration.
    pub config: Arc<Config>,
    /// Its upstreams, in the same order.
    pub clusters: Clusters,
}

/// What all workers of one process share.
pub struct Shared {
    /// What is in force. A request asks its [`Snapshot`], which was made of it.
    pub in_force: watch::Sender<Arc<InForce>>,
    /// Keys.
    pub auth: Arc<Authenticator>,
    /// Quotas.
    pub limiter: Arc<Limiter>,
    /// Keys that do not exist, by client address.
    pub failed_auth: AddressRate,
    /// Requests on public routes, by client address.
    pub public_requests: AddressRate,
    /// Counters.
    pub usage: Arc<Usage>,
    /// The management API.
    pub management: Management,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The access log.
    pub log: AccessLog,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Request ids.
    pub ids: IdSource,
    /// Bytes of request bodies that may be held for inspection, all together.
    pub inspection: tokio::sync::Semaphore,
}

/// One configuration and what a worker keeps for it. A request sees the same one from its start to its end.
pub struct Snapshot {
    /// The configuration.
    pub config: Arc<Config>,
    /// The way to the backends.
    pub upstreams: Upstreams,
    /// Counters of its routes.
    pub counters: RouteCounters,
}

impl Shared {
    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.in_force.borrow().config.clone()
    }

    /// Takes another configuration into force. What is the same in it of the upstreams goes on as it is.
    pub fn reload(&self, config: Config, fields: Vec<Fields>) {
        let clusters = self.in_force.borrow().clusters.under(&config.upstreams, fields, &self.metrics);
        self.in_force.send_replace(Arc::new(InForce { config: Arc::new(config), clusters }));
    }
}

impl Snapshot {
    /// What this worker makes of it.
    pub(super) fn of(in_force: &InForce, worker: usize) -> Self {
        let config = in_force.config.clone();
        Self { upstreams: Upstreams::new(&in_force.clusters, worker), counters: RouteCounters::of(&config), config }
    }
}

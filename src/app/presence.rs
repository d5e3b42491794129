//! This gateway among the others on its store: the name it is known under, heartbeats, and what follows from their answers.
//!
//! A name is HOST/ADDRESS, so that a restart replaces its predecessor (contract 6). During a take-over two live under it, and both have
//! to be waited for: the old one takes another name before the new one registers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use crate::admin::Admin;
use crate::gateway::Shared;
use crate::store::{FeedItem, ReplicaId, Store, StoreError};

/// How often a gateway tells the store that it lives (contract 6).
pub(super) const HEARTBEAT: Duration = Duration::from_millis(500);
/// A silence longer than this and a replica is no longer counted as live.
const LIVE: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Presence {
    shared: Arc<Shared>,
    store: Arc<dyn Store>,
    replica: ReplicaId,
    /// The usual name.
    usual: String,
    /// The one in use.
    name: Mutex<String>,
}

/// The name of the gateway on this host that listens on `public`.
pub(super) fn usual_name(public: SocketAddr) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned());
    format!("{host}/{public}")
}

impl Presence {
    /// After it was registered under its usual name.
    pub(super) fn new(shared: Arc<Shared>, store: Arc<dyn Store>, replica: ReplicaId, usual: String) -> Arc<Self> {
        Arc::new(Self { shared, store, replica, name: Mutex::new(usual.clone()), usual })
    }

    /// Makes room for a successor of the usual name.
    pub(super) async fn step_aside(&self) -> Result<(), StoreError> {
        self.rename(self.name_aside()).await
    }

    /// There is no successor after all.
    pub(super) async fn step_back(&self) -> Result<(), StoreError> {
        self.rename(self.usual.clone()).await
    }

    fn name_aside(&self) -> String {
        format!("{}~{}", self.usual, self.replica.0)
    }

    /// The row is the same one under another name, or was lost and the next heartbeat finds out: nothing that is cached is concerned.
    async fn rename(&self, wanted: String) -> Result<(), StoreError> {
        let mut name = self.name.lock().await;
        if self.store.heartbeat(self.replica.clone()).await? {
            self.store.register(self.replica.clone(), wanted.clone()).await?;
        }
        *name = wanted;
        Ok(())
    }

    async fn beat(&self) -> Result<(), StoreError> {
        let mut name = self.name.lock().await;
        if self.store.heartbeat(self.replica.clone()).await? {
            return Ok(());
        }
        // Somebody took us for dead: whatever was revoked since then, we may have missed.
        let others = self.store.replicas().await?;
        if others.iter().any(|other| other.name == *name && other.heartbeat_age < LIVE) {
            // Two that live under one name would replace each other for ever, and only one of them be waited for.
            tracing::error!(%name, "another gateway has this host name and listen address; give each a host name of its own");
            *name = self.name_aside();
        }
        let revision = self.store.register(self.replica.clone(), name.clone()).await?;
        self.shared.auth.apply(&FeedItem::Restored(revision));
        Ok(())
    }

    /// Heartbeats; and what follows from their answers: who else lives, and whether the store can be asked at all.
    pub(super) async fn keep_alive(self: Arc<Self>, admin: Arc<Admin>) {
        let shared = &self.shared;
        let mut ticks = interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Who else lives changes slowly; asking for it with every heartbeat would be half of what an idle gateway asks.
        for count in 0_u64.. {
            ticks.tick().await;
            let sent = shared.clock.mono();
            let others = async {
                self.beat().await?;
                if count % 2 == 0 { self.store.replicas().await.map(Some) } else { Ok(None) }
            };
            match others.await {
                Ok(replicas) => {
                    // As of then: an answer may have lain there while this process was stopped.
                    shared.auth.contact(sent);
                    admin.set_heartbeat(true);
                    let Some(replicas) = replicas else { continue };
                    let live = replicas.iter().filter(|other| other.heartbeat_age < LIVE).count().max(1);
                    shared.limiter.set_live_replicas(live as u32);
                    shared.metrics.replicas.set(live as f64);
                }
                Err(error) => {
                    tracing::debug!(%error, "no heartbeat");
                    admin.set_heartbeat(false);
                }
            }
        }
    }
}

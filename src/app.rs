//! The composition root: a [`Config`] in, a running gateway out, and the way down again.
//!
//! The order matters: a gateway registers with the store **before** it accepts, so that whoever revokes a key knows whom to
//! wait for; on the way down it stops accepting, finishes what is in flight, gives its leases back, writes its usage and says
//! goodbye.

mod join;
mod stores;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::admin::{self, Admin};
use crate::auth::Authenticator;
use crate::clock::SystemClock;
use crate::config::model::Config;
use crate::gateway::Shared;
use crate::limit::Limiter;
use crate::limit::address::AddressRate;
use crate::management::api::{FlushUsage, Management};
use crate::server::{BindError, Drain, FrontTls, Listeners, Refreshed, TlsError, Workers};
use crate::store::health::Guard;
use crate::store::{Change, ChangeFeed, FeedItem, ReplicaId, Store, StoreError};
use crate::telemetry::Metrics;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::trace::IdSource;
use crate::upstream::Clusters;
use crate::usage::journal::{Journal, JournalError};
use crate::usage::{JOURNAL_PERIOD, Usage};

/// How often a gateway tells the store that it lives (contract 6).
const HEARTBEAT: Duration = Duration::from_millis(500);
/// A silence longer than this and a replica is no longer counted as live.
const LIVE: Duration = Duration::from_secs(2);
/// How often caches and metrics are tidied.
const MAINTENANCE: Duration = Duration::from_secs(5);
/// How often the listener's certificates are looked at.
const CERTIFICATES: Duration = Duration::from_secs(1);
/// How often old usage is forgotten.
const SWEEP: Duration = Duration::from_secs(3600);
/// What SIGTERM leaves whoever reads the request log.
const LAST_LINES: Duration = Duration::from_secs(2);
/// What SIGTERM leaves the store for the last usage and leases.
const GOODBYE: Duration = Duration::from_secs(5);

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The public listener.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The public listener's certificates.
    #[error("listen.public.tls: {0}")]
    Tls(#[from] TlsError),
    /// The admin listener.
    #[error("cannot listen on {0} (listen.admin.address): {1}")]
    Admin(SocketAddr, std::io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The usage journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Threads or runtimes.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    /// Told to end before it served.
    #[error("stopped while it waited for the store")]
    Stopped,
}

pub use stores::open;

/// A running gateway.
pub struct App {
    shared: Arc<Shared>,
    store: Arc<dyn Store>,
    replica: ReplicaId,
    admin: Arc<Admin>,
    drain: Drain,
    workers: Workers,
    /// Everything that is not on the data path: the change feed, heartbeats, flushes, the admin listener.
    control: Runtime,
    tasks: Vec<JoinHandle<()>>,
    log_thread: Option<std::thread::JoinHandle<()>>,
    /// Where clients reach it.
    pub public: SocketAddr,
    /// Where operators reach it.
    pub admin_address: SocketAddr,
}

impl App {
    /// Starts everything. When this returns, requests are served. A store that is not there is waited for; `stop` ends that.
    pub fn start(config: Config, stop: impl Future<Output = ()>) -> Result<Self, StartError> {
        let control = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("control")
            .build()?;
        let store = stores::open_for(&config, control.handle())?;
        let clock = SystemClock::shared();
        let journal = config.usage.journal.as_ref().map(|path| Journal::open(path, clock.clone())).transpose()?;
        let tls = config.listen.tls.as_ref().map(FrontTls::load).transpose()?.map(Arc::new);
        let listeners = Listeners::bind(config.listen.public, config.workers)?;
        let admin_listener = control
            .block_on(admin::bind(config.listen.admin))
            .map_err(|error| StartError::Admin(config.listen.admin, error))?;
        let (public, admin_address) = (listeners.address, admin_listener.local_addr()?);
        let (log, log_thread) = AccessLog::start(config.log)?;

        let replica = ReplicaId(uuid::Uuid::now_v7().to_string().into());
        let name = format!("{}/{public}", host_name());
        let guard = Guard::new(store, clock, config.store.timeout, control.handle().clone());
        let shared = share(config, &guard, &replica, log, journal, control.handle());
        let admin = Arc::new(Admin::new(shared.metrics.clone(), shared.limiter.clone(), guard.clone()));
        let mut tasks = vec![control.spawn(admin::serve(admin.clone(), admin_listener))];
        // Subscribe, then register: no change can fall between the two.
        let feed = guard.store().subscribe();
        control.block_on(join::register(&**guard.store(), &replica, &name, stop))?;
        control.spawn(join::look_around(guard.store().clone(), shared.metrics.clone()));

        let store = guard.guarded();
        let drain = Drain::new();
        tasks.extend(background(&shared, &store, &replica, name, &admin, feed, &control));
        if let Some(tls) = &tls {
            tasks.push(control.spawn(follow_certificates(tls.clone(), shared.clone())));
        }
        let workers = Workers::start(listeners, tls.as_ref(), &shared, &drain)?;
        admin.set_ready(true);
        tracing::info!(%public, admin = %admin_address, workers = shared.config.workers, "serving");
        Ok(Self { shared, store, replica, admin, drain, workers, control, tasks, log_thread, public, admin_address })
    }

    /// What it was started with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Drains and stops: not ready, no new connections, requests in flight finished, leases and usage in the store.
    pub fn stop(self) {
        let Self { shared, store, replica, admin, drain, workers, control, tasks, log_thread, .. } = self;
        admin.set_ready(false);
        std::thread::sleep(shared.config.drain.delay);
        tracing::info!("draining");
        drain.start();
        workers.join();
        control.block_on(async {
            let goodbye = async {
                shared.limiter.shut_down(GOODBYE).await;
                while let Err(error) = shared.usage.flush().await {
                    tracing::warn!(%error, "usage is not written yet");
                    sleep(Duration::from_millis(100)).await;
                }
                store.deregister(replica).await
            };
            match timeout(GOODBYE, goodbye).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "no goodbye"),
                Err(_elapsed) => tell_left(&shared.usage).await,
            }
        });
        tasks.iter().for_each(JoinHandle::abort);
        if !shared.log.flush(LAST_LINES) {
            tracing::error!("nobody reads the request log on stdout; its last lines are lost");
        }
        drop(log_thread);
        control.shutdown_timeout(Duration::from_secs(1));
        tracing::info!("stopped");
    }
}

/// The store did not take the last usage in time.
async fn tell_left(usage: &Usage) {
    match usage.write_down().await {
        Ok(()) if usage.is_kept().await => {
            tracing::warn!("the store did not take the last usage in time; the next start sends it from the journal");
        }
        _ => tracing::error!("the store did not take the last usage in time; some of it is lost"),
    }
}

fn share(
    config: Config,
    guard: &Arc<Guard>,
    replica: &ReplicaId,
    log: AccessLog,
    journal: Option<Journal>,
    control: &Handle,
) -> Arc<Shared> {
    let config = Arc::new(config);
    let (store, clock) = (guard.guarded(), guard.clock().clone());
    let templates = config.routes.routes().iter().map(|route| route.label().into()).collect();
    let names: Vec<Arc<str>> = config.upstreams.iter().map(|upstream| upstream.name.clone()).collect();
    let metrics = Arc::new(Metrics::new(templates, &names));
    let usage = Arc::new(Usage::new(store.clone(), metrics.clone(), replica.clone(), journal));
    Arc::new(Shared {
        auth: Arc::new(Authenticator::new(guard.clone(), config.clone(), metrics.clone())),
        limiter: Arc::new(Limiter::new(guard.clone(), config.store.outage_quota)),
        failed_auth: AddressRate::new(),
        public_requests: AddressRate::new(),
        management: Management::new(store, config.clone(), clock.clone(), flush_hook(&usage)),
        inspection: Semaphore::new(config.limits.inspect_total.min(Semaphore::MAX_PERMITS)),
        ids: IdSource::new(),
        clusters: Clusters::new(&config.upstreams, config.workers, &metrics, control, None),
        usage,
        metrics,
        log,
        clock,
        config,
    })
}

/// Usage is read after what this process has counted is in the store, so that the answer is exact.
fn flush_hook(usage: &Arc<Usage>) -> FlushUsage {
    let usage = usage.clone();
    Arc::new(move || {
        let usage = usage.clone();
        Box::pin(async move {
            if let Err(error) = usage.flush().await {
                tracing::warn!(%error, "usage is read before all of it is written");
            }
        })
    })
}

/// Everything that runs beside the requests.
fn background(
    shared: &Arc<Shared>,
    store: &Arc<dyn Store>,
    replica: &ReplicaId,
    name: String,
    admin: &Arc<Admin>,
    feed: ChangeFeed,
    control: &Runtime,
) -> Vec<JoinHandle<()>> {
    let (s, st, r) = (shared.clone(), store.clone(), replica.clone());
    let follow = control.spawn(follow_changes(s, st, r, feed));
    let (s, st, r, a) = (shared.clone(), store.clone(), replica.clone(), admin.clone());
    let heartbeat = control.spawn(keep_alive(s, st, r, name, a));
    let s = shared.clone();
    let flush = control.spawn(every(shared.config.usage.flush, move || {
        let s = s.clone();
        async move {
            if let Err(error) = s.usage.flush().await {
                tracing::debug!(%error, "usage waits");
            }
        }
    }));
    let s = shared.clone();
    let tidy = control.spawn(every(MAINTENANCE, move || {
        let s = s.clone();
        async move {
            s.auth.maintain();
            s.metrics.handle().run_upkeep();
        }
    }));
    let (st, retention) = (store.clone(), shared.config.usage.retention);
    let sweep = control.spawn(every(SWEEP, move || {
        let st = st.clone();
        async move {
            if let Err(error) = st.sweep(retention).await {
                tracing::warn!(%error, "old usage could not be forgotten");
            }
        }
    }));
    let mut tasks = vec![follow, heartbeat, flush, tidy, sweep];
    if shared.usage.has_journal() {
        let s = shared.clone();
        tasks.push(control.spawn(every(JOURNAL_PERIOD, move || {
            let s = s.clone();
            async move {
                if let Err(error) = s.usage.write_down().await {
                    tracing::warn!(%error, "the usage journal stands still");
                }
            }
        })));
    }
    tasks
}

/// A certificate that changes is in force within a second or two.
async fn follow_certificates(tls: Arc<FrontTls>, shared: Arc<Shared>) {
    every(CERTIFICATES, || {
        let (tls, shared) = (tls.clone(), shared.clone());
        async move {
            match tokio::task::spawn_blocking(move || tls.refresh()).await {
                Ok(Refreshed::Loaded) => {
                    tracing::info!("changed certificates are in force");
                    shared.metrics.tls_reloads.increment(1);
                }
                Ok(Refreshed::Refused(error)) => {
                    tracing::error!(%error, "changed certificates do not fit; the old ones stay");
                    shared.metrics.tls_reloads_refused.increment(1);
                }
                Ok(Refreshed::Unchanged) | Err(_) => {}
            }
        }
    })
    .await;
}

async fn every<F: Future<Output = ()>>(period: Duration, mut work: impl FnMut() -> F) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        work().await;
    }
}

/// Applies changes in order, then tells the store that nothing older is served any more.
async fn follow_changes(shared: Arc<Shared>, store: Arc<dyn Store>, replica: ReplicaId, mut feed: ChangeFeed) {
    shared.metrics.change_feed_up.set(1.0);
    let (audit, audited) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(crate::management::audit::follow(store.clone(), shared.clock.clone(), audited));
    // What the store could not be told when it was time.
    let mut owed = None;
    while let Some(item) = feed.recv().await {
        if matches!(item, FeedItem::Restored(_)) {
            // The feed is often back before the breaker has closed, and what is not cached is a 503 till then.
            shared.auth.until_readable().await;
        }
        shared.auth.apply(&item);
        let news = match &item {
            FeedItem::Changes(revision, changes) => {
                changes.iter().for_each(|change| shared.limiter.on_change(change));
                // Recalls come many a second and nobody waits for their acknowledgement.
                changes.iter().any(|change| !matches!(change, Change::Recall(..))).then_some(*revision)
            }
            FeedItem::Restored(revision) => {
                shared.limiter.feed_restored();
                shared.metrics.change_feed_up.set(1.0);
                Some(*revision)
            }
            FeedItem::Lost => {
                tracing::warn!("changes of other gateways no longer arrive; cached keys are re-checked");
                shared.limiter.feed_lost();
                shared.metrics.change_feed_up.set(0.0);
                continue;
            }
        };
        if let FeedItem::Changes(_, changes) = item
            && news.is_some()
        {
            // Somebody is there as long as this loop runs.
            changes.into_iter().for_each(|change| drop(audit.send(change)));
        }
        let Some(revision) = news.or(owed) else { continue };
        owed = match store.acknowledge(replica.clone(), revision).await {
            Ok(()) => None,
            Err(error) => {
                if news.is_some() {
                    tracing::warn!(%error, "a change could not be acknowledged yet");
                }
                Some(revision)
            }
        };
    }
}

/// Heartbeats; and what follows from their answers: who else lives, and whether the store can be asked at all.
async fn keep_alive(
    shared: Arc<Shared>,
    store: Arc<dyn Store>,
    replica: ReplicaId,
    mut name: String,
    admin: Arc<Admin>,
) {
    let beat = async |name: &mut String| {
        if !store.heartbeat(replica.clone()).await? {
            // Somebody took us for dead: whatever was revoked since then, we may have missed.
            let others = store.replicas().await?;
            if others.iter().any(|other| other.name == *name && other.heartbeat_age < LIVE) {
                // Two that live under one name would replace each other for ever, and only one of them be waited for.
                tracing::error!(%name, "another gateway has this host name and listen address; give each a host name of its own");
                *name = format!("{name}~{}", replica.0);
            }
            let revision = store.register(replica.clone(), name.clone()).await?;
            shared.auth.apply(&FeedItem::Restored(revision));
        }
        Ok::<_, StoreError>(())
    };
    let mut ticks = interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Who else lives changes slowly; asking for it with every heartbeat would be half of what an idle gateway asks.
    for count in 0_u64.. {
        ticks.tick().await;
        let sent = shared.clock.mono();
        let others = async {
            beat(&mut name).await?;
            if count % 2 == 0 { store.replicas().await.map(Some) } else { Ok(None) }
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

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod outage_tests;

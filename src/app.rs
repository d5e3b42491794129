//! The composition root: a [`Config`] in, a running gateway out, and the way down again.
//!
//! The order matters: a gateway registers with the store **before** it accepts, so that whoever revokes a key knows whom to
//! wait for; on the way down it stops accepting, finishes what is in flight, gives its leases back, writes its usage and says
//! goodbye.

mod certificates;
mod hand_over;
mod join;
mod listen;
mod presence;
mod reload;
mod stores;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::admin::{self, Admin};
use crate::auth::Authenticator;
use crate::clock::SystemClock;
use crate::config::model::Config;
use crate::gateway::{InForce, Shared};
use crate::limit::Limiter;
use crate::limit::address::AddressRate;
use crate::management::api::{FlushUsage, Management};
use crate::server::take_over::{Link, TakeOverError};
use crate::server::{BindError, Drain, FrontTls, Stage, TlsError, Workers};
use crate::store::health::Guard;
use crate::store::{Change, ChangeFeed, FeedItem, ReplicaId, Store, StoreError};
use crate::telemetry::Metrics;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::trace::IdSource;
use crate::upstream::{Clusters, FieldError, Fields, read_fields};
use crate::usage::journal::{Journal, JournalError};
use crate::usage::{JOURNAL_PERIOD, Usage};

/// How often caches and metrics are tidied.
const MAINTENANCE: Duration = Duration::from_secs(5);
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
    #[error("cannot listen on {0}: {1}. Stop what listens there, or set another address in listen.admin.address")]
    Admin(SocketAddr, std::io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The usage journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A secret that an upstream is to get.
    #[error(transparent)]
    Fields(#[from] FieldError),
    /// The sockets of another process.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// Threads or runtimes.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    /// Told to end before it served.
    #[error("stopped while it waited for the store")]
    Stopped,
}

use hand_over::HandOver;
use listen::Listening;
use presence::Presence;
use reload::Reloader;

pub use reload::Compile;
pub use stores::open;

/// Why a gateway ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was told to.
    Told,
    /// Another process serves on its sockets.
    TakenOver,
}

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
    admin_task: JoinHandle<()>,
    reloader: Reloader,
    hand_over: Arc<HandOver>,
    offer_task: JoinHandle<()>,
    /// Where clients reach it.
    pub public: SocketAddr,
    /// Where operators reach it.
    pub admin_address: SocketAddr,
}

impl App {
    /// Starts everything. When this returns, requests are served. A store that is not there is waited for; `stop` ends that.
    /// When the file changes, `compile` makes of it what is to be in force then. With `take_over` the sockets are those of the
    /// gateway that has the address now, if there is one; it ends when this one serves.
    pub fn start(
        config: Config,
        compile: Compile,
        take_over: bool,
        stop: impl Future<Output = ()>,
    ) -> Result<Self, StartError> {
        let control = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("control")
            .build()?;
        let fields = read_fields(&config.upstreams)?;
        let store = stores::open_for(&config, control.handle())?;
        let clock = SystemClock::shared();
        let tls = config.listen.tls.as_ref().map(FrontTls::load).transpose()?.map(Arc::new);
        let mut listening = Listening::begin(&config, take_over)?;
        let taking_over = listening.link.is_some();
        // The process before us has the journal until it ends.
        let journal = config.usage.journal.as_ref().filter(|_| !taking_over);
        let journal = journal.map(|path| Journal::open(path, clock.clone())).transpose()?;
        let awaits_journal = taking_over && config.usage.journal.is_some();
        let (public, admin_address) = (listening.listeners.address, listening.admin.local_addr()?);
        let log = AccessLog::start(config.log)?;

        let replica = ReplicaId(uuid::Uuid::now_v7().to_string().into());
        let name = presence::usual_name(public);
        let guard = Guard::new(store, clock, config.store.timeout, control.handle().clone());
        let shared = share(config, fields, &guard, &replica, log, journal, control.handle());
        if awaits_journal {
            shared.usage.await_journal();
        }
        let admin = Arc::new(Admin::new(shared.metrics.clone(), shared.limiter.clone(), guard.clone()));
        let ready = Arc::new(Notify::new());
        let admin_task =
            control.spawn(serve_admin(admin.clone(), listening.admin.try_clone()?, taking_over.then(|| ready.clone())));
        // Subscribe, then register: no change can fall between the two.
        let feed = guard.store().subscribe();
        control.block_on(join::register(&**guard.store(), &replica, &name, stop))?;
        control.spawn(join::look_around(guard.store().clone(), shared.metrics.clone()));

        let store = guard.guarded();
        let drain = Drain::new();
        let presence = Presence::new(shared.clone(), store.clone(), replica.clone(), name);
        let mut tasks = background(&shared, &store, &replica, &presence, &admin, feed, &control);
        if let Some(tls) = &tls {
            tasks.push(control.spawn(certificates::follow(tls.clone(), shared.metrics.clone())));
        }
        listening.listeners.fill_up(shared.config().workers)?;
        let hand_over = HandOver::new(presence, listening.duplicate()?);
        let Listening { listeners, link, .. } = listening;
        let workers = Workers::start(listeners, tls.as_ref(), &shared, &drain)?;
        admin.set_ready(true);
        ready.notify_one();
        tracing::info!(%public, admin = %admin_address, workers = shared.config().workers, "serving");
        let reloader = Reloader::start(shared.clone(), tls, compile)?;
        let offer_task = control.spawn(hand_over.clone().offer());
        let app = Self {
            shared,
            store,
            replica,
            admin,
            drain,
            workers,
            control,
            tasks,
            admin_task,
            reloader,
            hand_over,
            offer_task,
            public,
            admin_address,
        };
        match link {
            None => Ok(app),
            Some(link) => app.conclude(link),
        }
    }

    /// The sockets are served: whoever had them may go.
    fn conclude(self, mut link: Link) -> Result<Self, StartError> {
        match link.serving() {
            Ok(()) => {
                self.control.spawn(hand_over::after(link, self.shared.clone()));
                Ok(self)
            }
            Err(error) => {
                self.stop(Ending::TakenOver, std::future::pending());
                Err(error.into())
            }
        }
    }

    /// Waits until another process serves on our sockets.
    pub async fn taken_over(&self) {
        self.hand_over.done().await;
    }

    /// What is in force.
    pub fn config(&self) -> Arc<Config> {
        self.shared.config()
    }

    /// Reads the file again, now.
    pub fn reload(&self) {
        self.reloader.reload();
    }

    /// Drains and stops: not ready, no new connections, requests in flight finished, leases and usage in the store. `hurry`: what is
    /// in flight is not waited for any longer.
    pub fn stop(self, ending: Ending, hurry: impl Future<Output = ()>) {
        let Self { shared, store, replica, admin, drain, workers, control, tasks, .. } = self;
        admin.set_ready(false);
        drop(self.reloader);
        control.block_on(async {
            let mut hurry = pin!(hurry);
            let mut hurried = false;
            match ending {
                // Whoever asks at the operators' address is to hear the new one.
                Ending::TakenOver => self.admin_task.abort(),
                Ending::Told => tokio::select! {
                    () = sleep(shared.config().drain.delay) => {}
                    () = &mut hurry => hurried = true,
                },
            }
            tracing::info!("draining");
            self.offer_task.abort();
            self.hand_over.close();
            drain.enter(if ending == Ending::TakenOver { Stage::HandedOver } else { Stage::Draining });
            let mut joined = spawn_blocking(|| workers.join());
            if !hurried {
                tokio::select! {
                    _ = &mut joined => return,
                    () = &mut hurry => {}
                }
            }
            tracing::warn!("told to end once more: what is in flight is not waited for");
            drain.enter(Stage::Closing);
            let _ = joined.await;
        });
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
        self.admin_task.abort();
        tasks.iter().for_each(JoinHandle::abort);
        if !shared.log.flush(LAST_LINES) {
            tracing::error!("nobody reads the request log on stdout; its last lines are lost");
        }
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
    fields: Vec<Fields>,
    guard: &Arc<Guard>,
    replica: &ReplicaId,
    log: AccessLog,
    journal: Option<Journal>,
    control: &Handle,
) -> Arc<Shared> {
    let config = Arc::new(config);
    let (store, clock) = (guard.guarded(), guard.clock().clone());
    let metrics = Arc::new(Metrics::new());
    let clusters = Clusters::new(&config.upstreams, fields, config.workers, &metrics, control);
    let usage = Arc::new(Usage::new(store.clone(), metrics.clone(), replica.clone(), journal));
    Arc::new(Shared {
        auth: Arc::new(Authenticator::new(guard.clone(), config.cache.capacity, metrics.clone())),
        limiter: Arc::new(Limiter::new(guard.clone(), config.store.outage_quota)),
        failed_auth: AddressRate::new(),
        public_requests: AddressRate::new(),
        management: Management::new(store, clock.clone(), flush_hook(&usage)),
        inspection: Semaphore::new(config.limits.inspect_total.min(Semaphore::MAX_PERMITS)),
        ids: IdSource::new(),
        usage,
        metrics,
        log,
        clock,
        in_force: watch::Sender::new(Arc::new(InForce { config, clusters })),
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
    presence: &Arc<Presence>,
    admin: &Arc<Admin>,
    feed: ChangeFeed,
    control: &Runtime,
) -> Vec<JoinHandle<()>> {
    let (s, st, r) = (shared.clone(), store.clone(), replica.clone());
    let follow = control.spawn(follow_changes(s, st, r, feed));
    let heartbeat = control.spawn(presence.clone().keep_alive(admin.clone()));
    let s = shared.clone();
    let flush = control.spawn(every(shared.config().usage.flush, move || {
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
    let (s, st) = (shared.clone(), store.clone());
    let sweep = control.spawn(every(SWEEP, move || {
        let (st, retention) = (st.clone(), s.config().usage.retention);
        async move {
            if let Err(error) = st.sweep(retention).await {
                tracing::warn!(%error, "old usage could not be forgotten");
            }
        }
    }));
    let mut tasks = vec![follow, heartbeat, flush, tidy, sweep];
    if shared.config().usage.journal.is_some() {
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

/// With `ready` it begins only then: an address that was taken over must not answer for a gateway that does not serve yet.
async fn serve_admin(admin: Arc<Admin>, listener: std::net::TcpListener, ready: Option<Arc<Notify>>) {
    if let Some(ready) = ready {
        ready.notified().await;
    }
    match TcpListener::from_std(listener) {
        Ok(listener) => admin::serve(admin, listener).await,
        Err(error) => tracing::error!(%error, "the admin listener cannot be served"),
    }
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

#[cfg(test)]
mod outage_tests;

//! Workers: threads that accept and serve, and stop without dropping what they have accepted.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{interval, sleep, timeout};

use super::listener::Listeners;
use super::places::{Counts, Place};
use super::sweep::{is_goodbye, is_overdue, is_stalled, must_leave};
use super::tls::FrontTls;
use super::turn_away::turn_away;
use super::{connection, descriptors, proxy_protocol};
use crate::gateway::connection::{ConnInfo, Phase};
use crate::gateway::{Gateway, InForce, Shared};
use crate::policy::instant::Mono;

/// How often a worker looks for connections that have waited too long.
const SWEEP: Duration = Duration::from_millis(500);
/// A connection that has been idle this long when its worker drains, or since, is closed. Sooner, its client may be about to send;
/// it is told with its next answer.
const IDLE: Duration = Duration::from_secs(2);
/// How often a worker that drains looks for such connections.
const LOOK: Duration = Duration::from_millis(50);
/// Rest after an accept that failed for want of descriptors: trying at once would only burn the core.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// Rest after a connection was turned away: who comes back at once must not have the core to himself.
const TURN_AWAY_REST: Duration = Duration::from_millis(1);
/// How long a PROXY header that has not come when the worker drains is waited for.
const LAST_HEADER: Duration = Duration::from_millis(100);

/// Tells workers to stop accepting and to end their connections.
#[derive(Debug, Clone)]
pub struct Drain(watch::Sender<Stage>);

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Not begun.
    Serving,
    /// No new connections, but for those that wait in the kernel already.
    Draining,
    /// No new connections: another process accepts on the same sockets.
    HandedOver,
    /// What is left is closed.
    Closing,
}

impl Drain {
    /// Nobody is draining yet.
    pub fn new() -> Self {
        Self(watch::Sender::new(Stage::Serving))
    }

    /// Goes on to this stage.
    pub fn enter(&self, stage: Stage) {
        self.0.send_replace(stage);
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

/// All workers of the process.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts the workers, each on its share of the sockets.
    pub fn start(
        listeners: Listeners,
        tls: Option<&Arc<FrontTls>>,
        shared: &Arc<Shared>,
        drain: &Drain,
    ) -> io::Result<Self> {
        let config = shared.config();
        let places = descriptors::places(descriptors::raise(), config.workers);
        let wanted = config.limits.connections;
        if wanted > places {
            tracing::warn!(
                "limits.connections is {wanted}, and this process may open too few files for more than {places} connections: \
                 raise the limit (ulimit -n, LimitNOFILE=) or write limits.connections: {places}"
            );
        }
        let counts = Arc::new(Counts::new(places, shared.metrics.clone()));
        let threads = listeners.share_out(config.workers).into_iter().enumerate().map(|(index, sockets)| {
            let (shared, tls, counts) = (shared.clone(), tls.cloned(), counts.clone());
            let (draining, configs) = (drain.0.subscribe(), shared.in_force.subscribe());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let worker = Worker {
                    gateway: Arc::new(Gateway::new(shared, index)),
                    tls,
                    counts,
                    open: Mutex::default(),
                    next_id: AtomicU64::new(0),
                    draining,
                };
                if let Err(error) = runtime.block_on(Arc::new(worker).run(sockets, configs)) {
                    tracing::error!(%error, "a worker could not start");
                }
            })
        });
        Ok(Self { threads: threads.collect::<io::Result<_>>()? })
    }

    /// Waits until every worker has drained.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

struct Worker {
    gateway: Arc<Gateway>,
    tls: Option<Arc<FrontTls>>,
    counts: Arc<Counts>,
    /// Open connections, for the sweep.
    open: Mutex<HashMap<u64, (Arc<ConnInfo>, AbortHandle)>>,
    next_id: AtomicU64,
    draining: watch::Receiver<Stage>,
}

impl Worker {
    async fn run(
        self: Arc<Self>,
        sockets: Vec<TcpListener>,
        mut configs: watch::Receiver<Arc<InForce>>,
    ) -> io::Result<()> {
        let mut draining = self.draining.clone();
        let adopt = tokio::net::TcpListener::from_std;
        let listeners = sockets.into_iter().map(adopt).collect::<io::Result<Vec<_>>>()?;
        // Connections hold a sender each; when the last is gone, so is the last connection.
        let (alive, mut all_gone) = mpsc::channel::<()>(1);
        let mut sweep = interval(SWEEP);
        let (mut rest, mut resting) = (pin!(sleep(Duration::ZERO)), false);
        loop {
            tokio::select! {
                accepted = accept_from(&listeners, self.next_id.load(Ordering::Relaxed)), if !resting => {
                    let pause = match accepted {
                        Ok((stream, peer)) => (!self.accept(stream, peer, &alive)).then_some(TURN_AWAY_REST),
                        Err(error) => Some(self.accept_failed(&error)),
                    };
                    if let Some(pause) = pause {
                        rest.set(sleep(pause));
                        resting = true;
                    }
                },
                () = rest.as_mut(), if resting => resting = false,
                _ = sweep.tick() => self.sweep(),
                Ok(()) = configs.changed() => self.gateway.reload(&configs.borrow_and_update().clone()),
                _ = draining.wait_for(|stage| *stage != Stage::Serving) => break,
            }
        }
        let handed_over = *draining.borrow() == Stage::HandedOver;
        for listener in listeners {
            // What the kernel queued for this socket would be reset by closing it. Asked of the kernel itself: tokio only knows
            // what its last turn of the event loop told it.
            let queue = listener.into_std()?;
            if handed_over {
                // The queue lives on in the process that has it now.
                continue;
            }
            while let Ok((stream, peer)) = queue.accept() {
                if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                    self.accept(stream, peer, &alive);
                }
            }
        }
        drop(alive);
        self.drain(&mut all_gone, &mut draining).await;
        Ok(())
    }

    /// Lets connections end: each is told with its next answer, and closed when it has been idle for a while.
    async fn drain(&self, all_gone: &mut mpsc::Receiver<()>, draining: &mut watch::Receiver<Stage>) {
        let limit = self.gateway.snapshot().config.drain.timeout;
        let now = self.gateway.shared().clock.mono();
        self.open().values().for_each(|(conn, _)| conn.drain(now));
        let (mut over, mut look) = (pin!(sleep(limit)), interval(LOOK));
        loop {
            tokio::select! {
                _ = all_gone.recv() => return,
                () = &mut over => {
                    tracing::warn!(open = self.open().len(), "drain.timeout is over; closing what is left");
                    return;
                }
                _ = draining.wait_for(|stage| *stage == Stage::Closing) => return,
                _ = look.tick() => self.close_idle(IDLE.min(limit / 2)),
            }
        }
    }

    fn close_idle(&self, patience: Duration) {
        let now = self.gateway.shared().clock.mono();
        let idle = |(conn, task): &(Arc<ConnInfo>, AbortHandle)| {
            let (phase, since) = conn.phase();
            // One whose client is slow to take what it was sent only looks idle.
            let idle = phase == Phase::Idle && conn.stalled_for(now).is_zero();
            let over = now.since(since) > patience;
            if idle && over && conn.is_multiplexed() && !conn.has_parted() {
                // It has a last word to say.
                conn.leave();
                return None;
            }
            (idle && (over || conn.has_parted())).then(|| task.clone())
        };
        // Collected first: an aborted task gives its slot up, and that takes the lock.
        let idle: Vec<AbortHandle> = self.open().values().filter_map(idle).collect();
        idle.iter().for_each(AbortHandle::abort);
    }

    /// Finds a place for a connection; false: there was none.
    fn accept(self: &Arc<Self>, mut stream: TcpStream, peer: SocketAddr, alive: &mpsc::Sender<()>) -> bool {
        let snapshot = self.gateway.snapshot();
        let Some(place) = Place::take(&self.counts, snapshot.config.limits.connections) else {
            self.turn_away(stream, "The gateway has as many connections as it may have (limits.connections).");
            return false;
        };
        if !snapshot.config.listen.proxy_protocol {
            return self.admit(stream, peer.ip(), place, alive.clone());
        }
        let (worker, alive) = (self.clone(), alive.clone());
        tokio::spawn(async move {
            match worker.receive_proxy_header(&mut stream, peer.ip()).await {
                Some(client) => drop(worker.admit(stream, client, place, alive)),
                None => worker.gateway.shared().metrics.proxy_headers_refused.increment(1),
            }
        });
        true
    }

    /// The client that the header names, if it comes in time and its writer is believed.
    async fn receive_proxy_header(&self, stream: &mut TcpStream, peer: IpAddr) -> Option<IpAddr> {
        let snapshot = self.gateway.snapshot();
        let (listen, mut draining) = (&snapshot.config.listen, self.draining.clone());
        let patience = async {
            let drained = async {
                let _ = draining.wait_for(|stage| *stage != Stage::Serving).await;
                sleep(LAST_HEADER).await;
            };
            timeout(snapshot.config.timeouts.handshake, drained).await
        };
        tokio::select! {
            received = proxy_protocol::receive(stream) => match received {
                Ok(client) if listen.trusted_proxies.is_empty() || listen.trusted_proxies.contains(peer) => {
                    Some(client.unwrap_or(peer))
                }
                Ok(_) => Some(peer),
                Err(error) => {
                    tracing::debug!(%peer, %error, "a connection without a good PROXY header");
                    None
                }
            },
            _ = patience => None,
        }
    }

    /// Serves a connection whose client is known; false: the client has as many as it may have.
    fn admit(self: &Arc<Self>, stream: TcpStream, peer: IpAddr, mut place: Place, alive: mpsc::Sender<()>) -> bool {
        let snapshot = self.gateway.snapshot();
        let trusted = &snapshot.config.listen.trusted_proxies;
        // The connections of a proxy are those of many clients.
        if let Some(limit) = snapshot.config.limits.connections_per_address
            && !trusted.contains(peer)
            && !place.claim(peer, limit)
        {
            self.turn_away(
                stream,
                "Your address has as many connections as it may have (limits.connections_per_address).",
            );
            return false;
        }
        let _ = stream.set_nodelay(true);
        let conn =
            Arc::new(ConnInfo::new(peer, self.tls.is_some(), self.gateway.shared().clock.mono()).trusting(trusted));
        if *self.draining.borrow() != Stage::Serving {
            // Whoever told the others did not know of this one.
            conn.drain(self.gateway.shared().clock.mono());
        }
        let (gateway, tls, info) = (self.gateway.clone(), self.tls.clone(), conn.clone());
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let slot = Slot { worker: self.clone(), id, _place: place };
        let task = tokio::spawn(async move {
            let _slot = slot;
            connection::serve(gateway, stream, tls, conn).await;
            drop(alive);
        });
        self.open().insert(id, (info, task.abort_handle()));
        true
    }

    fn turn_away(&self, stream: TcpStream, why: &'static str) {
        let shared = self.gateway.shared();
        shared.metrics.connections_refused.increment(1);
        if self.counts.may_complain(shared.clock.mono()) {
            tracing::warn!("connections are turned away: {why}");
        }
        turn_away(&self.counts, stream, why, shared.ids.next());
    }

    /// Notes a failed accept; returns how long to rest.
    fn accept_failed(&self, error: &io::Error) -> Duration {
        let shared = self.gateway.shared();
        shared.metrics.accept_errors.increment(1);
        if self.counts.may_complain(shared.clock.mono()) {
            tracing::warn!(%error, "accept failed");
        }
        match Errno::from_io_error(error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => ACCEPT_REST,
            // The next one may be better: this client was gone before it was accepted.
            _ => TURN_AWAY_REST,
        }
    }

    /// Ends connections that have been idle, or at their head, for too long; and tidies the upstream pool.
    fn sweep(&self) {
        let snapshot = self.gateway.snapshot();
        let (now, timeouts) = (self.gateway.shared().clock.mono(), &snapshot.config.timeouts);
        let is_over =
            |(conn, task): &(Arc<ConnInfo>, AbortHandle)| is_overdue(conn, now, timeouts).then(|| task.clone());
        self.open().values().filter(|(conn, _)| has_settled(conn, now)).for_each(|(conn, _)| conn.rest());
        self.open().values().filter(|(conn, _)| is_goodbye(conn, now, timeouts)).for_each(|(conn, _)| conn.drain(now));
        self.open().values().filter(|(conn, _)| must_leave(conn, now)).for_each(|(conn, _)| conn.leave());
        // What nobody reads is not left to the kernel, which would keep it for minutes.
        self.open().values().filter(|(conn, _)| is_stalled(conn, now, timeouts)).for_each(|(conn, _)| conn.reset());
        // Collected first: an aborted task gives its slot up, and that takes the lock.
        let overdue: Vec<AbortHandle> = self.open().values().filter_map(is_over).collect();
        overdue.iter().for_each(AbortHandle::abort);
        self.gateway.maintain();
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (Arc<ConnInfo>, AbortHandle)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Idle for a moment: its next request is not on its way.
fn has_settled(conn: &ConnInfo, now: Mono) -> bool {
    let (phase, since) = conn.phase();
    !conn.is_multiplexed() && phase == Phase::Idle && now.since(since) > SWEEP
}

/// The next connection of any of them, each being asked first in its turn.
async fn accept_from(listeners: &[tokio::net::TcpListener], turn: u64) -> io::Result<(TcpStream, SocketAddr)> {
    let accept = |cx: &mut Context<'_>| {
        let ready = |listener: &tokio::net::TcpListener| match listener.poll_accept(cx) {
            Poll::Ready(accepted) => Some(accepted),
            Poll::Pending => None,
        };
        let (later, first) = listeners.split_at(turn as usize % listeners.len().max(1));
        first.iter().chain(later).find_map(ready).map_or(Poll::Pending, Poll::Ready)
    };
    poll_fn(accept).await
}

/// A place, and the entry of the connection that has it among the open ones.
struct Slot {
    worker: Arc<Worker>,
    id: u64,
    _place: Place,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.worker.open().remove(&self.id);
    }
}

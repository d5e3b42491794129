//! Workers: threads that accept and serve, and stop without dropping what they have accepted.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{interval, sleep};

use super::connection;
use super::listener::Listeners;
use super::tls::FrontTls;
use crate::config::model::Timeouts;
use crate::gateway::context::{ConnInfo, Phase};
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
        let counts = Arc::new(Counts::default());
        let threads = listeners.share_out(shared.config().workers).into_iter().enumerate().map(|(index, sockets)| {
            let (shared, tls, counts) = (shared.clone(), tls.cloned(), counts.clone());
            let (draining, configs) = (drain.0.subscribe(), shared.in_force.subscribe());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let worker =
                    Worker { gateway: Arc::new(Gateway::new(shared, index)), tls, counts, open: Mutex::default() };
                if let Err(error) = runtime.block_on(Arc::new(worker).run(sockets, draining, configs)) {
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

/// Connections of the whole process, for the limits.
#[derive(Debug, Default)]
struct Counts {
    all: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

struct Worker {
    gateway: Arc<Gateway>,
    tls: Option<Arc<FrontTls>>,
    counts: Arc<Counts>,
    /// Open connections, for the sweep.
    open: Mutex<HashMap<u64, (Arc<ConnInfo>, AbortHandle)>>,
}

impl Worker {
    async fn run(
        self: Arc<Self>,
        sockets: Vec<TcpListener>,
        mut draining: watch::Receiver<Stage>,
        mut configs: watch::Receiver<Arc<InForce>>,
    ) -> io::Result<()> {
        let adopt = tokio::net::TcpListener::from_std;
        let listeners = sockets.into_iter().map(adopt).collect::<io::Result<Vec<_>>>()?;
        // Connections hold a sender each; when the last is gone, so is the last connection.
        let (alive, mut all_gone) = mpsc::channel::<()>(1);
        let mut sweep = interval(SWEEP);
        let mut next_id = 0;
        loop {
            tokio::select! {
                accepted = accept_from(&listeners, next_id) => match accepted {
                    Ok((stream, peer)) => self.accept(stream, peer, &mut next_id, &alive),
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        sleep(ACCEPT_REST).await;
                    }
                },
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
                    self.accept(stream, peer, &mut next_id, &alive);
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
        self.open().values().for_each(|(conn, _)| conn.drain());
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
            let idle = phase == Phase::Idle && now.since(since) > patience && conn.stalled_for(now).is_zero();
            idle.then(|| task.clone())
        };
        // Collected first: an aborted task gives its slot up, and that takes the lock.
        let idle: Vec<AbortHandle> = self.open().values().filter_map(idle).collect();
        idle.iter().for_each(AbortHandle::abort);
    }

    fn accept(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, next_id: &mut u64, alive: &mpsc::Sender<()>) {
        let shared = self.gateway.shared();
        let Some(slot) = Slot::take(self, peer.ip().to_canonical(), *next_id) else {
            shared.metrics.connections_refused.increment(1);
            return;
        };
        *next_id += 1;
        let _ = stream.set_nodelay(true);
        let conn = Arc::new(ConnInfo::new(peer.ip(), self.tls.is_some(), shared.clock.mono()));
        let (gateway, tls, alive) = (self.gateway.clone(), self.tls.clone(), alive.clone());
        let (id, info) = (slot.id, conn.clone());
        let task = tokio::spawn(async move {
            let _slot = slot;
            connection::serve(gateway, stream, tls, conn).await;
            drop(alive);
        });
        self.open().insert(id, (info, task.abort_handle()));
    }

    /// Ends connections that have been idle, or at their head, for too long; and tidies the upstream pool.
    fn sweep(&self) {
        let snapshot = self.gateway.snapshot();
        let (now, timeouts) = (self.gateway.shared().clock.mono(), &snapshot.config.timeouts);
        let is_over =
            |(conn, task): &(Arc<ConnInfo>, AbortHandle)| is_overdue(conn, now, timeouts).then(|| task.clone());
        self.open().values().filter(|(conn, _)| has_settled(conn, now)).for_each(|(conn, _)| conn.rest());
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

fn is_overdue(conn: &ConnInfo, now: Mono, timeouts: &Timeouts) -> bool {
    // Nobody reads: neither the client's connection nor the upstream's behind it is held for ever.
    if conn.stalled_for(now) > timeouts.idle {
        return true;
    }
    if conn.head_since().is_some_and(|since| now.since(since) > timeouts.header) {
        return true;
    }
    let (phase, since) = conn.phase();
    let limit = match phase {
        Phase::Idle => timeouts.keepalive,
        Phase::Head => timeouts.header,
        Phase::Busy => return false,
    };
    now.since(since) > limit
}

/// A place among the allowed connections; given up when dropped, also when the connection's task is aborted or panics.
struct Slot {
    worker: Arc<Worker>,
    /// Where connections of each address are counted.
    address: Option<IpAddr>,
    id: u64,
}

impl Slot {
    fn take(worker: &Arc<Worker>, address: IpAddr, id: u64) -> Option<Self> {
        let (shared, snapshot) = (worker.gateway.shared(), worker.gateway.snapshot());
        let limits = &snapshot.config.limits;
        if worker.counts.all.fetch_add(1, Ordering::Relaxed) >= limits.connections {
            worker.counts.all.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if let Some(limit) = limits.connections_per_address {
            let mut by_address = worker.counts.by_address.lock().unwrap_or_else(PoisonError::into_inner);
            let count = by_address.entry(address).or_default();
            if *count >= limit {
                worker.counts.all.fetch_sub(1, Ordering::Relaxed);
                return None;
            }
            *count += 1;
        }
        shared.metrics.connections_total.increment(1);
        shared.metrics.connections.increment(1.0);
        let address = limits.connections_per_address.map(|_| address);
        Some(Self { worker: worker.clone(), address, id })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let shared = self.worker.gateway.shared();
        if std::thread::panicking() {
            shared.metrics.panics.increment(1);
        }
        shared.metrics.connections.decrement(1.0);
        self.worker.counts.all.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = &self.address {
            let mut by_address = self.worker.counts.by_address.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = by_address.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    by_address.remove(address);
                }
            }
        }
        self.worker.open().remove(&self.id);
    }
}

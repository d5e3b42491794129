//! Workers: threads that accept and serve, and stop without dropping what they have accepted.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{interval, sleep, timeout};

use super::connection;
use super::listener::Listeners;
use super::tls::FrontTls;
use crate::config::model::Timeouts;
use crate::gateway::context::{ConnInfo, Phase};
use crate::gateway::{Gateway, Shared};
use crate::policy::instant::Mono;

/// How often a worker looks for connections that have waited too long.
const SWEEP: Duration = Duration::from_millis(500);
/// How long a connection that was accepted just before a drain may take to send its first request.
const FIRST_REQUEST: Duration = Duration::from_millis(100);
/// Rest after an accept that failed for want of descriptors: trying at once would only burn the core.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Tells workers to stop accepting and to end their connections.
#[derive(Debug, Clone)]
pub struct Drain(watch::Sender<bool>);

impl Drain {
    /// Nobody is draining yet.
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Starts it.
    pub fn start(&self) {
        self.0.send_replace(true);
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
    /// Starts one worker on each socket.
    pub fn start(
        listeners: Listeners,
        tls: Option<&Arc<FrontTls>>,
        shared: &Arc<Shared>,
        drain: &Drain,
    ) -> io::Result<Self> {
        let counts = Arc::new(Counts::default());
        let threads = listeners.sockets.into_iter().enumerate().map(|(index, socket)| {
            let (shared, draining, counts) = (shared.clone(), drain.0.subscribe(), counts.clone());
            let tls = tls.cloned();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let gateway = Arc::new(Gateway::new(shared, index));
                let worker = Worker { gateway, tls, counts, open: Mutex::default() };
                if let Err(error) = runtime.block_on(Arc::new(worker).run(socket, draining)) {
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
    async fn run(self: Arc<Self>, socket: TcpListener, mut draining: watch::Receiver<bool>) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(socket)?;
        // Connections hold a sender each; when the last is gone, so is the last connection.
        let (alive, mut all_gone) = mpsc::channel::<()>(1);
        let mut sweep = interval(SWEEP);
        let mut next_id = 0;
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.accept(stream, peer, &mut next_id, &alive),
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        sleep(ACCEPT_REST).await;
                    }
                },
                _ = sweep.tick() => self.sweep(),
                _ = draining.wait_for(|draining| *draining) => break,
            }
        }
        // What the kernel queued for this socket would be reset by closing it. Asked of the kernel itself: tokio only knows what
        // its last turn of the event loop told it.
        let queue = listener.into_std()?;
        while let Ok((stream, peer)) = queue.accept() {
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                self.accept(stream, peer, &mut next_id, &alive);
            }
        }
        drop((queue, alive));
        let open = self.open().values().map(|(conn, _)| conn.clone()).collect::<Vec<_>>();
        let (used, fresh): (Vec<_>, Vec<_>) = open.into_iter().partition(|conn| conn.was_used());
        used.iter().for_each(|conn| conn.drain());
        // Told to end, hyper closes at once a connection on which nothing came yet; the first request is under way on most.
        if !fresh.is_empty() {
            sleep(FIRST_REQUEST).await;
            fresh.iter().for_each(|conn| conn.drain());
        }
        let limit = self.gateway.snapshot().config.drain.timeout;
        if timeout(limit, all_gone.recv()).await.is_err() {
            tracing::warn!(open = self.open().len(), "drain.timeout is over; closing what is left");
        }
        Ok(())
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
        // Collected first: an aborted task gives its slot up, and that takes the lock.
        let overdue: Vec<AbortHandle> = self.open().values().filter_map(is_over).collect();
        overdue.iter().for_each(AbortHandle::abort);
        self.gateway.maintain();
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (Arc<ConnInfo>, AbortHandle)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    address: IpAddr,
    id: u64,
}

impl Slot {
    fn take(worker: &Arc<Worker>, address: IpAddr, id: u64) -> Option<Self> {
        let shared = worker.gateway.shared();
        let limits = &shared.config.limits;
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
        if shared.config.limits.connections_per_address.is_some() {
            let mut by_address = self.worker.counts.by_address.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = by_address.get_mut(&self.address) {
                *count -= 1;
                if *count == 0 {
                    by_address.remove(&self.address);
                }
            }
        }
        self.worker.open().remove(&self.id);
    }
}

//! A TCP proxy that breaks what goes through it: latency, silence, resets, cuts in the middle of an answer, refusal.
//!
//! Four threads a connection: two read, two write, so that latency delays bytes and does not thin them out. It knows nothing of
//! what it carries.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::ports::free_port;

/// So many pieces are on their way in one direction before the sender has to wait.
const PIECES: usize = 256;
/// How soon a writer whose peer takes nothing notices that its connection has ended.
const WRITE_TIMEOUT: Duration = Duration::from_millis(50);

/// In front of one port, transparent until told otherwise. Everything it holds ends when it is dropped.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    port: u16,
    inner: Arc<Inner>,
    accepting: Mutex<Option<(Arc<TcpListener>, JoinHandle<()>)>>,
}

#[derive(Debug)]
struct Inner {
    target: u16,
    state: Mutex<State>,
    changed: Condvar,
    accepted: AtomicUsize,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    down: bool,
    stalled: bool,
    latency_to_server: Duration,
    latency_to_client: Duration,
    cut_after: Option<u64>,
    links: HashMap<usize, Arc<Link>>,
}

/// One connection through the proxy.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: TcpStream,
    ended: AtomicBool,
    /// So many bytes of replies may still pass.
    allowance: Mutex<Option<u64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

/// Bytes with the time they came; no bytes are the end of the stream.
type Piece = (Instant, Vec<u8>);

impl FaultProxy {
    /// In front of this port of 127.0.0.1.
    pub(crate) fn to(target: u16) -> Self {
        let inner = Arc::new(Inner {
            target,
            state: Mutex::default(),
            changed: Condvar::new(),
            accepted: AtomicUsize::new(0),
            to_server: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
        });
        // A port that stays free while the proxy is down; another process may still have it first.
        let (port, listener) = (0..10)
            .find_map(|_| {
                let port = free_port();
                TcpListener::bind(("127.0.0.1", port)).ok().map(|listener| (port, listener))
            })
            .unwrap();
        let proxy = Self { port, inner, accepting: Mutex::default() };
        proxy.accept(listener);
        proxy
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Delays every byte, and the end of a stream, by so much. A round trip takes the sum.
    pub(crate) fn latency(&self, to_server: Duration, to_client: Duration) {
        self.change(|state| (state.latency_to_server, state.latency_to_client) = (to_server, to_client));
    }

    /// Holds all bytes both ways, and the ends of streams; connections are accepted and stay open, as before a server that hangs.
    pub(crate) fn stall(&self) {
        self.change(|state| state.stalled = true);
    }

    /// Lets flow what was held, in its order.
    pub(crate) fn resume(&self) {
        self.change(|state| state.stalled = false);
    }

    /// Resets every connection, to both sides. Returns when it is done.
    pub(crate) fn reset(&self) {
        let mut state = self.inner.lock();
        let ids = state.links.keys().copied().collect::<Vec<_>>();
        for link in state.links.values() {
            link.reset();
        }
        self.inner.changed.notify_all();
        while ids.iter().any(|id| state.links.contains_key(id)) {
            state = self.inner.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Closes every connection after so many more bytes towards the client, new ones included: in the middle of an answer.
    pub(crate) fn cut_replies_after(&self, bytes: u64) {
        self.set_cut(Some(bytes));
    }

    /// No more cuts.
    pub(crate) fn stop_cutting(&self) {
        self.set_cut(None);
    }

    fn set_cut(&self, bytes: Option<u64>) {
        self.change(|state| {
            state.cut_after = bytes;
            for link in state.links.values() {
                *link.allowance.lock().unwrap() = bytes;
            }
        });
    }

    /// Refuses new connections: nobody listens. Connections that exist stay.
    pub(crate) fn down(&self) {
        self.change(|state| state.down = true);
        if let Some((listener, thread)) = self.accepting.lock().unwrap().take() {
            // Wakes the thread. Closing alone would not do: a child of this process that has not begun its program yet holds
            // a copy.
            let _ = socket2::SockRef::from(&*listener).shutdown(Shutdown::Read);
            let _ = thread.join();
        }
    }

    /// Listens again, on the same port.
    pub(crate) fn up(&self) {
        if self.accepting.lock().unwrap().is_none() {
            self.change(|state| state.down = false);
            self.accept(TcpListener::bind(("127.0.0.1", self.port)).unwrap());
        }
    }

    /// Connections accepted so far, also those that the server then refused.
    pub(crate) fn connections(&self) -> usize {
        self.inner.accepted.load(Ordering::Acquire)
    }

    /// Connections that are open.
    pub(crate) fn open_connections(&self) -> usize {
        self.inner.lock().links.len()
    }

    /// Bytes passed on to the server so far.
    pub(crate) fn bytes_to_server(&self) -> u64 {
        self.inner.to_server.load(Ordering::Acquire)
    }

    /// Bytes passed on to clients so far.
    pub(crate) fn bytes_to_client(&self) -> u64 {
        self.inner.to_client.load(Ordering::Acquire)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.inner.lock());
        self.inner.changed.notify_all();
    }

    fn accept(&self, listener: TcpListener) {
        let inner = self.inner.clone();
        let listener = Arc::new(listener);
        let accepting = listener.clone();
        let thread = std::thread::spawn(move || {
            for client in accepting.incoming() {
                if inner.lock().down {
                    return;
                }
                let Ok(client) = client else { continue };
                let id = inner.accepted.fetch_add(1, Ordering::AcqRel);
                let inner = inner.clone();
                std::thread::spawn(move || inner.carry(id, client));
            }
        });
        *self.accepting.lock().unwrap() = Some((listener, thread));
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.down();
        for link in self.inner.lock().links.values() {
            link.close();
        }
        self.inner.changed.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole life of a connection.
    fn carry(&self, id: usize, client: TcpStream) {
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.target)) else {
            let _ = reset_on_close(&client);
            return;
        };
        for stream in [&client, &server] {
            let _ = stream.set_nodelay(true);
            let _ = stream.set_write_timeout(Some(WRITE_TIMEOUT));
        }
        let link = {
            let mut state = self.lock();
            let allowance = Mutex::new(state.cut_after);
            let link = Arc::new(Link { client, server, ended: AtomicBool::new(false), allowance });
            state.links.insert(id, link.clone());
            link
        };
        std::thread::scope(|threads| {
            for direction in [Direction::ToServer, Direction::ToClient] {
                let (pieces, taken) = sync_channel(PIECES);
                let link = &link;
                threads.spawn(move || link.read(direction, &pieces));
                threads.spawn(move || self.write(link, direction, &taken));
            }
        });
        // The sockets close here, under the lock: whoever sees the link gone sees them closed.
        let mut state = self.lock();
        state.links.remove(&id);
        drop(link);
        drop(state);
        self.changed.notify_all();
    }

    fn write(&self, link: &Link, direction: Direction, pieces: &Receiver<Piece>) {
        let (to, count) = match direction {
            Direction::ToServer => (&link.server, &self.to_server),
            Direction::ToClient => (&link.client, &self.to_client),
        };
        for (arrived, piece) in pieces {
            if !self.may_pass(link, direction, arrived) {
                return;
            }
            if piece.is_empty() {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            let (allowed, cut) = link.allowed(direction, piece.len());
            count.fetch_add(allowed as u64, Ordering::AcqRel);
            if link.write_all(to, &piece[..allowed]).is_err() || cut {
                link.close();
                self.changed.notify_all();
                return;
            }
        }
    }

    /// Waits for as long as the faults of the moment hold a piece; false when the connection ends meanwhile.
    fn may_pass(&self, link: &Link, direction: Direction, arrived: Instant) -> bool {
        let mut state = self.lock();
        loop {
            if link.ended.load(Ordering::Acquire) {
                return false;
            }
            let latency = match direction {
                Direction::ToServer => state.latency_to_server,
                Direction::ToClient => state.latency_to_client,
            };
            let left = latency.saturating_sub(arrived.elapsed());
            state = if state.stalled {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else if left.is_zero() {
                return true;
            } else {
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }
}

impl Link {
    fn read(&self, direction: Direction, pieces: &SyncSender<Piece>) {
        let mut from = match direction {
            Direction::ToServer => &self.client,
            Direction::ToClient => &self.server,
        };
        let mut buffer = [0; 16 * 1024];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            // The writer has gone when the connection has ended.
            if pieces.send((Instant::now(), buffer[..read].to_vec())).is_err() || read == 0 {
                return;
            }
        }
    }

    fn write_all(&self, mut to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match to.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.ended.load(Ordering::Acquire) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// How many of so many bytes may pass, and whether the connection ends after them.
    fn allowed(&self, direction: Direction, length: usize) -> (usize, bool) {
        let mut allowance = self.allowance.lock().unwrap();
        match (direction, &mut *allowance) {
            (Direction::ToClient, Some(left)) => {
                let allowed = usize::try_from(*left).unwrap_or(usize::MAX).min(length);
                *left -= allowed as u64;
                (allowed, *left == 0)
            }
            _ => (length, false),
        }
    }

    /// Ends both sides in order.
    fn close(&self) {
        self.ended.store(true, Ordering::Release);
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }

    /// Ends both sides with a reset, when the last thread lets go of the sockets. Until then nothing goes over the wire: ending
    /// only the reading wakes the threads and sends no FIN.
    fn reset(&self) {
        self.ended.store(true, Ordering::Release);
        for stream in [&self.client, &self.server] {
            let _ = reset_on_close(stream);
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

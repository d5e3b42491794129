//! HTTP/2 to an upstream: few connections, each with many exchanges at once.
//!
//! An exchange holds a [`Slot`] from its request to the end of its response; when all slots that the peer allows are taken,
//! another connection is opened. A connection on which the peer refused or said goodbye gets no new exchanges.

use std::error::Error;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use http::header::{CONNECTION, HOST};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self as conn, Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::task::AbortHandle;

use super::UpstreamError;
use super::body::RequestBody;
use super::interim::Interims;
use super::sender::Unanswered;
use super::sifted::Http2Io;
use super::socket::Socket;
use super::traffic::{Asked, Numbered, Traffic};
use crate::wire::answers::Extent;

/// Exchanges at once on one connection, however many the peer would allow.
const MOST: usize = 256;
/// The largest field section accepted from an upstream.
const MAX_HEAD: u32 = 256 * 1024;
/// The longest one that is read to its end, to refuse one stream instead of all.
const LONGEST_BLOCK: usize = 4 * MAX_HEAD as usize;
/// Octets of one response, and of all of a connection, that may lie here unread.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// While exchanges wait, the peer is asked this often whether it is there, and may take so long to say so.
const PING: Duration = Duration::from_secs(15);
const PONG: Duration = Duration::from_secs(10);

/// The connections of one worker to one upstream.
#[derive(Default)]
pub(super) struct Connections(Mutex<Vec<Arc<Connection>>>);

struct Connection {
    sender: SendRequest<Numbered>,
    traffic: Arc<Traffic>,
    task: AbortHandle,
    scheme: Scheme,
    taken: AtomicUsize,
    driven: Driven,
    retired: AtomicBool,
    /// Rounds of the sweep in a row in which nobody had taken a slot.
    idle_rounds: AtomicU32,
}

/// The connection itself, until its end. Its task polls it; others only ask what the peer allows. All on one thread, so nobody
/// ever waits.
type Driven = Arc<Mutex<Option<Pin<Box<conn::Connection<TokioIo<Http2Io>, Numbered, TokioExecutor>>>>>>;

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Room for one exchange on a connection.
pub(super) struct Slot {
    connection: Arc<Connection>,
    /// Those of the answer, where the client can be told.
    interims: Option<Interims>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connection.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    /// Room on a connection that is there, if any has some.
    pub(super) fn slot(&self) -> Option<Slot> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|connection| connection.is_usable());
        open.iter().find(|connection| connection.has_room()).map(Slot::take)
    }

    /// No new exchanges on any of them; each closes when its last has ended.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Closes those that have been idle for so many rounds, of which this is one. Nobody holds them any more, so the library says
    /// goodbye with a GOAWAY.
    pub(super) fn prune(&self, most: u32) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|connection| connection.is_usable() && connection.idle_rounds() < most);
    }

    /// Keeps a new connection, and takes the first slot on it.
    pub(super) fn keep(&self, connection: NewConnection) -> Slot {
        let NewConnection { sender, traffic, task, scheme, driven } = connection;
        let (taken, retired, idle_rounds) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicU32::new(0));
        let connection = Arc::new(Connection { sender, traffic, task, scheme, taken, driven, retired, idle_rounds });
        let slot = Slot::take(&connection);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        slot
    }
}

impl Connection {
    fn is_usable(&self) -> bool {
        !self.retired.load(Ordering::Relaxed) && !self.sender.is_closed()
    }

    /// Counts one more. A slot that was taken and freed in between starts over, because taking it does.
    fn idle_rounds(&self) -> u32 {
        if self.taken.load(Ordering::Relaxed) > 0 {
            return 0;
        }
        self.idle_rounds.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn has_room(&self) -> bool {
        let driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = driven.as_ref().map_or(0, |connection| connection.current_max_send_streams());
        self.taken.load(Ordering::Relaxed) < allowed.min(MOST)
    }
}

/// A connection after its handshake.
pub(super) struct NewConnection {
    sender: SendRequest<Numbered>,
    traffic: Arc<Traffic>,
    task: AbortHandle,
    scheme: Scheme,
    driven: Driven,
}

/// Speaks HTTP/2 on a socket. Complete when the peer's settings are there: before them nobody knows how many exchanges it allows,
/// and it would refuse those that are too many.
pub(super) async fn handshake(socket: Socket, encrypted: bool) -> Result<NewConnection, UpstreamError> {
    let traffic = Arc::<Traffic>::default();
    let (io, settings) = Http2Io::new(socket, traffic.clone(), LONGEST_BLOCK);
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|_| UpstreamError::Unreachable)?;
    settings.await.map_err(|_| UpstreamError::Unreachable)?;
    let driven = Arc::new(Mutex::new(Some(Box::pin(connection))));
    let polled = driven.clone();
    let task = tokio::spawn(poll_fn(move |cx| {
        let mut driven = polled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = &mut *driven {
            ready!(connection.as_mut().poll(cx).map(drop));
        }
        // Dropped at once: requests that it had not begun to send go back to those who wait for them.
        *driven = None;
        Poll::Ready(())
    }));
    let scheme = if encrypted { Scheme::HTTPS } else { Scheme::HTTP };
    Ok(NewConnection { sender, traffic, task: task.abort_handle(), scheme, driven })
}

impl Slot {
    fn take(connection: &Arc<Connection>) -> Self {
        connection.taken.fetch_add(1, Ordering::Relaxed);
        connection.idle_rounds.store(0, Ordering::Relaxed);
        Self { connection: connection.clone(), interims: None }
    }

    pub(super) fn is_usable(&self) -> bool {
        self.connection.is_usable()
    }

    pub(super) const fn interims(&self) -> Option<&Interims> {
        self.interims.as_ref()
    }

    /// Sends it; gives it back when the peer has not begun to process it. `keep`: should the connection be lost, it may have to go
    /// out again. `tell`: its client can be told of interim answers.
    pub(super) fn send(
        &mut self,
        request: Request<RequestBody>,
        keep: bool,
        tell: bool,
    ) -> impl Future<Output = Result<Response<Incoming>, Unanswered>> + use<> {
        self.interims = tell.then(Interims::default);
        let asked = Asked::new(&self.connection.traffic, self.interims.clone());
        exchange(self.connection.clone(), asked, request, keep)
    }
}

async fn exchange(
    connection: Arc<Connection>,
    asked: Asked,
    mut request: Request<RequestBody>,
    keep: bool,
) -> Result<Response<Incoming>, Unanswered> {
    let original = request.uri().clone();
    let body = request.body().again();
    let head = (keep || body.is_some()).then(|| head(&request));
    address(&mut request, &connection.scheme);
    let request = request.map(|body| asked.numbered(body));
    let mut failed = match connection.sender.clone().try_send_request(request).await {
        Ok(response) => return Ok(response),
        Err(failed) => failed,
    };
    let given_back = failed.take_message();
    let extent = if given_back.is_some() { Extent::Unsent } else { asked.extent() };
    let unprocessed = extent == Extent::Unsent || is_unprocessed(failed.error());
    let silent = unprocessed || extent == Extent::Silent && is_lost(failed.error());
    if silent {
        connection.retired.store(true, Ordering::Relaxed);
    }
    if let Some(request) = given_back {
        return Err(Unanswered { unsent: Some(restore(request, original)), silent, head: None });
    }
    let (unsent, head) = match (head, body) {
        (Some(head), Some(body)) if unprocessed => (Some(head.map(|()| body)), None),
        (head, _) => (None, head),
    };
    Err(Unanswered { unsent, silent, head })
}

/// As it was: the next one to take it may speak another version.
fn restore(request: Request<Numbered>, original: Uri) -> Request<RequestBody> {
    let mut request = request.map(|numbered| numbered.body);
    if let Some(host) = request.uri().authority().and_then(|authority| authority.as_str().parse().ok()) {
        request.headers_mut().insert(HOST, host);
    }
    *request.uri_mut() = original;
    *request.version_mut() = Version::HTTP_11;
    request
}

/// The peer says that it has done nothing about the request (RFC 9113 section 8.7): it refused the stream, or left with an
/// earlier one as its last.
fn is_unprocessed(error: &hyper::Error) -> bool {
    cause::<h2::Error>(error).is_some_and(|error| {
        error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}

/// The connection is gone: closed or reset by the peer, and not by us because of what it said.
fn is_lost(error: &hyper::Error) -> bool {
    cause::<io::Error>(error).is_some_and(|error| error.kind() != ErrorKind::InvalidData)
}

fn cause<E: Error + 'static>(error: &hyper::Error) -> Option<&E> {
    error.source().and_then(|cause| cause.downcast_ref())
}

/// Absolute, with the Host as the authority (RFC 9113 section 8.3.1); nothing that concerns a connection of HTTP/1 (section 8.2.2).
fn address(request: &mut Request<RequestBody>, scheme: &Scheme) {
    request.headers_mut().remove(CONNECTION);
    let host = request.headers_mut().remove(HOST);
    let authority = host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(scheme.clone());
    parts.authority = authority;
    parts.path_and_query = request.uri().path_and_query().cloned().or(Some(PathAndQuery::from_static("/")));
    match Uri::from_parts(parts) {
        Ok(uri) => *request.uri_mut() = uri,
        // Cannot be: a Host was checked when it came. The peer will then refuse what has none.
        Err(error) => tracing::debug!(%error, "a Host that is no authority"),
    }
    *request.version_mut() = Version::HTTP_2;
}

/// Of a request that may have to go out twice.
fn head(request: &Request<RequestBody>) -> Request<()> {
    let mut head = Request::new(());
    head.method_mut().clone_from(request.method());
    head.uri_mut().clone_from(request.uri());
    head.headers_mut().clone_from(request.headers());
    head
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::wire::frames::{Frame, PREFACE};

    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
    const GOAWAY: u8 = 7;

    #[tokio::test]
    async fn a_connection_that_is_idle_too_long_is_closed_with_a_goodbye_and_one_in_use_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        peer.write_all(&[SETTINGS, ACK].concat()).await.unwrap();
        let connections = Connections::default();
        let kept = || connections.0.lock().unwrap().len();
        let slot = connections.keep(handshake(Socket::plain(stream, Vec::new()), false).await.unwrap());
        (0..9).for_each(|_| connections.prune(3));
        drop(slot);
        (0..2).for_each(|_| connections.prune(3));
        assert_eq!(kept(), 1);
        // Used again, it starts over.
        drop(connections.slot().unwrap());
        (0..2).for_each(|_| connections.prune(3));
        assert_eq!(kept(), 1);
        connections.prune(3);
        assert_eq!(kept(), 0);
        let mut octets = Vec::new();
        peer.read_to_end(&mut octets).await.unwrap();
        let (mut rest, mut last) = (&octets[PREFACE.len()..], None);
        while let Some(frame) = Frame::first(rest) {
            let (payload, after) = rest[9..].split_at(frame.length as usize);
            (last, rest) = (Some((frame.kind, payload.to_vec())), after);
        }
        // NO_ERROR, and no stream was processed: it may not open any.
        assert_eq!(last, Some((GOAWAY, vec![0; 8])));
    }
}

//! A new connection to one address of an upstream: dialled, then spoken HTTP on. Keeps nothing; the pool does.

use std::net::SocketAddr;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::UpstreamError;
use super::body::RequestBody;
use super::gather::UpstreamIo;
use super::heard::{Heard, Listening};
use super::http2::{self, NewConnection, Slot};
use super::socket::Socket;
use super::tls::UpstreamConnector;
use crate::config::model::{Endpoint, Upstream};

/// The largest response head accepted from an upstream.
const MAX_HEAD: usize = 256 * 1024;

/// A connection that was opened just now.
pub(super) enum Connected {
    /// For one exchange after the other, with the task that drives it.
    Http1(SendRequest<RequestBody>, AbortHandle),
    /// For many at once.
    Http2(NewConnection),
}

/// What sends one request.
pub(super) enum Sender {
    /// A connection of its own, for as long as the exchange takes. It knows when something comes.
    Http1(SendRequest<RequestBody>, Heard),
    /// Room on a connection that others share.
    Http2(Slot),
}

/// A request that got no answer.
pub(super) struct Unanswered {
    /// The request itself, when no server can have begun to process it.
    pub(super) unsent: Option<Request<RequestBody>>,
    /// The connection was lost before any octet came.
    pub(super) silent: bool,
}

impl Sender {
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender, _) => sender.is_closed(),
            Self::Http2(slot) => !slot.is_usable(),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Http1(sender, _) => sender.is_ready(),
            Self::Http2(slot) => slot.is_usable(),
        }
    }

    /// False when it will never be.
    pub(super) async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(sender, _) => sender.ready().await.is_ok(),
            Self::Http2(slot) => slot.is_usable(),
        }
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn try_send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, Unanswered> {
        match self {
            Self::Http1(sender, heard) => {
                heard.reset();
                sender.try_send_request(request).await.map_err(|mut lost| {
                    let unsent = lost.take_message();
                    Unanswered { unsent, silent: heard.nothing(&lost.into_error()) }
                })
            }
            // Boxed: large, and of no use to the other.
            Self::Http2(slot) => Box::pin(slot.try_send(request)).await,
        }
    }
}

/// Within `connect_timeout`, everything included that comes before the request. `address` is one of the endpoint's; `heard` will
/// know of what comes.
pub(super) async fn connect(
    upstream: &Upstream,
    endpoint: &Endpoint,
    address: SocketAddr,
    tls: &UpstreamConnector,
    heard: &Heard,
) -> Result<Connected, UpstreamError> {
    let connected = timeout(upstream.connect_timeout, async {
        let stream = TcpStream::connect(address).await.map_err(|error| {
            tracing::debug!(upstream = %upstream.name, %address, %error, "no connection");
            UpstreamError::Unreachable
        })?;
        let _ = stream.set_nodelay(true);
        let socket = match endpoint.encrypted {
            false => Socket::plain(stream, Vec::new()),
            true => Socket::tls(tls.connect(stream, endpoint).await?),
        };
        if upstream.http2 {
            return http2::handshake(socket, endpoint.encrypted).await.map(Connected::Http2);
        }
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(Listening::new(UpstreamIo(TokioIo::new(socket)), heard))
            .await
            .map_err(|_| UpstreamError::Unreachable)?;
        // It ends when the lease is dropped or the upstream closes; its errors reach whoever waits for the answer.
        Ok(Connected::Http1(sender, tokio::spawn(connection).abort_handle()))
    });
    connected.await.unwrap_or(Err(UpstreamError::Unreachable))
}

//! A new connection to one address of an upstream: dialled, then spoken HTTP on. Keeps nothing; the pool does.

use std::net::SocketAddr;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::UpstreamError;
use super::body::RequestBody;
use super::gather::UpstreamIo;
use super::heard::{Heard, Listening};
use super::socket::Socket;
use crate::config::model::{Endpoint, Upstream};

/// The largest response head accepted from an upstream.
const MAX_HEAD: usize = 256 * 1024;

/// Within `connect_timeout`; with the task that drives it. `address` is one of the endpoint's; `heard` will know of what comes.
pub(super) async fn connect(
    upstream: &Upstream,
    _endpoint: &Endpoint,
    address: SocketAddr,
    heard: &Heard,
) -> Result<(SendRequest<RequestBody>, AbortHandle), UpstreamError> {
    let stream = match timeout(upstream.connect_timeout, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(upstream = %upstream.name, %address, %error, "no connection");
            return Err(UpstreamError::Unreachable);
        }
        Err(_elapsed) => return Err(UpstreamError::Unreachable),
    };
    let _ = stream.set_nodelay(true);
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(Listening::new(UpstreamIo(TokioIo::new(Socket::plain(stream, Vec::new()))), heard))
        .await
        .map_err(|_| UpstreamError::Unreachable)?;
    // It ends when the lease is dropped or the upstream closes; its errors reach whoever waits for the answer.
    let task = tokio::spawn(connection).abort_handle();
    Ok((sender, task))
}

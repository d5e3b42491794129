//! A new connection to one endpoint of an upstream: dialled, then spoken HTTP on. Keeps nothing; the pool does.

use std::sync::Arc;

use hyper::client::conn::http1;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::UpstreamError;
use super::gather::UpstreamIo;
use super::pool::Connection;
use crate::config::model::{Endpoint, Upstream};
use crate::wire::http1::{Exchange, MAX_HEAD};

/// Within `connect_timeout`.
pub(super) async fn connect(upstream: &Upstream, endpoint: &Endpoint) -> Result<Connection, UpstreamError> {
    let stream = match timeout(upstream.connect_timeout, TcpStream::connect(&*endpoint.authority)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(upstream = %upstream.name, %error, "no connection");
            return Err(UpstreamError::Unreachable);
        }
        Err(_elapsed) => return Err(UpstreamError::Unreachable),
    };
    let _ = stream.set_nodelay(true);
    let exchange = Arc::<Exchange>::default();
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(UpstreamIo::new(stream, exchange.clone()))
        .await
        .map_err(|_| UpstreamError::Unreachable)?;
    // It ends when the lease is dropped or the upstream closes; its errors reach whoever waits for the answer.
    let task = tokio::spawn(connection).abort_handle();
    Ok(Connection { sender, task, exchange })
}

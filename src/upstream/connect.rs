//! A new connection to one address of an upstream: dialled, then spoken HTTP on. Keeps nothing; the pool does.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::client::conn::http1;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::UpstreamError;
use super::gather::UpstreamIo;
use super::heard::Heard;
use super::interim::{Interims, Overheard};
use super::pool::Connection;
use super::socket::Socket;
use crate::config::model::{Endpoint, Upstream};
use crate::wire::http1::{Exchange, MAX_HEAD};

/// Within `connect_timeout`. `address` is one of the endpoint's.
pub(super) async fn connect(
    upstream: &Upstream,
    _endpoint: &Endpoint,
    address: SocketAddr,
) -> Result<Connection, UpstreamError> {
    let stream = match timeout(upstream.connect_timeout, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(upstream = %upstream.name, %address, %error, "no connection");
            return Err(UpstreamError::Unreachable);
        }
        Err(_elapsed) => return Err(UpstreamError::Unreachable),
    };
    let _ = stream.set_nodelay(true);
    let (exchange, heard, interims) = (Arc::<Exchange>::default(), Heard::default(), Interims::default());
    let io = UpstreamIo::new(Socket::plain(stream, Vec::new()), exchange.clone(), heard.clone());
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(Overheard::new(io, &interims))
        .await
        .map_err(|_| UpstreamError::Unreachable)?;
    // It ends when the lease is dropped or the upstream closes; its errors reach whoever waits for the answer.
    let task = tokio::spawn(connection.with_upgrades()).abort_handle();
    Ok(Connection { sender, task, heard, interims, exchange })
}

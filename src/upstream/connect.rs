//! A new connection to one address of an upstream: dialled, then spoken HTTP on. Keeps nothing; the pool does.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::client::conn::http1;
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::timeout;

use super::UpstreamError;
use super::gather::UpstreamIo;
use super::heard::Heard;
use super::http2::{self, NewConnection};
use super::interim::Interims;
use super::sender::Http1;
use super::sent::Sent;
use super::socket::Socket;
use super::tls::UpstreamConnector;
use crate::config::model::{Endpoint, Upstream};
use crate::wire::http1::{Exchange, MAX_HEAD};

/// A connection that was opened just now.
pub(super) enum Connected {
    /// For one exchange after the other.
    Http1(Box<Http1>),
    /// For many at once.
    Http2(NewConnection),
}

/// Within `connect_timeout`, everything included that comes before the request. `address` is one of the endpoint's.
pub(super) async fn connect(
    upstream: &Upstream,
    endpoint: &Endpoint,
    address: SocketAddr,
    tls: &UpstreamConnector,
) -> Result<Connected, UpstreamError> {
    let connected = timeout(upstream.connect_timeout, async {
        let stream = TcpStream::connect(address).await.map_err(|error| {
            tracing::debug!(upstream = %upstream.name, %address, %error, "no connection");
            match Errno::from_io_error(&error) {
                Some(Errno::MFILE | Errno::NFILE) => UpstreamError::OutOfDescriptors,
                _ => UpstreamError::Unreachable,
            }
        })?;
        let _ = stream.set_nodelay(true);
        let socket = match endpoint.encrypted {
            false => Socket::plain(stream, Vec::new()),
            true => Socket::tls(tls.connect(stream, endpoint).await?),
        };
        if upstream.http2 {
            return http2::handshake(socket, endpoint.encrypted).await.map(Connected::Http2);
        }
        speak_http1(socket).await.map(Connected::Http1)
    });
    // It may be there and hang: that is a timeout to whoever waits, and a failed connection to whoever tries elsewhere.
    connected.await.unwrap_or(Err(UpstreamError::Timeout))
}

async fn speak_http1(socket: Socket) -> Result<Box<Http1>, UpstreamError> {
    let (exchange, heard) = (Arc::<Exchange>::default(), Heard::default());
    let (interims, sent) = (Interims::default(), Sent::default());
    let io = UpstreamIo::new(socket, exchange.clone(), heard.clone(), interims.clone(), sent.clone());
    let (sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEAD).handshake(io).await.map_err(|_| UpstreamError::Unreachable)?;
    // It ends when the lease is dropped or the upstream closes; its errors reach whoever waits for the answer.
    let task = tokio::spawn(connection.with_upgrades()).abort_handle();
    let http1 = Box::new(Http1 { sender, task, heard, interims, sent, exchange });
    // What a server says before it was asked belongs to no request, least of all to the first. One turn of the event loop: what has
    // arrived by now is known after it.
    yield_now().await;
    if http1.exchange.is_spoilt() { Err(UpstreamError::Malformed) } else { Ok(http1) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn a_server_that_speaks_before_it_was_asked_is_asked_nothing() {
        for said in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "220 mail.example ESMTP\r\n", "H", ""] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let mut peer = listener.accept().unwrap().0;
            peer.write_all(said.as_bytes()).unwrap();
            // A task, as the connections of clients are.
            let spoken = tokio::spawn(speak_http1(Socket::plain(stream, Vec::new()))).await.unwrap();
            match said {
                "" => assert!(spoken.is_ok(), "it waits to be asked"),
                _ => assert!(matches!(spoken, Err(UpstreamError::Malformed)), "{said:?}"),
            }
        }
    }
}

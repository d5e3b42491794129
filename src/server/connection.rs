//! One client connection, from the accepted socket to its end: which protocol it speaks, and who serves that.
//!
//! With TLS the two sides agree by ALPN; without, HTTP/2 shows itself by its first octets (RFC 9113 section 3.3).

use std::io;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client_io::ClientIo;
use super::tls::FrontTls;
use super::{http1, http2};
use crate::gateway::Gateway;
use crate::gateway::connection::ConnInfo;
use crate::upstream::Socket;
use crate::wire::frames::PREFACE;

enum Protocol {
    Http1,
    Http2,
}

/// Serves one connection to its end.
pub(super) async fn serve(gateway: Arc<Gateway>, stream: TcpStream, tls: Option<Arc<FrontTls>>, conn: Arc<ConnInfo>) {
    let arrived = match tls {
        None => sniff(&gateway, stream, &conn).await,
        // Boxed: large, and gone long before the connection is.
        Some(tls) => Box::pin(shake_hands(&gateway, stream, &tls)).await,
    };
    let served = match arrived {
        Ok((socket, Protocol::Http1)) => {
            let limits = &gateway.snapshot().config.limits;
            let io = ClientIo::new(socket, limits, conn.clone(), gateway.shared().clock.clone());
            http1::serve(gateway, io, conn).await
        }
        Ok((socket, Protocol::Http2)) => Box::pin(http2::serve(gateway, socket, conn)).await,
        Err(error) => return tracing::debug!(%error, "a client connection ended before it spoke"),
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a client connection ended");
    }
}

/// Looks at the first octets, which stay where they are; unless they are the beginning of a preface and more must come.
async fn sniff(gateway: &Gateway, mut stream: TcpStream, conn: &ConnInfo) -> io::Result<(Socket, Protocol)> {
    let mut first = [0; PREFACE.len()];
    let seen = stream.peek(&mut first).await?;
    if seen == PREFACE.len() || seen == 0 || !PREFACE.starts_with(&first[..seen]) {
        let protocol = if first == *PREFACE { Protocol::Http2 } else { Protocol::Http1 };
        return Ok((Socket::plain(stream, Vec::new()), protocol));
    }
    let mut ahead = Vec::with_capacity(PREFACE.len());
    while ahead.len() < PREFACE.len() && PREFACE.starts_with(&ahead) {
        // The clock of the head runs from the first octet.
        conn.received(&*gateway.shared().clock);
        let left = (PREFACE.len() - ahead.len()) as u64;
        if (&mut stream).take(left).read_buf(&mut ahead).await? == 0 {
            break;
        }
    }
    let protocol = if ahead == PREFACE { Protocol::Http2 } else { Protocol::Http1 };
    Ok((Socket::plain(stream, ahead), protocol))
}

async fn shake_hands(gateway: &Gateway, stream: TcpStream, tls: &FrontTls) -> io::Result<(Socket, Protocol)> {
    let patience = gateway.snapshot().config.timeouts.handshake;
    let shaken = timeout(patience, tls.acceptor().accept(stream)).await;
    let stream = shaken.unwrap_or_else(|late| Err(late.into())).inspect_err(|_| {
        gateway.shared().metrics.tls_handshakes_failed.increment(1);
    })?;
    let protocol = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Protocol::Http2,
        _ => Protocol::Http1,
    };
    Ok((Socket::tls(stream), protocol))
}

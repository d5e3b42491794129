//! HTTP/2 on one client connection: many requests at once, each a task of the same worker.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::http2_io::Http2Io;
use super::streams::{Paced, Streams};
use crate::config::model::Limits;
use crate::gateway::Gateway;
use crate::gateway::connection::ConnInfo;
use crate::upstream::Socket;

/// Requests at once on one connection.
const STREAMS: u32 = 128;
/// Octets of one body, and of all bodies of a connection, that may lie here unread.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Octets of one answer that may wait here for the socket.
const SEND_BUFFER: usize = 64 << 10;
/// Streams that the client gave up before anybody looked at them.
const UNSEEN_RESETS: usize = 64;
/// Streams that we gave up for something malformed in them.
const OUR_RESETS: usize = 256;
/// A connection on which nothing moves is asked whether somebody is there.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

/// Serves to the end of the connection; once it drains, until the requests in flight are answered.
pub(super) async fn serve(gateway: Arc<Gateway>, socket: Socket, conn: Arc<ConnInfo>) -> hyper::Result<()> {
    conn.multiplex(gateway.shared().clock.mono());
    let config = gateway.snapshot().config.clone();
    let longest_head = header_list(&config.limits);
    let io = Http2Io::new(socket, conn.clone(), gateway.shared().clock.clone(), 2 * longest_head as usize);
    let mut builder = http2::Builder::new(Streams { idle: config.timeouts.idle });
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(longest_head)
        .max_pending_accept_reset_streams(UNSEEN_RESETS)
        .max_local_error_reset_streams(OUR_RESETS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    let service = service_fn(|request| {
        let (gateway, conn) = (gateway.clone(), conn.clone());
        async move { gateway.handle(&conn, request).await.map(|answer| answer.map(Paced::new)) }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut told = false;
    // Not a select: its other branch would be polled, for nothing, each time the connection is.
    poll_fn(|cx| {
        if !told && conn.is_draining(cx.waker()) {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    })
    .await
}

/// Heads beyond our own limits are still read, up to a margin, so that the answer can say what is wrong. Here a field counts 32
/// octets more than it has (RFC 9113 section 6.5.2).
fn header_list(limits: &Limits) -> u32 {
    let octets = limits.header_bytes + limits.uri_bytes + 32 * limits.header_count + 16 * 1024;
    u32::try_from(octets).unwrap_or(u32::MAX)
}

//! HTTP/1 on one client connection, until it ends or is spoken no more.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONNECTION, HeaderValue};
use hyper::rt::Write;
use hyper::server::conn::http1::{self, Parts};
use hyper::service::service_fn;

use super::client_io::ClientIo;
use super::tunnel;
use crate::config::model::Limits;
use crate::gateway::Gateway;
use crate::gateway::connection::ConnInfo;
use crate::gateway::upgrade::Tunnel;

/// Fields for which hyper has room without the heap.
const HYPER_HEADERS: usize = 100;

/// Serves to the end of the connection; once it drains, the next answer says that it is the last one.
///
/// hyper keeps two buffers of 8 KiB for as long as its connection lives. So one that rests between two requests is taken apart,
/// waits as a bare socket, and is put together again when octets come.
pub(super) async fn serve(gateway: Arc<Gateway>, mut io: ClientIo, conn: Arc<ConnInfo>) -> hyper::Result<()> {
    let builder = builder(&gateway.snapshot().config.limits);
    loop {
        // Where a request leaves what is to become of its connection.
        let switched = Mutex::new(None);
        let service = service_fn(|request| {
            let (gateway, conn, switched) = (gateway.clone(), conn.clone(), &switched);
            async move {
                let mut answer = gateway.handle(&conn, request).await?;
                if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                    *switched.lock().unwrap_or_else(PoisonError::into_inner) = answer.body_mut().take_tunnel();
                } else if conn.is_leaving() {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        // Boxed: a socket that only waits must not pay for its size.
        let mut connection = Box::new(builder.serve_connection(io, service));
        let ended = poll_fn(|cx| {
            conn.is_driven_by(cx.waker());
            let idle = conn.rests_since();
            match Pin::new(&mut *connection).poll(cx) {
                Poll::Ready(ended) => Poll::Ready(Some(ended)),
                // Nothing came meanwhile, so nothing is under way.
                Poll::Pending if idle.is_some() && idle == conn.rests_since() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        if let Some(Err(error)) = ended {
            return Err(error);
        }
        let Parts { io: bare, read_buf, .. } = connection.into_parts();
        io = bare;
        if ended.is_some() {
            let tunnel = switched.lock().unwrap_or_else(PoisonError::into_inner).take();
            leave(io, read_buf, tunnel, &conn).await;
            return Ok(());
        }
        if !read_buf.is_empty() {
            // Cannot be, between two requests. Whatever it is, it is not the beginning of one.
            return Ok(());
        }
        // The empty buffer goes before the wait.
        drop(read_buf);
        conn.rests(true);
        poll_fn(|cx| io.poll_arrival(cx)).await;
        conn.rests(false);
    }
}

/// HTTP is spoken no more: hyper has written the last answer by now, or closed the connection.
async fn leave(mut io: ClientIo, ahead: Bytes, tunnel: Option<Tunnel>, conn: &ConnInfo) {
    if let Some(tunnel) = tunnel {
        io.open();
        // Boxed: rare, and large enough to weigh on every connection's future.
        Box::pin(tunnel::run(io, ahead, tunnel)).await;
    } else if conn.must_linger() {
        // Of a connection whose last request asked for an upgrade in vain, hyper has left the closing to us.
        let _ = poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx)).await;
    }
}

fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // Room for every head that passes the gate.
    builder.max_buf_size((limits.header_bytes + 16 * 1024).max(64 * 1024));
    if limits.header_count > HYPER_HEADERS {
        // Set only when it must be: hyper then takes room for the fields from the heap, twice a request.
        builder.max_headers(limits.header_count);
    }
    builder
}

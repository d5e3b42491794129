//! HTTP/1 on one client connection.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use http::StatusCode;
use http::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;

use super::client_io::ClientIo;
use crate::config::model::Limits;
use crate::gateway::Gateway;
use crate::gateway::context::ConnInfo;

/// Fields for which hyper has room without the heap.
const HYPER_HEADERS: usize = 100;

/// Serves to the end of the connection; once it drains, the next answer says that it is the last one.
///
/// hyper keeps two buffers of 8 KiB for as long as its connection lives. So one that rests between two requests is taken apart,
/// waits as a bare socket, and is put together again when octets come.
pub(super) async fn serve(gateway: Arc<Gateway>, mut io: ClientIo, conn: Arc<ConnInfo>) -> hyper::Result<()> {
    let builder = builder(&gateway.snapshot().config.limits);
    loop {
        let service = service_fn(|request| {
            let (gateway, conn) = (gateway.clone(), conn.clone());
            async move {
                let mut answer = gateway.handle(&conn, request).await?;
                if conn.is_leaving() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
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
        if let Some(ended) = ended {
            return ended;
        }
        io = {
            let parts = connection.into_parts();
            if !parts.read_buf.is_empty() {
                // Cannot be, between two requests. Whatever it is, it is not the beginning of one.
                return Ok(());
            }
            // The empty buffer goes here, before the wait.
            parts.io
        };
        conn.rests(true);
        poll_fn(|cx| io.poll_arrival(cx)).await;
        conn.rests(false);
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

//! HTTP/1 on one client connection.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;

use super::client_io::ClientIo;
use crate::gateway::Gateway;
use crate::gateway::context::ConnInfo;

/// Fields for which hyper has room without the heap.
const HYPER_HEADERS: usize = 100;

/// Serves to the end of the connection; once it drains, until the request in flight is answered.
pub(super) async fn serve(gateway: Arc<Gateway>, io: ClientIo, conn: Arc<ConnInfo>) -> hyper::Result<()> {
    let limits = &gateway.snapshot().config.limits;
    let mut builder = http1::Builder::new();
    // Room for every head that passes the gate.
    builder.max_buf_size((limits.header_bytes + 16 * 1024).max(64 * 1024));
    if limits.header_count > HYPER_HEADERS {
        // Set only when it must be: hyper then takes room for the fields from the heap, twice a request.
        builder.max_headers(limits.header_count);
    }
    let service = service_fn(|request| {
        let (gateway, conn) = (gateway.clone(), conn.clone());
        async move { gateway.handle(&conn, request).await }
    });
    let mut connection = pin!(builder.serve_connection(io, service));
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

//! HTTP/1 on one client connection.

use std::convert::Infallible;
use std::sync::Arc;

use http::StatusCode;
use http::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;

use super::client_io::ClientIo;
use crate::gateway::Gateway;
use crate::gateway::context::ConnInfo;

/// Fields for which hyper has room without the heap.
const HYPER_HEADERS: usize = 100;

/// Serves to the end of the connection; once it drains, the next answer says that it is the last one.
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
        async move {
            let mut answer = gateway.handle(&conn, request).await?;
            if conn.is_leaving() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    builder.serve_connection(io, service).await
}

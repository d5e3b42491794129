//! HTTP/1 on one client connection, until it ends or is spoken no more.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use http::header::{CONNECTION, HeaderValue};
use http::{Request, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::Write;
use hyper::server::conn::http1::{self, Parts};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;

use super::client_io::ClientIo;
use super::tunnel;
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
    // Where a request leaves what is to become of its connection.
    let switched = Mutex::new(None);
    let service = service_fn(|request: Request<Incoming>| {
        let (gateway, conn, switched) = (gateway.clone(), conn.clone(), &switched);
        // The gate holds back what follows such a request until it is answered.
        let asks = request.extensions().get::<OnUpgrade>().is_some() && request.body().is_end_stream();
        async move {
            let mut answer = gateway.handle(&conn, request).await?;
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                *switched.lock().unwrap_or_else(PoisonError::into_inner) = answer.body_mut().take_tunnel();
            } else {
                if asks {
                    conn.stay_http();
                }
                if conn.is_leaving() {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection = builder.serve_connection(io, service);
    poll_fn(|cx| Pin::new(&mut connection).poll(cx)).await?;
    // hyper has written the 101 by now, or closed the connection.
    let Parts { mut io, read_buf, .. } = connection.into_parts();
    if let Some(tunnel) = switched.into_inner().unwrap_or_else(PoisonError::into_inner) {
        io.open();
        // Boxed: rare, and large enough to weigh on every connection's future.
        Box::pin(tunnel::run(io, read_buf, tunnel)).await;
    } else if conn.must_linger() {
        // Of a connection whose last request asked for an upgrade in vain, hyper has left the closing to us.
        let _ = poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx)).await;
    }
    Ok(())
}

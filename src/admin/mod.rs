//! The operators' listener: `/livez`, `/readyz`, `/metrics`. Read-only, on an address of its own, without keys.
//!
//! Liveness means the process answers; readiness means it wants traffic. A store outage leaves it ready (degraded): taking
//! every replica out of rotation would turn a degraded service into none.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::limit::Limiter;
use crate::store::health::Guard;
use crate::telemetry::Metrics;

/// What the operators' listener shows.
pub struct Admin {
    metrics: Arc<Metrics>,
    limiter: Arc<Limiter>,
    guard: Arc<Guard>,
    ready: AtomicBool,
    no_heartbeat: AtomicBool,
}

impl Admin {
    /// Not ready yet.
    pub fn new(metrics: Arc<Metrics>, limiter: Arc<Limiter>, guard: Arc<Guard>) -> Self {
        Self { metrics, limiter, guard, ready: AtomicBool::new(false), no_heartbeat: AtomicBool::new(false) }
    }

    /// Whether traffic is wanted.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Whether the store took the last heartbeat.
    pub fn set_heartbeat(&self, taken: bool) {
        self.no_heartbeat.store(!taken, Ordering::Release);
    }

    /// Whether the store, or a part of it, cannot be asked.
    fn is_degraded(&self) -> bool {
        self.no_heartbeat.load(Ordering::Acquire) || !self.guard.is_well()
    }

    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" if !self.ready.load(Ordering::Acquire) => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            "/readyz" if self.is_degraded() => text(StatusCode::OK, "ready (degraded: the store cannot be asked)\n"),
            "/readyz" => text(StatusCode::OK, "ready\n"),
            "/metrics" => self.scrape().await,
            _ => text(StatusCode::NOT_FOUND, "Here are /livez, /readyz and /metrics\n"),
        }
    }

    async fn scrape(&self) -> Response<Full<Bytes>> {
        let (leases, stats) = (&self.metrics.leases, self.limiter.stats());
        leases.calls.absolute(stats.calls.get());
        leases.granted.absolute(stats.granted.get());
        leases.returned.absolute(stats.returned.get());
        leases.recalls.absolute(stats.recalls.get());
        leases.refused.absolute(stats.denied.get());
        leases.outage.absolute(stats.outage_admissions.get());
        let store = &self.metrics.store;
        store.outage.set(f64::from(u8::from(self.is_degraded())));
        store.admission_bound.set(self.limiter.outage_bound().await);
        store.opened.absolute(self.guard.opened());
        store.probes.absolute(self.guard.probes());
        let mut response = text(StatusCode::OK, self.metrics.handle().render());
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Serves until the listener's runtime ends.
pub async fn serve(admin: Arc<Admin>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let admin = admin.clone();
                async move { Ok::<_, Infallible>(admin.answer(&request).await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "an admin connection ended");
            }
        });
    }
}

/// Takes the admin address.
pub fn bind(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

//! From a request to the part that answers it, and the small endpoints that need no part of their own.
//!
//! Counts every request before anything else happens to it, so that a test can tell what reached the backend.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body::{Drained, ResponseBody, json, refusal, with_type};
use super::catalogue::Catalogue;
use super::{crud, echo, openai, websocket};
use crate::clock::SystemClock;

/// Everything a running sample backend remembers.
pub(super) struct Backend {
    /// The objects behind `/api/v1` and `/admin`.
    pub(super) catalogue: Catalogue,
    requests: Mutex<BTreeMap<String, u64>>,
}

/// Why a request ends without a response: the connection is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Hangup {
    #[error("the request body did not arrive whole")]
    Body(#[from] hyper::Error),
    #[error("asked to close before the head")]
    Asked,
}

impl Backend {
    /// Different paths that are told apart in the counts; a load test with made-up ids must not fill the memory.
    const COUNTED_PATHS: usize = 10_000;

    /// A backend as freshly started.
    pub(super) fn new() -> Self {
        Self { catalogue: Catalogue::new(SystemClock::shared()), requests: Mutex::default() }
    }

    fn count(&self, method: &Method, path: &str) {
        let name = format!("{method} {path}");
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = requests.get_mut(&name) {
            *count += 1;
        } else if requests.len() < Self::COUNTED_PATHS {
            requests.insert(name, 1);
        } else {
            *requests.entry("others".to_owned()).or_default() += 1;
        }
    }

    fn counts(&self) -> Value {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        json!(*requests)
    }
}

/// Answers one request.
pub(super) async fn dispatch(
    backend: Arc<Backend>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Hangup> {
    backend.count(request.method(), request.uri().path());
    let (mut head, body) = request.into_parts();
    if let Some(switching) = websocket::answer(&mut head) {
        return Ok(switching);
    }
    let path = head.uri.path();
    if path == "/echo" || path.starts_with("/echo/") {
        return echo::answer(&head, body).await;
    }
    // Read whole before the answer, also where it is not needed: a client may send all of it before it listens.
    let body = Drained::read(body).await?;
    let reads = matches!(head.method, Method::GET | Method::HEAD);
    Ok(match path {
        "/healthz" if reads => json(StatusCode::OK, &json!({ "status": "ok" })),
        "/requests/count" if reads => json(StatusCode::OK, &backend.counts()),
        "/download" if reads => download(head.uri.query()),
        "/upload" if head.method == Method::POST => {
            json(StatusCode::OK, &json!({ "bytes": body.bytes, "blake3": body.hash.to_hex().as_str() }))
        }
        _ => openai::answer(&backend.catalogue, &head, &body)
            .or_else(|| crud::answer(&backend.catalogue, &head, &body))
            .unwrap_or_else(|| {
                let message = format!("the sample backend has no {} {path}", head.method);
                refusal(StatusCode::NOT_FOUND, &message)
            }),
    })
}

/// `bytes=N` bytes, one MiB when not told how many.
pub(super) fn download(query: Option<&str>) -> Response<ResponseBody> {
    match echo::knob(query, "bytes").map_or(Ok(1024 * 1024), |text| text.parse()) {
        Ok(bytes) => with_type(StatusCode::OK, "application/octet-stream", ResponseBody::pattern(bytes)),
        Err(_) => refusal(StatusCode::BAD_REQUEST, "bytes: a whole number of bytes"),
    }
}

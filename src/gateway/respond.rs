//! The only place where an error becomes HTTP, and the body type that every answer has.
//!
//! Refusals are problem+json (RFC 9457) with the short reason as the HTTP/1.1 reason phrase: that phrase is all that users of
//! some clients ever see. Nothing here decides.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderValue, RETRY_AFTER,
    SEC_WEBSOCKET_VERSION, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::json;

use super::GatewayError;
use super::connection::ConnInfo;
use super::context::{Inbound, RequestRecord};
use super::lasting::{self, Revoked};
use super::upgrade::{Switching, Tunnel};
use crate::limit::Permit;
use crate::policy::headers::{X_REQUEST_ID, set_quota, set_rate};
use crate::policy::rejection::{Problem, Rejection};
use crate::policy::route::Route;
use crate::policy::websocket::set_upgrade;
use crate::upstream::{BodyError, UpstreamBody, UpstreamError};

/// The body of an answer. Concrete, so that nothing is boxed on the way.
#[derive(Debug)]
pub enum ProxyBody {
    /// Our own words.
    Own(Bytes),
    /// The upstream's, as it comes.
    Upstream(UpstreamBody),
    /// None: of a 101, behind which another protocol is spoken.
    Switched(Box<Switching>),
}

/// The status of a refusal that had to be told in another way.
#[derive(Debug, Clone, Copy)]
struct Told(StatusCode);

/// A body with the record of its request, which ends when the body does, however that is.
pub struct RecordedBody {
    body: ProxyBody,
    /// Until a tunnel takes it over.
    record: Option<Box<RequestRecord>>,
    /// Of an answer that is waited for: whether its key is still good.
    revoked: Option<Revoked>,
}

impl std::fmt::Debug for RecordedBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordedBody").field("body", &self.body).finish_non_exhaustive()
    }
}

impl RecordedBody {
    /// When the key of an answer that lasts ends, for whoever cannot count on the body being asked.
    pub(crate) fn revoked(&self) -> Option<Revoked> {
        lasting::watch(self.record.as_ref().filter(|_| !self.is_end_stream())?, lasting::LASTS)
    }

    /// How long its client may take nothing of it, where its route says so.
    pub(crate) fn idle(&self) -> Option<Duration> {
        self.record.as_ref()?.permit.as_ref()?.grant().route().idle_timeout
    }
}

/// Hangs the record on the answer.
pub fn attach(response: Response<ProxyBody>, mut record: Box<RequestRecord>) -> Response<RecordedBody> {
    // What is no gRPC would look whole behind a status in trailers.
    record.is_grpc = record.is_grpc && is_grpc(response.headers()) && !response.headers().contains_key(CONTENT_LENGTH);
    record.status = response.extensions().get::<Told>().map_or(response.status(), |told| told.0).as_u16();
    response.map(|body| RecordedBody { body, record: Some(record), revoked: None })
}

impl RecordedBody {
    /// Behind a 101: what is to be done with the connection.
    pub fn take_tunnel(&mut self) -> Option<Tunnel> {
        match std::mem::replace(&mut self.body, ProxyBody::Own(Bytes::new())) {
            ProxyBody::Switched(switching) => self.record.take().map(|record| Tunnel::new(*switching, record)),
            body => {
                self.body = body;
                None
            }
        }
    }
}

impl Body for RecordedBody {
    type Data = Bytes;
    /// What a client of HTTP/2 is told; the connection of one of HTTP/1 breaks, and nobody looks at the error.
    type Error = h2::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = self.get_mut();
        let polled = match &mut this.body {
            ProxyBody::Switched(_) => Poll::Ready(None),
            ProxyBody::Own(bytes) if bytes.is_empty() => Poll::Ready(None),
            ProxyBody::Own(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            ProxyBody::Upstream(body) => Pin::new(body).poll_frame(cx).map_err(|_| Reason::INTERNAL_ERROR.into()),
        };
        let Some(record) = &mut this.record else { return polled };
        if polled.is_pending() && this.revoked.is_none() {
            this.revoked = lasting::watch(record, lasting::LASTS);
        }
        if let Some(revoked) = &mut this.revoked
            && let Poll::Ready(ended) = revoked.as_mut().poll(cx)
        {
            record.breaks_off();
            let problem = record.ended(ended);
            record.status = problem.status;
            record.complete = true;
            // A call of gRPC ends with a status wherever it has come to.
            let trailers = record.is_grpc.then(|| grpc_fields(&problem));
            *this = Self { body: ProxyBody::Own(Bytes::new()), record: this.record.take(), revoked: None };
            return Poll::Ready(Some(trailers.map(Frame::trailers).ok_or(Reason::CANCEL.into())));
        }
        match &polled {
            Poll::Ready(Some(Ok(frame))) => record.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64),
            // Past the head no other answer can be given: the connection breaks, and the log says who broke it.
            Poll::Ready(Some(Err(_))) => {
                record.breaks_off();
                record.status = StatusCode::BAD_GATEWAY.as_u16();
                record.code = Some("upstream_broke_off");
                record.complete = true;
            }
            Poll::Ready(None) => record.complete = true,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            ProxyBody::Own(bytes) => bytes.is_empty(),
            ProxyBody::Upstream(body) => body.is_end_stream(),
            ProxyBody::Switched(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            ProxyBody::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            ProxyBody::Upstream(body) => body.size_hint(),
            ProxyBody::Switched(_) => SizeHint::with_exact(0),
        }
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        // hyper does not poll a body that says it is at its end; for HEAD it polls none at all.
        let at_end = self.is_end_stream();
        if let Some(record) = self.record.as_mut().filter(|record| at_end || record.is_head()) {
            record.complete = true;
        }
    }
}

/// Renders an error as the answer to a request.
pub fn render(
    error: GatewayError,
    conn: &ConnInfo,
    inbound: &mut Inbound,
    record: &mut RequestRecord,
) -> Response<ProxyBody> {
    let problem = error.problem();
    record.code = Some(problem.code);
    // Nobody is there to read the answer.
    record.client_gone = matches!(error, GatewayError::RequestBody(BodyError::Gone, _));
    let mut headers = HeaderMap::new();
    let quota = match &error {
        GatewayError::Rejected(Rejection::RateLimited(state)) => Some(state),
        GatewayError::Rejected(Rejection::TooManyConcurrent(_, state)) => state.as_ref(),
        _ => None,
    };
    if let Some(state) = quota.or(record.permit.as_ref().and_then(Permit::quota)) {
        set_quota(&mut headers, state);
    }
    match &error {
        GatewayError::TooManyCalls(calls) => set_rate(&mut headers, "management", &calls.window(record.time())),
        GatewayError::TooManyFromAddress(them) => set_rate(&mut headers, them.name(), &them.window(record.time())),
        _ => {}
    }
    if let GatewayError::Rejected(Rejection::MethodNotAllowed(allow)) = &error {
        insert(&mut headers, ALLOW, allow);
    }
    if matches!(&error, GatewayError::Rejected(Rejection::WebSocketVersion)) {
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        set_upgrade(&mut headers);
    }
    if let Some(seconds) = error.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(challenge) = &problem.challenge {
        insert(&mut headers, WWW_AUTHENTICATE, challenge);
    }
    let malformed = matches!(&error, GatewayError::Rejected(r) if r.is_malformed());
    refuse_body(conn, inbound, malformed || record.is_unread(), &mut headers);
    if record.is_grpc {
        return grpc_response(&problem, record, headers);
    }
    problem_response(&problem, &error.violated(), record, headers)
}

/// `application/grpc`, with or without a codec.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let rest = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// A refusal as gRPC has it: a head that is also the end, with a status of its own and the reason in words.
fn grpc_response(problem: &Problem, record: &RequestRecord, headers: HeaderMap) -> Response<ProxyBody> {
    let mut response = Response::new(ProxyBody::Own(Bytes::new()));
    *response.headers_mut() = headers;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.extend(grpc_fields(problem));
    headers.insert(X_REQUEST_ID, record.request_id.to_value());
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.extensions_mut().insert(Told(status));
    response
}

/// How a call ended.
fn grpc_fields(problem: &Problem) -> HeaderMap {
    const MESSAGE: &AsciiSet = &CONTROLS.add(b'%');
    let mut fields = HeaderMap::new();
    fields.insert("grpc-status", HeaderValue::from(grpc_status(problem.status)));
    let words = format!("{}: {}", problem.message, problem.detail);
    insert(&mut fields, HeaderName::from_static("grpc-message"), &utf8_percent_encode(&words, MESSAGE).to_string());
    fields
}

/// The canonical code (google.rpc.Code) for a status, but for an unknown path: that is an unknown method, as gRPC's own mapping
/// of HTTP statuses has it.
const fn grpc_status(status: u16) -> u16 {
    match status {
        400 | 415 => 3,             // INVALID_ARGUMENT
        408 | 504 => 4,             // DEADLINE_EXCEEDED
        403 => 7,                   // PERMISSION_DENIED
        413 | 414 | 429 | 431 => 8, // RESOURCE_EXHAUSTED
        404 | 405 => 12,            // UNIMPLEMENTED
        502 | 503 => 14,            // UNAVAILABLE
        401 => 16,                  // UNAUTHENTICATED
        500.. => 13,                // INTERNAL
        _ => 2,                     // UNKNOWN
    }
}

/// 204, but for the fields that the caller or `policy::cors` adds: to a preflight, and to OPTIONS that goes no further.
pub fn no_content(conn: &ConnInfo, inbound: &mut Inbound, record: &RequestRecord) -> Response<ProxyBody> {
    let mut response = Response::new(ProxyBody::Own(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    refuse_body(conn, inbound, false, response.headers_mut());
    response.headers_mut().insert(X_REQUEST_ID, record.request_id.to_value());
    response
}

/// The answer to an OPTIONS request that may go no further: what the route takes.
pub fn options(route: &Route, conn: &ConnInfo, inbound: &mut Inbound, record: &RequestRecord) -> Response<ProxyBody> {
    let mut response = no_content(conn, inbound, record);
    let methods: Vec<&str> = route.endpoints.iter().map(|(method, _)| method.as_str()).collect();
    insert(response.headers_mut(), ALLOW, &methods.join(", "));
    response
}

fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// A problem document with its reason phrase. `violated`: the windows of a 429.
pub fn problem_response(
    problem: &Problem,
    violated: &[&str],
    record: &RequestRecord,
    headers: HeaderMap,
) -> Response<ProxyBody> {
    let mut document = json!({
        "type": format!("urn:seeme:gateway:{}", problem.code),
        "title": title(problem.code),
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "message": problem.message,
        "request_id": record.request_id.as_str(),
    });
    if !violated.is_empty() {
        document["type"] = "https://iana.org/assignments/http-problem-types#quota-exceeded".into();
        document["violated-policies"] = violated.into();
    }
    let mut response = Response::new(ProxyBody::Own(Bytes::from(document.to_string())));
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = headers;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_REQUEST_ID, record.request_id.to_value());
    if let Ok(reason) = ReasonPhrase::try_from(problem.message.as_bytes()) {
        response.extensions_mut().insert(reason);
    }
    response
}

/// The same for every occurrence of a code (RFC 9457 section 3.1.4): `rate_limited` is "Rate limited".
fn title(code: &str) -> String {
    let mut words = code.replace('_', " ");
    words.get_mut(..1).map(str::make_ascii_uppercase);
    words
}

/// A body this small is read and thrown away, so that the connection can serve on.
const SMALL_BODY: u64 = 64 * 1024;
/// How long that may take.
const DISCARD_PATIENCE: Duration = Duration::from_secs(5);

/// Decides what becomes of a body that nobody will read: a small one is discarded, else the connection closes slowly.
///
/// `must_close`: nothing more may be read of the connection, or a body was begun to be forwarded and will not be ended.
fn refuse_body(conn: &ConnInfo, inbound: &mut Inbound, must_close: bool, headers: &mut HeaderMap) {
    let body = inbound.body.take().filter(|body| !body.is_end_stream());
    if inbound.head.version == Version::HTTP_2 {
        // Dropped unread: the library ends the stream in both directions, and the connection serves on.
        return;
    }
    if body.is_none() && !must_close {
        return;
    }
    let small = super::head::declared_length(&inbound.head).is_some_and(|length| length <= SMALL_BODY);
    match body {
        // Reading would make hyper send `100 Continue` for a body that is refused.
        Some(body) if small && !must_close && !inbound.head.headers.contains_key(EXPECT) => {
            tokio::spawn(tokio::time::timeout(DISCARD_PATIENCE, discard(body)));
        }
        _ => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
            conn.linger();
        }
    }
}

async fn discard(mut body: Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}

impl GatewayError {
    /// How this error is told to the client.
    pub fn problem(&self) -> Problem {
        match self {
            Self::Rejected(rejection) => rejection.problem(),
            Self::Problem(problem) => problem.clone(),
            Self::TooManyCalls(calls) => calls.problem(),
            Self::TooManyFromAddress(them) => them.problem(),
            Self::StoreUnavailable => own(
                503,
                "store_unavailable",
                "Key store unavailable",
                "The gateway cannot check the key right now. Try again shortly.",
            ),
            Self::Overloaded => own(
                503,
                "overloaded",
                "Gateway overloaded",
                "Too many request bodies are being inspected. Try again shortly.",
            ),
            Self::Upstream(UpstreamError::Busy) => own(
                503,
                "upstream_unavailable",
                "Upstream busy",
                "The backend has as many requests as it may have at a time. Try again shortly.",
            ),
            Self::Upstream(UpstreamError::OutOfDescriptors) => own(
                503,
                "overloaded",
                "Gateway overloaded",
                "No descriptor is left for a connection to the backend. Try again shortly.",
            ),
            Self::Upstream(UpstreamError::Unreachable) => {
                own(502, "upstream_unreachable", "Upstream unreachable", "No connection to the backend.")
            }
            Self::Upstream(UpstreamError::Malformed) => own(
                502,
                "upstream_unreachable",
                "Upstream broke off",
                "The backend closed the connection or did not answer in HTTP.",
            ),
            Self::Upstream(UpstreamError::Timeout) => {
                own(504, "upstream_timeout", "Upstream timed out", "The backend did not answer in time.")
            }
            Self::Upstream(UpstreamError::RequestBody(error)) => Self::RequestBody(*error, None).problem(),
            Self::RequestBody(BodyError::Idle, _) => {
                own(408, "request_timeout", "Request body timed out", "No data for too long.")
            }
            Self::RequestBody(BodyError::TooLarge, limit) => {
                Rejection::BodyTooLarge(limit.unwrap_or_default()).problem()
            }
            Self::RequestBody(BodyError::Broken | BodyError::Gone, _) => {
                Rejection::bad_request("Malformed request body").problem()
            }
        }
    }

    /// The windows that have no room left, for the 429s.
    fn violated(&self) -> Vec<&'static str> {
        match self {
            Self::Rejected(Rejection::RateLimited(state)) => {
                let names = [(state.violated.minute, "minute"), (state.violated.day, "day")];
                names.iter().filter(|(violated, _)| *violated).map(|(_, name)| *name).collect()
            }
            Self::TooManyCalls(_) => vec!["management"],
            Self::TooManyFromAddress(them) => vec![them.name()],
            _ => Vec::new(),
        }
    }

    /// `Retry-After`, where no window says when.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::StoreUnavailable
            | Self::Overloaded
            | Self::Upstream(UpstreamError::Busy | UpstreamError::OutOfDescriptors)
            | Self::Rejected(Rejection::TooManyConcurrent(..)) => Some(1),
            Self::Problem(problem) if problem.status == 503 => Some(1),
            _ => None,
        }
    }
}

fn own(status: u16, code: &'static str, message: &'static str, detail: &'static str) -> Problem {
    Problem { status, code, message: Cow::Borrowed(message), detail: Cow::Borrowed(detail), challenge: None }
}

//! The first checks on a request's head, and the head that goes to the upstream.
//!
//! hyper has parsed the head; this adds what a proxy must insist on and hyper leaves to it (RFC 9110 section 7.2,
//! RFC 9112 section 3.2). Pure but for its types.

use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Request, Uri, Version};

use super::context::ConnInfo;
use crate::config::model::Limits;
use crate::policy::path::RequestPath;
use crate::policy::rejection::Rejection;
use crate::policy::route::Route;
use crate::upstream::RequestBody;

/// Well-formed, within the limits of a head; returns the decoded path.
pub(super) fn check<'a>(head: &'a Parts, conn: &ConnInfo, limits: &Limits) -> Result<RequestPath<'a>, Rejection> {
    if conn.take_fragment() {
        return Err(Rejection::bad_request("Fragment in request target"));
    }
    check_host(head, conn)?;
    check_framing(head)?;
    let path = RequestPath::parse(head.uri.path())?;
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > limits.uri_bytes {
        return Err(Rejection::UriTooLong);
    }
    // As on the wire: "name: value CRLF".
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if fields + target > limits.header_bytes || head.headers.len() > limits.header_count {
        return Err(Rejection::HeadersTooLarge);
    }
    Ok(path)
}

/// One length at most, and `chunked` as the only coding: hyper reads the rest of what clients write here in its own way, and
/// what it reads is not what it passes on (RFC 9112 section 6).
fn check_framing(head: &Parts) -> Result<(), Rejection> {
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    if lengths.next().is_some_and(|length| length.as_bytes().contains(&b',')) || lengths.next().is_some() {
        return Err(Rejection::bad_request("More than one Content-Length"));
    }
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Rejection::bad_request("Transfer-Encoding other than chunked")),
    }
}

/// Exactly one well-formed Host in HTTP/1.1, at most one in 1.0, and the same as in an absolute target.
fn check_host(head: &Parts, conn: &ConnInfo) -> Result<(), Rejection> {
    let mut fields = head.headers.get_all(HOST).iter();
    let host = match (fields.next(), fields.next()) {
        (Some(host), None) => host,
        (None, _) if head.version == Version::HTTP_10 => return Ok(()),
        (None, _) => return Err(Rejection::bad_request("Host missing")),
        (Some(_), Some(_)) => return Err(Rejection::bad_request("More than one Host")),
    };
    // The Host of a forwarded request on this connection was looked at then.
    if !conn.knows_host(host) && !is_valid_host(host) {
        return Err(Rejection::bad_request("Malformed Host"));
    }
    if head.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err(Rejection::bad_request("Request target of another scheme"));
    }
    match head.uri.authority() {
        Some(target) if !target.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            Err(Rejection::bad_request("Host differs from the request target"))
        }
        _ => Ok(()),
    }
}

fn is_valid_host(host: &HeaderValue) -> bool {
    Authority::try_from(host.as_bytes()).is_ok_and(|authority| {
        !authority.host().is_empty() && !authority.as_str().contains('@') && has_valid_port(&authority)
    })
}

fn has_valid_port(authority: &Authority) -> bool {
    let after_host = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    match after_host.strip_prefix(':') {
        None => after_host.is_empty(),
        Some(port) => port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// The bytes that a body may have on this route.
pub(super) fn body_limit(route: &Route, limits: &Limits) -> Option<u64> {
    route.body_bytes.or(limits.body_bytes)
}

/// Refuses a body that announces itself as too large, before anything is read of it.
pub(super) fn check_declared_body(head: &Parts, limit: Option<u64>) -> Result<(), Rejection> {
    match (declared_length(head), limit) {
        (Some(declared), Some(limit)) if declared > limit => Err(Rejection::BodyTooLarge(limit)),
        _ => Ok(()),
    }
}

/// What `Content-Length` says.
pub(super) fn declared_length(head: &Parts) -> Option<u64> {
    head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The request for the upstream: the target's own octets in origin form, HTTP/1.1, always with a Host.
pub(super) fn for_upstream(
    head: &Parts,
    mut headers: HeaderMap,
    body: RequestBody,
    authority: &str,
) -> Request<RequestBody> {
    if !headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(authority)
    {
        headers.insert(HOST, host);
    }
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = match (head.uri.authority(), head.uri.path_and_query()) {
        (Some(_), Some(target)) => Uri::from(target.clone()),
        _ => head.uri.clone(),
    };
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    request
}

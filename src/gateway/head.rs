//! The first checks on a request's head, and the head that goes to the upstream.
//!
//! The octets of HTTP/1 were judged at the socket ([`crate::wire::http1`]); what no octets show, a path that two servers could
//! read differently, is judged here, and so is what HTTP/2 leaves to a proxy (RFC 9113 section 8.3.1). Pure but for its types.

use http::header::{CONTENT_LENGTH, HOST, HeaderValue, MAX_FORWARDS};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, Request, Uri, Version};

use super::connection::ConnInfo;
use crate::config::model::Limits;
use crate::policy::path::RequestPath;
use crate::policy::rejection::Rejection;
use crate::policy::route::Route;
use crate::upstream::RequestBody;
use crate::wire::http1::check_path_and_query;
use crate::wire::is_host;

/// Well-formed, within the limits of a head; returns the decoded path.
pub(super) fn check<'a>(head: &'a Parts, limits: &Limits, conn: &ConnInfo) -> Result<RequestPath<'a>, Rejection> {
    let path = RequestPath::parse(head.uri.path());
    if head.version != Version::HTTP_2 {
        check_secured(head, conn)?;
        return path;
    }
    check_host(head)?;
    let path = path?;
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    check_path_and_query(target.as_bytes())?;
    let target = target.len();
    if target > limits.uri_bytes {
        return Err(Rejection::UriTooLong);
    }
    // As on the wire of HTTP/1: "name: value CRLF".
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if fields + target > limits.header_bytes || head.headers.len() > limits.header_count {
        return Err(Rejection::HeadersTooLarge);
    }
    Ok(path)
}

/// What an absolute target asks to have secured was, unless a proxy that is trusted says so (RFC 9110 section 7.4). The `:scheme`
/// of HTTP/2 says less: proxies pass on the one of their own client.
fn check_secured(head: &Parts, conn: &ConnInfo) -> Result<(), Rejection> {
    if head.uri.scheme() == Some(&Scheme::HTTPS) && !conn.secure && conn.trusted.is_none() {
        return Err(Rejection::bad_request("Target of https on a connection without TLS"));
    }
    Ok(())
}

/// Exactly one well-formed Host, and the same as in an absolute target.
fn check_host(head: &Parts) -> Result<(), Rejection> {
    let mut fields = head.headers.get_all(HOST).iter();
    let host = match (fields.next(), fields.next()) {
        (Some(host), None) => host,
        (None, _) => return Err(Rejection::bad_request("Host missing")),
        (Some(_), Some(_)) => return Err(Rejection::bad_request("More than one Host")),
    };
    if !is_host(host.as_bytes()) {
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

/// Takes one off `Max-Forwards` (RFC 9110 section 7.6.2); false: the request has come as far as it may.
pub(super) fn may_go_on(headers: &mut HeaderMap) -> bool {
    let Some(left) = headers.get(MAX_FORWARDS).and_then(|value| value.to_str().ok()?.parse::<u32>().ok()) else {
        return true;
    };
    let Some(left) = left.checked_sub(1) else { return false };
    headers.insert(MAX_FORWARDS, left.into());
    true
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

//! Which header fields may pass a gateway, in both directions, and the ones that it sets (contract 5).
//!
//! Order matters: strip first, set after, so that no client can forge, double or (by naming it in `Connection`) delete a
//! field that the gateway sets. Works on `http` types; knows no connection and no clock.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderName, HeaderValue, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, Version};

use super::access::KeyProfile;
use super::credential::looks_like_key;
use super::forwarded::{Passed, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, scheme};
use super::quota_fields::{RATELIMIT, RATELIMIT_POLICY};

pub use super::quota_fields::{QuotaFields, set_quota, set_rate};

/// `X-Request-Id`
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `traceparent` (W3C Trace Context)
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// About as many fields as the gateway adds on the way to the upstream, and to the client: room is made once.
const SET_FOR_UPSTREAM: usize = 20;
const SET_FOR_CLIENT: usize = 6;

/// Fields that concern one connection only (RFC 9110 section 7.6.1), `Connection` first, beside those that it names.
static HOP_BY_HOP: [HeaderName; 6] = [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE];

/// Fields by which a client could pass itself off as somebody else or as another request, or that are meant for us alone.
const FORGEABLE: [&str; 11] = [
    "forwarded",
    "x-real-ip",
    "x-http-method-override",
    "x-method-override",
    "x-http-method",
    "x-original-url",
    "x-rewrite-url",
    "x-request-id",
    "proxy-authorization",
    // A CGI-like backend takes it for the variable HTTP_PROXY.
    "proxy",
    "http2-settings",
];
/// Families of fields that only the gateway sets.
const OURS: [&str; 2] = ["x-seeme-", "x-ratelimit-"];
const FORWARDING: [&str; 1] = ["x-forwarded-"];
/// Fields whose twin with `_` a CGI-like backend would take for the field itself, which was never checked under that name.
const TWINS: [&str; 5] = ["content-length", "transfer-encoding", "content-encoding", "authorization", "host"];

/// Whether two names are one for a backend that cannot tell `_` from `-`.
fn same(ours: &str, theirs: &str) -> bool {
    ours.len() == theirs.len() && ours.bytes().zip(theirs.bytes()).all(|(a, b)| a == if b == b'_' { b'-' } else { b })
}

fn is_of(families: &[&str], name: &str) -> bool {
    families.iter().any(|family| name.get(..family.len()).is_some_and(|start| same(family, start)))
}

/// Whether a client must not set this field.
fn is_forgeable(name: &str) -> bool {
    if name.starts_with(['x', 'f', 'p', 'h']) {
        let known = FORGEABLE.iter().any(|ours| same(ours, name));
        if known || is_of(&OURS, name) || is_of(&FORWARDING, name) {
            return true;
        }
    }
    name.contains('_') && TWINS.iter().any(|ours| same(ours, name))
}

/// Whether an operator may have this field set on the way to an upstream: not what frames a message, concerns one connection or
/// is the gateway's own word.
pub fn is_settable(name: &HeaderName) -> bool {
    const NEVER: [HeaderName; 9] =
        [CONTENT_LENGTH, CONTENT_ENCODING, HOST, TRAILER, EXPECT, TRACEPARENT, VIA, RATELIMIT, RATELIMIT_POLICY];
    let is_of_families = is_of(&OURS, name.as_str()) || is_of(&FORWARDING, name.as_str());
    let is_named = NEVER.iter().chain(&HOP_BY_HOP).any(|known| is_twin(known, name));
    !is_of_families && !is_named && !FORGEABLE.iter().any(|known| same(known, name.as_str()))
}

/// Whether two names are one for a backend that cannot tell `_` from `-`.
pub fn is_twin(a: &HeaderName, b: &HeaderName) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
    a.as_str().bytes().map(plain).eq(b.as_str().bytes().map(plain))
}

/// Sets what an operator wants an upstream to get; the client's own fields of these names are removed.
pub fn set(headers: &mut HeaderMap, fields: &[(HeaderName, HeaderValue)]) {
    remove(headers, fields);
    for (name, value) in fields {
        headers.insert(name, value.clone());
    }
}

/// Removes fields of these names.
pub fn remove(headers: &mut HeaderMap, fields: &[(HeaderName, HeaderValue)]) {
    retain(headers, |name| !fields.iter().any(|(ours, _)| is_twin(ours, name)));
}

/// Fields that say how a message is to be framed, routed, judged, stored or answered: too late in a trailer, where who merges it
/// with the head would act on what nobody has checked (RFC 9110 section 6.5.1).
const NEVER_TRAILS: [&str; 26] = [
    "authorization",
    "host",
    "trailer",
    "expect",
    "traceparent",
    "tracestate",
    "via",
    "ratelimit",
    "ratelimit-policy",
    "cookie",
    "set-cookie",
    "www-authenticate",
    "proxy-authenticate",
    "cache-control",
    "pragma",
    "age",
    "date",
    "expires",
    "vary",
    "location",
    "retry-after",
    "max-forwards",
    "range",
    "origin",
    "referer",
    "te",
];
/// The same of whole families. The digest of a content is made for trailers (RFC 9530 section 2).
const NEVER_TRAIL: [&str; 4] = ["content-", "if-", "accept", "access-control-"];
const CONTENT_DIGEST: &str = "content-digest";

/// Whether a trailer of this name may pass: none that frames, routes, identifies or authenticates.
fn may_trail(name: &HeaderName) -> bool {
    !is_forgeable(name.as_str())
        && !HOP_BY_HOP.contains(name)
        && !NEVER_TRAILS.iter().any(|never| same(never, name.as_str()))
        && (!is_of(&NEVER_TRAIL, name.as_str()) || name.as_str() == CONTENT_DIGEST)
}

/// Removes trailers that may not pass.
pub fn filter_trailers(trailers: &mut HeaderMap) {
    retain(trailers, may_trail);
}

fn retain(headers: &mut HeaderMap, keep: impl Fn(&HeaderName) -> bool) {
    // Usually nothing goes; look first, so that the usual case allocates nothing.
    if headers.keys().all(&keep) {
        return;
    }
    let gone: Vec<HeaderName> = headers.keys().filter(|name| !keep(name)).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

/// Removes all fields whose names begin like this.
pub(super) fn remove_family(headers: &mut HeaderMap, start: &str) {
    retain(headers, |name| !name.as_str().starts_with(start));
}

/// Removes hop-by-hop fields and those that `Connection` names. Framing and `Host` are never removed by name.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // To look at each name costs less than to look for each of those that may be there.
    let mut is_there = [false; HOP_BY_HOP.len()];
    for name in headers.keys() {
        if let Some(at) = HOP_BY_HOP.iter().position(|hop| hop == name) {
            is_there[at] = true;
        }
    }
    if is_there[0] {
        strip_named(headers);
    }
    for (name, _) in HOP_BY_HOP.iter().zip(is_there).filter(|(_, is_there)| *is_there) {
        headers.remove(name);
    }
}

/// Removes what `Connection` names.
fn strip_named(headers: &mut HeaderMap) {
    // The usual values name nothing beyond what goes anyway.
    let usual = |value: &HeaderValue| {
        value.as_bytes().eq_ignore_ascii_case(b"keep-alive") || value.as_bytes().eq_ignore_ascii_case(b"close")
    };
    if headers.get_all(CONNECTION).iter().all(usual) {
        return;
    }
    // Octets, not text: one name that is none must not hide the others.
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| *name != CONTENT_LENGTH && *name != HOST && *name != FORWARDED)
        // Believed of a trusted proxy, so no client behind it may take them away (CVE-2022-31813).
        .filter(|name| !is_of(&FORWARDING, name.as_str()))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// What the gateway knows of the connection and of the request, for the fields it sets.
#[derive(Debug)]
pub struct Origin<'a> {
    /// The peer's address, ready to be inserted.
    pub peer: &'a HeaderValue,
    /// An element of `Forwarded` for this peer and host; `None` when no Host came.
    pub forwarded: Option<HeaderValue>,
    /// What the peer says of the client, when it is a trusted proxy.
    pub passed: Option<&'a Passed>,
    /// Whether the client's connection is encrypted.
    pub secure: bool,
    /// Version the client spoke.
    pub version: Version,
    /// This request.
    pub request_id: HeaderValue,
    /// Its trace context.
    pub traceparent: HeaderValue,
}

/// Turns the client's head into the one for the upstream.
///
/// `authenticated` says whether the gateway checked `Authorization`: then it stays only where the route says so. Otherwise
/// (a public route) it passes unless it looks like a key of ours.
pub fn for_upstream(
    headers: &mut HeaderMap,
    origin: Origin<'_>,
    profile: Option<&KeyProfile>,
    quota: Option<&QuotaFields>,
    forward_authorization: bool,
) {
    let wants_trailers = headers.get_all(TE).iter().any(|value| {
        value.to_str().is_ok_and(|v| v.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")))
    });
    headers.reserve(SET_FOR_UPSTREAM);
    strip_hop_by_hop(headers);
    match origin.passed {
        None => retain(headers, |name| !is_forgeable(name.as_str())),
        Some(passed) => retain(headers, |name| !is_forgeable(name.as_str()) || passed.keeps(name.as_str())),
    }
    // The gateway itself answers `100 Continue`, when it starts reading the body.
    headers.remove(EXPECT);
    let keep_authorization = match profile {
        Some(_) => forward_authorization,
        None => headers.get_all(AUTHORIZATION).iter().all(|value| !looks_like_key(value.as_bytes())),
    };
    if !keep_authorization {
        headers.remove(AUTHORIZATION);
    }
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        // So that who does not know the field passes it on no further (RFC 9110 section 10.1.4).
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if let Some(profile) = profile {
        for (name, value) in &profile.identity {
            headers.insert(name.clone(), value.clone());
        }
    }
    if let Some(quota) = quota {
        quota.set_shown(headers);
    }
    match origin.passed {
        Some(passed) => passed.set(headers, origin.peer, origin.forwarded, scheme(origin.secure)),
        None => {
            if let Some(host) = headers.get(HOST).cloned() {
                headers.insert(X_FORWARDED_HOST, host);
            }
            if let Some(forwarded) = origin.forwarded {
                headers.insert(FORWARDED, forwarded);
            }
            headers.insert(X_FORWARDED_FOR, origin.peer.clone());
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme(origin.secure)));
        }
    }
    headers.append(VIA, via(origin.version));
    headers.insert(X_REQUEST_ID, origin.request_id);
    headers.insert(TRACEPARENT, origin.traceparent);
}

/// `Via` with the version that was received (RFC 9110 section 7.6.3).
fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_10 => "1.0 seeme-gateway",
        Version::HTTP_2 => "2 seeme-gateway",
        _ => "1.1 seeme-gateway",
    })
}

/// Turns the upstream's head into the one for the client.
pub fn for_client(headers: &mut HeaderMap, request_id: HeaderValue, quota: Option<QuotaFields>) {
    headers.reserve(SET_FOR_CLIENT);
    strip_hop_by_hop(headers);
    // An upstream's copies would be taken for the gateway's word.
    retain(headers, |name| !is_of(if quota.is_some() { &OURS } else { &OURS[..1] }, name.as_str()));
    headers.insert(X_REQUEST_ID, request_id);
    if let Some(quota) = quota {
        quota.set(headers);
    }
}

/// Turns the head of an upstream's interim response into the one for the client. It has no content (RFC 9110 section 15.2), and
/// what the gateway says of the request stands in the final answer.
pub fn for_interim(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(CONTENT_LENGTH);
    retain(headers, |name| !is_of(&OURS, name.as_str()) && *name != X_REQUEST_ID);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::forwarded;
    use crate::policy::quota::{QuotaState, Violated, Window, WindowState};

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(n, v)| (HeaderName::from_bytes(n.as_bytes()).unwrap(), HeaderValue::from_str(v).unwrap()))
            .collect()
    }

    fn origin(client: &HeaderValue) -> Origin<'_> {
        Origin {
            peer: client,
            forwarded: forwarded::element("192.0.2.1", "http", &HeaderValue::from_static("api.example")),
            passed: None,
            secure: false,
            version: Version::HTTP_11,
            request_id: HeaderValue::from_static("ours"),
            traceparent: HeaderValue::from_static("00-t-s-01"),
        }
    }

    #[test]
    fn nothing_a_client_claims_about_itself_reaches_the_upstream() {
        let mut forged = headers(&[
            ("host", "api.example"),
            ("x-seeme-key-id", "forged"),
            ("X_SeeMe_Account_Id", "forged"),
            ("x-seeme_scopes", "forged"),
            ("x-ratelimit-remaining", "forged"),
            ("x-forwarded-for", "forged"),
            ("x_forwarded_anything", "forged"),
            ("forwarded", "for=forged"),
            ("x-real-ip", "forged"),
            ("x-http-method-override", "DELETE"),
            ("x_method_override", "DELETE"),
            ("x-original-url", "/forged"),
            ("x-rewrite-url", "/forged"),
            ("x-request-id", "forged"),
            ("proxy-authorization", "forged"),
            ("proxy", "forged"),
            ("content_length", "forged"),
            ("transfer_encoding", "forged"),
            ("authorization_", "kept"),
            ("x-own-header", "kept"),
        ]);
        let client = HeaderValue::from_static("192.0.2.1");
        for_upstream(&mut forged, origin(&client), None, None, false);
        let text = format!("{forged:?}");
        assert!(!text.contains("forged") && !text.contains("DELETE"), "{text}");
        assert_eq!(forged["x-own-header"], "kept");
        assert_eq!(forged["x-forwarded-for"], "192.0.2.1");
        assert_eq!(forged["forwarded"], "for=192.0.2.1;proto=http;host=\"api.example\"");
    }

    #[test]
    fn a_field_that_connection_names_goes_and_what_the_gateway_sets_stays() {
        let mut fields = headers(&[
            ("host", "h"),
            ("connection", "close, X-Private, X-Forwarded-For, Host, Via"),
            ("x-private", "1"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
        ]);
        let client = HeaderValue::from_static("192.0.2.1");
        for_upstream(&mut fields, origin(&client), None, None, false);
        for gone in ["x-private", "transfer-encoding", "upgrade", "expect"] {
            assert!(!fields.contains_key(gone), "{gone}");
        }
        assert_eq!((&fields["te"], &fields["connection"]), (&"trailers".parse().unwrap(), &"te".parse().unwrap()));
        for kept in ["host", "x-forwarded-for", "via", "x-request-id", "traceparent"] {
            assert!(fields.contains_key(kept), "{kept}");
        }
    }

    #[test]
    fn a_name_that_is_none_hides_no_other_one_in_connection() {
        let mut fields = headers(&[("host", "h"), ("x-private", "1"), ("x-other", "1"), ("x-kept", "1")]);
        let list = HeaderValue::from_bytes(b"\xe9, X-Private").unwrap();
        fields.append(CONNECTION, list.clone());
        fields.append(CONNECTION, HeaderValue::from_static("(), x-other ,"));
        let mut answer = fields.clone();
        let client = HeaderValue::from_static("192.0.2.1");
        for_upstream(&mut fields, origin(&client), None, None, false);
        for_client(&mut answer, HeaderValue::from_static("ours"), None);
        for fields in [fields, answer] {
            assert!(!fields.contains_key("x-private") && !fields.contains_key("x-other"), "{fields:?}");
            assert!(fields.contains_key("x-kept"));
        }
    }

    #[test]
    fn on_a_public_route_a_key_is_removed_and_any_other_credential_passes() {
        let client = HeaderValue::from_static("192.0.2.1");
        for (value, passes) in
            [("Bearer session-token", true), ("Basic dTpw", true), ("Bearer sm_live_x", false), ("sm_TEST_x", false)]
        {
            let mut fields = headers(&[("host", "h"), ("authorization", value)]);
            for_upstream(&mut fields, origin(&client), None, None, false);
            assert_eq!(fields.contains_key("authorization"), passes, "{value}");
        }
    }

    #[test]
    fn no_trailer_frames_identifies_or_authenticates() {
        let mut trailers = headers(&[
            ("x-checksum", "1"),
            ("grpc-status", "0"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("authorization", "Bearer x"),
            ("x-seeme-key-id", "forged"),
            ("x_forwarded_for", "forged"),
            ("host", "other"),
            ("set_cookie", "forged"),
            ("cookie", "forged"),
            ("Cache-Control", "forged"),
            ("content-type", "forged"),
            ("content-digest", "sha-256=:x:"),
            ("if-match", "forged"),
            ("access-control-allow-origin", "forged"),
            ("te", "forged"),
            ("connection", "forged"),
        ]);
        filter_trailers(&mut trailers);
        let mut left: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-digest", "grpc-status", "x-checksum"]);
    }

    #[test]
    fn an_upstream_cannot_speak_for_the_gateway() {
        let mut fields =
            headers(&[("x-seeme-account-id", "theirs"), ("X_RateLimit_Limit", "theirs"), ("x-request-id", "theirs")]);
        let mut public = fields.clone();
        for_client(&mut fields, HeaderValue::from_static("ours"), Some(QuotaFields::new(state())));
        assert!(!format!("{fields:?}").contains("theirs"), "{fields:?}");
        // Where no plan is charged, the backend's own limits are the only ones there are.
        for_client(&mut public, HeaderValue::from_static("ours"), None);
        assert!(public.contains_key("x_ratelimit_limit") && !public.contains_key("x-seeme-account-id"));
    }

    fn state() -> QuotaState {
        let window = |window, limit, remaining, reset, seconds_left| WindowState {
            window,
            limit,
            remaining,
            reset,
            seconds_left,
        };
        QuotaState {
            minute: window(Window::Minute, 300, 295, 1_705_312_800, 34),
            day: window(Window::Day, 50_000, 49_100, 1_705_363_200, 40_000),
            violated: Violated::default(),
        }
    }

    #[test]
    fn both_families_say_the_same_and_a_refusal_says_when_to_come_back() {
        let mut state = state();
        let mut fields = HeaderMap::new();
        set_quota(&mut fields, &state);
        assert_eq!(fields["x-ratelimit-remaining"], "295");
        assert_eq!(fields["x-ratelimit-reset"], "1705312800");
        assert_eq!(fields["ratelimit-policy"], r#""minute";q=300;w=60, "day";q=50000;w=86400"#);
        assert_eq!(fields["ratelimit"], r#""minute";r=295;t=34, "day";r=49100;t=40000"#);
        assert!(!fields.contains_key("retry-after"));
        state.day.remaining = 0;
        state.violated.day = true;
        set_quota(&mut fields, &state);
        assert_eq!(fields["x-ratelimit-limit"], "50000");
        assert_eq!(fields["retry-after"], "40000");
    }
}

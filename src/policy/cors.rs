//! Cross-origin requests of web pages (contract 2 and 5; <https://fetch.spec.whatwg.org/#http-cors-protocol>).
//!
//! A browser lets a page read an answer only where the answer names the page's origin, and asks beforehand (a *preflight*) whether
//! it may send what no form could send: `Authorization`, for one. This says which origins there are and which fields an answer
//! gets. It protects the users of browsers and nobody else: whoever has no browser is not held up by it, so it decides nothing
//! about keys. Credentials that a browser adds by itself (cookies) are never allowed; a key is sent by the page.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, VARY,
};
use http::{HeaderMap, Method, StatusCode};

use super::headers::remove_family;

/// What a page may send. All that [`super::route::Methods::KNOWN`] has, whatever the path takes: a page is to see our 405, not an
/// error of its browser.
const METHODS: &str = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT";
const HEADERS: &str = "Authorization, Content-Type, Idempotency-Key, If-Match";
/// What a page may read, beside the few fields that it always may.
const EXPOSED: &str = "X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, RateLimit, RateLimit-Policy, Retry-After, \
                       X-Request-Id";
/// Seconds for which a browser need not ask again; none of them keeps to more than a day, Chromium not to more than this.
const MAX_AGE: &str = "7200";
const FAMILY: &str = "access-control-";

/// `cors`, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// `None`: every origin.
    origins: Option<Vec<HeaderValue>>,
}

/// How one request stands to [`Cors`]; made of its head, and set on its answer.
#[derive(Debug)]
pub struct CrossOrigin {
    /// What the answer names; `None`: the request comes from no page, or from one of an origin that is not allowed.
    allowed: Option<HeaderValue>,
    preflight: bool,
}

/// A text is not an origin as browsers write them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOrigin {
    /// Sandboxed pages and local files of everybody.
    #[error("`null` is the origin of every sandboxed page: write the origin of your own")]
    Null,
    /// `https://*.seeme.ai`
    #[error("an origin has no wildcards: write each one in full, or * alone for all of them")]
    Wildcard,
    /// No scheme.
    #[error("`{0}` has no scheme: write https://{0}")]
    NoScheme(String),
    /// More than scheme, host and port, or not as browsers write it.
    #[error("browsers do not write an origin like this: write {0}")]
    Not(String),
    /// Nothing to be mended.
    #[error("`{0}` is not an origin: write scheme://host or scheme://host:port, such as https://app.seeme.ai")]
    Garbage(String),
}

impl Cors {
    /// Pages of any origin, but without what a browser would add by itself.
    pub const fn any() -> Self {
        Self { origins: None }
    }

    /// Pages of these origins, as [`parse_origin`] made them.
    pub const fn of(origins: Vec<HeaderValue>) -> Self {
        Self { origins: Some(origins) }
    }

    /// Looks at the head of a request.
    pub fn look(&self, method: &Method, headers: &HeaderMap) -> CrossOrigin {
        let mut origins = headers.get_all(ORIGIN).iter();
        let allowed = match (origins.next(), origins.next()) {
            (Some(origin), None) => self.allowed(origin),
            _ => None,
        };
        let preflight =
            allowed.is_some() && *method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        CrossOrigin { allowed, preflight }
    }

    fn allowed(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match &self.origins {
            None => Some(HeaderValue::from_static("*")),
            Some(origins) => origins.iter().find(|known| *known == origin).cloned(),
        }
    }
}

impl CrossOrigin {
    /// The browser only asks: it is answered here, and no page sees the answer.
    pub const fn is_preflight(&self) -> bool {
        self.preflight
    }

    /// Sets the fields of an answer of this status, and removes those that an upstream has set.
    pub fn answer(self, status: StatusCode, headers: &mut HeaderMap) {
        remove_family(headers, FAMILY);
        // Also where nothing is allowed: a cache must not give this answer to a page of another origin.
        vary_by_origin(headers);
        let Some(origin) = self.allowed else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        // A preflight that is malformed is refused like any request.
        if !(self.preflight && status.is_success()) {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
            return;
        }
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        headers.append(VARY, HeaderValue::from_static("Access-Control-Request-Method, Access-Control-Request-Headers"));
    }
}

fn vary_by_origin(headers: &mut HeaderMap) {
    let names = |value: &HeaderValue| {
        value.to_str().is_ok_and(|list| {
            list.split(',').map(str::trim).any(|name| name == "*" || name.eq_ignore_ascii_case(ORIGIN.as_str()))
        })
    };
    if !headers.get_all(VARY).iter().any(names) {
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
}

/// An origin in the one form in which browsers write it (<https://html.spec.whatwg.org/#ascii-serialisation-of-an-origin>):
/// compared octet by octet, any other form would never be met.
pub fn parse_origin(text: &str) -> Result<HeaderValue, InvalidOrigin> {
    let garbage = || InvalidOrigin::Garbage(text.chars().take(80).collect());
    if text == "null" {
        return Err(InvalidOrigin::Null);
    }
    if text.contains('*') {
        return Err(InvalidOrigin::Wildcard);
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let looks_like_a_host = is_name(text.split(':').next().unwrap_or_default());
        return Err(if looks_like_a_host { InvalidOrigin::NoScheme(text.to_owned()) } else { garbage() });
    };
    let (scheme, rest) = (scheme.to_ascii_lowercase(), rest.to_ascii_lowercase());
    let place = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (host, port) = split_port(place).ok_or_else(garbage)?;
    if !is_scheme(&scheme) || !is_host(host) {
        return Err(garbage());
    }
    let port = port.filter(|port| default_port(&scheme) != Some(*port));
    let written = format!("{scheme}://{host}{}", port.map_or_else(String::new, |port| format!(":{port}")));
    if written != text {
        return Err(InvalidOrigin::Not(written));
    }
    HeaderValue::from_str(&written).map_err(|_| garbage())
}

fn split_port(place: &str) -> Option<(&str, Option<u16>)> {
    match place.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
        None => Some((place, None)),
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some((host, Some(port.parse().ok()?))),
        Some(_) => None,
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

fn is_scheme(scheme: &str) -> bool {
    scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte))
}

fn is_host(host: &str) -> bool {
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().is_ok_and(|address| address.to_string() == inner);
    }
    // A host that ends in a number is an address.
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_number = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
    is_name(host) && (!is_number || host.parse::<Ipv4Addr>().is_ok())
}

fn is_name(host: &str) -> bool {
    !host.is_empty()
        && !host.starts_with('.')
        && !host.contains("..")
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "https://app.seeme.ai";

    fn cors() -> Cors {
        Cors::of([APP, "http://localhost:3000"].map(|origin| parse_origin(origin).unwrap()).to_vec())
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect()
    }

    /// The CORS fields and `Vary` of an answer that had `answer` in it before.
    fn told(cors: &Cors, method: Method, request: &[(&'static str, &str)], answer: &[(&'static str, &str)]) -> String {
        let mut answer = headers(answer);
        cors.look(&method, &headers(request)).answer(StatusCode::OK, &mut answer);
        let mut lines: Vec<String> =
            answer.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
        lines.sort();
        lines.concat()
    }

    #[test]
    fn a_preflight_is_one_only_for_an_allowed_origin_that_asks_about_a_method() {
        let ask = ("access-control-request-method", "PUT");
        let is =
            |method: Method, fields: &[(&'static str, &str)]| cors().look(&method, &headers(fields)).is_preflight();
        assert!(is(Method::OPTIONS, &[("origin", APP), ask]));
        for (method, fields) in [
            (Method::GET, vec![("origin", APP), ask]),
            (Method::OPTIONS, vec![("origin", APP)]),
            (Method::OPTIONS, vec![ask]),
            (Method::OPTIONS, vec![("origin", "https://evil.example"), ask]),
            (Method::OPTIONS, vec![("origin", APP), ("origin", APP), ask]),
            (Method::OPTIONS, vec![("origin", "null"), ask]),
        ] {
            assert!(!is(method, &fields), "{fields:?}");
        }
        insta::assert_snapshot!(told(&cors(), Method::OPTIONS, &[("origin", APP), ask], &[]), @r"
        access-control-allow-headers: Authorization, Content-Type, Idempotency-Key, If-Match
        access-control-allow-methods: DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT
        access-control-allow-origin: https://app.seeme.ai
        access-control-max-age: 7200
        vary: Access-Control-Request-Method, Access-Control-Request-Headers
        vary: Origin
        ");
    }

    #[test]
    fn an_answer_names_the_allowed_origin_and_what_a_page_may_read() {
        insta::assert_snapshot!(told(&cors(), Method::GET, &[("origin", "http://localhost:3000")], &[]), @r"
        access-control-allow-origin: http://localhost:3000
        access-control-expose-headers: X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id
        vary: Origin
        ");
    }

    #[test]
    fn an_origin_is_allowed_octet_by_octet() {
        for other in [
            "https://app.seeme.ai.evil.example",
            "https://evil.example",
            "http://app.seeme.ai",
            "https://app.seeme.ai:8443",
            "https://APP.seeme.ai",
            "https://app.seeme.ai/",
            "https://xapp.seeme.ai",
            "",
            "null",
        ] {
            assert_eq!(told(&cors(), Method::GET, &[("origin", other)], &[]), "vary: Origin\n", "{other}");
        }
        assert_eq!(told(&cors(), Method::GET, &[], &[]), "vary: Origin\n");
        let any = told(&Cors::any(), Method::GET, &[("origin", "https://evil.example")], &[]);
        assert!(any.contains("allow-origin: *\n"), "{any}");
    }

    #[test]
    fn what_an_upstream_says_of_origins_is_replaced_and_its_vary_is_kept() {
        let theirs = [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("access-control-anything", "x"),
            ("vary", "Accept-Encoding"),
            ("x-kept", "1"),
        ];
        let without = told(&cors(), Method::GET, &[], &theirs);
        assert_eq!(without, "vary: Accept-Encoding\nvary: Origin\nx-kept: 1\n");
        let with = told(&cors(), Method::GET, &[("origin", APP)], &theirs);
        assert!(with.contains("allow-origin: https://app.seeme.ai\n") && !with.contains("credentials"), "{with}");
        for enough in ["*", "Accept, origin"] {
            assert_eq!(told(&cors(), Method::GET, &[], &[("vary", enough)]), format!("vary: {enough}\n"));
        }
    }

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        for good in [
            APP,
            "http://localhost:3000",
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
            "https://xn--bcher-kva.example",
            "https://a_b.example",
            "capacitor://localhost",
            "http://app.example:443",
        ] {
            assert_eq!(parse_origin(good).unwrap(), good);
        }
        let bad = [
            "null",
            "https://*.seeme.ai",
            "app.seeme.ai",
            "localhost:3000",
            "https://app.seeme.ai/",
            "https://app.seeme.ai/login?x#y",
            "HTTPS://App.SeeMe.ai",
            "https://app.seeme.ai:443",
            "http://app.seeme.ai:080",
            "https://user@app.seeme.ai",
            "https://bücher.example",
            "https://",
            "https://app.seeme.ai:99999",
            "https://app.seeme.ai:",
            "https://127.1",
            "https://[::1",
            "//app.seeme.ai",
            "a b",
        ];
        let told: String = bad.map(|text| format!("{}\n", parse_origin(text).unwrap_err())).concat();
        insta::assert_snapshot!(told);
    }
}

//! Header rewriting: whatever a client sends, the backend is told once and by the gateway who asks, and the framing is untouched.

use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use seeme_gateway::policy::headers::{Origin, for_client, for_upstream};

use super::mutation::run;

const WORDS: [&[u8]; 24] = [
    b"Connection: ",
    b"X-SeeMe-Key-Id: forged",
    b"x_seeme_key_id: forged",
    b"X-Forwarded-For: forged",
    b"X_Forwarded-For: forged",
    b"Forwarded: for=forged",
    b"Via: forged",
    b"Host: a",
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"TE: trailers",
    b"Upgrade: forged",
    b"Keep-Alive: forged",
    b"Proxy-Connection: forged",
    b"X-Request-Id: forged",
    b"traceparent: forged",
    b", ",
    b"X-RateLimit-Limit: forged",
    b"X-Original-URL: /forged",
    b"X-HTTP-Method-Override: forged",
    b"\n",
    b"close",
    b"Content-Length, Host, X-SeeMe-Key-Id",
    b"Expect: forged",
];

fn fields(input: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

/// Names that a CGI-like backend cannot tell apart are one.
fn folded(name: &HeaderName) -> String {
    name.as_str().replace('_', "-")
}

#[test]
fn a_client_can_neither_forge_nor_remove_what_the_gateway_says() {
    run("headers", &WORDS, |input, _| {
        let mut headers = fields(input);
        let before = headers.clone();
        let client = HeaderValue::from_static("192.0.2.1");
        let origin = Origin {
            peer: &client,
            passed: None,
            forwarded: Some(HeaderValue::from_static("for=192.0.2.1")),
            secure: false,
            version: Version::HTTP_11,
            request_id: HeaderValue::from_static("ours"),
            traceparent: HeaderValue::from_static("00-ours"),
        };
        for_upstream(&mut headers, origin, None, None, false);
        for (name, ours) in [("x-forwarded-for", "192.0.2.1"), ("x-request-id", "ours"), ("traceparent", "00-ours")] {
            let all: Vec<_> = headers.iter().filter(|(n, _)| folded(n) == name).map(|(_, value)| value).collect();
            assert!(all.len() == 1 && all[0] == ours, "{name}: {all:?}");
        }
        assert!(headers.get_all("via").iter().next_back().is_some_and(|via| via == "1.1 seeme-gateway"));
        for name in headers.keys() {
            let name = folded(name);
            assert!(!name.starts_with("x-seeme-") && !name.starts_with("x-ratelimit-"), "{name}");
            assert!(
                !["x-original-url", "x-rewrite-url", "x-http-method-override", "x-real-ip"].contains(&&*name),
                "{name}"
            );
            assert!(!["keep-alive", "proxy-connection", "upgrade", "expect"].contains(&&*name), "{name}");
        }
        // `Connection` is the gateway's own, and names the one field of a connection that it sends itself.
        let named: Vec<_> = headers.get_all("connection").iter().collect();
        let sent: Vec<_> = headers.get_all("te").iter().collect();
        assert!(
            matches!((&named[..], &sent[..]), ([], [])) || (named == ["te"] && sent == ["trailers"]),
            "{named:?} {sent:?}"
        );
        for kept in [HOST, CONTENT_LENGTH] {
            assert!(headers.get_all(&kept).iter().eq(before.get_all(&kept).iter()), "{kept}");
        }
    });
}

#[test]
fn a_backend_can_neither_speak_for_the_gateway_nor_for_its_connection() {
    run("headers", &WORDS, |input, _| {
        let mut headers = fields(input);
        for_client(&mut headers, HeaderValue::from_static("ours"), None);
        assert!(headers.get_all("x-request-id").iter().eq(["ours"]));
        for name in headers.keys() {
            let name = folded(name);
            assert!(!name.starts_with("x-seeme-"), "{name}");
            assert!(!["keep-alive", "proxy-connection", "upgrade"].contains(&&*name) || name.contains('_'), "{name}");
        }
    });
}

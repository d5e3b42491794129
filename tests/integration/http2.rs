//! HTTP/2 in front: how it begins, what an exchange looks like, how a connection ends.

use std::time::Duration;

use super::support::http2::{self, End, GOAWAY, Http2};
use super::support::{Scripted, Stand, eventually};

#[test]
fn a_request_by_prior_knowledge_is_authorized_forwarded_and_answered() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let mut client = Http2::open(stand.gateway.public);
    let answer = client.get("/echo/x?a=1", &key).expect(200);
    let echoed = answer.json();
    assert_eq!((&echoed["path"], &echoed["query"]), (&"/echo/x".into(), &"a=1".into()));
    assert_eq!(answer.echoed("host"), ["gateway.example"]);
    assert_eq!(answer.echoed("x-forwarded-host"), ["gateway.example"]);
    assert_eq!(answer.echoed("x-forwarded-proto"), ["http"]);
    assert_eq!(answer.echoed("via"), ["2 seeme-gateway"]);
    assert_eq!(answer.echoed("x-seeme-key-id"), [key.id.clone()]);
    assert!(answer.header("x-ratelimit-remaining").is_some() && answer.header("x-request-id").is_some());
    // The connection serves on, and what was refused on it costs nobody anything.
    let refused = client.exchange(&http2::get("/echo/x")).expect_refusal(401, "missing_key");
    assert_eq!(refused.end, End::Stream);
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    assert!(refused.header("connection").is_none());
    client.get("/echo/y", &key).expect(200);
}

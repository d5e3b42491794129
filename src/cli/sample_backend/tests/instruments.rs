//! What the tests of a proxy ask: echoes, faults, large bodies, counts.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tokio::time::Instant;

use super::super::body::pattern_at;
use super::{Running, request};

/// `length` bytes of the pattern that large answers are made of.
fn pattern(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        bytes.extend(pattern_at(bytes.len() as u64, (length - bytes.len()) as u64, 1000));
    }
    bytes
}

#[tokio::test]
async fn echo_tells_what_arrived() {
    let backend = Running::start().await;
    let sent = request("PATCH", "/echo/a%2Fb?x=1&y").header("X-Two", "1").header("X-Two", "2");
    let answer = backend.send(sent.body(Full::from("body")).unwrap()).await.json();
    assert_eq!(
        (&answer["method"], &answer["path"], &answer["query"]),
        (&json!("PATCH"), &json!("/echo/a%2Fb"), &json!("x=1&y"))
    );
    assert_eq!(answer["headers"]["x-two"], json!(["1", "2"]));
    assert_eq!(
        (&answer["body_bytes"], &answer["body_blake3"]),
        (&json!(4), &json!(blake3::hash(b"body").to_hex().as_str()))
    );
}

#[tokio::test]
async fn echo_tells_the_trailers_of_a_request() {
    let backend = Running::start().await;
    let head =
        "POST /echo/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
    let answer = backend.raw(&format!("{head}3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n")).await;
    assert!(answer.contains(r#""body_bytes":3"#), "{answer}");
    assert!(answer.contains(r#""trailers":{"x-sum":["9"]}"#), "{answer}");
}

#[tokio::test]
async fn echo_answers_the_status_size_and_headers_asked_for() {
    let backend = Running::start().await;
    let answer = backend.get("/echo/?status=418&bytes=150000&header=X-A:1&header=X-A:2%203&chunk_bytes=40000").await;
    assert_eq!(answer.status, 418);
    assert_eq!(answer.headers["content-length"], "150000");
    assert_eq!(answer.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2 3"]);
    assert_eq!(answer.body, pattern(150_000));
}

#[tokio::test]
async fn echo_pauses_before_the_head_and_between_chunks() {
    let backend = Running::start().await;
    let begun = Instant::now();
    let answer = backend.get("/echo/?bytes=30&chunk_bytes=10&chunk_delay_ms=20&delay_ms=10").await;
    assert_eq!(answer.body.len(), 30);
    assert!(begun.elapsed() >= Duration::from_millis(10 + 2 * 20), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn echo_sends_a_trailer_to_who_accepts_trailers() {
    let backend = Running::start().await;
    let sent = request("GET", "/echo/?bytes=70000&trailer=1").header("TE", "trailers");
    let answer = backend.send(sent.body(Full::default()).unwrap()).await;
    assert_eq!(answer.headers["transfer-encoding"], "chunked");
    assert_eq!(answer.trailers["x-checksum"], blake3::hash(&answer.body).to_hex().as_str());
    assert_eq!(answer.body.len(), 70_000);
}

#[tokio::test]
async fn echo_closes_before_the_head() {
    let backend = Running::start().await;
    assert_eq!(backend.raw("GET /echo/?close=head HTTP/1.1\r\nHost: a\r\n\r\n").await, "");
}

#[tokio::test]
async fn echo_closes_in_the_middle_of_the_body() {
    let backend = Running::start().await;
    let answer = backend.raw("GET /echo/?close=body&bytes=200 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-length: 200"), "{head}");
    assert_eq!(body.len(), 100);
    let answer = backend.raw("GET /echo/?close=body HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(body.starts_with(r#"{"method":"GET""#) && !body.ends_with('}'), "{body}");
}

#[tokio::test]
async fn echo_reflects_the_body() {
    let backend = Running::start().await;
    let sent = Bytes::from(pattern(300_000));
    let answer = backend
        .send(
            request("POST", "/echo/?reflect=1").header("content-type", "text/x").body(Full::new(sent.clone())).unwrap(),
        )
        .await;
    assert_eq!(answer.headers["content-length"], "300000");
    assert_eq!(answer.headers["content-type"], "text/x");
    assert_eq!(answer.body, sent);
}

#[tokio::test]
async fn echo_names_the_knob_that_it_does_not_understand() {
    let backend = Running::start().await;
    for query in ["status=99", "bytes=x", "close=door", "header=x", "header=content-length:3", "delay_ms=-1"] {
        let answer = backend.call("POST", &format!("/echo/?{query}"), "body").await;
        assert_eq!(answer.status, 400, "{query}");
        let knob = query.split_once('=').unwrap().0;
        assert!(answer.json()["error"].as_str().unwrap().starts_with(knob), "{query}");
    }
}

#[tokio::test]
async fn large_bodies_arrive_whole_in_both_directions() {
    let backend = Running::start().await;
    let length = 5 * 1024 * 1024 + 17;
    let answer = backend.get(&format!("/download?bytes={length}")).await;
    assert_eq!(answer.headers["content-length"], length.to_string().as_str());
    assert!(answer.body == pattern(length), "the pattern is broken");
    let counted = backend.call("POST", "/upload", answer.body.clone()).await.json();
    assert_eq!(counted, json!({ "bytes": length, "blake3": blake3::hash(&answer.body).to_hex().as_str() }));
}

#[tokio::test]
async fn requests_are_counted_by_method_and_path() {
    let backend = Running::start().await;
    backend.get("/healthz").await;
    backend.get("/echo/?status=500").await;
    backend.get("/echo/?status=200").await;
    backend.call("POST", "/nowhere", "x").await;
    let counts = backend.get("/requests/count").await.json();
    assert_eq!(counts, json!({ "GET /echo/": 2, "GET /healthz": 1, "GET /requests/count": 1, "POST /nowhere": 1 }));
}

#[tokio::test]
async fn a_stop_lets_the_request_in_flight_end() {
    let backend = Running::start().await;
    let request = request("GET", "/echo/?bytes=40&chunk_bytes=10&chunk_delay_ms=10").body(Full::default()).unwrap();
    let answer = backend.open(request).await.unwrap();
    backend.stop.send(()).unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 40);
    backend.served.await.unwrap().unwrap();
}

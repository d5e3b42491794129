//! Answers that last: long in coming, or long in being.

use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::servers::RedisServer;
use super::support::{Connection, Gateway, Key, Layout, PATIENCE, Scripted, Stand, eventually};

const FINAL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SOON: Duration = Duration::from_secs(5);
/// As for a tunnel.
const REVOKED_WITHIN: Duration = Duration::from_secs(1);

/// A backend whose streams say one thing and then nothing, or which send without end.
fn streaming() -> Scripted {
    Scripted::start(|wire| {
        let Some(request) = wire.request() else { return };
        wire.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
        );
        if request.head.contains("/silent ") {
            wire.is_closed_by_gateway();
        }
        while !wire.is_closed() {
            wire.send("3e8\r\n");
            wire.send([b'x'; 1000]);
            wire.send("\r\n");
        }
    })
}

/// A stream that has lasted for longer than an answer that nobody watches.
fn lasting(gateway: &Gateway, key: &Key, path: &str) -> Connection {
    let mut connection = gateway.get(path).bearer(key).start();
    assert_eq!(connection.head().status, 200);
    assert_eq!(connection.chunk().unwrap(), b"hi");
    connection
}

/// Reads until the connection ends; whether the stream looked whole.
fn read_to_end(connection: &mut Connection) -> bool {
    while let Some(chunk) = connection.chunk() {
        if chunk.is_empty() {
            return true;
        }
    }
    false
}

#[test]
fn a_stream_breaks_off_on_every_gateway_when_its_key_is_deleted() {
    streams_break_off(Stand::new(), |stand, _, key| drop(stand.cli(&["keys", "delete", &key.id]).expect_success()));
}

#[test]
fn a_stream_breaks_off_on_every_gateway_of_a_shared_redis_when_its_key_is_deleted_through_one() {
    let redis = RedisServer::start();
    let store = format!("url: \"{}\"{PATIENCE}", redis.url());
    streams_break_off(Stand::new().shared_store(&store), |stand, second, key| {
        let manager = stand.key().account(&key.account).scope("api-keys:write").create();
        second.request("DELETE", &format!("/api/v1/api-keys/{}", key.id)).bearer(&manager).send().expect_status(200);
    });
}

/// Streams of a key on two gateways: `delete` it, and they end in time and do not look whole.
fn streams_break_off(layout: Layout, delete: impl FnOnce(&Stand, &Gateway, &Key)) {
    let upstream = streaming();
    let stand = layout.upstream(upstream.address).start();
    let (key, other) = (stand.key().create(), stand.key().create());
    let second = stand.another_gateway();
    let mut bystander = lasting(&stand.gateway, &other, "/echo/silent");
    let streams = [(&stand.gateway, "/echo/silent"), (&second, "/echo/silent"), (&stand.gateway, "/echo/busy")];
    let reading = streams.map(|(gateway, path)| {
        let mut stream = lasting(gateway, &key, path);
        std::thread::spawn(move || (read_to_end(&mut stream), Instant::now()))
    });
    let begun = Instant::now();
    eventually("they have lasted", SOON, || begun.elapsed() > Duration::from_millis(1200));
    let asked = Instant::now();
    delete(&stand, &second, &key);
    let deleted = Instant::now();
    let ended = reading.map(|reading| {
        let (whole, ended) = reading.join().unwrap();
        assert!(!whole, "it must not look whole");
        assert!(ended.saturating_duration_since(deleted) < REVOKED_WITHIN, "{:?}", ended - deleted);
        ended - asked
    });
    println!("said to be done after {:?}, the streams had ended after {ended:?}", deleted - asked);
    bystander.set_patience(Duration::from_millis(300));
    assert!(bystander.chunk().is_none() && !bystander.is_closed_by_server(), "others go on");
    for line in stand.gateway.request_log(2) {
        assert_eq!((&line["status"], &line["code"]), (&401.into(), &"invalid_key".into()), "{line}");
    }
}

#[test]
fn a_stream_whose_key_goes_in_its_first_moment_breaks_off_too() {
    let upstream = streaming();
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let mut stream = lasting(&stand.gateway, &key, "/echo/silent");
    stand.cli(&["keys", "disable", &key.id]).expect_success();
    let disabled = Instant::now();
    assert!(!read_to_end(&mut stream));
    assert!(disabled.elapsed() < REVOKED_WITHIN + Duration::from_millis(250), "{:?}", disabled.elapsed());
}

#[test]
fn a_stream_of_a_public_route_has_no_key_to_lose() {
    let upstream = streaming();
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let mut stream = lasting(&stand.gateway, &key, "/public/silent");
    stand.cli(&["keys", "delete", &key.id]).expect_success();
    stream.set_patience(Duration::from_millis(1500));
    assert!(stream.chunk().is_none() && !stream.is_closed_by_server());
}

#[test]
fn a_long_poll_is_answered_after_its_wait_and_one_whose_client_leaves_frees_its_backend_at_once() {
    let (gone, noticed) = mpsc::channel();
    let (arrived, there) = mpsc::channel();
    let ends = Mutex::new((arrived, gone));
    let upstream = Scripted::start(move |wire| {
        while let Some(head) = wire.head() {
            if head.starts_with("GET /echo/leaves ") {
                let ends = ends.lock().unwrap();
                ends.0.send(()).unwrap();
                return ends.1.send(wire.is_closed_by_gateway()).unwrap();
            }
            std::thread::sleep(Duration::from_millis(1500));
            wire.send(FINAL);
        }
    });
    // Shorter than the wait for everything but the head of the answer.
    let stand = Stand::new()
        .upstream(upstream.address)
        .section("timeouts: { header: 1s, idle: 1s, body_idle: 1s, keepalive: 1s, response: 10s }")
        .start();
    let key = stand.key().create();
    let response = stand.get("/echo/stays").bearer(&key).send().expect_status(200);
    assert_eq!(response.text(), "ok");
    let polling = stand.get("/echo/leaves").bearer(&key).start();
    there.recv_timeout(SOON).unwrap();
    drop(polling);
    assert_eq!(noticed.recv_timeout(Duration::from_secs(2)), Ok(true));
    let usage = stand.usage(&key);
    assert_eq!((&usage["by_status"]["2xx"], &usage["by_status"]["client_gone"]), (&1.into(), &1.into()), "{usage}");
}

#[test]
fn a_long_poll_whose_key_goes_while_it_waits_gets_a_refusal_for_an_answer() {
    let upstream = Scripted::start(|wire| {
        while wire.request().is_some() {
            std::thread::sleep(Duration::from_millis(1500));
            wire.send(FINAL);
        }
    });
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let mut polling = stand.get("/echo/waits").bearer(&key).start();
    eventually("it waits", SOON, || upstream.requests().len() == 1);
    stand.cli(&["keys", "delete", &key.id]).expect_success();
    polling.response("GET").expect_refusal(401, "invalid_key");
}

//! The way down: nobody who was served is dropped, who comes later is told by a refused connection, and the process ends in time.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::http2::{GOAWAY, Http2};
use super::support::{Gateway, Key, Load, Scripted, Stand, eventually, seconds, sized, statuses};

const BASE: &str = "/api/v1/api-keys";
const SOON: Duration = Duration::from_secs(20);

/// A backend whose downloads and event streams take a while: `pieces`, one each tenth of a second.
fn slow(pieces: usize) -> Scripted {
    Scripted::start(move |wire| {
        while let Some(request) = wire.request() {
            let (download, events) = (request.head.contains("/download"), request.head.contains("/events"));
            let piece = [b'x'; 1000];
            if download {
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1000 * pieces));
            } else if events {
                wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
            } else {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                continue;
            }
            for _ in 0..pieces {
                wire.wait_without_reading(Duration::from_millis(100));
                if download { wire.send(piece) } else { wire.send("9\r\ndata: x\n\n\r\n") }
            }
            if events {
                wire.send("0\r\n\r\n");
            }
        }
    })
}

/// Experiment 17.
#[test]
fn sigterm_under_load_lets_downloads_and_event_streams_end_and_loses_no_request() {
    let pieces = sized(20, 60);
    let upstream = slow(pieces);
    let stand = Stand::new().upstream(upstream.address).section("drain: { timeout: 30s }").start();
    let key = stand.key().create();
    let path = |n: usize| if n < 20 { format!("/echo/download/{n}") } else { format!("/echo/events/{n}") };
    let mut streams: Vec<_> = (0..25).map(|n| stand.get(&path(n)).bearer(&key).start()).collect();
    let heads: Vec<_> = streams.iter_mut().map(|stream| stream.head()).collect();
    assert!(heads.iter().all(|head| head.status == 200));
    let load = Load::on(&[&stand.gateway]).keys([&key]).connections(50).rate(sized(200.0, 500.0)).start();
    eventually("requests flow", SOON, || load.begun() > 100);

    stand.gateway.process.terminate();
    let told = Instant::now();
    let unready = eventually("not ready", SOON, || stand.gateway.admin("/readyz").status() == 503);
    let refused =
        || TcpStream::connect(stand.gateway.public).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    eventually("the listener is closed", SOON, refused);
    let closed = told.elapsed();
    for (n, stream) in streams.iter_mut().enumerate() {
        if n < 20 {
            assert_eq!(stream.take(1000 * pieces).map(|body| body.len()), Some(1000 * pieces), "download {n}");
        } else {
            let mut events = 0;
            while stream.chunk().expect("an event stream broke off").len() == 9 {
                events += 1;
            }
            assert_eq!(events, pieces, "event stream {n}");
        }
    }
    let shots = load.stop();
    let Stand { gateway, .. } = stand;
    assert_eq!({ gateway.process }.wait().code, Some(0));
    println!(
        "not ready after {unready:?}, listener closed after {closed:?}; ended after {:?}; {:?}",
        told.elapsed(),
        statuses(&shots)
    );
    // Room for a busy machine: the promise is 100 ms.
    assert!(closed < Duration::from_millis(500), "{closed:?}");
    assert_eq!(statuses(&shots), [(200, shots.len())]);
}

#[test]
fn an_answer_during_the_drain_says_that_it_is_the_last_one_and_an_idle_connection_is_closed() {
    let stand = Stand::new().section("drain: { timeout: 20s }").start();
    let key = stand.key().create();
    let request = stand.get("/echo/x").bearer(&key);
    let (mut busy, mut idle) = (stand.connect(), stand.connect());
    for connection in [&mut busy, &mut idle] {
        assert_eq!(request.on(connection).expect_status(200).header("connection"), None);
    }
    stand.gateway.process.terminate();
    eventually("it drains", SOON, || stand.gateway.process.stderr().contains("draining"));
    // Told before it is closed: whoever is about to send is answered.
    let last = request.on(&mut busy).expect_status(200);
    assert_eq!(last.header("connection"), Some("close"));
    assert!(busy.is_closed_by_server() && idle.is_closed_by_server());
    let Stand { gateway, .. } = stand;
    let ended = { gateway.process }.wait();
    assert_eq!(ended.code, Some(0));
    assert!(!ended.stderr.contains("drain.timeout is over"), "{}", ended.stderr);
}

/// What a client that is far away would lose: it has not heard of the end when it sends its request.
#[test]
fn a_client_of_http2_that_has_not_heard_yet_is_served_and_then_told_what_was_its_last_request() {
    let mut stand = Stand::new().section("drain: { timeout: 3s }").start();
    let key = stand.key().create();
    let mut client = Http2::open(stand.gateway.public);
    client.is_attentive = false;
    client.get("/echo/x", &key).expect(200);
    // For longer than an idle connection has once its gateway drains.
    std::thread::sleep(Duration::from_millis(1600));
    stand.gateway.process.terminate();
    let told = |client: &mut Http2| loop {
        let frame = client.next().expect("GOAWAY");
        if frame.kind == GOAWAY {
            return frame.payload;
        }
    };
    assert_eq!(told(&mut client), [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    std::thread::sleep(Duration::from_millis(600));
    client.get("/echo/x", &key).expect(200);
    assert_eq!(told(&mut client), [0, 0, 0, 3, 0, 0, 0, 0]);
    while client.next().is_some() {}
    drop(client);
    let ended = stand.gateway.process.wait();
    assert!(ended.code == Some(0) && !ended.stderr.contains("closing what is left"), "{ended:?}");
}

#[test]
fn a_client_of_http2_that_has_heard_need_not_wait() {
    let mut stand = Stand::new().section("drain: { timeout: 60s }").start();
    let key = stand.key().create();
    let mut client = Http2::open(stand.gateway.public);
    client.get("/echo/x", &key).expect(200);
    let begun = Instant::now();
    stand.gateway.process.terminate();
    assert_eq!(client.last_word(), Some(0));
    // It keeps its end open.
    assert_eq!(stand.gateway.process.wait().code, Some(0));
    assert!(begun.elapsed() < Duration::from_millis(1900), "{:?}", begun.elapsed());
}

#[test]
fn during_the_delay_new_connections_are_served_as_before() {
    let stand = Stand::new().section("drain: { delay: 1500ms }").start();
    let key = stand.key().create();
    let load = Load::on(&[&stand.gateway]).keys([&key]).connections(20).rate(200.0).fresh().start();
    eventually("requests flow", SOON, || load.begun() > 50);
    stand.gateway.process.terminate();
    eventually("not ready", SOON, || stand.gateway.admin("/readyz").status() == 503);
    let before = load.begun();
    eventually("more of them", SOON, || load.begun() > before + 50);
    assert_eq!(load.refused(), 0);
    let shots = load.stop();
    assert_eq!(statuses(&shots), [(200, shots.len())]);
    let Stand { gateway, .. } = stand;
    assert_eq!({ gateway.process }.wait().code, Some(0));
}

#[test]
fn a_second_signal_ends_what_the_first_one_waits_for_and_the_usage_is_written() {
    let upstream = slow(200);
    let stand = Stand::new().upstream(upstream.address).section("drain: { delay: 20s, timeout: 20s }").start();
    let key = stand.key().create();
    let mut stream = stand.get("/echo/download").bearer(&key).start();
    assert_eq!(stream.head().status, 200);
    stand.gateway.process.terminate();
    eventually("not ready", SOON, || stand.gateway.admin("/readyz").status() == 503);
    let again = Instant::now();
    stand.gateway.process.terminate();
    let other = stand.another_gateway();
    let reader = stand.key().account(&key.account).scope("api-keys:read").create();
    let Stand { gateway, .. } = stand;
    let ended = { gateway.process }.wait();
    assert_eq!(ended.code, Some(0));
    assert!(again.elapsed() < Duration::from_secs(8), "{:?}", again.elapsed());
    assert!(ended.stderr.contains("told to end once more"), "{}", ended.stderr);
    let path = format!("/api/v1/api-keys/{}/usage", key.id);
    let usage = other.get(&path).bearer(&reader).send().expect_status(200).json();
    assert_eq!(usage["total_requests"], 1, "{usage}");
}

/// Experiment 17, the other end: SIGKILL. What a client was told is made is there, and what it was told is gone is gone.
#[test]
fn a_gateway_that_is_killed_is_soon_back_and_its_store_has_all_that_was_acknowledged() {
    let stand = Stand::new().start();
    let caller = stand.key().scope("models:read").scope("api-keys:*").create();
    let load = Load::on(&[&stand.gateway]).keys([&caller]).connections(50).rate(sized(200.0, 500.0)).start();
    let (mut made, mut deleted) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4).map(|_| scope.spawn(|| write_until_it_ends(&stand.gateway, &caller))).collect();
        std::thread::sleep(seconds(2, 20));
        stand.gateway.process.signal(Signal::KILL);
        for writer in writers {
            let (kept, gone) = writer.join().unwrap();
            made.extend(kept);
            deleted.extend(gone);
        }
    });
    let start = Instant::now();
    let second = stand.another_gateway();
    second.get("/echo/x").bearer(&caller).send().expect_status(200);
    println!(
        "{} made and {} deleted under load; serves {:?} after its start",
        made.len(),
        deleted.len(),
        start.elapsed()
    );
    drop(load);
    assert!(made.len() > 20 && deleted.len() > 20, "{} and {}", made.len(), deleted.len());
    for key in &made {
        second.get("/echo/x").bearer(key).send().expect_status(200);
    }
    for key in &deleted {
        second.get("/echo/x").bearer(key).send().expect_refusal(401, "invalid_key");
    }
}

/// Makes keys and deletes every other one until there is no answer: what was acknowledged.
fn write_until_it_ends(gateway: &Gateway, caller: &Key) -> (Vec<Key>, Vec<Key>) {
    let (mut made, mut deleted) = (Vec::new(), Vec::new());
    let mut connection = gateway.connect();
    let mut ask = |method: &str, path: &str, body: &Value| {
        let request = gateway.request(method, path).bearer(caller);
        let request = if body.is_null() { request } else { request.json(body) };
        connection.try_send(request.bytes()).and_then(|()| connection.try_response(method)).ok().filter(|r| r.complete)
    };
    let wanted = json!({"name": "one of many", "scopes": ["models:read"]});
    while let Some(answer) = ask("POST", BASE, &wanted) {
        let key = Key::of(answer.expect_status(201).json());
        if made.len() > deleted.len() {
            // Without an answer nobody knows.
            let Some(answer) = ask("DELETE", &format!("{BASE}/{}", key.id), &Value::Null) else { break };
            assert!(matches!(answer.status(), 200 | 202), "{}", answer.text());
            deleted.push(key);
        } else {
            made.push(key);
        }
    }
    (made, deleted)
}

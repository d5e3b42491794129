//! What is sent again after a backend failed it, and what never is.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::support::{Connection, Flapping, Request, Scripted, Stand, eventually, seconds};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A stand in front of these, with a public route for every method.
fn before(endpoints: &[SocketAddr], members: &str) -> Stand {
    let urls: Vec<String> = endpoints.iter().map(|address| format!("\"http://{address}\"")).collect();
    let section = format!("upstreams: {{ main: {{ endpoints: [{}]{members} }} }}", urls.join(", "));
    Stand::new()
        .section(&section)
        .upstream(endpoints[0])
        .route("* /public/{*rest}", "access: public")
        .route("GET /impatient", "access: public, timeouts: { response: 300ms }")
        .start()
}

/// Reads each request and drops it, the first `times`; then answers.
fn dropping(times: usize) -> Scripted {
    let dropped = AtomicUsize::new(0);
    Scripted::start(move |wire| {
        while wire.request().is_some() {
            if dropped.fetch_add(1, Ordering::AcqRel) < times {
                return;
            }
            wire.send(HELLO);
        }
    })
}

fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_request_without_an_answer_is_sent_again_if_its_method_allows_it() {
    for (method, body, status) in [
        ("GET", "", 200),
        ("HEAD", "", 200),
        ("OPTIONS", "", 200),
        ("DELETE", "", 200),
        ("PUT", "", 200),
        ("POST", "", 502),
        ("PATCH", "", 502),
        ("BREW", "", 502),
        // A small body is kept until the answer begins, a large one is gone once it was sent.
        ("PUT", "small", 200),
        ("DELETE", "small", 200),
        ("GET", "small", 200),
        ("PUT", &"x".repeat(64 * 1024), 200),
        ("PUT", &"x".repeat(64 * 1024 + 1), 502),
        ("POST", "small", 502),
        ("PATCH", "small", 502),
    ] {
        let backend = dropping(2);
        let stand = before(&[backend.address], "");
        let request = stand.request(method, "/public/x");
        let request = if body.is_empty() { request } else { request.body(body) };
        assert_eq!(request.send().status(), status, "{method} {}", body.len());
        let requests = backend.requests();
        assert_eq!(requests.len(), if status == 200 { 3 } else { 1 }, "{method} {}", body.len());
        assert!(requests.iter().all(|seen| seen.head == requests[0].head && seen.body == body.as_bytes()));
    }
}

#[test]
fn there_are_so_many_tries_and_no_more() {
    for (members, tries) in [("", 3), (", retries: { attempts: 0 }", 1), (", retries: { attempts: 5 }", 6)] {
        let backend = dropping(usize::MAX);
        let stand = before(&[backend.address], members);
        stand.get("/public/x").send().expect_refusal(502, "upstream_unreachable");
        assert_eq!(backend.requests().len(), tries, "{members}");
        let counted = stand.gateway.metric("gateway_upstream_retries_total", "upstream=\"main\"");
        assert_eq!(counted, Some((tries - 1) as f64));
    }
}

#[test]
fn a_body_that_was_held_in_memory_is_sent_again_whole() {
    let backend = dropping(1);
    let stand = Stand::new()
        .upstream(backend.address)
        .route("PUT /held", "scope: models:read, resources: { model: body./model }")
        .start();
    let key = stand.key().scope("models:read").model("m").create();
    stand.request("PUT", "/held").bearer(&key).body("{\"model\": \"m\"}").send().expect_status(200);
    let requests = backend.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].head, requests[1].head);
    assert!(requests.iter().all(|request| request.body == b"{\"model\": \"m\"}"));
}

#[test]
fn once_any_octet_of_an_answer_has_come_nothing_is_sent_again() {
    for answer in
        ["H", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\nContent-", "HTTP/1.1 103 Early Hints\r\n\r\n", "SSH-2.0\r\n\r\n"]
    {
        let backend = Scripted::start(move |wire| {
            wire.request();
            wire.send(answer);
        });
        let stand = before(&[backend.address], "");
        stand.get("/public/x").send().expect_refusal(502, "upstream_unreachable");
        assert_eq!(backend.requests().len(), 1, "{answer:?}");
    }
}

#[test]
fn no_status_and_no_timeout_is_tried_again() {
    let backend = Scripted::answering("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    let stand = before(&[backend.address], "");
    stand.get("/public/x").send().expect_status(503);
    assert_eq!(backend.requests().len(), 1);

    let silent = Scripted::start(|wire| {
        wire.request();
        wire.is_closed_by_gateway();
    });
    let stand = before(&[silent.address], "");
    let start = Instant::now();
    stand.get("/impatient").send().expect_refusal(504, "upstream_timeout");
    assert!((Duration::from_millis(300)..Duration::from_secs(2)).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(silent.requests().len(), 1);
}

#[test]
fn a_refused_connection_sends_every_method_elsewhere_and_its_streamed_body_too() {
    let backend = Scripted::answering(HELLO);
    // So rarely put aside that each request may meet it.
    let stand = before(&[refusing(), backend.address], ", outlier: { failures: 0 }");
    for round in 0..10 {
        for method in ["GET", "POST", "PATCH", "PUT"] {
            let body = format!("{method} {round}");
            stand.request(method, "/public/x").body(&body).send().expect_status(200);
        }
    }
    let bodies: Vec<_> = backend.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies.len(), 40, "each once");
    assert!(stand.gateway.metric("gateway_upstream_retries_total", "") > Some(5.0));
}

#[test]
fn the_budget_bounds_what_a_dead_backend_is_sent() {
    let backend = dropping(usize::MAX);
    let stand = before(&[backend.address], ", retries: { attempts: 10, budget: 0% }");
    for _ in 0..20 {
        stand.get("/public/x").send().expect_status(502);
    }
    assert_eq!(backend.requests().len(), 20, "no budget, no retry");

    let backend = dropping(usize::MAX);
    let stand = before(&[backend.address], ", retries: { attempts: 10 }");
    for _ in 0..100 {
        stand.get("/public/x").send().expect_status(502);
    }
    // The floor of ten a second, in a window of ten seconds, and a fifth of the requests.
    let retries = backend.requests().len() - 100;
    assert!((100..=125).contains(&retries), "{retries}");
}

/// One request of the load below.
struct Shot {
    method: &'static str,
    target: String,
    status: u16,
}

/// Open loop: so many a second, a POST among five, each with a target of its own.
fn load(gateway: SocketAddr, per_second: usize, time: Duration) -> Vec<Shot> {
    const CONNECTIONS: usize = 20;
    let (start, total) = (Instant::now(), per_second * time.as_secs() as usize);
    let connection = move |index: usize| {
        let (mut shots, mut open) = (Vec::new(), None);
        for number in (index..total).step_by(CONNECTIONS) {
            let due = start + Duration::from_secs_f64(number as f64 / per_second as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let method = if number % 5 == 0 { "POST" } else { "GET" };
            let target = format!("/public/{number}");
            let mut request = Request::new(gateway, method, &target);
            // Every other POST has no body: nothing but its method keeps it from being sent again.
            if number % 10 == 0 {
                request = request.body("once");
            }
            let connection = open.get_or_insert_with(|| Connection::open(gateway));
            let answer = connection.try_send(request.bytes()).and_then(|()| connection.try_response(method));
            let status = answer.as_ref().map_or(0, |answer| answer.status());
            if answer.is_err() || answer.is_ok_and(|answer| answer.header("connection") == Some("close")) {
                open = None;
            }
            shots.push(Shot { method, target, status });
        }
        shots
    };
    let threads: Vec<_> = (0..CONNECTIONS).map(|index| std::thread::spawn(move || connection(index))).collect();
    threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
}

/// Experiment 13.
#[test]
fn of_two_backends_one_is_killed_every_two_seconds_and_hardly_a_request_notices() {
    let (steady, mut flapping) = (Flapping::start(), Flapping::start());
    let stand = before(&[steady.address, flapping.address], ", outlier: { failures: 5, eject_for: 1s }");
    let (gateway, time) = (stand.gateway.public, seconds(8, 60));
    let running = std::thread::spawn(move || load(gateway, 500, time));
    let usable = || stand.gateway.metric("gateway_upstream_endpoints_usable", "").unwrap() as usize;
    let (start, second, patience) = (Instant::now(), Duration::from_secs(1), Duration::from_secs(5));
    let (mut aside, mut back) = (Vec::new(), Vec::new());
    // Alive for a second, dead for one.
    while start.elapsed() + 2 * second < time {
        std::thread::sleep(second.saturating_sub(back.last().copied().unwrap_or_default()));
        flapping.kill();
        aside.push(eventually("it is put aside", patience, || usable() == 1));
        std::thread::sleep(second.saturating_sub(*aside.last().unwrap()));
        flapping.revive();
        let before = flapping.received().len();
        back.push(eventually("it serves again", patience, || flapping.received().len() > before));
    }
    let kills = aside.len();
    let shots = running.join().unwrap();

    let failed: Vec<_> = shots.iter().filter(|shot| shot.status != 200).collect();
    assert!(failed.iter().all(|shot| shot.method == "POST"), "only what must not be repeated may fail");
    assert!(failed.len() * 1000 <= shots.len(), "{} of {} failed", failed.len(), shots.len());
    let mut seen: HashMap<(String, String), usize> = HashMap::new();
    for request in steady.received().into_iter().chain(flapping.received()) {
        *seen.entry(request).or_default() += 1;
    }
    let posts = shots.iter().filter(|shot| shot.method == "POST");
    for shot in posts {
        let times = seen.get(&("POST".to_owned(), shot.target.clone())).copied().unwrap_or(0);
        assert!(times <= 1 && (shot.status != 200 || times == 1), "{} came {times} times", shot.target);
    }
    // Both served: the one that came back was taken back.
    assert!(flapping.received().len() * 10 > shots.len(), "{} of {}", flapping.received().len(), shots.len());
    assert!(kills >= 3 && stand.gateway.metric("gateway_upstream_ejections_total", "") >= Some(1.0));
    println!(
        "{} requests, {kills} kills, {} failed, {} retries, {} ejections; aside within {:.1?}, serving again within {:.1?}",
        shots.len(),
        failed.len(),
        stand.gateway.metric("gateway_upstream_retries_total", "").unwrap(),
        stand.gateway.metric("gateway_upstream_ejections_total", "").unwrap(),
        aside.iter().max().unwrap(),
        back.iter().max().unwrap(),
    );
}

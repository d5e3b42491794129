//! Starting, watching and stopping a gateway.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::support::http2::{ACK, Http2, PING};
use super::support::{Connection, Process, Scripted, Stand, cli, eventually};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn the_operators_listener_answers_and_the_public_one_does_not_show_it() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    stand.get("/echo/x").bearer(&key).send().expect_status(200);
    assert_eq!(stand.gateway.admin("/livez").expect_status(200).text().trim(), "ok");
    assert_eq!(stand.gateway.admin("/readyz").expect_status(200).text().trim(), "ready");
    let metrics = stand.gateway.admin("/metrics").expect_status(200);
    assert!(metrics.expect_header("content-type").starts_with("text/plain"));
    stand.gateway.admin("/").expect_status(404);
    for path in ["/livez", "/readyz", "/metrics"] {
        stand.get(path).send().expect_refusal(404, "route_not_found");
    }
    eventually("the request is counted", SOON, || {
        stand.gateway.metric("gateway_requests_total", "class=\"2xx\"") == Some(1.0)
    });
    assert_eq!(stand.gateway.metric("gateway_requests_total", "* /echo/{*rest}"), Some(1.0));
    assert_eq!(stand.gateway.metric("gateway_requests_in_flight", ""), Some(0.0));
    assert_eq!(stand.gateway.metric("gateway_replicas", ""), Some(1.0));
    let text = stand.gateway.admin("/metrics").text();
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(name.starts_with("gateway_"), "{name}");
    }
}

#[test]
fn a_refusal_is_counted_by_its_code() {
    let stand = Stand::new().start();
    stand.get("/echo/x").send().expect_status(401);
    stand.get("/nowhere").send().expect_status(404);
    for code in ["missing_key", "route_not_found"] {
        eventually(code, SOON, || stand.gateway.metric("gateway_refusals_total", code) == Some(1.0));
    }
}

#[test]
fn sigterm_finishes_what_is_in_flight_and_ends_with_0() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let upstream = Scripted::start(move |wire| {
        if wire.request().is_some() {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
            let _ = wait.lock().unwrap().recv_timeout(SOON);
            wire.send("world");
        }
    });
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let mut connection = stand.get("/echo/x").bearer(&key).start();
    assert_eq!(connection.head().status, 200);
    let mut idle = stand.connect();
    idle.send("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
    idle.response("GET").expect_status(404);

    stand.gateway.process.terminate();
    eventually("it no longer accepts", SOON, || std::net::TcpStream::connect(stand.gateway.public).is_err());
    assert!(idle.is_closed_by_server(), "an idle connection is closed at once");
    go.send(()).unwrap();
    assert_eq!(connection.take(10).unwrap(), b"helloworld");
    let Stand { gateway, .. } = stand;
    let ended = { gateway.process }.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn a_stop_under_load_closes_no_connection_that_it_accepted_without_an_answer() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let served = AtomicUsize::new(0);
    let unanswered = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let bytes = stand.get("/echo/x").bearer(&key).bytes();
                    loop {
                        // Refused: nobody listens any more.
                        let Ok(mut connection) = Connection::try_open(stand.gateway.public) else { return 0 };
                        let answer = connection.try_send(&bytes).and_then(|()| connection.try_response("GET"));
                        match answer {
                            Ok(response) => {
                                response.expect_status(200);
                                served.fetch_add(1, Ordering::Relaxed);
                            }
                            // In the instant between its last accept and its close the kernel resets what came to the
                            // listener; no process can help that, `drain.delay` is for it.
                            Err(error) if error.kind() == ErrorKind::ConnectionReset => return 0,
                            Err(error) => {
                                println!("{error}");
                                return 1;
                            }
                        }
                    }
                })
            })
            .collect();
        eventually("requests flow", SOON, || served.load(Ordering::Relaxed) > 100);
        stand.gateway.process.terminate();
        clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>()
    });
    println!("{} served, {unanswered} accepted and not answered", served.load(Ordering::Relaxed));
    assert_eq!(unanswered, 0);
    let Stand { gateway, .. } = stand;
    assert_eq!({ gateway.process }.wait().code, Some(0));
}

#[test]
fn sigint_drains_like_sigterm() {
    let stand = Stand::new().start();
    let Stand { gateway, .. } = stand;
    let mut process = gateway.process;
    process.signal(rustix::process::Signal::INT);
    assert_eq!(process.wait().code, Some(0));
}

#[test]
fn during_the_delay_before_a_drain_it_is_not_ready_and_serves_on() {
    let stand = Stand::new().section("drain: { delay: 700ms }").start();
    let key = stand.key().create();
    stand.gateway.process.terminate();
    eventually("not ready", SOON, || stand.gateway.admin("/readyz").status() == 503);
    stand.gateway.admin("/livez").expect_status(200);
    stand.get("/echo/x").bearer(&key).send().expect_status(200);
    let Stand { gateway, .. } = stand;
    let mut process = gateway.process;
    assert_eq!(process.wait().code, Some(0));
}

#[test]
fn an_address_gets_no_more_connections_than_it_may_have() {
    let stand = Stand::new().section("limits: { connections_per_address: 3 }").start();
    let ask = |connection: &mut Connection| {
        connection.try_send("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n").and_then(|()| connection.try_response("GET"))
    };
    let mut open: Vec<Connection> = (0..3).map(|_| stand.connect()).collect();
    for connection in &mut open {
        assert_eq!(ask(connection).unwrap().status(), 404);
    }
    ask(&mut stand.connect()).unwrap().expect_refusal(503, "overloaded");
    assert_eq!(stand.gateway.metric("gateway_connections_refused_total", ""), Some(1.0));
    open.pop();
    eventually("a place is free", SOON, || ask(&mut stand.connect()).is_ok_and(|answer| answer.status() == 404));
}

#[test]
fn a_drain_ends_at_its_timeout_also_when_a_request_does_not() {
    let upstream = Scripted::start(|wire| {
        if wire.request().is_some() {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
            wire.is_closed_by_gateway();
        }
    });
    let stand = Stand::new().upstream(upstream.address).section("drain: { timeout: 500ms }").start();
    let key = stand.key().create();
    let mut connection = stand.get("/echo/x").bearer(&key).start();
    assert_eq!(connection.head().status, 200);
    let Stand { gateway, .. } = stand;
    let start = std::time::Instant::now();
    assert_eq!(gateway.process.stop().code, Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn the_public_and_the_admin_address_are_refused_to_a_second_process() {
    let stand = Stand::new().start();
    let text = std::fs::read_to_string(stand.config()).unwrap();
    for (taken, member) in [(stand.gateway.public, "public"), (stand.gateway.admin, "admin")] {
        let free = format!("{member}: {{ address: \"127.0.0.1:0\" }}");
        assert!(text.contains(&free));
        let file = stand.folder().join(format!("{member}.yaml"));
        std::fs::write(&file, text.replace(&free, &format!("{member}: {{ address: \"{taken}\" }}"))).unwrap();
        let ended = Process::start(member, stand.folder(), &["run", "-c", file.to_str().unwrap()]).wait();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains(&taken.to_string()), "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("listen.{member}.address")), "{}", ended.stderr);
    }
    // The first is none the worse.
    stand.get("/nowhere").send().expect_status(404);
}

#[test]
fn each_request_is_one_json_line_with_the_members_of_the_contract() {
    let stand =
        Stand::new().route("POST /echo/{model}", "scope: models:read, resources: { model: path.model }").start();
    let key = stand.key().model("m-1").create();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request =
        stand.post("/echo/m-1?secret=x").bearer(&key).header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"));
    let served = request.body("hello").send().expect_status(200);
    let refused = stand.post("/echo/m-2").bearer(&key).send().expect_status(403);
    stand.get("/nowhere").send().expect_status(404);
    eventually("three lines", SOON, || stand.gateway.process.stdout().lines().count() >= 3);
    let lines: Vec<Value> =
        stand.gateway.process.stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [first, second, third] = &lines[..] else { panic!("{lines:?}") };
    for line in &lines {
        let members: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
        for member in [
            "time",
            "request_id",
            "trace_id",
            "client",
            "method",
            "route",
            "path",
            "status",
            "code",
            "would_be",
            "duration_ms",
            "upstream_ms",
            "upstream",
            "bytes_in",
            "bytes_out",
            "key_id",
            "key_prefix",
            "account_id",
        ] {
            assert!(members.contains(&member), "{member} is not in {members:?}");
        }
        assert_eq!(line["client"], "127.0.0.1");
        assert!(line["duration_ms"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(first["request_id"], served.expect_header("x-request-id"));
    assert_eq!((&first["trace_id"], &first["status"], &first["code"]), (&trace.into(), &200.into(), &Value::Null));
    assert_eq!(
        (&first["method"], &first["path"], &first["route"]),
        (&"POST".into(), &"/echo/m-1".into(), &"POST /echo/{model}".into())
    );
    assert_eq!((&first["key_id"], &first["account_id"]), (&key.id.as_str().into(), &key.account.as_str().into()));
    assert_eq!((&first["key_prefix"], &first["model"]), (&key.secret[..12].into(), &"m-1".into()));
    assert_eq!((&first["bytes_in"], &first["bytes_out"]), (&5.into(), &served.body.len().into()));
    assert_eq!(first["upstream"], "main");
    assert_eq!((&second["status"], &second["code"]), (&403.into(), &"resource_not_allowed".into()));
    assert_eq!(
        (&second["request_id"], &second["key_id"]),
        (&refused.expect_header("x-request-id").into(), &key.id.as_str().into())
    );
    assert_eq!((&third["status"], &third["route"], &third["key_id"]), (&404.into(), &Value::Null, &Value::Null));
}

#[test]
fn a_log_can_be_text_or_off() {
    let stand = Stand::new().section("log: text").start();
    stand.get("/nowhere").send().expect_status(404);
    eventually("a line", SOON, || stand.gateway.process.stdout().contains("/nowhere"));
    let stand = Stand::new().section("log: off").start();
    stand.get("/nowhere").send().expect_status(404);
    let Stand { gateway, .. } = stand;
    assert_eq!(gateway.process.stop().stdout, "");
}

#[test]
fn a_configuration_with_a_mistake_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    std::fs::write(&file, "listen: { public: { address: nonsense } }\n").unwrap();
    let ended = cli(&["run", "-c", file.to_str().unwrap()]);
    assert_eq!(ended.code, Some(78), "{ended:?}");
    assert!(ended.stderr.contains("gateway.yaml:1:"), "{}", ended.stderr);
    let ended = cli(&["run", "-c", folder.path().join("absent.yaml").to_str().unwrap()]);
    assert_eq!(ended.code, Some(78), "{ended:?}");
}

#[test]
fn the_demo_prints_a_key_that_works_and_prints_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    let upstream = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let yaml = format!(
        "listen: {{ public: {{ address: \"127.0.0.1:0\" }}, admin: {{ address: \"127.0.0.1:0\" }} }}
store: {{ url: \"sqlite:data/gateway.db\" }}
upstreams: {{ seeme: {{ endpoints: [\"http://{upstream}\"] }} }}
routes: [ {{ match: GET /api/v1/models, scope: models:read }} ]
"
    );
    std::fs::write(&file, yaml).unwrap();
    let started = |name: &str| {
        let mut demo = Process::start(name, folder.path(), &["demo", "-c", file.to_str().unwrap()]);
        let text = demo.await_output("what to do next", |demo| {
            let text = demo.stdout();
            (text.contains("Requests (Ctrl-C stops):") || text.contains("has keys already")).then_some(text)
        });
        (demo, text)
    };
    let (demo, text) = started("demo");
    let curl = text.lines().find(|line| line.trim_start().starts_with("curl ")).unwrap();
    let (address, rest) = curl.split_once("http://").unwrap().1.split_once('/').unwrap();
    let secret = rest.split_once("Bearer ").unwrap().1.trim_end_matches('\'');
    let address: std::net::SocketAddr = address.parse().unwrap();
    let response =
        super::support::Request::new(address, "GET", "/api/v1/models").token(secret).send().expect_status(200);
    assert!(response.json().is_array(), "{}", response.text());
    assert_eq!(text.matches(secret).count(), 3, "in the open, in the curl line and in .env: {text}");
    assert_eq!(demo.stop().code, Some(0));
    let (demo, text) = started("demo-again");
    assert!(!text.contains("sm_live_"), "{text}");
    assert_eq!(demo.stop().code, Some(0));
}

#[test]
fn what_a_client_makes_a_library_say_is_not_in_the_log_unless_it_is_asked_for() {
    for (level, is_there) in [("info", false), ("debug", true)] {
        let mut stand = Stand::new().section(&format!("log_level: {level}")).start();
        let key = stand.key().create();
        let mut client = Http2::open(stand.gateway.public);
        for _ in 0..100 {
            client.frame(PING, ACK, 0, &[7; 8]);
        }
        // Behind them, so they were looked at.
        client.get("/echo/x", &key).expect(200);
        drop(client);
        stand.gateway.process.terminate();
        let log = stand.gateway.process.wait().stderr;
        assert!(log.contains(" serving "), "{log}");
        assert_eq!(log.contains("PING"), is_there, "{log}");
    }
}

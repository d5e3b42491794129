//! Interim answers (1xx) of an upstream over HTTP/2: each to the client of its own stream, at once, if it can be told.

use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use super::support::http2::{END_HEADERS, HEADERS, Http2, RST_STREAM, block, frame};
use super::support::{Http2Wire, Scripted, Stand};

const SOON: Duration = Duration::from_secs(5);

fn before(upstream: &Scripted) -> Stand {
    let sections = format!("upstreams: {{ main: {{ endpoints: [\"http://{}\"], http2: true }} }}", upstream.address);
    Stand::new().section(&sections).upstream(upstream.address).route("* /public/{*rest}", "access: public").start()
}

fn hints(stream: u32, link: &str) -> Vec<u8> {
    let fields = [(":status", "103"), ("link", link), ("x-seeme-key-id", "forged"), ("x-ratelimit-limit", "9")];
    frame(HEADERS, END_HEADERS, stream, &block(&fields))
}

#[test]
fn an_interim_answer_comes_at_once_and_before_the_final_one() {
    let (go, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let upstream = Scripted::start(move |wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, _)) = peer.request() {
            for interim in [
                hints(stream, "</a.css>"),
                // Asked for by nobody.
                frame(HEADERS, END_HEADERS, stream, &block(&[(":status", "100")])),
                frame(HEADERS, END_HEADERS, stream, &block(&[(":status", "102")])),
            ] {
                peer.send_octets(&interim);
                if wait.lock().unwrap().recv_timeout(SOON).is_err() {
                    return;
                }
            }
            peer.answer(stream, &[(":status", "200"), ("content-length", "2")], b"ok");
        }
    });
    let stand = before(&upstream);
    let mut connection = stand.connect();
    for _ in 0..3 {
        connection.send(stand.get("/public/x").bytes());
        // The backend goes on only when the client has what was sent before.
        let head = connection.head();
        assert_eq!((head.status, head.all("link")), (103, vec!["</a.css>"]));
        assert!(head.all("x-seeme-key-id").is_empty() && head.all("x-ratelimit-limit").is_empty());
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert_eq!(connection.head().status, 102);
        go.send(()).unwrap();
        let response = connection.response("GET").expect_status(200);
        assert!(response.interim.is_empty() && response.text() == "ok");
    }
}

/// Clients that come and go on one connection to the upstream, some of which cannot be told.
#[test]
fn everybody_hears_what_came_on_his_own_stream_and_nothing_else() {
    let (arrived, arrivals) = mpsc::channel();
    let arrived = Mutex::new(arrived);
    let upstream = Scripted::start(move |wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        let mut held: Vec<(u32, String)> = Vec::new();
        while let Some(came) = peer.next() {
            match came.kind {
                HEADERS => {
                    let fields = peer.fields(&came);
                    let path = fields.iter().find(|(name, _)| name == ":path").unwrap().1.clone();
                    held.push((came.stream, path.clone()));
                    arrived.lock().unwrap().send(path.clone()).unwrap();
                    if path == "/public/last" {
                        // The hints of all in one piece, then the answers.
                        let all: Vec<u8> = held.iter().flat_map(|(stream, path)| hints(*stream, path)).collect();
                        peer.send_octets(&all);
                        arrived.lock().unwrap().send((held.len() - 1).to_string()).unwrap();
                        held.drain(..).for_each(|(stream, path)| {
                            peer.answer(stream, &[(":status", "200"), ("x-path", &path)], b"");
                        });
                    }
                }
                RST_STREAM => {
                    held.retain(|(stream, _)| *stream != came.stream);
                    arrived.lock().unwrap().send("reset".to_owned()).unwrap();
                }
                _ => {}
            }
        }
    });
    let stand = before(&upstream);
    for round in 0..4 {
        let mut open = Vec::new();
        for number in 0..6 {
            let path = format!("/public/{round}-{number}");
            let connection = stand.get(&path).start();
            assert_eq!(arrivals.recv_timeout(SOON).unwrap(), path);
            match number % 3 {
                // Gives up: its number is nobody else's.
                2 => {
                    drop(connection);
                    assert_eq!(arrivals.recv_timeout(SOON).unwrap(), "reset");
                }
                _ => open.push((path, connection)),
            }
        }
        let mut client = Http2::open(stand.gateway.public);
        let untold = client.start(&super::support::http2::get("/public/h2"), true);
        assert_eq!(arrivals.recv_timeout(SOON).unwrap(), "/public/h2");
        // Each worker has a connection of its own: one after the other gets a last request.
        let (mut last, mut answered) = (Vec::new(), 0);
        while answered < open.len() + 1 {
            last.push(stand.get("/public/last").start());
            assert_eq!(arrivals.recv_timeout(SOON).unwrap(), "/public/last");
            answered += arrivals.recv_timeout(SOON).unwrap().parse::<usize>().unwrap();
            assert!(last.len() < 1000);
        }
        for (path, mut connection) in open {
            let head = connection.head();
            assert_eq!((head.status, head.all("link")), (103, vec![path.as_str()]));
            let response = connection.response("GET").expect_status(200);
            assert_eq!((response.interim.len(), response.header("x-path")), (0, Some(path.as_str())));
        }
        client.answer(untold).expect(200);
    }
}

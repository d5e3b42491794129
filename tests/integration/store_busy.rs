//! Another process keeps the embedded store locked: that is no outage, and a gateway that starts meanwhile waits for it.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::support::{Process, Request, Stand, eventually};

const SOON: Duration = Duration::from_secs(10);

/// Nobody else can write to the store until this is dropped.
struct Locked(Connection);

impl Locked {
    fn lock(store: &Path) -> Self {
        let connection = Connection::open(store).unwrap();
        connection.busy_timeout(SOON).unwrap();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        Self(connection)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.0.execute_batch("ROLLBACK").unwrap();
    }
}

#[test]
fn a_locked_store_is_slow_and_nothing_is_admitted_that_it_did_not_grant() {
    let stand = Stand::new().start();
    let unseen = stand.key().create();
    let locked = Locked::lock(stand.store());
    for _ in 0..3 {
        let asked = Instant::now();
        // The key is found; a lease would have to be written.
        stand.get("/echo/x").bearer(&unseen).send().expect_refusal(503, "store_unavailable");
        assert!(asked.elapsed() >= Duration::from_millis(200), "{:?}", asked.elapsed());
    }
    for (name, labels) in [
        ("gateway_outage_admissions_total", ""),
        ("gateway_store_breaker_opened_total", ""),
        ("gateway_store_outage", ""),
    ] {
        assert_eq!(stand.gateway.metric(name, labels), Some(0.0), "{name}");
    }
    assert_eq!(stand.gateway.metric("gateway_key_lookups_total", "outcome=\"error\""), Some(0.0));
    drop(locked);
    eventually("it is served again", SOON, || stand.get("/echo/x").bearer(&unseen).send().status() == 200);
    assert_eq!(stand.gateway.metric("gateway_outage_admissions_total", ""), Some(0.0));
}

#[test]
fn a_gateway_waits_for_its_store_alive_but_not_ready_and_leaves_when_it_is_told_to() {
    let stand = Stand::new().start();
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = std::fs::read_to_string(stand.config()).unwrap();
    let config = stand.folder().join("waiting.yaml");
    let own = format!("admin: {{ address: \"{admin}\" }}");
    std::fs::write(&config, text.replace("admin: { address: \"127.0.0.1:0\" }", &own)).unwrap();
    let arguments = ["run", "-c", config.to_str().unwrap()];

    for leaves in [true, false] {
        let locked = Locked::lock(stand.store());
        let mut process = Process::start(if leaves { "leaves" } else { "stays" }, stand.folder(), &arguments);
        process.await_output("it says what it waits for", |process| {
            process.stderr().contains("waiting for the store (store.url)").then_some(())
        });
        Request::new(admin, "GET", "/livez").send().expect_status(200);
        Request::new(admin, "GET", "/readyz").send().expect_status(503);
        if leaves {
            process.terminate();
        }
        drop(locked);
        if leaves {
            let ended = process.wait();
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            assert!(ended.stderr.contains("stopped while it waited for the store"), "{}", ended.stderr);
        } else {
            process.await_output("it serves", |process| process.stderr().contains(" serving ").then_some(()));
            Request::new(admin, "GET", "/readyz").send().expect_status(200);
            process.stop().expect_success();
        }
    }
}

//! Rolling restart on one address: `run --take-over` gets the listening sockets from the process that has them, and nobody notices.

use std::net::TcpListener;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::support::{Gateway, Key, Load, Process, Scripted, Stand, eventually, sized, statuses, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// The file of the stand with the addresses that its gateway got, and with other texts in it.
fn file(stand: &Stand, name: &str, edits: &[(&str, &str)]) -> std::path::PathBuf {
    let mut text = std::fs::read_to_string(stand.config()).unwrap();
    let address = |member: &str, address: &str| format!("{member}: {{ address: \"{address}\" }}");
    for (member, got) in [("public", stand.gateway.public), ("admin", stand.gateway.admin)] {
        text = text.replace(&address(member, "127.0.0.1:0"), &address(member, &got.to_string()));
    }
    for (from, to) in edits {
        assert!(text.contains(from), "no {from} in {text}");
        text = text.replace(from, to);
    }
    let file = stand.folder().join(format!("{name}.yaml"));
    std::fs::write(&file, text).unwrap();
    file
}

/// Another process in the place of the one that has the address.
fn successor(stand: &Stand, name: &str, edits: &[(&str, &str)]) -> Gateway {
    Gateway::take_over(name, stand.folder(), &file(stand, name, edits))
}

/// One that does not get to serve.
fn rejected(stand: &Stand, name: &str, edits: &[(&str, &str)]) -> String {
    let file = file(stand, name, edits);
    let mut process = Process::start(name, stand.folder(), &["run", "--take-over", "-c", file.to_str().unwrap()]);
    let ended = process.wait();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    ended.stderr
}

#[test]
fn restarts_at_five_hundred_requests_a_second_cost_none_whatever_the_numbers_of_workers() {
    let stand = Stand::new().start();
    let keys: Vec<Key> = (0..10).map(|_| stand.key().create()).collect();
    let kept = Load::on(&[&stand.gateway]).keys(&keys).connections(50).rate(sized(200.0, 400.0)).start();
    let fresh = Load::on(&[&stand.gateway]).keys(&keys).connections(10).rate(100.0).fresh().start();
    let mut old: Option<Gateway> = None;
    let (pause, rounds) = (
        sized(Duration::from_millis(400), Duration::from_secs(3)),
        sized(&[1, 3, 2][..], &[1, 4, 2, 1, 3, 3, 2, 1, 4, 2][..]),
    );
    for (round, workers) in rounds.iter().enumerate() {
        let new = successor(&stand, &format!("round-{round}"), &[("workers: 2", &format!("workers: {workers}"))]);
        assert_eq!((new.public, new.admin), (stand.gateway.public, stand.gateway.admin));
        if let Some(mut old) = old.replace(new) {
            assert_eq!(old.process.wait().code, Some(0), "round {round}");
        } else {
            eventually("the end of the first one", SOON, || stand.gateway.process.stderr().contains("stopped"));
        }
        std::thread::sleep(pause);
    }
    let last = old.unwrap();
    eventually("ready", SOON, || last.admin("/readyz").status() == 200);
    let refused = kept.refused() + fresh.refused();
    let (kept, fresh) = (kept.stop(), fresh.stop());
    println!(
        "{} restarts: kept connections {:?}, fresh ones {:?}, {refused} refused",
        rounds.len(),
        statuses(&kept),
        statuses(&fresh)
    );
    assert_eq!(refused, 0);
    assert!(statuses(&kept).iter().chain(&statuses(&fresh)).all(|(status, _)| *status == 200));
    assert_eq!(last.process.stop().code, Some(0));
}

#[test]
fn while_the_old_one_drains_both_are_waited_for_and_afterwards_the_name_is_the_usual_one() {
    let upstream = Scripted::start(|wire| {
        while let Some(request) = wire.request() {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
            if request.head.contains("/slow") {
                wire.wait_without_reading(Duration::from_secs(4));
            }
            wire.send("k");
        }
    });
    let stand = Stand::new().upstream(upstream.address).section("drain: { timeout: 20s }").start();
    let manager = stand.key().scope("*").scope("api-keys:write").create();
    let mut slow = stand.get("/echo/slow").bearer(&manager).start();
    assert_eq!(slow.head().status, 200);
    let new = successor(&stand, "new", &[]);
    let delete = |gateway: &Gateway| {
        let key = stand.key().account(&manager.account).scope("models:read").create();
        let path = format!("/api/v1/api-keys/{}", key.id);
        gateway.request("DELETE", &path).bearer(&manager).send().expect_status(200).json()["acknowledged"].clone()
    };
    assert_eq!(delete(&new), json!({"replicas": 2, "of": 2, "unreachable": []}));
    assert!(!new.process.stderr().contains("has ended"), "{}", new.process.stderr());
    assert_eq!(slow.take(2).unwrap(), b"ok");
    eventually("the news of it", SOON, || new.process.stderr().contains("the process before this one has ended"));
    eventually("the end of the first one", SOON, || stand.gateway.process.stderr().contains("stopped"));
    assert_eq!(delete(&new), json!({"replicas": 1, "of": 1, "unreachable": []}));

    // A restart after a kill replaces it, as ever.
    drop(new);
    let again = successor(&stand, "again", &[]);
    assert_eq!(delete(&again), json!({"replicas": 1, "of": 1, "unreachable": []}));
    assert!(!again.process.stderr().contains("another gateway has this host name"));
}

#[test]
fn the_usage_journal_is_taken_up_when_the_old_process_has_ended_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("usage.journal");
    let usage = format!("usage: {{ journal: \"{}\" }}", journal.display());
    let stand = Stand::new().section(&usage).start();
    let key = stand.key().create();
    let load = Load::on(&[&stand.gateway]).keys([&key]).connections(20).rate(200.0).start();
    let new = successor(&stand, "new", &[]);
    eventually("the end of the first one", SOON, || stand.gateway.process.stderr().contains("stopped"));
    eventually("the journal", SOON, || new.metric("gateway_usage_journal_failing", "") == Some(0.0));
    assert!(!new.process.stderr().contains("waiting for it"), "{}", new.process.stderr());
    let shots = load.stop();
    assert_eq!(statuses(&shots), [(200, shots.len())]);
    // Killed with a journal: what was not in the store is sent by the next one.
    drop(new);
    let next = successor(&stand, "next", &[]);
    let reader = stand.key().account(&key.account).scope("api-keys:read").create();
    let path = format!("/api/v1/api-keys/{}/usage", key.id);
    let counted =
        || next.get(&path).bearer(&reader).send().expect_status(200).json()["total_requests"].as_u64().unwrap();
    let (total, _) = wait_for("the usage", SOON, || Some(counted()).filter(|count| *count > 0));
    println!("{} requests, {total} counted", shots.len());
    // The kill may have come within the last tenth of a second, 20 requests and a busy machine.
    assert!(total as usize <= shots.len() && total as usize + 60 >= shots.len(), "{total} of {}", shots.len());
}

#[test]
fn one_that_cannot_start_leaves_the_old_one_as_it_was() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = stand.gateway.admin.to_string();
    let told = rejected(&stand, "bad", &[(&admin, &taken.local_addr().unwrap().to_string())]);
    assert!(told.contains("listen.admin.address"), "{told}");
    eventually("the old one goes on", SOON, || stand.gateway.process.stderr().contains("does not serve; going on"));
    for _ in 0..20 {
        stand.get("/echo/x").bearer(&key).send().expect_status(200);
    }
    stand.gateway.admin("/readyz").expect_status(200);
    let _good = successor(&stand, "good", &[]);
    eventually("the end of the first one", SOON, || stand.gateway.process.stderr().contains("stopped"));
}

#[test]
fn a_stopped_process_is_not_waited_for_and_serves_on_afterwards() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    stand.gateway.process.signal(Signal::STOP);
    let told = rejected(&stand, "new", &[]);
    assert!(told.contains("did not hand its sockets over: it does not answer"), "{told}");
    stand.gateway.process.signal(Signal::CONT);
    stand.get("/echo/x").bearer(&key).send().expect_status(200);
}

#[test]
fn another_program_keeps_its_address_and_a_free_one_is_simply_taken() {
    let stand = Stand::new().start();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, admin) = (other.local_addr().unwrap().to_string(), stand.gateway.admin.to_string());
    let public = stand.gateway.public.to_string();
    let edits = [(public.as_str(), address.as_str()), (admin.as_str(), "127.0.0.1:0")];
    let told = rejected(&stand, "refused", &edits);
    assert!(told.contains("does not hand it over"), "{told}");
    drop(other);
    let gateway = successor(&stand, "free", &edits);
    assert_eq!(gateway.public.to_string(), address);
}

#[test]
fn without_the_word_a_second_process_is_told_that_the_address_is_taken() {
    let stand = Stand::new().start();
    let file = file(&stand, "second", &[]);
    let ended = Process::start("second", stand.folder(), &["run", "-c", file.to_str().unwrap()]).wait();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("is taken: another process listens there"), "{}", ended.stderr);
    assert!(ended.stderr.contains("--take-over"), "{}", ended.stderr);
}

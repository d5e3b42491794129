//! `store copy` between stores that gateways run on.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::servers::RedisServer;
use super::support::{Finished, Stand, cli, eventually};

const SOON: Duration = Duration::from_secs(5);

fn url(store: &Path) -> String {
    format!("sqlite:{}", store.display())
}

fn copy(from: &Path, to: &Path) -> Finished {
    // No configuration is read: there is none.
    cli(&["store", "copy", "--from", &url(from), "--to", &url(to), "--json", "-c", "/absent/gateway.yaml"])
}

#[test]
fn a_gateway_on_the_target_obeys_what_is_copied_at_once() {
    let source = Stand::new().start();
    // Neither an unknown nor a known key is asked for again, unless the gateway is told to.
    let target = Stand::new().section("cache: { ttl: 1h, negative_ttl: 1h }").start();
    let key = source.key().plan("pro").create();
    for _ in 0..3 {
        source.get("/echo/x").bearer(&key).send().expect_status(200);
    }
    assert_eq!(source.usage(&key)["total_requests"], 3);
    let request = target.get("/echo/x").bearer(&key);
    request.send().expect_refusal(401, "invalid_key");

    let copied = copy(source.store(), target.store()).expect_success();
    assert_eq!(copied.stderr, "", "progress is for terminals");
    let copied = copied.json();
    assert_eq!((&copied["keys"], &copied["accounts"], &copied["events"]), (&json!(2), &json!(1), &json!(2)));
    assert_eq!(copied["other_keys"], 0);
    // The call that asked for the usage is counted too, a moment later.
    assert!((3..=4).contains(&copied["requests"].as_u64().unwrap()), "{copied}");
    eventually("the copied key is accepted", SOON, || request.send().status() == 200);
    assert_eq!(request.send().expect_status(200).expect_header("x-ratelimit-limit"), "300", "its plan came with it");
    assert_eq!(target.usage(&key)["total_requests"], 5, "three in the source, two here");
    let events = target.cli(&["keys", "events", &key.id, "--json"]).expect_success().json();
    assert_eq!(events, source.cli(&["keys", "events", &key.id, "--json"]).expect_success().json());

    source.cli(&["keys", "disable", &key.id]).expect_success();
    request.send().expect_status(200);
    copy(source.store(), target.store()).expect_success();
    eventually("the copied disable is obeyed", SOON, || request.send().status() == 401);
    request.send().expect_refusal(401, "disabled_key");
}

#[test]
fn a_backup_is_one_file_for_its_owner_and_brings_back_what_was_deleted() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    stand.get("/echo/x").bearer(&key).send().expect_status(200);
    let before = stand.usage(&key);
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("deep/backup.db");
    copy(stand.store(), &backup).expect_success();
    let files: Vec<_> = std::fs::read_dir(backup.parent().unwrap()).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files, std::slice::from_ref(&backup), "a log is left beside it");
    assert_eq!(backup.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    stand.cli(&["keys", "delete", &key.id]).expect_success();
    eventually("it is deleted", SOON, || stand.get("/echo/x").bearer(&key).send().status() == 401);
    copy(&backup, stand.store()).expect_success();
    eventually("it is back", SOON, || stand.get("/echo/x").bearer(&key).send().status() == 200);
    let shown = stand.cli(&["keys", "show", &key.id, "--json"]).expect_success().json();
    assert_eq!(shown.get("deleted_at"), None, "{shown}");
    let after = stand.usage(&key);
    assert_eq!(before["total_requests"].as_u64().unwrap() + 1, after["total_requests"].as_u64().unwrap());
}

#[test]
fn a_store_that_is_not_there_or_the_same_is_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let (absent, other) = (folder.path().join("absent.db"), folder.path().join("other.db"));
    let ended = copy(&absent, &other).expect_code(1);
    assert!(ended.stderr.contains("there is no file") && ended.stdout.is_empty(), "{ended:?}");
    assert!(!absent.exists() && !other.exists(), "a store was made");
    copy(&absent, &absent).expect_code(64);
    cli(&["store", "copy", "--from", "gateway.db", "--to", &url(&other)]).expect_code(64);
    cli(&["store", "copy", "--from", &url(&absent)]).expect_code(64);
    std::fs::write(&absent, "this is no store").unwrap();
    let ended = copy(&absent, &other).expect_code(1);
    assert!(ended.stderr.contains("--from: ") && ended.stderr.contains("absent.db"), "{ended:?}");
}

#[test]
fn a_store_is_moved_to_redis_and_back_again_and_its_keys_work_there() {
    let redis = RedisServer::start();
    let stand = Stand::new().start();
    let key = stand.key().scope("models:read").create();
    stand.get("/echo/x").bearer(&key).send().expect_status(200);
    let usage = stand.usage(&key);
    let folder = tempfile::tempdir().unwrap();
    let (there, back) = (redis.url(), format!("sqlite:{}", folder.path().join("back.db").display()));
    let here = url(stand.store());
    stand.cli(&["store", "copy", "--from", &here, "--to", &there]).expect_success();

    let moved = Stand::new().shared_store(&format!("url: \"{there}\"")).start();
    moved.get("/echo/x").bearer(&key).send().expect_status(200);
    assert_eq!(moved.usage(&key)["total_requests"], usage["total_requests"].as_u64().unwrap() + 1);

    cli(&["store", "copy", "--from", &there, "--to", &back]).expect_success();
    let restored = Stand::new().shared_store(&format!("url: \"{back}\"")).start();
    restored.get("/echo/x").bearer(&key).send().expect_status(200);
}

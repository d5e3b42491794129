//! Gateways of two versions on one file: what a newer one wrote is done by hand here.

use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::disk::message;
use super::{folder, open};
use crate::policy::key::{Account, Day};
use crate::store::contract::{account_id, ask, changes, create, event, hash, key_id, record, secret, subject};
use crate::store::{Action, Change, Counted, KeyFilter, StatusClass, Store};

/// A file as this version leaves it, closed, and a connection to it.
async fn file() -> (TempDir, Connection) {
    let folder = folder();
    let store = open(&folder);
    create(&*store, "k1", "a1").await;
    store.replace_account(Account::unset(account_id("a1")), None).await.unwrap();
    let file = Connection::open(store.path()).unwrap();
    drop(store);
    (folder, file)
}

fn number(file: &Connection, sql: &str) -> i64 {
    file.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn version(file: &Connection) -> i64 {
    number(file, "PRAGMA user_version")
}

fn min_reader(file: &Connection) -> i64 {
    number(file, "SELECT value FROM meta WHERE name = 'min_reader'")
}

/// An additive step of a later version: one of each kind.
fn add(file: &Connection) {
    let next = version(file) + 1;
    file.execute_batch(
        "BEGIN; ALTER TABLE keys ADD COLUMN colour TEXT DEFAULT 'red'; CREATE TABLE gadgets (id TEXT PRIMARY KEY);
         CREATE INDEX keys_by_colour ON keys (colour);",
    )
    .unwrap();
    file.pragma_update(None, "user_version", next).unwrap();
    file.execute_batch("COMMIT").unwrap();
}

async fn works(store: &dyn Store, id: &str) {
    create(store, id, "a1").await;
    let key = store.key_by_secret(hash(id)).await.unwrap().unwrap();
    store.replace_key(key.record, key.version, Some(event(Action::Updated))).await.unwrap();
    assert_eq!(store.lease(subject(id), ask(1, 60, 1000)).await.unwrap().granted, 1);
    assert_eq!(store.events(key_id(id)).await.unwrap().len(), 2);
}

async fn trouble(store: &dyn Store) -> Option<String> {
    let findings = store.findings().await.unwrap();
    findings.into_iter().find(|finding| finding.check == "schema").unwrap().trouble
}

#[tokio::test]
async fn a_file_that_a_newer_version_added_to_is_used_and_left_as_it_is() {
    let (folder, file) = file().await;
    add(&file);
    file.execute_batch("UPDATE meta SET value = value - 1").unwrap();
    let (newer, oldest) = (version(&file), min_reader(&file));
    let store = open(&folder);
    assert!(store.key_by_secret(hash("k1")).await.unwrap().is_some());
    works(&*store, "k2").await;
    assert!(trouble(&*store).await.unwrap().contains("newer seeme-gateway"));
    drop((store, open(&folder)));
    assert_eq!((version(&file), min_reader(&file)), (newer, oldest));
    assert_eq!(number(&file, "SELECT count(*) FROM keys WHERE colour = 'red'"), 2);
}

#[tokio::test]
async fn a_running_gateway_goes_on_while_a_newer_one_adds_to_the_file() {
    let (folder, file) = file().await;
    let store = open(&folder);
    let mut feed = store.subscribe();
    works(&*store, "k2").await;
    assert_eq!(trouble(&*store).await, None);
    add(&file);
    works(&*store, "k3").await;
    let told = changes(&mut feed, 6).await.1;
    assert!(told.contains(&Change::Key(key_id("k3"))), "{told:?}");
}

#[tokio::test]
async fn a_newer_file_that_this_version_knows_too_little_of_is_refused_with_a_reason() {
    let (folder, file) = file().await;
    let path = folder.path().join("gateway.db");
    let known = version(&file);
    file.pragma_update(None, "user_version", 99).unwrap();
    for (oldest, refused) in [(known, false), (known + 1, true), (99, true), (-1, true), (0, false)] {
        file.execute("UPDATE meta SET value = ?1", [oldest]).unwrap();
        if refused {
            let text = message(&path);
            assert!(
                text.contains("newer seeme-gateway") && text.contains("99") && text.contains("gateway.db"),
                "{text}"
            );
        } else {
            open(&folder);
        }
    }
    for silent in ["DELETE FROM meta", "DROP TABLE meta"] {
        file.execute_batch(silent).unwrap();
        assert!(message(&path).contains("newer seeme-gateway"), "{silent}");
    }
}

#[tokio::test]
async fn an_older_file_is_brought_up_to_date_with_what_it_holds() {
    let (folder, file) = file().await;
    let (newest, oldest) = (version(&file), min_reader(&file));
    file.execute_batch("DROP TABLE meta; PRAGMA user_version = 2").unwrap();
    let store = open(&folder);
    assert!(store.key_by_secret(hash("k1")).await.unwrap().is_some());
    works(&*store, "k2").await;
    assert_eq!((version(&file), min_reader(&file)), (newest, oldest));
}

/// Adds a member to a JSON column, as a later version would.
fn extend(file: &Connection, column: &str, id: &str) {
    let sql = format!("UPDATE {column}s SET {column} = json_set({column}, '$.later', json('[1, {{}}]')) WHERE id = ?1");
    let sql = sql.replace("UPDATE records", "UPDATE keys");
    assert_eq!(file.execute(&sql, [id]).unwrap(), 1);
}

fn members(file: &Connection, sql: &str) -> Value {
    serde_json::from_str(&file.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap()).unwrap()
}

#[tokio::test]
async fn members_that_only_a_newer_version_knows_survive_every_change_of_an_older_one() {
    let (folder, file) = file().await;
    let later = json!([1, {}]);
    extend(&file, "record", "k1");
    extend(&file, "account", "a1");
    let store = open(&folder);
    let read = async || store.key(key_id("k1")).await.unwrap().unwrap();
    let row = || members(&file, "SELECT record FROM keys WHERE id = 'k1'");

    let mut key = read().await;
    assert_eq!(key.record, record("k1", "a1"));
    key.record.name = "renamed".into();
    store.replace_key(key.record, key.version, Some(event(Action::Updated))).await.unwrap();
    assert_eq!((&row()["name"], &row()["later"]), (&json!("renamed"), &later));

    let mut key = read().await;
    key.record.key_prefix = "sm_live_wxyz".into();
    let secrets = vec![secret("new")];
    store.rotate_key(key.record, key.version, secrets, event(Action::Rotated)).await.unwrap();
    assert_eq!((&row()["key_prefix"], &row()["later"]), (&json!("sm_live_wxyz"), &later));

    let (mut account, version) = store.account(account_id("a1")).await.unwrap().unwrap();
    account.suspended = true;
    store.replace_account(account, Some(version)).await.unwrap();
    let row = members(&file, "SELECT account FROM accounts WHERE id = 'a1'");
    assert_eq!((&row["suspended"], &row["later"]), (&json!(true), &later));
    assert!(store.key_by_secret(hash("new")).await.unwrap().unwrap().account.suspended);
}

#[tokio::test]
async fn what_a_newer_version_counts_and_logs_does_not_fail_a_listing() {
    let (folder, file) = file().await;
    file.execute_batch(
        r#"INSERT INTO events (key_id, at, event) VALUES ('k1', 1,
            '{"at":"2026-01-01T00:00:00Z","action":"quarantined","by":"k9","from":"10.0.0.1","why":"leaked"}');
        INSERT INTO usage (key_id, day, kind, name, class, count) VALUES
            ('k1', 7, 'endpoint', 'GET /a', '2xx', 3), ('k1', 7, 'endpoint', 'GET /a', 'teapot', 4),
            ('k1', 7, 'address', '10.0.0.1', '', 5), ('k1', 7, 'scope', 'not a scope', '', 6);"#,
    )
    .unwrap();
    let store = open(&folder);
    let events = store.events(key_id("k1")).await.unwrap();
    assert_eq!(events.iter().map(|event| event.action.as_str()).collect::<Vec<_>>(), ["created", "quarantined"]);
    assert_eq!((events[1].by.as_str(), events[1].from.as_str()), ("k9", "10.0.0.1"));
    let usage = store.usage(key_id("k1"), Day(0), Day(9)).await.unwrap();
    let [count] = &usage[..] else { panic!("{usage:?}") };
    assert_eq!((&count.counted, count.count), (&Counted::Endpoint("GET /a".into(), StatusClass::Success), 3));
    assert_eq!(store.keys(KeyFilter::default()).await.unwrap().len(), 1);
}

//! The file itself: its mode, its version, a full disk, a failed commit.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::Connection;

use super::{folder, open};
use crate::store::contract::{account_id, ask, create, event, hash, key_id, record, secret, subject};
use crate::store::sqlite::SqliteStore;
use crate::store::{Action, Event, Store, StoreError};

#[tokio::test]
async fn the_files_are_readable_for_the_owner_alone() {
    let folder = folder();
    let store = SqliteStore::open(&folder.path().join("new/data/gateway.db")).unwrap();
    create(&*store, "k1", "a1").await;
    let files: Vec<_> = std::fs::read_dir(store.path().parent().unwrap()).unwrap().map(Result::unwrap).collect();
    assert!(files.len() >= 2, "the database and its log");
    for file in files {
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.path());
    }
}

pub(super) fn message(path: &Path) -> String {
    match SqliteStore::open(path) {
        Err(StoreError::Corrupt(text) | StoreError::Unavailable(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn another_programs_file_and_no_database_are_refused_with_a_reason() {
    let folder = folder();
    let foreign = folder.path().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE bookmarks (url)").unwrap();
    assert!(message(&foreign).contains("another program"));

    let text = folder.path().join("text.db");
    std::fs::write(&text, "listen: 127.0.0.1:8080\n".repeat(100)).unwrap();
    assert!(message(&text).contains("not a database"));
    assert!(message(folder.path()).contains(&folder.path().display().to_string()));
}

/// Limits the file to the pages it has, or lifts the limit: a full disk on command.
async fn set_full(store: &SqliteStore, full: bool) {
    let limit = move |tx: &super::super::writer::Tx<'_>| {
        let pages: i64 = tx.pragma_query_value(None, "page_count", |row| row.get(0))?;
        let limit = if full { pages } else { i64::from(u32::MAX - 1) };
        Ok(tx.pragma_update_and_check(None, "max_page_count", limit, |row| row.get::<_, i64>(0))?)
    };
    store.note(limit).await.unwrap();
}

/// An event that needs a page of its own.
fn large_event() -> Event {
    Event { changed: vec!["x".repeat(100_000)], ..event(Action::Created) }
}

#[tokio::test]
async fn a_full_disk_is_an_outage_that_does_nothing_and_ends_by_itself() {
    let folder = folder();
    let store = open(&folder);
    create(&*store, "k1", "a1").await;
    set_full(&store, true).await;
    let refused = store.create_key(record("k2", "a1"), secret("k2"), large_event()).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(store.key(key_id("k2")).await.unwrap().is_none());
    assert!(store.key_by_secret(hash("k2")).await.unwrap().is_none());
    assert!(store.events(key_id("k2")).await.unwrap().is_empty());
    assert!(store.key_by_secret(hash("k1")).await.unwrap().is_some(), "known keys can still be read");

    set_full(&store, false).await;
    store.create_key(record("k2", "a1"), secret("k2"), large_event()).await.unwrap();
    assert!(store.key_by_secret(hash("k2")).await.unwrap().is_some());
}

/// Holds the writer inside a job until the returned sender is dropped, so that what is queued meanwhile becomes one batch.
fn hold_writer(store: &std::sync::Arc<SqliteStore>) -> (mpsc::Sender<()>, mpsc::Receiver<()>) {
    let (release, held) = mpsc::channel::<()>();
    let (started, running) = mpsc::channel();
    let store = std::sync::Arc::clone(store);
    tokio::spawn(async move {
        let job = store.note(move |_| {
            started.send(()).unwrap();
            let _ = held.recv();
            Ok(())
        });
        job.await.unwrap();
    });
    (release, running)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_commit_fails_every_call_of_its_batch() {
    let folder = folder();
    let store = open(&folder);
    let (release, running) = hold_writer(&store);
    running.recv().unwrap();
    // A deferred constraint is checked by COMMIT, and not before.
    let bad = store.note(|tx| {
        tx.execute_batch(
            "CREATE TABLE parent (id PRIMARY KEY);
             CREATE TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
             INSERT INTO child VALUES (1);",
        )?;
        Ok(())
    });
    let good = store.create_key(record("k1", "a1"), secret("k1"), event(Action::Created));
    let lease = store.lease(subject("a1"), ask(1, 60, 1000));
    let queued = async { tokio::join!(biased; bad, good, lease, async { drop(release) }) };
    let (bad, good, lease, ()) = queued.await;
    for outcome in [bad.err(), good.err(), lease.err()] {
        assert!(matches!(outcome, Some(StoreError::Unavailable(_))), "{outcome:?}");
    }
    assert!(store.key(key_id("k1")).await.unwrap().is_none());
    create(&*store, "k1", "a1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_call_does_not_undo_the_others_of_its_batch() {
    let folder = folder();
    let store = open(&folder);
    create(&*store, "k1", "a1").await;
    let (release, running) = hold_writer(&store);
    running.recv().unwrap();
    let (twice, other, lease, ()) = tokio::join!(
        biased;
        store.create_key(record("k1", "a1"), secret("x"), event(Action::Created)),
        store.create_key(record("k2", "a1"), secret("k2"), event(Action::Created)),
        store.lease(subject("a1"), ask(1, 60, 1000)),
        async { drop(release) },
    );
    assert!(matches!(twice, Err(StoreError::Conflict)), "{twice:?}");
    other.unwrap();
    assert_eq!(lease.unwrap().granted, 1);
    assert!(store.key_by_secret(hash("k2")).await.unwrap().is_some());
    assert!(store.key_by_secret(hash("x")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_lock_held_elsewhere_is_waited_for() {
    let folder = folder();
    let store = open(&folder);
    let other = Connection::open(store.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let create = create(&*store, "k1", "a1");
    tokio::pin!(create);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut create).await;
    assert!(early.is_err(), "it wrote in spite of the lock: {early:?}");
    assert!(store.account(account_id("a1")).await.unwrap().is_none(), "reads do not wait");
    other.execute_batch("COMMIT").unwrap();
    create.await;
}

/// Unmounts at the end of the test.
struct Tmpfs<'a>(&'a Path);

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_really_full_file_system_is_survived() {
    let folder = folder();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(folder.path()).output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        println!("skipped: mounting a tmpfs is not allowed here ({mounted:?})");
        return;
    }
    let _tmpfs = Tmpfs(folder.path());
    let store = open(&folder);
    create(&*store, "known", "a1").await;
    let mut stored = Vec::new();
    let refused = loop {
        let id = format!("k{}", stored.len());
        match store.create_key(record(&id, "a1"), secret(&id), large_event()).await {
            Ok(_) => stored.push(id),
            Err(error) => break (id, error),
        }
        assert!(stored.len() < 100, "two megabytes hold no hundred of these");
    };
    assert!(matches!(refused.1, StoreError::Unavailable(_)), "{refused:?}");
    assert!(store.key(key_id(&refused.0)).await.unwrap().is_none());
    for id in stored.iter().map(String::as_str).chain(["known"]) {
        assert!(store.key_by_secret(hash(id)).await.unwrap().is_some(), "{id}");
    }
    let more = Command::new("mount").args(["-o", "remount,size=16m"]).arg(folder.path()).status();
    assert!(more.unwrap().success());
    store.create_key(record(&refused.0, "a1"), secret(&refused.0), large_event()).await.unwrap();
}

//! Several handles and several processes on one file.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{folder, hand_clock, open, open_at};
use crate::policy::key::Account;
use crate::store::contract::{account_id, ask, changes, create, hash, key_id, subject};
use crate::store::sqlite::SqliteStore;
use crate::store::{Change, ChangeFeed, FeedItem, Revision, Store};

/// Contract: a change of another process is obeyed within this time.
const OBEYED: Duration = Duration::from_millis(250);

async fn prompt(feed: &mut crate::store::ChangeFeed, expected: Change) {
    let (_, seen) = tokio::time::timeout(OBEYED, changes(feed, 1)).await.expect("within 250 ms");
    assert_eq!(seen, [expected]);
}

#[tokio::test]
async fn handles_on_one_file_see_each_others_changes_in_time() {
    let folder = folder();
    let (one, two) = (open(&folder), open(&folder));
    let (mut of_one, mut of_two) = (one.subscribe(), two.subscribe());
    for n in 0..5 {
        let id = account_id(&format!("a{n}"));
        let writer = if n % 2 == 0 { &one } else { &two };
        writer.replace_account(Account::unset(id.clone()), None).await.unwrap();
        prompt(&mut of_one, Change::Account(id.clone())).await;
        prompt(&mut of_two, Change::Account(id)).await;
    }
    create(&*one, "k1", "a1").await;
    assert!(two.key_by_secret(hash("k1")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_recall_reaches_the_other_processes() {
    let folder = folder();
    let (one, two) = (open(&folder), open(&folder));
    let mut feed = two.subscribe();
    let minute = loop {
        let reply = one.lease(subject("a1"), ask(5, 1_000_000, 60)).await.unwrap();
        if reply.recall {
            break reply.minute;
        }
    };
    prompt(&mut feed, Change::Recall(subject("a1"), minute)).await;
}

#[test]
fn eight_threads_on_three_handles_lease_exactly_the_limit() {
    let folder = folder();
    let (_, clock) = hand_clock();
    let path = folder.path().join("gateway.db");
    let handles: Vec<_> = (0..3).map(|_| open_at(&path, &clock)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let granted: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let (store, runtime) = (Arc::clone(&handles[n % 3]), &runtime);
                scope.spawn(move || {
                    let lease = || runtime.block_on(store.lease(subject("a1"), ask(1, 600, 100_000))).unwrap();
                    (0..100).map(|_| lease().granted).sum::<u32>()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(granted, 600);
}

#[tokio::test]
async fn several_processes_may_open_a_new_file_at_the_same_time() {
    let folder = folder();
    let path = folder.path().join("deep/er/gateway.db");
    let threads: Vec<_> = (0..6)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || SqliteStore::open(&path).map(drop))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_an_unclean_end() {
    let (folder, copy) = (folder(), folder());
    let store = open(&folder);
    create(&*store, "k1", "a1").await;
    let lease = store.lease(subject("a1"), ask(1, 600, 1000)).await.unwrap();
    // As a killed process leaves it: nothing closed, the log not checkpointed.
    for file in ["gateway.db", "gateway.db-wal"] {
        std::fs::copy(folder.path().join(file), copy.path().join(file)).unwrap();
    }
    let again = open(&copy);
    assert!(again.key_by_secret(hash("k1")).await.unwrap().is_some());
    let next = again.lease(subject("a1"), ask(1, 600, 1000)).await.unwrap();
    if next.seen.day == lease.seen.day {
        assert_eq!(next.seen.day_granted, lease.seen.day_granted + 1);
    }
    drop(store);
    assert!(open(&folder).key(key_id("k1")).await.unwrap().is_some(), "and after a clean one");
}

const CHILD: &str = "SEEME_TEST_SQLITE_CHILD";

/// Not a test by itself: the process that the next one kills.
#[tokio::test]
async fn child_that_creates_keys_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let store = SqliteStore::open(path.as_ref()).unwrap();
    for n in 0.. {
        create(&*store, &format!("k{n}"), "a1").await;
        println!("\ncreated k{n}");
    }
}

#[tokio::test]
async fn no_answered_key_is_lost_when_the_process_is_killed() {
    let folder = folder();
    let store = open(&folder);
    let this = "store::sqlite::tests::processes::child_that_creates_keys_until_it_is_killed";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", this, "--nocapture"])
        .env(CHILD, store.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut created = Vec::new();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines {
        let line = line.unwrap();
        created.extend(line.strip_prefix("created ").map(str::to_owned));
        if created.len() == 30 {
            // SIGKILL, in the midst of its work; what it still said is read too.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(created.len() >= 30, "the child ended early: {created:?}");
    for id in created {
        assert!(store.key(key_id(&id)).await.unwrap().is_some(), "{id} is lost");
        assert!(store.key_by_secret(hash(&id)).await.unwrap().is_some(), "the secret of {id} is lost");
    }
    create(&*store, "after", "a1").await;
}

#[tokio::test]
async fn who_slept_through_pruned_changes_is_told_so() {
    let folder = folder();
    let path = folder.path().join("gateway.db");
    let (hand, clock) = hand_clock();
    let store = open_at(&path, &clock);
    let mut feed = store.subscribe();
    // Two changes and the pruning of the first in one transaction: the feed cannot have read it in between.
    store
        .note(|tx| {
            tx.announce(&Change::Account(account_id("a1")))?;
            tx.announce(&Change::Account(account_id("a2")))?;
            Ok(tx.execute("DELETE FROM changes WHERE id = 'a1'", [])?)
        })
        .await
        .unwrap();
    assert_eq!(news(&mut feed).await, FeedItem::Lost);
    let FeedItem::Restored(revision) = news(&mut feed).await else { panic!("not restored") };
    let next = store.replace_account(Account::unset(account_id("a3")), None).await.unwrap();
    assert!(next > revision);
    assert_eq!(changes(&mut feed, 1).await, (next, vec![Change::Account(account_id("a3"))]));

    // A regular sweep prunes only what everybody awake has read; numbers go on where they were.
    hand.fetch_add(3601 * 1_000_000, Ordering::SeqCst);
    store.sweep(Duration::MAX).await.unwrap();
    let last = store.replace_account(Account::unset(account_id("a4")), None).await.unwrap();
    assert!(last > next);
    assert_eq!(changes(&mut feed, 1).await, (last, vec![Change::Account(account_id("a4"))]));
}

/// The next item that says more than "nothing happened".
async fn news(feed: &mut ChangeFeed) -> FeedItem {
    loop {
        match feed.recv().await.expect("the feed is open") {
            FeedItem::Changes(_, changes) if changes.is_empty() => {}
            item => return item,
        }
    }
}

#[tokio::test]
async fn a_feed_without_news_says_so_that_its_silence_means_something() {
    let folder = folder();
    let store = open(&folder);
    let mut feed = store.subscribe();
    for _ in 0..3 {
        let item = tokio::time::timeout(Duration::from_secs(5), feed.recv()).await;
        assert_eq!(item.expect("a sign of life"), Some(FeedItem::Changes(Revision(0), Vec::new())));
    }
}

#[tokio::test]
async fn a_feed_that_cannot_read_says_so_once_and_recovers() {
    let folder = folder();
    let store = open(&folder);
    let mut feed = store.subscribe();
    let operator = rusqlite::Connection::open(store.path()).unwrap();
    operator.execute_batch("ALTER TABLE changes RENAME TO elsewhere").unwrap();
    assert_eq!(news(&mut feed).await, FeedItem::Lost);
    let mut late = store.subscribe();
    assert_eq!(news(&mut late).await, FeedItem::Lost, "who comes later is told as well");
    operator.execute_batch("ALTER TABLE elsewhere RENAME TO changes").unwrap();
    assert!(matches!(news(&mut feed).await, FeedItem::Restored(_)));
    assert!(matches!(news(&mut late).await, FeedItem::Restored(_)));
    store.replace_account(Account::unset(account_id("a1")), None).await.unwrap();
    assert_eq!(changes(&mut feed, 1).await.1, [Change::Account(account_id("a1"))]);
}

/// Prints what a call costs; run it with `--ignored --nocapture` in a release build.
#[tokio::test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "measures")]
async fn what_a_lease_costs() {
    let folder = folder();
    let store = open(&folder);
    let calls = 5000;
    let start = std::time::Instant::now();
    for _ in 0..calls {
        store.lease(subject("a1"), ask(1, u32::MAX, u32::MAX)).await.unwrap();
    }
    println!("lease: {:?} each, one after the other", start.elapsed() / calls);
    let start = std::time::Instant::now();
    let all: Vec<_> = (0..64)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for _ in 0..500 {
                    store.lease(subject(&format!("a{n}")), ask(1, u32::MAX, u32::MAX)).await.unwrap();
                }
            })
        })
        .collect();
    for task in all {
        task.await.unwrap();
    }
    println!("lease: {:?} each, 64 at a time", start.elapsed() / (64 * 500));
    let others: Vec<_> = (0..3)
        .map(|_| {
            let store = open(&folder);
            tokio::spawn(async move {
                let mut longest = Duration::ZERO;
                for _ in 0..2000 {
                    let start = std::time::Instant::now();
                    store.lease(subject("a1"), ask(1, u32::MAX, u32::MAX)).await.unwrap();
                    longest = longest.max(start.elapsed());
                }
                longest
            })
        })
        .collect();
    let start = std::time::Instant::now();
    for other in others {
        println!("lease: {:?} at worst among three handles", other.await.unwrap());
    }
    println!("lease: {:?} each, three handles", start.elapsed() / 6000);
}

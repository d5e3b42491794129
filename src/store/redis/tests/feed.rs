//! The change feed when its connection breaks, when tracking is refused, and when the server forgets everything.

use std::time::Duration;

use super::support::{FaultProxy, RedisServer};
use super::{Password, Servers, at, config, local, open};
use crate::policy::key::Account;
use crate::store::contract::{account_id, changes, create, key_id, subject};
use crate::store::{Change, ChangeFeed, FeedItem, Store};

/// The next item that says more than "nothing happened".
async fn news(feed: &mut ChangeFeed) -> FeedItem {
    let next = async {
        loop {
            match feed.recv().await.expect("the feed is open") {
                FeedItem::Changes(_, changes) if changes.is_empty() => {}
                item => return item,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), next).await.expect("news within ten seconds")
}

#[tokio::test]
async fn a_broken_link_is_told_and_nothing_is_trusted_before_tracking_is_on_again() {
    let server = RedisServer::start();
    let proxy = FaultProxy::to(server.port());
    let far = config(Servers::Standalone(local(proxy.port())));
    let near = super::RedisConfig { servers: Servers::Standalone(local(server.port())), ..far.clone() };
    let (far, near) = (open(far).await, open(near).await);
    let mut feed = far.subscribe();
    create(&*near, "k1", "a1").await;
    changes(&mut feed, 2).await;

    proxy.down();
    proxy.reset();
    assert_eq!(news(&mut feed).await, FeedItem::Lost);
    let missed = near.replace_account(Account::unset(account_id("a1")), None).await.unwrap();
    proxy.up();
    // What was missed is covered: whoever is restored to this revision drops what it had.
    assert_eq!(news(&mut feed).await, FeedItem::Restored(missed));
    let next = near.replace_account(Account::unset(account_id("a2")), None).await.unwrap();
    assert_eq!(news(&mut feed).await, FeedItem::Changes(next, vec![Change::Account(account_id("a2"))]));
}

#[tokio::test]
async fn a_link_that_is_silent_is_given_up_within_two_seconds() {
    let server = RedisServer::start();
    let proxy = FaultProxy::to(server.port());
    let store = open(config(Servers::Standalone(local(proxy.port())))).await;
    let mut feed = store.subscribe();
    proxy.stall();
    assert_eq!(news(&mut feed).await, FeedItem::Lost);
    proxy.resume();
    assert!(matches!(news(&mut feed).await, FeedItem::Restored(_)));
}

#[tokio::test]
async fn whoever_may_not_track_hears_the_same_over_the_channel() {
    let server = RedisServer::start();
    server.create_user("plain", "secret", &["~*", "&*", "+@all", "-client|tracking"]);
    let mut plain = at(&server);
    (plain.username, plain.password) = (Some("plain".to_owned()), Some(Password::Text("secret".to_owned())));
    let (plain, full) =
        (open(plain.clone()).await, open(super::RedisConfig { username: None, password: None, ..plain }).await);
    let findings = plain.findings().await.unwrap();
    let trouble = |check: &str| findings.iter().find(|finding| finding.check == check).unwrap().trouble.clone();
    assert!(trouble("tracking").unwrap().contains("CLIENT TRACKING"), "{findings:?}");
    assert!(
        full.findings().await.unwrap().iter().all(|finding| finding.check != "tracking" || finding.trouble.is_none())
    );

    let mut feed = plain.subscribe();
    let created = create(&*full, "k1", "a1").await;
    let (revision, told) = changes(&mut feed, 2).await;
    assert!(revision == created && told.contains(&Change::Key(key_id("k1"))), "{told:?}");
    let minute = loop {
        let reply = full.lease(subject("a1"), crate::store::contract::ask(5, 1_000_000, 60)).await.unwrap();
        if reply.recall {
            break reply.minute;
        }
    };
    assert_eq!(changes(&mut feed, 1).await.1, [Change::Recall(subject("a1"), minute)]);
}

#[tokio::test]
async fn a_server_that_forgot_everything_makes_everybody_forget() {
    let server = RedisServer::start();
    let store = open(at(&server)).await;
    let mut feed = store.subscribe();
    let before = create(&*store, "k1", "a1").await;
    changes(&mut feed, 2).await;
    server.cli(&["FLUSHALL"]);
    assert_eq!(news(&mut feed).await, FeedItem::Lost);
    assert!(matches!(news(&mut feed).await, FeedItem::Restored(_)));
    let after = create(&*store, "k2", "a1").await;
    assert!(after > before, "a revision fell back: {after:?} after {before:?}");
}

#[tokio::test]
async fn a_record_that_another_program_writes_is_obeyed_without_telling_anybody() {
    let server = RedisServer::shared();
    let store = open(at(&server)).await;
    let mut feed = store.subscribe();
    create(&*store, "k1", "a1").await;
    changes(&mut feed, 2).await;
    let record = server.cli(&["HGET", &format!("{}key:k1", store.names.registry()), "record"]);
    let disabled = record.replace("\"disabled\":false", "\"disabled\":true");
    assert_ne!(record, disabled);
    server.cli(&["HSET", &format!("{}key:k1", store.names.registry()), "record", &disabled]);
    assert_eq!(changes(&mut feed, 1).await.1, [Change::Key(key_id("k1"))]);
    assert!(store.key(key_id("k1")).await.unwrap().unwrap().record.disabled);
}

#[tokio::test]
async fn a_key_written_as_the_documentation_says_is_a_key() {
    let server = RedisServer::shared();
    let store = open(at(&server)).await;
    let hash = crate::store::contract::hash("elsewhere");
    // An unknown secret is remembered as unknown: its appearance must be told.
    let mut feed = store.subscribe();
    let lines = include_str!("../mod.rs").lines().map(|line| line.trim_start_matches("//! "));
    let commands: Vec<&str> = lines.filter(|line| line.starts_with("HSET sm:") || line.contains(" k-1")).collect();
    assert_eq!(commands.iter().filter(|line| line.starts_with("ZADD")).count(), 2, "{commands:?}");
    for line in commands.iter().filter(|line| !line.starts_with('|')) {
        let line = line.replace("sm:", store.names.prefix()).replace("HASH", &hash.to_hex());
        // Words, but for what stands between quotes.
        let words: Vec<&str> = line
            .split('\'')
            .enumerate()
            .flat_map(|(n, part)| if n % 2 == 1 { vec![part] } else { part.split_ascii_whitespace().collect() })
            .collect();
        server.cli(&words);
    }
    let told = changes(&mut feed, 2).await.1;
    assert!(told.contains(&Change::Secret(hash)) && told.contains(&Change::Key(key_id("k-1"))), "{told:?}");
    let key = store.key_by_secret(hash).await.unwrap().unwrap();
    assert_eq!((key.record.name.as_str(), key.secrets.len()), ("ci", 1));
    assert_eq!(store.keys(crate::store::KeyFilter::default()).await.unwrap(), [key]);
}

#[tokio::test]
async fn a_damaged_row_takes_no_other_with_it_and_a_name_that_points_at_another_key_opens_nothing() {
    let server = RedisServer::shared();
    let store = open(at(&server)).await;
    for id in ["k1", "k2", "k3"] {
        create(&*store, id, "a1").await;
    }
    let (row, secret) = (
        |id| format!("{}key:{id}", store.names.registry()),
        |seed| format!("{}secret:{}", store.names.registry(), crate::store::contract::hash(seed).to_hex()),
    );
    server.cli(&["HSET", &row("k1"), "record", "garbage"]);
    server.cli(&["DEL", &row("k2")]);
    server.cli(&["SET", &row("k2"), "no hash"]);
    let listed = store.keys(crate::store::KeyFilter::default()).await.unwrap();
    assert_eq!(listed.iter().map(|key| key.record.id.as_str()).collect::<Vec<_>>(), ["k3"]);
    for id in ["k1", "k2"] {
        let error = store.key(key_id(id)).await.unwrap_err();
        assert!(matches!(&error, crate::store::StoreError::Corrupt(text) if text.contains(id)), "{error:?}");
    }
    // Another key's record in the row, and another key's row behind the name.
    let record = server.cli(&["HGET", &row("k3"), "record"]);
    server.cli(&["HSET", &row("k1"), "record", &record]);
    assert!(store.key(key_id("k1")).await.is_err());
    server.cli(&["SET", &secret("stray"), "k3"]);
    assert!(store.key_by_secret(crate::store::contract::hash("stray")).await.unwrap().is_none());
    // A row of gateways that nobody can read goes by itself.
    server.cli(&["HSET", &store.names.aux("replicas"), "x", "junk"]);
    store.register(crate::store::ReplicaId("r1".into()), "host:1".into()).await.unwrap();
    assert_eq!(store.replicas().await.unwrap().len(), 1);
}

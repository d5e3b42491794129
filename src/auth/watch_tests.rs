//! When a watched key ends, in simulated time.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use http::Method as HttpMethod;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::tests::Fixture;
use super::*;
use crate::policy::access::{Authenticated, Grant, Values};
use crate::policy::path::RequestPath;
use crate::policy::rejection::Rejection;
use crate::store::faulty::{Fault, Method};
use crate::store::{FeedItem, Revision};

/// A tunnel of this key, and after what time it ended.
async fn watch(f: &Fixture) -> JoinHandle<(Ended, Duration)> {
    let profile = f.look_up(f.hash).await.unwrap().unwrap();
    let (watch, grant, front) = (f.auth.watch(f.hash, &profile), grant(f, profile), f.front.clone());
    let config = f.config.clone();
    let watching = tokio::spawn(async move {
        let begun = Instant::now();
        (watch.ended(&grant, &front, || config.clone()).await, begun.elapsed())
    });
    tokio::task::yield_now().await;
    watching
}

fn grant(f: &Fixture, profile: Arc<KeyProfile>) -> Grant {
    let found = f.config.routes.find(&HttpMethod::GET, &RequestPath::parse("/").unwrap()).unwrap();
    let key = Authenticated::check(profile, f.auth.clock.wall(), Ipv4Addr::LOCALHOST.into()).unwrap();
    let scoped = key.check_scope(&found.route.access.clone()).unwrap();
    scoped.check_resources(found, Values::default()).unwrap()
}

fn deleted() -> Ended {
    Ended::Rejected(Rejection::InvalidKey)
}

/// As a feed that lives does.
fn keep_hearing(f: &Fixture) -> JoinHandle<()> {
    let auth = f.auth.clone();
    tokio::spawn(async move {
        loop {
            auth.apply(&FeedItem::Changes(Revision(1), Vec::new()));
            sleep(Duration::from_millis(200)).await;
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_watched_key_ends_when_its_deletion_is_heard_and_not_by_what_happens_to_others() {
    let f = Fixture::new().await;
    let hearing = keep_hearing(&f);
    let watching = watch(&f).await;
    sleep(Duration::from_secs(30)).await;
    let others = Change::Account(crate::store::contract::account_id("other"));
    let calls = f.look_ups();
    f.auth.apply(&FeedItem::Changes(Revision(2), vec![others]));
    sleep(Duration::from_millis(100)).await;
    assert!(!watching.is_finished());
    assert_eq!(f.look_ups(), calls, "not even asked for");
    let change = f.delete().await;
    let before = Instant::now();
    f.auth.apply(&FeedItem::Changes(Revision(3), vec![change]));
    assert_eq!(watching.await.unwrap().0, deleted());
    assert_eq!(before.elapsed(), Duration::ZERO);
    hearing.abort();
    assert!(f.auth.watchers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_deletion_between_the_check_and_the_watch_is_noticed_at_once() {
    let f = Fixture::new().await;
    let profile = f.look_up(f.hash).await.unwrap().unwrap();
    let grant = grant(&f, profile.clone());
    let change = f.delete().await;
    f.auth.apply(&FeedItem::Changes(Revision(2), vec![change]));
    assert_eq!(f.auth.watch(f.hash, &profile).ended(&grant, &f.front, || f.config.clone()).await, deleted());
}

#[tokio::test(start_paused = true)]
async fn while_changes_do_not_arrive_a_watched_key_is_asked_for_as_often_as_any() {
    let f = Fixture::new().await;
    let watching = watch(&f).await;
    f.auth.apply(&FeedItem::Lost);
    sleep(Duration::from_secs(20)).await;
    assert!((3..=5).contains(&f.look_ups()), "{}", f.look_ups());
    f.delete().await;
    let before = Instant::now();
    assert_eq!(watching.await.unwrap().0, deleted());
    assert!(before.elapsed() <= Duration::from_secs(5), "cache.recheck_without_push: {:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_is_back_is_a_reason_to_look() {
    let f = Fixture::new().await;
    let watching = watch(&f).await;
    f.delete().await;
    f.auth.apply(&FeedItem::Restored(Revision(2)));
    assert_eq!(watching.await.unwrap(), (deleted(), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn without_a_store_a_watched_key_lives_as_long_as_known_keys_are_served() {
    let f = Fixture::new().await;
    let watching = watch(&f).await;
    f.store.inject_everywhere(Fault::Unavailable);
    f.auth.apply(&FeedItem::Lost);
    let (ended, after) = watching.await.unwrap();
    assert_eq!(ended, Ended::StoreUnavailable);
    assert!((60..=66).contains(&after.as_secs()), "store.outage.serve_cached_keys_for: {after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_slow_to_say_what_changed_ends_nothing() {
    let f = Fixture::new().await;
    let hearing = keep_hearing(&f);
    let watching = watch(&f).await;
    f.store.inject_times(Method::KeyBySecret, Fault::DelayReply(Duration::from_millis(600)), 1);
    f.auth.apply(&FeedItem::Changes(Revision(2), vec![Change::Key(f.id.clone())]));
    sleep(Duration::from_secs(3)).await;
    assert!(!watching.is_finished(), "it is as good as before");
    watching.abort();
    let _ = watching.await;
    assert!(f.auth.watchers.is_empty());
    hearing.abort();
}

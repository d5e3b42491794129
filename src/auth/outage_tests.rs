//! The key cache over a store that is slow, silent or comes back, in simulated time.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::tests::Fixture;
use super::*;
use crate::store::faulty::{Fault, Method};
use crate::store::{FeedItem, Revision};

/// `store.timeout`, and the time between two looks at a call that is out.
const SILENCE: Duration = Duration::from_millis(55);

fn unknown(n: u64) -> KeyHash {
    let mut hash = [0xAA; 32];
    hash[..8].copy_from_slice(&n.to_le_bytes());
    KeyHash(hash)
}

#[tokio::test(start_paused = true)]
async fn a_request_that_missed_the_cache_just_before_the_answer_came_does_not_ask_again() {
    let f = Fixture::new().await;
    for _ in 0..2 {
        assert!(f.auth.load_once(unknown(1), PATIENCE, &f.config).await.unwrap().is_none());
    }
    assert_eq!(f.store.calls(Method::KeyBySecret), 1);
}

#[tokio::test(start_paused = true)]
async fn two_thousand_cold_keys_that_come_three_times_at_once_are_one_look_up_each() {
    let f = Fixture::new().await;
    f.store.inject(Method::KeyBySecret, Fault::DelayReply(Duration::from_millis(100)));
    let mut requests = JoinSet::new();
    for n in 0..6_000 {
        let (auth, front, config) = (f.auth.clone(), f.front.clone(), f.config.clone());
        requests.spawn(async move { auth.look_up(unknown(n % 2_000), &front, &config).await });
    }
    let started = Instant::now();
    assert!(requests.join_all().await.into_iter().all(|answer| answer.unwrap().is_none()));
    assert_eq!((f.look_ups(), started.elapsed()), (2_000, Duration::from_millis(100)));
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_waited_for_a_quarter_second_and_enters_the_cache_all_the_same() {
    let f = Fixture::new().await;
    for (slow, answered) in [(200, true), (300, false)] {
        f.auth.apply(&FeedItem::Restored(Revision(1)));
        f.store.inject_times(Method::KeyBySecret, Fault::DelayReply(Duration::from_millis(slow)), 1);
        let (calls, started) = (f.look_ups(), Instant::now());
        assert_eq!(f.look_up(f.hash).await.is_ok(), answered);
        assert_eq!(started.elapsed(), Duration::from_millis(slow.min(250)));
        sleep(Duration::from_millis(60)).await;
        f.hear_nothing();
        assert!(f.look_up(f.hash).await.unwrap().is_some());
        assert_eq!(f.look_ups(), calls + 1);
    }
    assert!(f.guard.is_well(), "slow is not away");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_leaves_ends_no_look_up_and_one_that_never_ends_keeps_nobody_waiting() {
    let f = Fixture::new().await;
    f.store.inject_times(Method::KeyBySecret, Fault::DelayReply(Duration::from_millis(30)), 1);
    timeout(Duration::from_millis(10), f.look_up(f.hash)).await.unwrap_err();
    sleep(Duration::from_millis(30)).await;
    assert!(f.look_up(f.hash).await.unwrap().is_some());
    assert_eq!(f.look_ups(), 1);

    // Held for ever, while pings are answered.
    f.store.inject_times(Method::KeyBySecret, Fault::Hold, 1);
    assert!(f.look_up(unknown(1)).await.is_err());
    sleep(Duration::from_secs(3)).await;
    assert!(f.look_up(unknown(1)).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_away_known_keys_are_served_at_once_and_others_refused_at_once() {
    let f = Fixture::new().await;
    f.look_up(f.hash).await.unwrap();
    f.store.inject_everywhere(Fault::Hold);
    f.auth.apply(&FeedItem::Lost);
    let (mut waited, mut calls) = (Vec::new(), None);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(10) {
        for n in 0..100 {
            let asked = Instant::now();
            assert!(f.look_up(f.hash).await.unwrap().is_some());
            assert_eq!(f.look_up(unknown(n)).await.unwrap_err(), StoreUnavailable);
            if !asked.elapsed().is_zero() {
                waited.push(asked.elapsed());
            }
        }
        sleep(Duration::from_millis(10)).await;
        assert_eq!(*calls.get_or_insert(f.look_ups()), f.look_ups(), "those that found out were the last");
    }
    assert!(waited.len() <= 1 && waited.iter().all(|long| *long <= SILENCE), "{waited:?}");

    f.store.heal();
    sleep(Duration::from_millis(1_200)).await;
    assert!(f.look_up(unknown(1)).await.unwrap().is_none());
    // What was served without being vouched for is asked for again within a second.
    let calls = f.look_ups();
    sleep(Duration::from_secs(1)).await;
    assert!(f.look_up(f.hash).await.unwrap().is_some());
    assert_eq!(f.look_ups(), calls + 1);
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_when_the_store_goes_away_are_told_together_and_the_next_look_up_is_a_new_one() {
    let f = Fixture::new().await;
    f.store.inject_everywhere(Fault::Hold);
    let started = Instant::now();
    let mut requests = JoinSet::new();
    for n in 0..1_000 {
        let (auth, front, config) = (f.auth.clone(), f.front.clone(), f.config.clone());
        requests.spawn(async move {
            sleep(Duration::from_millis(n % 40)).await;
            auth.look_up(unknown(n), &front, &config).await
        });
    }
    assert!(requests.join_all().await.into_iter().all(|answer| answer.is_err()));
    assert!(started.elapsed() <= SILENCE + Duration::from_millis(5), "{:?}", started.elapsed());
    f.store.heal();
    sleep(Duration::from_millis(1_200)).await;
    // The calls from before are held still.
    for n in 0..10 {
        assert!(f.look_up(unknown(n)).await.unwrap().is_none());
    }
    assert!(f.auth.index().flights.is_empty());
}

/// A load that one change after the other overtakes gives up in the end: what it found is for those who asked before.
#[tokio::test(start_paused = true)]
async fn nobody_joins_a_load_that_began_before_the_last_change() {
    let f = Fixture::new().await;
    f.store.inject_times(Method::KeyBySecret, Fault::DelayReply(Duration::from_millis(60)), 3);
    let (auth, front, hash, config) = (f.auth.clone(), f.front.clone(), f.hash, f.config.clone());
    let early = tokio::spawn(async move { auth.look_up(hash, &front, &config).await });
    for change in 1..=3 {
        sleep(Duration::from_millis(if change == 1 { 50 } else { 60 })).await;
        let change = if change == 3 { f.delete().await } else { Change::Key(f.id.clone()) };
        f.auth.apply(&FeedItem::Changes(Revision(2), vec![change]));
    }
    assert!(f.look_up(f.hash).await.unwrap().is_none(), "it is deleted");
    assert!(early.await.unwrap().unwrap().is_some(), "when it was asked for it was there");
    assert!(f.look_up(f.hash).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_before_an_outage_is_no_younger_than_its_question() {
    let f = Fixture::new().await;
    f.auth.apply(&FeedItem::Lost);
    f.store.inject_times(Method::KeyBySecret, Fault::DelayReply(Duration::from_millis(240)), 1);
    f.look_up(f.hash).await.unwrap();
    sleep(Duration::from_millis(4_770)).await;
    f.look_up(f.hash).await.unwrap();
    assert_eq!(f.look_ups(), 2, "cache.recheck_without_push counts from the question");
}

#[tokio::test(start_paused = true)]
async fn only_a_sign_of_life_is_word_from_the_store_neither_a_late_change_nor_the_loss_of_the_feed() {
    let f = Fixture::new().await;
    f.hear_nothing();
    assert!(f.look_up(f.hash).await.unwrap().is_some());
    f.store.inject_everywhere(Fault::Unavailable);
    sleep(Duration::from_secs(50)).await;
    assert!(f.look_up(f.hash).await.unwrap().is_some(), "served without a store for a minute");
    // What lay in a socket, and what a dead connection says of itself.
    f.auth.apply(&FeedItem::Changes(Revision(9), vec![Change::Account(crate::store::contract::account_id("other"))]));
    f.auth.apply(&FeedItem::Lost);
    sleep(Duration::from_secs(11)).await;
    assert!(f.look_up(f.hash).await.is_err(), "served for longer than it is waited for");
}

//! Contract: leases. The arithmetic itself is tested in `policy::quota`; here it is that a store keeps it.

use std::collections::HashMap;
use std::sync::Arc;

use super::{ask, changes, subject};
use crate::policy::quota::{LeaseReply, LeaseRequest};
use crate::store::{Change, Store};

/// A limit that nobody reaches.
const AMPLE: u32 = 1_000_000;

async fn lease(store: &Arc<dyn Store>, of: &str, request: LeaseRequest) -> LeaseReply {
    store.lease(subject(of), request).await.unwrap()
}

/// Runs `calls` in eight tasks at once and returns all replies.
async fn in_parallel(store: &Arc<dyn Store>, calls: usize, request: LeaseRequest) -> Vec<LeaseReply> {
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut replies = Vec::new();
                for _ in 0..calls / 8 {
                    replies.push(lease(&store, "a1", request).await);
                }
                replies
            })
        })
        .collect();
    let mut replies = Vec::new();
    for task in tasks {
        replies.extend(task.await.unwrap());
    }
    replies
}

/// Skips the rare case in which midnight UTC falls into a test.
fn same_day(replies: &[LeaseReply]) -> bool {
    replies.iter().all(|reply| reply.seen.day == replies[0].seen.day)
}

pub(crate) async fn concurrent_leases_of_a_day_add_up_to_its_limit_and_no_more(store: Arc<dyn Store>) {
    let replies = in_parallel(&store, 160, ask(3, AMPLE, 100)).await;
    if same_day(&replies) {
        assert_eq!(replies.iter().map(|reply| reply.granted).sum::<u32>(), 100);
        assert!(replies.iter().any(|reply| reply.granted == 0 && reply.day_left == 0));
    }
}

pub(crate) async fn no_minute_grants_more_than_its_limit(store: Arc<dyn Store>) {
    let mut granted: HashMap<u32, u32> = HashMap::new();
    for reply in in_parallel(&store, 160, ask(1, 60, AMPLE)).await {
        *granted.entry(reply.minute).or_default() += reply.granted;
    }
    assert!(granted.values().all(|&tokens| tokens <= 60), "{granted:?}");
    assert!(granted.values().any(|&tokens| tokens == 60), "{granted:?}");
}

pub(crate) async fn returned_tokens_can_be_leased_again(store: Arc<dyn Store>) {
    let first = lease(&store, "a1", ask(50, AMPLE, 100)).await;
    assert_eq!((first.granted, first.day_left), (50, 50));
    let back = LeaseRequest { give_back: Some((first.minute, 20)), ..ask(0, AMPLE, 100) };
    let reply = lease(&store, "a1", back).await;
    if same_day(&[first, reply]) {
        assert_eq!((reply.granted, reply.day_left), (0, 70));
        assert_eq!(reply.seen.day_granted, 50, "granted is monotone, returns are counted apart");
    }
}

pub(crate) async fn subjects_do_not_share_tokens(store: Arc<dyn Store>) {
    assert_eq!(lease(&store, "a1", ask(1, AMPLE, 1)).await.granted, 1);
    assert_eq!(lease(&store, "a2", ask(1, AMPLE, 1)).await.granted, 1);
}

pub(crate) async fn a_debit_is_charged_above_the_limit(store: Arc<dyn Store>) {
    let minute = lease(&store, "a1", ask(0, AMPLE, 5)).await.minute;
    let debit = lease(&store, "a1", LeaseRequest { debit: Some((minute, 7)), ..ask(0, AMPLE, 5) }).await;
    assert_eq!((debit.granted, debit.day_left, debit.seen.day_granted), (0, 0, 7));
    let refused = lease(&store, "a1", ask(1, AMPLE, 5)).await;
    if same_day(&[debit, refused]) {
        assert_eq!(refused.granted, 0);
    }
}

pub(crate) async fn little_left_recalls_what_is_outstanding(store: Arc<dyn Store>) {
    let mut feed = store.subscribe();
    // One gateway takes what it can in large pieces, until the ledger calls them back. A new minute begins anew.
    let mut recalled = None;
    for _ in 0..200 {
        let reply = lease(&store, "a1", ask(5, AMPLE, 60)).await;
        if reply.recall {
            recalled = Some(reply.minute);
            break;
        }
    }
    let minute = recalled.expect("the ledger recalls before it is empty");
    assert_eq!(changes(&mut feed, 1).await.1, [Change::Recall(subject("a1"), minute)]);
}

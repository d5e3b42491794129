//! The limiter over the embedded store, as three gateway processes on one file are: own handles, own change feeds.

use std::path::Path;
use std::sync::Arc;

use super::store::BASE;
use super::*;
use crate::clock::SystemClock;
use crate::store::sqlite::SqliteStore;
use crate::store::{FeedItem, Store};

/// A gateway process as far as quota goes. Its clock begins one second into a minute of the store.
fn process(file: &Path, clock: &Arc<dyn Clock>) -> Arc<Limiter> {
    let mono = clock.clone();
    let store = SqliteStore::open_with_clock(file, Arc::new(move || BASE + mono.mono().0)).unwrap();
    let mut feed = store.subscribe();
    let guard = Guard::new(store, clock.clone(), TIMEOUT, Handle::current());
    let limiter = Arc::new(Limiter::new(guard, OutageQuota::LocalShare));
    let told = Arc::downgrade(&limiter);
    tokio::spawn(async move {
        while let Some(item) = feed.recv().await {
            let Some(limiter) = told.upgrade() else { return };
            if let FeedItem::Changes(_, changes) = item {
                changes.iter().for_each(|change| limiter.on_change(change));
            }
        }
    });
    limiter
}

/// `clients` connections, each sending one request after the other, spread over the processes.
async fn drive(processes: &[Arc<Limiter>], clients: usize, requests: usize, subject: &Subject) -> Vec<Answer> {
    let mut connections = JoinSet::new();
    for client in 0..clients {
        let (limiter, subject) = (processes[client % processes.len()].clone(), subject.clone());
        connections.spawn(async move {
            let mut answers = Vec::new();
            for _ in 0..requests / clients + usize::from(client < requests % clients) {
                answers.push(limiter.charge(&subject, 1, FREE).await.map(|(state, _)| state));
            }
            answers
        });
    }
    connections.join_all().await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_requests_over_three_processes_on_one_file_admit_exactly_sixty_ten_times() {
    let folder = tempfile::tempdir().unwrap();
    let clock = SystemClock::shared();
    let processes: Vec<_> = (0..3).map(|_| process(&folder.path().join("gateway.db"), &clock)).collect();
    for round in 0..10 {
        let subject = subject(&format!("account-{round}"));
        let started = Instant::now();
        let answers = drive(&processes, 64, 1_000, &subject).await;
        assert!(clock.mono().0 < 58_000_000, "the machine is too slow for this test: the minute changed");
        let unavailable = answers.iter().filter(|answer| **answer == Err(LimitError::StoreUnavailable)).count();
        assert_eq!((admitted(&answers), unavailable), (60, 0), "round {round} of {:?}", started.elapsed());
    }
    let calls: u64 = processes.iter().map(|limiter| limiter.stats().calls.get()).sum();
    assert!(calls <= 10 * 100, "{calls} calls for 10,000 requests");
}
